//! Tokenises the whole dataset on all cores and checks it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::checks::{Checks, Facts, TokenFacts};
use super::encode::{encode_whole, limit, longest};
use super::example::short_hash;
use super::near::Seen;
use super::read::Dataset;
use super::report::Findings;
use super::{
    DataError, DataProblem, EncodedRow, LengthStatistics, Prepared, ProblemKind, Report, Row, RowProblem,
    RowProblemKind, Severity, Split, Template, Tokenizer, read_dataset,
};
use crate::config::{Config, EvalSource};
use crate::model::{Architecture, ModelFiles};

/// Most threads for tokenising.
const MAX_THREADS: usize = 16;
/// Stack of these threads, in bytes: templates may nest.
const STACK_BYTES: usize = 8 << 20;
/// Rows that a thread takes at a time.
const ROWS_AT_ONCE: usize = 16;
/// Most rows compared for near-duplicates.
const MAX_NEAR: usize = 100_000;
/// Most progress reports.
const PROGRESS_STEPS: usize = 200;

/// A usable training or held-out row, as an algorithm's own check sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UsableRow<'a> {
    pub(crate) row: &'a Row,
    /// Whether it has several sides, all with the same tokens.
    pub(crate) same_sides: bool,
    /// Whether `data.max_length` cut off tokens.
    pub(crate) truncated: bool,
}

/// The result for one row.
struct Outcome {
    facts: Facts,
    /// Tokens of its longest side before `data.max_length` is applied; 0 if the row could not be tokenised.
    length: usize,
    encoded: Result<(EncodedRow, TokenFacts, bool), RowProblem>,
}

