//! What the facts of all rows come to: the findings of the report.

use std::collections::{HashMap, HashSet};

use super::unused::{self, AllUnread, Unread};
use super::{Conversation, MAX_NEAR, Outcome, Usable, UsableRow};
use crate::algorithms::RowShape;
use crate::config::{Config, EvalSource, Overflow};
use crate::data::checks::{length_preference, outliers};
use crate::data::near::Seen;
use crate::data::read::Dataset;
use crate::data::report::Findings;
use crate::data::{PlacedHead, ProblemKind, RowProblemKind, Severity, Split, Template};
use crate::text::clean_line;
use crate::units;

/// All that rows and dataset have to be told of.
pub(super) fn of(
    config: &Config,
    dataset: &Dataset,
    template: &Template,
    rows: &[PlacedHead],
    outcomes: &[Outcome],
) -> Findings {
    let mut findings = Findings::allowing(&config.data.allow);
    let unread = outcomes.iter().map(|outcome| outcome.unread.as_slice());
    let unread = unused::counted(rows.iter().zip(unread));
    reading_findings(dataset, &unread, template, &mut findings);
    unusable_rows(config, dataset, outcomes, &mut findings);
    token_findings(config, rows, outcomes, &mut findings);
    lost_findings(rows, outcomes, &mut findings);
    conversation_findings(config, template, rows, outcomes, &mut findings);
    algorithm_findings(config, rows, outcomes, &mut findings);
    text_findings(rows, outcomes, &mut findings);
    length_findings(rows, outcomes, &mut findings);
    repeated_rows(rows, outcomes, &mut findings);
    prompts_on_both_sides(rows, outcomes, &mut findings);
    contradictions(config, rows, outcomes, &mut findings);
    dataset_findings(config, rows, outcomes, &mut findings);
    findings
}

/// What was decided while reading, and what was read and is not used.
fn reading_findings(dataset: &Dataset, unread: &AllUnread, template: &Template, findings: &mut Findings) {
    for notice in &dataset.notices {
        findings.add(ProblemKind::Reading, Severity::Note, notice);
    }
    for field in &dataset.unused {
        let (severity, hint) = unused::hint(field);
        let what = format!(
            "nothing reads the field {:?} of {} (first in {}){hint}",
            clean_line(&field.name),
            units::counted(field.rows, "row", "rows"),
            field.first
        );
        findings.add(ProblemKind::UnusedField, severity, &what);
    }
    for unread in &unread.found {
        let (severity, what) = match &unread.what {
            Unread::Field(name) => (
                Severity::Note,
                format!(
                    "does not read the field {:?} of {}",
                    clean_line(name),
                    units::counted(unread.count, "message", "messages")
                ),
            ),
            Unread::Variable(name) => (
                Severity::Warning,
                format!(
                    "reads no variable {:?}, which {} in chat_template_kwargs",
                    clean_line(name),
                    units::counted(unread.count, "row sets", "rows set")
                ),
            ),
        };
        let what = format!("the template {} {what} (first in {})", template.name, unread.first);
        findings.add(ProblemKind::UnusedField, severity, &what);
    }
    if unread.has_more || dataset.has_more_unused {
        let what = "more fields are not read than are named here";
        findings.add(ProblemKind::UnusedField, Severity::Note, what);
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
        findings.add(ProblemKind::ReplyCutOff, Severity::Blocks, &what);
    }
    for problem in &dataset.problems {
        findings.add(ProblemKind::UnreadableRow, Severity::Blocks, &problem.to_string());
    }
    if dataset.unreadable > dataset.problems.len() {
        let more = dataset.unreadable - dataset.problems.len();
        findings.add(
            ProblemKind::UnreadableRow,
            Severity::Blocks,
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
        match problem.row {
            Some(row) => findings.row_at(kind, severity, row, &problem.origin, &problem.message),
            None => findings.add(kind, severity, &problem.to_string()),
        }
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
            let what = if row.is_pair {
                "one of its replies is only the end-of-turn token: empty, or left out by the template. Is an answer that \
                 says nothing meant to be compared?"
            } else {
                "a reply of which only the end-of-turn token is trained: the model would learn to answer with nothing. Is \
                 its content empty, or left out by the template?"
            };
            findings.row(ProblemKind::NothingLearned, severity, row, what);
        }
        if let Some(token) = across {
            // The prompt of a pair without one is the common beginning of its sides, as in TRL.
            let (severity, what) = if row.is_pair {
                let what = format!(
                    "the sides part within the token {token:?}, or the prompt ends in it: it counts to the reply of one \
                     side only. A prompt of its own, which ends before a word, avoids it"
                );
                (Severity::Note, what)
            } else {
                let what = format!(
                    "the token {token:?} belongs to the end of the prompt and to the beginning of the reply; asked, the \
                     prompt ends in another token. Move the space between them to the reply"
                );
                (Severity::Warning, what)
            };
            findings.row(ProblemKind::TokenAcross, severity, row, &what);
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
        findings.add(ProblemKind::EndOfTurnNotTrained, Severity::Warning, &what);
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
        findings.add(ProblemKind::NotInText, Severity::Warning, what);
    }
    for name in data.template_variables.keys().filter(|name| !template.is_none() && !template.mentions(name))
    {
        let what = format!(
            "the template {} reads no variable {:?}, which data.template_variables sets",
            template.name,
            clean_line(name)
        );
        findings.add(ProblemKind::UnusedField, Severity::Warning, &what);
    }
    if earlier > 0 {
        let what = format!(
            "in {} with several replies only the last is trained on; set data.train_on = \"assistant\" to learn them \
             all",
            units::counted(earlier, "row", "rows")
        );
        findings.add(ProblemKind::EarlierReplies, Severity::Note, &what);
    }
    if merged > 0 {
        let what = format!(
            "the template {} refuses system messages: in {} the system prompt is put before the first user message \
             (data.system_role = \"merge\")",
            template.name,
            units::counted(merged, "row", "rows")
        );
        findings.add(ProblemKind::SystemMerged, Severity::Note, &what);
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
        findings.add(ProblemKind::EmptyReasoning, Severity::Warning, &what);
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
        findings.add(ProblemKind::LongerChosen, Severity::Warning, &what);
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
        findings.add(ProblemKind::CheckLimited, Severity::Note, &what);
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
        findings.add(ProblemKind::AllTooLong, Severity::Blocks, &what);
    } else if usable(Split::Train) == 0 {
        let what = if rows.is_empty() { "there are no rows" } else { "no row is left to train on" };
        findings.add(ProblemKind::EmptyDataset, Severity::Blocks, what);
    }
    if usable(Split::Eval) == 0 && !rows.is_empty() {
        let what = match config.data.eval {
            EvalSource::Fraction(0.0) => "data.eval = 0 holds nothing out: there will be no evaluation",
            _ => "no held-out row is usable: there will be no evaluation",
        };
        findings.add(ProblemKind::NoEvalRows, Severity::Note, what);
    }
}
