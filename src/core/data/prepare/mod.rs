//! Tokenises the whole dataset on all cores and checks it.

mod findings;
mod unused;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use indexmap::IndexMap;
use serde_json::Value;
use unused::Unread;

use super::checks::{Checks, Facts, Sizes, TokenFacts, advice};
use super::encode::{encode_whole, limit, longest, sequences};
use super::example::short_hash;
use super::kept::{KeptChecks, Key};
use super::mask::wanted;
use super::message::call_parts;
use super::presence::{Lost, lost};
use super::read::{Dataset, stamp};
use super::report::{Findings, RoleLengths};
use super::roles::tokens_of_roles;
use super::{
    Checked, DataError, DataProblem, EncodedRow, ExampleSize, LengthStatistics, PlacedHead, Prepared,
    ProblemKind, Report, Row, RowProblem, RowProblemKind, Rows, Severity, Split, Template, Tokenizer,
    read_dataset, with_system,
};
use crate::config::{Config, SystemRole, TrainOn};
use crate::model::{Architecture, ModelFiles};
use crate::text::clean_line;

/// Most threads for tokenising.
const MAX_THREADS: usize = 16;
/// Stack of these threads, in bytes: templates may nest.
const STACK_BYTES: usize = 8 << 20;
/// Rows that a thread takes at a time.
const ROWS_AT_ONCE: usize = 16;
/// Rows compared for near-duplicates: the first ones.
const MAX_NEAR: usize = 100_000;
/// Most roles whose tokens are counted.
const MAX_ROLES: usize = 16;
/// Most progress reports.
const PROGRESS_STEPS: usize = 200;

/// A usable training or held-out row, as an algorithm's own check sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UsableRow<'a> {
    pub(crate) row: PlacedHead<'a>,
    /// Whether it has several sides, all with the same tokens.
    pub(crate) same_sides: bool,
    /// Whether `data.max_length` cut off tokens.
    pub(crate) truncated: bool,
}

/// The result for one row.
struct Outcome {
    facts: Facts,
    conversation: Conversation,
    /// What the template does not read.
    unread: Vec<Unread>,
    /// Tokens of its longest side before `data.max_length` is applied; 0 if the row could not be tokenised.
    length: usize,
    encoded: Result<Usable, RowProblem>,
    /// What its text lacks.
    lost: Vec<Lost>,
    /// Tokens of the text that the roles were counted in, and of each role.
    roles: (usize, Vec<(String, usize)>),
}

/// What the project's settings do to a row that is a conversation.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "facts that have nothing to do with each other")]
struct Conversation {
    is_one: bool,
    /// Whether a reply before the last is not trained.
    leaves_out_earlier: bool,
    /// Whether its system prompt is put into the first user message.
    is_merged: bool,
    /// Whether the arguments of a tool call are a text that is not JSON.
    has_undecoded_call: bool,
}

/// A row that can be used.
struct Usable {
    /// The sizes of its token sequences: one, or several of a text that is split.
    sizes: Vec<ExampleSize>,
    /// Those sequences, if they are kept.
    sequences: Vec<EncodedRow>,
    /// Trained tokens of each side of a preference pair.
    answers: Option<(usize, usize)>,
    tokens: TokenFacts,
    /// Whether `data.max_length` cut off tokens.
    truncated: bool,
    /// The text of a token that belongs to prompt and reply.
    across: Option<String>,
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
    let problem = beyond_positions(&files.architecture, &prepared.checked);
    prepared.checked.report.add(problem);
    Ok(prepared)
}