/// Reads, tokenises and checks the project's dataset. Unusable rows become findings of the report; an error
/// means that no row can be used. `progress` is called with the number of finished rows and of all rows; if
/// it cancels, the result is [`DataError::Cancelled`].
pub fn prepare(
    config: &Config,
    project: &Path,
    files: &ModelFiles,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Prepared, DataError> {
    let dataset = read_dataset(config, project)?;
    let tokenizer = Tokenizer::open(files)?;
    let template = Template::resolve(config, project, files)?;
    let stop = template.stop_tokens(&tokenizer, files);
    let mut prepared = prepare_with(config, &dataset, &tokenizer, &template, stop, progress)?;
    if let Some(problem) = beyond_positions(&files.architecture, &prepared) {
        let place = prepared.report.problems.partition_point(|other| other.severity <= problem.severity);
        prepared.report.problems.insert(place, problem);
    }
    Ok(prepared)
}

/// The problem of rows longer than the model's context. A model with learned positions cannot read them.
fn beyond_positions(architecture: &Architecture, prepared: &Prepared) -> Option<DataProblem> {
    let room = architecture.learned_positions.unwrap_or(architecture.positions);
    let rows = prepared.train.iter().chain(&prepared.eval).filter(|row| row.longest() > room).count();
    if rows == 0 {
        return None;
    }
    let (severity, what) = match architecture.learned_positions {
        Some(_) => (Severity::Blocks, "has positions for"),
        None => (Severity::Warning, "was made for"),
    };
    let message = format!(
        "{rows} {} longer than the {room} tokens that the model {what}; set data.max_length = {room} or less",
        if rows == 1 { "row is" } else { "rows are" }
    );
    Some(DataProblem { kind: ProblemKind::BeyondPositions, severity, row: None, message })
}

pub(super) fn prepare_with(
    config: &Config,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &Template,
    stop: Vec<u32>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Prepared, DataError> {
    let checks = Checks::new(tokenizer, stop);
    let outcomes = look_at_all(&dataset.rows, progress, &|row| {
        let facts = checks.row(row);
        let whole = encode_whole(row, tokenizer, template, config);
        let length = whole.as_ref().map_or(0, |sides| longest(sides));
        let encoded = whole.and_then(|whole| limit(whole, row, config)).map(|sides| {
            let tokens = checks.tokens(row, &sides);
            let cut = sides.iter().any(|side| side.truncated);
            (EncodedRow::new(row.index, sides), tokens, cut)
        });
        Outcome { facts, length, encoded }
    })?;
    let mut findings = Findings::default();
    unusable_rows(dataset, &outcomes, &mut findings);
    token_findings(&dataset.rows, &outcomes, &mut findings);
    algorithm_findings(config, &dataset.rows, &outcomes, &mut findings);
    text_findings(&dataset.rows, &outcomes, &mut findings);
    repeated_rows(&dataset.rows, &outcomes, &mut findings);
    dataset_findings(config, &dataset.rows, &outcomes, &mut findings);
    Ok(assemble(dataset, template, outcomes, findings))
}

/// Calls `look` for each row, on several threads; the results are in the rows' order.
fn look_at_all(
    rows: &[Row],
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    look: &(dyn Fn(&Row) -> Outcome + Sync),
) -> Result<Vec<Outcome>, DataError> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS)
        .min(rows.len().div_ceil(ROWS_AT_ONCE))
        .max(1);
    let next = AtomicUsize::new(0);
    let mut outcomes: Vec<Option<Outcome>> = (0..rows.len()).map(|_| None).collect();
    if progress(0, rows.len()).is_break() {
        return Err(DataError::Cancelled);
    }
    thread::scope(|scope| -> Result<(), DataError> {
        let (sender, receiver) = mpsc::channel();
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let sender = sender.clone();
            let next = &next;
            let work = move || {
                loop {
                    let start = next.fetch_add(ROWS_AT_ONCE, Ordering::Relaxed);
                    let Some(part) = rows.get(start..rows.len().min(start + ROWS_AT_ONCE)) else { return };
                    if part.is_empty() {
                        return;
                    }
                    for (index, row) in (start..).zip(part) {
                        if sender.send((index, look(row))).is_err() {
                            return;
                        }
                    }
                }
            };
            let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
            workers.push(
                worker.map_err(|error| DataError::Settings(format!("cannot start a thread: {error}")))?,
            );
        }
        drop(sender);
        let mut cancelled = false;
        let every = rows.len().div_ceil(PROGRESS_STEPS).max(1);
        for (done, (index, outcome)) in (1..).zip(receiver) {
            outcomes[index] = Some(outcome);
            if (done % every == 0 || done == rows.len()) && progress(done, rows.len()).is_break() {
                // Leaving the loop drops the receiver, which ends the workers.
                cancelled = true;
                break;
            }
        }
        for worker in workers {
            worker
                .join()
                .map_err(|_| DataError::Tokenizer("tokenising stopped on an internal fault".to_owned()))?;
        }
        if cancelled { Err(DataError::Cancelled) } else { Ok(()) }
    })?;
    Ok(outcomes.into_iter().flatten().collect())
}

fn unusable_rows(dataset: &Dataset, outcomes: &[Outcome], findings: &mut Findings) {
    for problem in &dataset.problems {
        findings.add(ProblemKind::UnreadableRow, Severity::Blocks, None, &problem.to_string());
    }
    if dataset.unreadable > dataset.problems.len() {
        let more = dataset.unreadable - dataset.problems.len();
        findings.add(
            ProblemKind::UnreadableRow,
            Severity::Blocks,
            None,
            &format!("{more} more rows cannot be read"),
        );
    }
    for problem in outcomes.iter().filter_map(|outcome| outcome.encoded.as_ref().err()) {
        let (kind, severity) = match problem.kind {
            RowProblemKind::Unreadable => (ProblemKind::UnreadableRow, Severity::Blocks),
            RowProblemKind::Template => (ProblemKind::TemplateFailed, Severity::Blocks),
            RowProblemKind::Tokenizer => (ProblemKind::TokenizerFailed, Severity::Blocks),
            RowProblemKind::Mask => (ProblemKind::MaskUncertain, Severity::Blocks),
            RowProblemKind::TooLong => (ProblemKind::TooLong, Severity::Blocks),
            RowProblemKind::Dropped => (ProblemKind::Dropped, Severity::Note),
        };
        findings.add(kind, severity, problem.row, &problem.to_string());
    }
}

