//! Tokenises the whole dataset on all cores and checks it.

mod unused;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use indexmap::IndexMap;
use serde_json::Value;

use self::unused::MessageField;
use super::checks::{Checks, Facts, Sizes, TokenFacts, advice, length_preference, outliers};
use super::encode::{encode_whole, limit, longest, sequences};
use super::example::short_hash;
use super::kept::{KeptChecks, Key};
use super::mask::wanted;
use super::message::call_parts;
use super::near::Seen;
use super::presence::{Lost, lost};
use super::read::{Dataset, stamp};
use super::report::{Findings, RoleLengths};
use super::roles::tokens_of_roles;
use super::{
    Checked, DataError, DataProblem, EncodedRow, ExampleSize, LengthStatistics, PlacedHead, Prepared,
    ProblemKind, Report, Row, RowProblem, RowProblemKind, Rows, Severity, Split, Template, Tokenizer,
    read_dataset, with_system,
};
use crate::algorithms::RowShape;
use crate::config::{Config, EvalSource, Overflow, SystemRole, TrainOn};
use crate::model::{Architecture, ModelFiles};
use crate::text::clean_line;
use crate::units;

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
    /// Fields of its messages that the template does not read, a name for each message.
    unread: Vec<String>,
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
    let fields = unused::MessageFields::new(template, config);
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
    let mut findings = Findings::allowing(&config.data.allow);
    let rows: Vec<PlacedHead> = dataset.rows.places().collect();
    let unread = outcomes.iter().map(|outcome| outcome.unread.as_slice());
    let of_messages = unused::counted(rows.iter().zip(unread));
    reading_findings(dataset, &of_messages, template, &mut findings);
    unusable_rows(config, dataset, &outcomes, &mut findings);
    token_findings(config, &rows, &outcomes, &mut findings);
    lost_findings(&rows, &outcomes, &mut findings);
    conversation_findings(config, template, &rows, &outcomes, &mut findings);
    algorithm_findings(config, &rows, &outcomes, &mut findings);
    text_findings(&rows, &outcomes, &mut findings);
    length_findings(&rows, &outcomes, &mut findings);
    repeated_rows(&rows, &outcomes, &mut findings);
    prompts_on_both_sides(&rows, &outcomes, &mut findings);
    contradictions(config, &rows, &outcomes, &mut findings);
    dataset_findings(config, &rows, &outcomes, &mut findings);
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

/// What was decided while reading, and what was read and is not used.
fn reading_findings(
    dataset: &Dataset,
    of_messages: &[MessageField],
    template: &Template,
    findings: &mut Findings,
) {
    for notice in &dataset.notices {
        findings.add(ProblemKind::Reading, Severity::Note, None, notice);
    }
    for field in &dataset.unused {
        let (severity, hint) = unused::hint(field);
        let what = format!(
            "nothing reads the field {:?} of {} (first in {}){hint}",
            clean_line(&field.name),
            units::counted(field.rows, "row", "rows"),
            field.first
        );
        findings.add(ProblemKind::UnusedField, severity, None, &what);
    }
    for field in of_messages {
        let what = format!(
            "the template {} does not read the field {:?} of {} (first in {})",
            template.name,
            clean_line(&field.name),
            units::counted(field.messages, "message", "messages"),
            field.first
        );
        findings.add(ProblemKind::UnusedField, Severity::Note, None, &what);
    }
}

fn unusable_rows(config: &Config, dataset: &Dataset, outcomes: &[Outcome], findings: &mut Findings) {
    let is_cut_off = |outcome: &&Outcome| {
        outcome.encoded.as_ref().err().is_some_and(|problem| problem.kind == RowProblemKind::CutOff)
    };
    let cut_off = outcomes.iter().filter(is_cut_off).count();
    let most = config.data.cut_limit * outcomes.len() as f64;
    let of_cut_off = if cut_off as f64 > most { Severity::Blocks } else { Severity::Warning };
    if of_cut_off == Severity::Blocks {
        let what = format!(
            "{cut_off} of {} rows lose all their reply to data.max_length = {}, more than data.cut_limit = {} allows",
            outcomes.len(),
            config.data.max_length,
            config.data.cut_limit
        );
        findings.add(ProblemKind::ReplyCutOff, Severity::Blocks, None, &what);
    }
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
            RowProblemKind::CutOff => (ProblemKind::ReplyCutOff, Severity::Warning),
        };
        findings.add(kind, severity, problem.row, &problem.to_string());
    }
}