/// As [`prepare`], for a run that is not started yet: without the tokens, so that memory does not grow with what the rows
/// say, and with the problems of the settings. What was `kept` of the same data is not checked again.
pub fn check(
    config: &Config,
    project: &Path,
    files: &ModelFiles,
    kept: Option<&KeptChecks>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Checked, DataError> {
    check_with(config, project, files, kept, progress, || read_dataset(config, project).map(Cow::Owned))
}

/// As [`check`], of a dataset that was read. Where its files have changed since, nothing kept is used, and nothing is kept.
pub fn check_dataset(
    config: &Config,
    project: &Path,
    files: &ModelFiles,
    dataset: &Dataset,
    kept: Option<&KeptChecks>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Checked, DataError> {
    let is_as_read = || stamp(config, project).is_ok_and(|now| now == dataset.stamp);
    let kept = kept.filter(|_| is_as_read());
    check_with(config, project, files, kept, progress, || Ok(Cow::Borrowed(dataset)))
}

fn check_with<'data>(
    config: &Config,
    project: &Path,
    files: &ModelFiles,
    kept: Option<&KeptChecks>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    read: impl FnOnce() -> Result<Cow<'data, Dataset>, DataError>,
) -> Result<Checked, DataError> {
    let template = Template::resolve(config, project, files)?;
    let before = match kept {
        Some(_) => Some(Key::of(config, project, files, &template, &mut || progress(0, 0))?),
        None => None,
    };
    let found = kept.zip(before.as_ref()).and_then(|(kept, key)| kept.get(key));
    let mut checked = if let Some(checked) = found {
        checked
    } else {
        let dataset = read()?;
        let tokenizer = Tokenizer::open(files)?;
        let stop = template.stop_tokens(&tokenizer, files);
        let looked = look(config, &dataset, &tokenizer, &template, stop, Keep::Sizes, progress)?;
        if let Some((kept, before)) = kept.zip(before) {
            // Somebody may have written the files in the meantime.
            let after = Key::of(config, project, files, &template, &mut || progress(0, 0))?;
            let is_as_read = stamp(config, project).is_ok_and(|now| now == dataset.stamp);
            if before == after && is_as_read {
                kept.put(&after, &looked.checked);
            }
        }
        looked.checked
    };
    for problem in [long_warmup(config, &checked), beyond_positions(&files.architecture, &checked)] {
        checked.report.add(problem);
    }
    Ok(checked)
}

/// The problem of a warm-up that is longer than the run over these rows.
fn long_warmup(config: &Config, checked: &Checked) -> Option<DataProblem> {
    let message = checked.check_warmup(config).err()?.to_string();
    let kind = ProblemKind::LongWarmup;
    Some(DataProblem { kind, severity: Severity::Blocks, row: None, other: None, message })
}

/// The problem of rows longer than the model's context. A model with learned positions cannot read them.
fn beyond_positions(architecture: &Architecture, checked: &Checked) -> Option<DataProblem> {
    let room = architecture.learned_positions.unwrap_or(architecture.positions);
    let rows = checked.train.iter().chain(&checked.eval).filter(|row| row.longest > room).count();
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
    Some(DataProblem { kind: ProblemKind::BeyondPositions, severity, row: None, other: None, message })
}

/// What is kept of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Tokens,
    Sizes,
}