fn token_findings(rows: &[Row], outcomes: &[Outcome], findings: &mut Findings) {
    let mut endless = Vec::new();
    let mut ending = 0;
    for (row, outcome) in rows.iter().zip(outcomes) {
        let Ok((_, tokens, truncated)) = &outcome.encoded else { continue };
        if tokens.trained == 0 {
            let severity = if row.split == Split::Train { Severity::Blocks } else { Severity::Warning };
            let why = if *truncated {
                "nothing to learn is left below data.max_length; raise it, or set data.overflow = \"drop\""
            } else {
                "nothing in it is trained on; add a reply, change data.train_on, or quarantine the row"
            };
            findings.row(ProblemKind::NoTrainedTokens, severity, row, why);
        }
        if *truncated {
            let what =
                format!("cut from {} tokens to data.max_length; its end is not learned", outcome.length);
            findings.row(ProblemKind::Truncated, Severity::Warning, row, &what);
        }
        if tokens.double_bos {
            findings.row(
                ProblemKind::DoubleBos,
                Severity::Warning,
                row,
                "begins with two begin-of-text tokens",
            );
        }
        match tokens.end_trained {
            Some(true) => ending += 1,
            Some(false) => endless.push(row),
            None => {}
        }
    }
    let what = "its reply ends without a trained end-of-turn token, so the model will not learn to stop";
    if ending == 0 && endless.len() > 1 {
        let what = format!(
            "none of {} replies ends with a trained end-of-turn token, so the model will not learn to stop. Does the \
             chat template fit the model?",
            endless.len()
        );
        findings.add(ProblemKind::EndOfTurnNotTrained, Severity::Warning, None, &what);
    } else {
        for row in endless {
            findings.row(ProblemKind::EndOfTurnNotTrained, Severity::Warning, row, what);
        }
    }
}

/// Rows must have the shape that the algorithm learns from, and pass its own checks.
fn algorithm_findings(config: &Config, rows: &[Row], outcomes: &[Outcome], findings: &mut Findings) {
    let algorithm = config.train.algorithm;
    let declaration = algorithm.declaration();
    declaration.rows.check(algorithm, rows, findings);
    let usable = |(row, outcome): (_, &Outcome)| {
        let (_, tokens, truncated) = outcome.encoded.as_ref().ok()?;
        Some(UsableRow { row, same_sides: tokens.same_sides, truncated: *truncated })
    };
    let usable: Vec<UsableRow> = rows.iter().zip(outcomes).filter_map(usable).collect();
    (declaration.check)(config, &usable, findings);
}

fn text_findings(rows: &[Row], outcomes: &[Outcome], findings: &mut Findings) {
    for (row, outcome) in rows.iter().zip(outcomes) {
        let facts = &outcome.facts;
        if facts.empty_reply {
            findings.row(ProblemKind::EmptyReply, Severity::Warning, row, "its reply is empty");
        }
        if let Some(broken) = facts.broken {
            findings.row(ProblemKind::BrokenText, Severity::Warning, row, broken);
        }
        if let Some(token) = &facts.special {
            let what = format!("its text spells {token}, which becomes that special token");
            findings.row(ProblemKind::SpecialTokenInText, Severity::Warning, row, &what);
        }
        if facts.email {
            findings.row(ProblemKind::EmailAddress, Severity::Note, row, "holds an e-mail address");
        }
    }
}