fn token_findings(config: &Config, rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    let mut endless = Vec::new();
    let mut ending = 0;
    for (row, outcome) in rows.iter().zip(outcomes) {
        let Ok(usable) = &outcome.encoded else { continue };
        let Usable { sizes, tokens, truncated, across, .. } = usable;
        if tokens.trained == 0 {
            let severity = if row.split == Split::Train { Severity::Blocks } else { Severity::Warning };
            let why = "nothing in it is trained on; add a reply, change data.train_on, or quarantine the row";
            findings.row(ProblemKind::NoTrainedTokens, severity, row, why);
        }
        if tokens.says_nothing && tokens.trained > 0 {
            let is_pair = row.is_pair || row.label.is_some();
            let severity = if is_pair { Severity::Warning } else { Severity::Blocks };
            let what = "a reply of which only the end-of-turn token is trained: the model would learn to answer with \
                        nothing. Is its content empty, or left out by the template?";
            findings.row(ProblemKind::NothingLearned, severity, row, what);
        }
        if let Some(token) = across {
            let what = format!(
                "the token {token:?} belongs to the end of the prompt and to the beginning of the reply; asked, the \
                 prompt ends in another token. Move the space between them to the reply"
            );
            findings.row(ProblemKind::TokenAcross, Severity::Warning, row, &what);
        }
        if sizes.len() > 1 {
            let what = format!("its {} tokens are learned as {} examples", outcome.length, sizes.len());
            findings.row(ProblemKind::TextSplit, Severity::Note, row, &what);
        }
        if *truncated {
            let lost = if config.data.overflow == Overflow::KeepEnd { "beginning" } else { "end" };
            let what =
                format!("cut from {} tokens to data.max_length; its {lost} is not learned", outcome.length);
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

/// What rows say and their texts lack.
fn lost_findings(rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    for (row, outcome) in rows.iter().zip(outcomes) {
        for lost in &outcome.lost {
            let severity = if lost.is_history { Severity::Note } else { Severity::Warning };
            let what = match severity {
                // Most templates for models that think do so on purpose.
                Severity::Note => format!("the template leaves out {}", lost.what),
                _ => format!("the template leaves out {}. {}", lost.what, lost.remedy),
            };
            findings.row(ProblemKind::NotInText, severity, row, &what);
        }
    }
}

/// What the project's settings do to conversations.
fn conversation_findings(
    config: &Config,
    template: &Template,
    rows: &[PlacedHead],
    outcomes: &[Outcome],
    findings: &mut Findings,
) {
    let data = &config.data;
    let usable = || rows.iter().zip(outcomes).filter(|(_, outcome)| outcome.encoded.is_ok());
    let count =
        |of: fn(&Conversation) -> bool| usable().filter(|(_, outcome)| of(&outcome.conversation)).count();
    let earlier = count(|conversation| conversation.leaves_out_earlier);
    let merged = count(|conversation| conversation.is_merged);
    if template.is_none()
        && !data.system.is_empty()
        && outcomes.iter().any(|outcome| outcome.conversation.is_one)
    {
        let what = "data.system has no effect: without a chat template, prompts and completions are joined as they are";
        findings.add(ProblemKind::NotInText, Severity::Warning, None, what);
    }
    for name in data.template_variables.keys().filter(|name| !template.is_none() && !template.mentions(name))
    {
        let what = format!(
            "the template {} reads no variable {:?}, which data.template_variables sets",
            template.name,
            clean_line(name)
        );
        findings.add(ProblemKind::UnusedField, Severity::Warning, None, &what);
    }
    if earlier > 0 {
        let what = format!(
            "in {} with several replies only the last is trained on; set data.train_on = \"assistant\" to learn them \
             all",
            units::counted(earlier, "row", "rows")
        );
        findings.add(ProblemKind::EarlierReplies, Severity::Note, None, &what);
    }
    if merged > 0 {
        let what = format!(
            "the template {} refuses system messages: in {} the system prompt is put before the first user message \
             (data.system_role = \"merge\")",
            template.name,
            units::counted(merged, "row", "rows")
        );
        findings.add(ProblemKind::SystemMerged, Severity::Note, None, &what);
    }
    for (row, _) in usable().filter(|(_, outcome)| outcome.conversation.has_undecoded_call) {
        let what = "the arguments of a tool call are a text that is not JSON, and are written as that text";
        findings.row(ProblemKind::ToolArguments, Severity::Warning, row, what);
    }
    let thinks: Vec<bool> =
        usable().filter_map(|(_, outcome)| outcome.encoded.as_ref().ok()?.tokens.thinks).collect();
    if !thinks.is_empty() && !thinks.contains(&true) {
        let what = format!(
            "the trained replies of {} think nothing before they answer (<think> blocks are empty): the model will \
             unlearn to think. Give the rows reasoning_content, or set data.reasoning = \"mask\"",
            units::counted(thinks.len(), "row", "rows")
        );
        findings.add(ProblemKind::EmptyReasoning, Severity::Warning, None, &what);
    }
}

/// Rows must have the shape that the algorithm learns from, and pass its own checks.
fn algorithm_findings<'row>(
    config: &Config,
    rows: &[PlacedHead<'row>],
    outcomes: &[Outcome],
    findings: &mut Findings,
) {
    let algorithm = config.train.algorithm;
    let declaration = algorithm.declaration();
    declaration.rows.check(algorithm, rows, findings);
    let usable = |(row, outcome): (&PlacedHead<'row>, &Outcome)| {
        let usable = outcome.encoded.as_ref().ok()?;
        Some(UsableRow { row: *row, same_sides: usable.tokens.same_sides, truncated: usable.truncated })
    };
    let usable: Vec<UsableRow<'row>> = rows.iter().zip(outcomes).filter_map(usable).collect();
    (declaration.check)(config, &usable, findings);
}

fn text_findings(rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    for (row, outcome) in rows.iter().zip(outcomes) {
        let learns_nothing = outcome.encoded.as_ref().is_ok_and(|usable| usable.tokens.says_nothing);
        for found in &outcome.facts.found {
            // Said once is enough.
            if !(learns_nothing && found.kind == ProblemKind::EmptyReply) {
                findings.row(found.kind, found.severity, row, &found.what);
            }
        }
    }
}

/// Rows and replies whose lengths stand out.
fn length_findings(rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    let measured: Vec<(&PlacedHead, usize)> = rows
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| outcome.length > 0)
        .map(|(row, outcome)| (row, outcome.length))
        .collect();
    let lengths: Vec<usize> = measured.iter().map(|&(_, length)| length).collect();
    if let Some(far) = outliers(&lengths) {
        for index in &far.rows {
            let Some((row, length)) = measured.get(*index) else { continue };
            let what = format!("has {length} tokens, and half of the rows have {:.0} or fewer", far.median);
            findings.row(ProblemKind::LengthOutlier, Severity::Note, row, &what);
        }
    }
    let pairs: Vec<(usize, usize)> = rows
        .iter()
        .zip(outcomes)
        .filter(|(row, _)| row.split == Split::Train)
        .filter_map(|(_, outcome)| outcome.encoded.as_ref().ok()?.answers)
        .collect();
    if let Some(found) = length_preference(&pairs) {
        let (share, which) =
            if found.effect > 0.0 { (found.longer, "longer") } else { (found.shorter, "shorter") };
        let what = format!(
            "in {} of {} the chosen reply is the {which} one (effect size {:.1}): the model may learn the length \
             instead of what makes a reply better",
            units::percent(share),
            units::counted(pairs.len(), "pair", "pairs"),
            found.effect.abs()
        );
        findings.add(ProblemKind::LongerChosen, Severity::Warning, None, &what);
    }
}

fn repeated_rows(rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    let mut first: HashMap<(u64, Split), &PlacedHead> = HashMap::new();
    let mut seen = Seen::default();
    // Training rows first, so that the held-out row is the one reported.
    let sides = [Split::Train, Split::Eval];
    for side in sides {
        for (row, outcome) in rows.iter().zip(outcomes).filter(|(row, _)| row.split == side) {
            let key = outcome.facts.key;
            let in_train = first.get(&(key, Split::Train)).copied().filter(|_| side == Split::Eval);
            if let Some(other) = in_train {
                let what = format!("held out, but says the same as training row {} ({other})", other.index);
                findings.row_like(ProblemKind::EvalInTrain, Severity::Warning, row, other.index, &what);
            } else if let Some(other) = first.get(&(key, side)) {
                // A row that its source's share repeats is meant to be there twice.
                if other.origin() != row.origin() {
                    let what = format!("says the same as row {} ({other})", other.index);
                    findings.row_like(ProblemKind::Duplicate, Severity::Warning, row, other.index, &what);
                }
            } else if let Some(signature) = &outcome.facts.signature
                && let Some((other, share)) = seen.nearest(row.index, signature.clone())
            {
                let held_out = side == Split::Eval && rows[other].split == Split::Train;
                let what = format!(
                    "{}nearly equal to {}row {other} ({}): {:.0} % of its pieces",
                    if held_out { "held out, but " } else { "" },
                    if held_out { "training " } else { "" },
                    rows[other],
                    share * 100.0
                );
                findings.row_like(ProblemKind::NearDuplicate, Severity::Warning, row, other, &what);
            }
            first.entry((key, side)).or_insert(row);
        }
    }
    if rows.len() > MAX_NEAR {
        let what = format!("near-duplicates were looked for among the first {MAX_NEAR} rows only");
        findings.add(ProblemKind::CheckLimited, Severity::Note, None, &what);
    }
}

/// Held-out rows whose prompt is trained on with another reply.
fn prompts_on_both_sides(rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    let mut trained: HashMap<u64, &PlacedHead> = HashMap::new();
    let of = |split: Split| rows.iter().zip(outcomes).filter(move |(row, _)| row.split == split);
    let keys: HashSet<u64> = of(Split::Train).map(|(_, outcome)| outcome.facts.key).collect();
    for (row, outcome) in of(Split::Train) {
        if let Some(prompt) = outcome.facts.prompt {
            trained.entry(prompt).or_insert(row);
        }
    }
    for (row, outcome) in of(Split::Eval).filter(|(_, outcome)| !keys.contains(&outcome.facts.key)) {
        if let Some(other) = outcome.facts.prompt.and_then(|prompt| trained.get(&prompt)) {
            let what = format!(
                "held out, but its prompt is that of training row {} ({other}): what is measured has been seen",
                other.index
            );
            findings.row_like(ProblemKind::PromptInTrain, Severity::Warning, row, other.index, &what);
        }
    }
}

/// Training rows with one prompt and different replies.
fn contradictions(config: &Config, rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    // Algorithms that compare replies want several for one prompt.
    if config.train.algorithm.declaration().rows != RowShape::Answer {
        return;
    }
    let mut first: HashMap<u64, (&PlacedHead, u64)> = HashMap::new();
    for (row, outcome) in rows.iter().zip(outcomes).filter(|(row, _)| row.split == Split::Train) {
        let Some(asked) = outcome.facts.asked.filter(|_| outcome.facts.prompt.is_some()) else { continue };
        let (other, key) = *first.entry(asked).or_insert((row, outcome.facts.key));
        if key != outcome.facts.key {
            let what = format!("answers the prompt of row {} ({other}) differently", other.index);
            findings.row_like(ProblemKind::Contradiction, Severity::Note, row, other.index, &what);
        }
    }
}

fn dataset_findings(config: &Config, rows: &[PlacedHead], outcomes: &[Outcome], findings: &mut Findings) {
    let usable = |split: Split| {
        rows.iter()
            .zip(outcomes)
            .filter(|(row, outcome)| row.split == split && outcome.encoded.is_ok())
            .count()
    };
    let is_whole = |outcome: &&Outcome| outcome.encoded.as_ref().is_ok_and(|usable| usable.sizes.len() > 1);
    let is_long = |outcome: &&Outcome| outcome.length > config.data.max_length && !is_whole(outcome);
    let too_long = outcomes.iter().filter(is_long).count();
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