pub(super) fn prepare_with(
    config: &Config,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &Template,
    stop: Vec<u32>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Prepared, DataError> {
    look(config, dataset, tokenizer, template, stop, Keep::Tokens, progress)
}

fn look(
    config: &Config,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &Template,
    stop: Vec<u32>,
    keep: Keep,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Prepared, DataError> {
    let checks = Checks::new(tokenizer, template, config, stop);
    let fields = unused::RowFields::new(template, config);
    let outcomes = look_at_all(&dataset.rows, progress, &|row| {
        let facts = checks.row(row, row.index < MAX_NEAR);
        let whole = encode_whole(row, tokenizer, template, config);
        let length = whole.as_ref().map_or(0, |sides| longest(sides));
        let lost = whole.as_ref().map_or_else(|_| Vec::new(), |sides| lost(row, sides, template, config));
        let first = whole.as_ref().ok().and_then(|sides| sides.first());
        let roles = first.map_or_else(Default::default, |side| {
            (side.ids.len(), tokens_of_roles(row, side, template, config))
        });
        let encoded = whole.and_then(|whole| limit(whole, row, config)).and_then(|sides| {
            let tokens = checks.tokens(row, &sides);
            let truncated = sides.iter().any(|side| side.truncated);
            if truncated && tokens.trained == 0 {
                return Err(cut_off(row, length, config));
            }
            let across = sides.iter().find_map(|side| {
                let (start, end) = side.across?;
                side.text.get(start..end).map(ToOwned::to_owned)
            });
            let mut sequences = sequences(row, sides, tokenizer, config);
            let answers = sequences.first().filter(|_| row.example.is_pair()).and_then(answers);
            let sizes = sequences.iter().map(ExampleSize::of).collect();
            if keep == Keep::Sizes {
                sequences = Vec::new();
            }
            Ok(Usable { sizes, sequences, answers, tokens, truncated, across })
        });
        let conversation = conversation(row, template, config);
        Outcome { facts, conversation, unread: fields.unread(row), length, encoded, lost, roles }
    })?;
    let rows: Vec<PlacedHead> = dataset.rows.places().collect();
    let findings = findings::of(config, dataset, template, &rows, &outcomes);
    Ok(assemble(dataset, &rows, template, outcomes, findings))
}

/// Trained tokens of both sides of a pair.
fn answers(row: &EncodedRow) -> Option<(usize, usize)> {
    let trained =
        |side: usize| row.sides.get(side).map(|side| side.trained.iter().filter(|&&trained| trained).count());
    Some((trained(0)?, trained(1)?))
}

/// What the settings do to a row that is a conversation.
fn conversation(row: &Row, template: &Template, config: &Config) -> Conversation {
    let data = &config.data;
    let Some(messages) = row.example.messages() else { return Conversation::default() };
    let learned = wanted(&messages, data.train_on);
    let left_out = || {
        messages.iter().enumerate().any(|(index, message)| {
            message.is_assistant() && message.trained.is_none() && !learned.contains(&index)
        })
    };
    let is_answer = !row.example.is_pair() && row.extras.label.is_none();
    let is_text = |call: &Value| call_parts(call).1.is_some_and(Value::is_string);
    Conversation {
        is_one: true,
        leaves_out_earlier: is_answer && data.train_on == TrainOn::Completion && left_out(),
        is_merged: data.system_role == SystemRole::Auto
            && template.merges_system(&with_system(&messages, &data.system), config),
        has_undecoded_call: messages.iter().flat_map(|message| &message.tool_calls).any(is_text),
    }
}

fn cut_off(row: &Row, length: usize, config: &Config) -> RowProblem {
    let message = format!(
        "left out: its {length} tokens are cut to data.max_length = {}, and nothing of its reply is left. Raise it, or \
         set data.overflow = \"keep-end\"",
        config.data.max_length
    );
    RowProblem { kind: RowProblemKind::CutOff, origin: row.origin.clone(), row: Some(row.index), message }
}

/// Calls `look` for each row, on several threads; the results are in the rows' order.
fn look_at_all(
    rows: &Rows,
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
                    let part = rows.heads().get(start..rows.len().min(start + ROWS_AT_ONCE));
                    let Some(part) = part.filter(|part| !part.is_empty()) else { return };
                    for (index, head) in (start..).zip(part) {
                        let outcome = rows.row(head).map(|row| look(&row));
                        if sender.send((index, outcome)).is_err() {
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
        let mut ended = Ok(());
        let every = rows.len().div_ceil(PROGRESS_STEPS).max(1);
        for (done, (index, outcome)) in (1..).zip(receiver) {
            match outcome {
                Ok(outcome) => outcomes[index] = Some(outcome),
                Err(error) => ended = Err(error),
            }
            if (done % every == 0 || done == rows.len()) && progress(done, rows.len()).is_break() {
                ended = Err(DataError::Cancelled);
            }
            if ended.is_err() {
                // Leaving the loop drops the receiver, which ends the workers.
                break;
            }
        }
        for worker in workers {
            worker
                .join()
                .map_err(|_| DataError::Tokenizer("tokenising stopped on an internal fault".to_owned()))?;
        }
        ended
    })?;
    Ok(outcomes.into_iter().flatten().collect())
}

fn assemble(
    dataset: &Dataset,
    rows: &[PlacedHead],
    template: &Template,
    outcomes: Vec<Outcome>,
    mut findings: Findings,
) -> Prepared {
    let label = |row: &PlacedHead| row.label.map_or_else(String::new, |label| label.to_string());
    let hashes: Vec<String> =
        rows.iter().map(|row| format!("{:?}{}{}", row.split, row.hash(), label(row))).collect();
    let parts: Vec<&[u8]> = hashes.iter().map(String::as_bytes).collect();
    let lengths: Vec<usize> =
        outcomes.iter().map(|outcome| outcome.length).filter(|&length| length > 0).collect();
    let roles = lengths_of_roles(&outcomes);
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    let (mut train_sizes, mut eval_sizes) = (Vec::new(), Vec::new());
    let (mut truncated, mut dropped) = (0, 0);
    let mut prompts = HashSet::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        match outcome.encoded {
            Ok(usable) => {
                truncated += usize::from(usable.truncated);
                match row.split {
                    Split::Train => {
                        prompts.extend(outcome.facts.prompt);
                        train.extend(usable.sequences);
                        train_sizes.extend(usable.sizes);
                    }
                    Split::Eval => {
                        eval.extend(usable.sequences);
                        eval_sizes.extend(usable.sizes);
                    }
                }
            }
            Err(problem) => {
                dropped +=
                    usize::from(matches!(problem.kind, RowProblemKind::Dropped | RowProblemKind::CutOff));
            }
        }
    }
    let all = || train_sizes.iter().chain(&eval_sizes);
    let trained = |sizes: &[ExampleSize]| sizes.iter().map(|size| size.trained as u64).sum();
    let replies =
        train_sizes.iter().map(|size| size.trained).filter(|&tokens| tokens > 0).collect::<Vec<_>>();
    let sizes = Sizes {
        rows: train_sizes.len(),
        trained_tokens: trained(&train_sizes),
        prompts: (!prompts.is_empty()).then_some(prompts.len()),
        held_out: eval_sizes.len(),
        reply_length: median(replies),
    };
    let report = Report {
        rows: rows.len() + dataset.unreadable,
        train_rows: train_sizes.len(),
        eval_rows: eval_sizes.len(),
        quarantined: dataset.quarantined.len(),
        tokens: all().map(|size| size.tokens as u64).sum(),
        trained_tokens: all().map(|size| size.trained as u64).sum(),
        truncated,
        dropped,
        rows_of: findings.rows(),
        findings: findings.counted(),
        problems: findings.sorted(),
        advice: advice(&sizes),
        lengths: LengthStatistics::of(lengths),
        roles,
        template: template.name.clone(),
        template_fingerprint: template.fingerprint.clone(),
    };
    let checked = Checked { report, data_hash: short_hash(&parts), train: train_sizes, eval: eval_sizes };
    Prepared { train, eval, checked }
}

fn lengths_of_roles(outcomes: &[Outcome]) -> Vec<RoleLengths> {
    let mut found: IndexMap<&str, Vec<usize>> = IndexMap::new();
    let all: u64 = outcomes.iter().map(|outcome| outcome.roles.0 as u64).sum();
    for (role, tokens) in outcomes.iter().flat_map(|outcome| &outcome.roles.1) {
        // Names of roles come from the data.
        if found.len() < MAX_ROLES || found.contains_key(role.as_str()) {
            found.entry(role).or_default().push(*tokens);
        }
    }
    let lengths = |(role, tokens): (&str, Vec<usize>)| {
        let sum: u64 = tokens.iter().map(|&tokens| tokens as u64).sum();
        RoleLengths {
            role: clean_line(role).into_owned(),
            tokens: sum,
            share: sum as f64 / all.max(1) as f64,
            lengths: LengthStatistics::of(tokens),
        }
    };
    let mut roles: Vec<RoleLengths> = found.into_iter().map(lengths).collect();
    roles.sort_by_key(|role| Reverse(role.tokens));
    roles
}

fn median(mut numbers: Vec<usize>) -> Option<f64> {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).map(|&number| number as f64)
}

#[cfg(test)]
mod tests;