fn repeated_rows(rows: &[Row], outcomes: &[Outcome], findings: &mut Findings) {
    let mut first: HashMap<(u64, Split), &Row> = HashMap::new();
    let mut seen = Seen::default();
    let mut compared = 0;
    // Training rows first, so that the held-out row is the one reported.
    let sides = [Split::Train, Split::Eval];
    for side in sides {
        for (row, outcome) in rows.iter().zip(outcomes).filter(|(row, _)| row.split == side) {
            let key = outcome.facts.key;
            let in_train = first.get(&(key, Split::Train)).copied().filter(|_| side == Split::Eval);
            if let Some(other) = in_train {
                let what =
                    format!("held out, but says the same as training row {} ({})", other.index, other.origin);
                findings.row(ProblemKind::EvalInTrain, Severity::Warning, row, &what);
            } else if let Some(other) = first.get(&(key, side)) {
                let what = format!("says the same as row {} ({})", other.index, other.origin);
                findings.row(ProblemKind::Duplicate, Severity::Warning, row, &what);
            } else if let Some(signature) = &outcome.facts.signature
                && compared < MAX_NEAR
            {
                compared += 1;
                if let Some((other, share)) = seen.nearest(row.index, signature.clone()) {
                    let held_out = side == Split::Eval && rows[other].split == Split::Train;
                    let what = format!(
                        "{}nearly equal to {}row {other} ({}): {:.0} % of its pieces",
                        if held_out { "held out, but " } else { "" },
                        if held_out { "training " } else { "" },
                        rows[other].origin,
                        share * 100.0
                    );
                    findings.row(ProblemKind::NearDuplicate, Severity::Warning, row, &what);
                }
            }
            first.entry((key, side)).or_insert(row);
        }
    }
    if compared == MAX_NEAR {
        let what = format!("near-duplicates were looked for among the first {MAX_NEAR} different rows only");
        findings.add(ProblemKind::CheckLimited, Severity::Note, None, &what);
    }
}

fn dataset_findings(config: &Config, rows: &[Row], outcomes: &[Outcome], findings: &mut Findings) {
    let usable = |split: Split| {
        rows.iter()
            .zip(outcomes)
            .filter(|(row, outcome)| row.split == split && outcome.encoded.is_ok())
            .count()
    };
    let too_long = outcomes.iter().filter(|outcome| outcome.length > config.data.max_length).count();
    if !rows.is_empty() && too_long == rows.len() {
        let what = format!(
            "all {too_long} rows are longer than data.max_length = {}; raise it",
            config.data.max_length
        );
        findings.add(ProblemKind::AllTooLong, Severity::Blocks, None, &what);
    } else if usable(Split::Train) == 0 {
        let what = if rows.is_empty() { "there are no rows" } else { "no row is left to train on" };
        findings.add(ProblemKind::EmptyDataset, Severity::Blocks, None, what);
    }
    if usable(Split::Eval) == 0 && !rows.is_empty() {
        let what = match config.data.eval {
            EvalSource::Fraction(0.0) => "data.eval = 0 holds nothing out: there will be no evaluation",
            _ => "no held-out row is usable: there will be no evaluation",
        };
        findings.add(ProblemKind::NoEvalRows, Severity::Note, None, what);
    }
}

fn assemble(dataset: &Dataset, template: &Template, outcomes: Vec<Outcome>, findings: Findings) -> Prepared {
    let rows = &dataset.rows;
    let label = |row: &Row| row.extras.label.map_or_else(String::new, |label| label.to_string());
    let hashes: Vec<String> =
        rows.iter().map(|row| format!("{:?}{}{}", row.split, row.hash(), label(row))).collect();
    let parts: Vec<&[u8]> = hashes.iter().map(String::as_bytes).collect();
    let lengths: Vec<usize> =
        outcomes.iter().map(|outcome| outcome.length).filter(|&length| length > 0).collect();
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    let (mut truncated, mut dropped) = (0, 0);
    for (row, outcome) in rows.iter().zip(outcomes) {
        match outcome.encoded {
            Ok((encoded, _, cut)) => {
                truncated += usize::from(cut);
                match row.split {
                    Split::Train => train.push(encoded),
                    Split::Eval => eval.push(encoded),
                }
            }
            Err(problem) => dropped += usize::from(problem.kind == RowProblemKind::Dropped),
        }
    }
    let all = || train.iter().chain(&eval);
    let report = Report {
        rows: rows.len() + dataset.unreadable,
        train_rows: train.len(),
        eval_rows: eval.len(),
        quarantined: dataset.quarantined.len(),
        tokens: all().map(|row| row.tokens() as u64).sum(),
        trained_tokens: all().map(|row| row.trained_tokens() as u64).sum(),
        truncated,
        dropped,
        problems: findings.sorted(),
        lengths: LengthStatistics::of(lengths),
        template: template.name.clone(),
        template_fingerprint: template.fingerprint.clone(),
    };
    Prepared { train, eval, report, data_hash: short_hash(&parts) }
}

#[cfg(test)]
mod tests;
