//! How the review pane looks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use luthier_core::eval::VerdictChoice;

use super::compare::{Answer, Comparison, Stage};
use super::state::ReviewState;
use super::words;
use crate::app::Context;
use crate::theme::{Role, Theme};
use crate::ui::layout::WIDE;
use crate::widgets::rule;
use crate::widgets::text::{self, Piece, Wrap, fit, layout, put, put_pieces, put_right};

/// From this width on, the suite is shown next to the answers.
const WITH_LIST: u16 = 150;

/// Columns of the suite next to the answers.
const LIST_WIDTH: u16 = 44;

/// The least width of a side; below it, the sides are stacked.
const SIDE: u16 = 36;

/// Columns of a prompt's last outcome.
const OUTCOME: u16 = 9;

/// Draws the pane.
pub fn view(state: &ReviewState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let area = area.intersection(buffer.area);
    if area.height < 4 {
        return;
    }
    let below = draw_prompt(state, area, buffer, theme);
    let line = Rect { y: below.bottom() - 1, height: 1, ..below };
    let work = Rect { height: below.height - 1, ..below };
    if state.target.is_none() {
        draw_empty(state, work, buffer, theme);
        return;
    }
    draw_line(state, context, line, buffer, theme);
    let prompts = state.suite.as_ref().map_or(0, Vec::len);
    let current = state.current();
    let work = if area.width >= WITH_LIST && prompts > 0 {
        let list = Rect { width: LIST_WIDTH, ..work };
        draw_suite(state, list, buffer, theme);
        let rest = Rect { x: work.x + LIST_WIDTH, width: work.width - LIST_WIDTH, ..work };
        rule::vertical(rest, buffer, theme);
        Rect { x: rest.x + 1, width: rest.width - 1, ..rest }
    } else if current.is_none() && prompts > 0 && state.typed.is_none() {
        draw_suite(state, work, buffer, theme);
        return;
    } else {
        work
    };
    match current {
        None => draw_before(state, work, buffer, theme),
        Some(comparison) => draw_comparison(comparison, context, work, buffer, theme),
    }
}

/// Draws the prompt or its field, with a rule below; returns the area under it.
fn draw_prompt(state: &ReviewState, area: Rect, buffer: &mut Buffer, theme: &Theme) -> Rect {
    let end = area.right().saturating_sub(1);
    let x = put(buffer, area.x + 1, area.y, end, "> ", theme.style(Role::Key));
    let width = end.saturating_sub(x);
    let most = (area.height / 6).max(3);
    let height = if let Some(field) = &state.typing {
        let height = field.height(width).clamp(3, (area.height / 2).max(3));
        field.draw(Rect { x, y: area.y, width, height }, buffer, theme);
        height
    } else {
        let pieces = prompt_pieces(state, theme);
        let mut lines = layout(&pieces, width, Wrap::Words);
        if lines.len() > usize::from(most) {
            lines.truncate(most.into());
            put_right(buffer, x, area.y + most - 1, end + 1, "…", theme.style(Role::Muted));
        }
        for (line, y) in lines.iter().zip(area.y..) {
            buffer.set_line(x, y, line, width);
        }
        lines.len() as u16
    };
    let below = Rect { y: area.y + height, height: area.height - height, ..area };
    rule::horizontal(below, buffer, theme);
    Rect { y: below.y + 1, height: below.height.saturating_sub(1).max(1), ..below }
}

fn prompt_pieces<'a>(state: &'a ReviewState, theme: &Theme) -> Vec<Piece<'a>> {
    let muted = theme.style(Role::Muted);
    match state.prompt() {
        None => {
            let text = match (&state.suite_problem, &state.suite_file, &state.suite) {
                (Some(_), ..) => "the suite cannot be read; R reads it again, i types a prompt",
                (None, Some(_), None) => "reading the suite …",
                _ => "no prompt yet: i types one, review.suite in luthier.toml names a file of them",
            };
            vec![Piece::new(text, muted)]
        }
        Some(prompt) => {
            let before = prompt.messages.len().saturating_sub(1);
            let context = match before {
                0 => String::new(),
                1 => "(after 1 message) ".to_owned(),
                _ => format!("(after {before} messages) "),
            };
            vec![Piece::new(context, muted), Piece::new(prompt.text(), theme.style(Role::Strong))]
        }
    }
}

/// Draws what to do while there is nothing to compare.
fn draw_empty(state: &ReviewState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let (key, strong, plain) = (theme.style(Role::Key), theme.style(Role::Strong), theme.style(Role::Screen));
    let muted = theme.style(Role::Muted);
    let lines: Vec<Vec<Piece<'_>>> = match (&state.candidates, &state.problem) {
        (_, Some(problem)) => vec![vec![Piece::new(problem.as_str(), theme.style(Role::Error))]],
        (None, None) => vec![vec![Piece::new("looking for runs …", muted)]],
        (Some(candidates), None) => {
            let first = if candidates.is_empty() {
                "There is no run to compare yet."
            } else {
                "No run has written weights to compare yet."
            };
            let second = if candidates.is_empty() {
                vec![
                    Piece::new("2", key),
                    Piece::new(" goes to Train, ", plain),
                    Piece::new("n", key),
                    Piece::new(" starts a run there.", plain),
                ]
            } else {
                vec![
                    Piece::new("2", key),
                    Piece::new(" goes to Train, ", plain),
                    Piece::new("c", key),
                    Piece::new(" writes a checkpoint of a live run there.", plain),
                ]
            };
            vec![
                vec![Piece::new(first, strong)],
                second,
                Vec::new(),
                vec![Piece::new(
                    "The tuned model then answers beside its base model, and which is which stays hidden \
                     until you judge. A run can be compared while it still runs, by its checkpoints.",
                    muted,
                )],
            ]
        }
    };
    draw_paragraphs(&lines, area, buffer);
}

/// Paragraphs with room around them.
fn draw_paragraphs(lines: &[Vec<Piece<'_>>], area: Rect, buffer: &mut Buffer) {
    let inner = Rect {
        x: area.x + 2,
        y: area.y + 1,
        width: area.width.saturating_sub(4).min(90),
        height: area.height.saturating_sub(1),
    };
    let mut y = inner.y;
    for pieces in lines {
        for line in layout(pieces, inner.width, Wrap::Words) {
            if y < inner.bottom() {
                buffer.set_line(inner.x, y, &line, inner.width);
            }
            y += 1;
        }
    }
}

/// Draws what is shown next to the suite before anything was asked.
fn draw_before(state: &ReviewState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let (key, plain) = (theme.style(Role::Key), theme.style(Role::Screen));
    let Some(target) = &state.target else { return };
    let lines = [
        vec![
            Piece::new("↵", key),
            Piece::new(" lets both sides answer this prompt: ", plain),
            Piece::new(target.name(), theme.style(Role::Tuned)),
            Piece::new(" and ", plain),
            if state.baseline {
                Piece::new("the baseline", theme.style(Role::Baseline))
            } else {
                Piece::new("the base model", theme.style(Role::Base))
            },
            Piece::new(".", plain),
        ],
        vec![Piece::new(
            if state.named {
                "The sides are named from the start; u hides them."
            } else {
                "The sides stay hidden until you judge."
            },
            theme.style(Role::Muted),
        )],
    ];
    draw_paragraphs(&lines, area, buffer);
}

/// The last line: what to do, and the tally of verdicts.
fn draw_line(state: &ReviewState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let end = area.right().saturating_sub(1);
    let wide = area.width >= WIDE;
    let tally = words::tally(&state.tally, state.opponent(), wide);
    let right = put_right(buffer, area.x + 1, area.y, end, &tally, theme.style(Role::Muted));
    let (situation, role) = words::situation(state, context);
    put(buffer, area.x + 1, area.y, right.saturating_sub(2), &situation, theme.style(role));
}

/// The suite's prompts, each with how it was judged last.
fn draw_suite(state: &ReviewState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let prompts = state.suite.as_deref().unwrap_or_default();
    put(buffer, area.x + 1, area.y, area.right(), "Suite", theme.style(Role::Title));
    let judged = state.outcomes.iter().flatten().count();
    let count = format!("{judged} of {} judged ", prompts.len());
    put_right(buffer, area.x + 8, area.y, area.right(), &count, theme.style(Role::Muted));
    let rows = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    for (index, y) in state.list.visible(rows.height).zip(rows.top()..rows.bottom()) {
        let selected = state.list.selected() == Some(index);
        if selected {
            let role = if state.typed.is_none() { Role::Selection } else { Role::SelectionIdle };
            buffer.set_style(Rect { y, height: 1, ..rows }, theme.style(role));
        }
        // A selected row keeps the selection's style throughout.
        let style = |role| if selected { Style::new() } else { theme.style(role) };
        let mark = if selected { "▸" } else { " " };
        let end = area.right().saturating_sub(1);
        let x = put(buffer, area.x, y, end, mark, style(Role::Screen));
        let number = format!("{:>3}  ", index + 1);
        let x = put(buffer, x, y, end, &number, style(Role::Muted));
        let outcome_x = end.saturating_sub(OUTCOME);
        if let Some((word, role)) = state.outcomes.get(index).copied().flatten().map(words::outcome) {
            put(buffer, outcome_x, y, end, word, style(role));
        }
        if let Some(prompt) = prompts.get(index) {
            put(buffer, x, y, outcome_x.saturating_sub(2), prompt.text(), style(Role::Screen));
        }
    }
}

fn draw_comparison(
    comparison: &Comparison,
    context: &Context,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    if let Stage::Failed(problem) = &comparison.stage {
        let lines = [
            vec![Piece::new("✗ There are no answers.", theme.style(Role::Error))],
            vec![Piece::new(problem.as_str(), theme.style(Role::Screen))],
        ];
        draw_paragraphs(&lines, area, buffer);
        return;
    }
    let (areas, beside) = side_areas(area);
    if let (true, [_, right]) = (beside, areas) {
        rule::vertical(Rect { x: right.x - 2, width: 1, ..right }, buffer, theme);
    } else {
        rule::horizontal(Rect { y: areas[1].y - 1, ..areas[1] }, buffer, theme);
    }
    for (index, (answer, area)) in comparison.answers.iter().zip(areas).enumerate() {
        draw_side(comparison, answer, index, context, area, buffer, theme);
    }
}

/// The areas of the two sides, and whether they are next to each other.
fn side_areas(area: Rect) -> ([Rect; 2], bool) {
    let area = Rect { x: area.x + 1, width: area.width.saturating_sub(1), ..area };
    let half = area.width.saturating_sub(3) / 2;
    if half >= SIDE {
        let left = Rect { width: half, ..area };
        let right = Rect { x: area.x + half + 3, width: area.width - half - 3, ..area };
        return ([left, right], true);
    }
    let upper = Rect { height: area.height / 2, ..area };
    let y = area.y + upper.height + 1;
    ([upper, Rect { y, height: area.bottom().saturating_sub(y), ..area }], false)
}

/// One answer: who (once named), the text, how it ended. Both sides look alike until they are named, and
/// nothing moves when they are.
fn draw_side(
    comparison: &Comparison,
    answer: &Answer,
    index: usize,
    context: &Context,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let end = area.right();
    let named = comparison.is_named();
    let place = ["left", "right"][index];
    let mut heading = vec![Piece::new(place, theme.style(Role::Title))];
    if named {
        heading.push(Piece::new("  ", Style::new()));
        heading.push(Piece::new(words::name(answer.who, comparison), theme.style(words::role(answer.who))));
        let chosen = match comparison.choice {
            Some(VerdictChoice::Left) => index == 0,
            Some(VerdictChoice::Right) => index == 1,
            _ => false,
        };
        if chosen {
            heading.push(Piece::new("  ✓ better", theme.style(Role::Success)));
        }
    }
    put_pieces(buffer, area.x, area.y, end, &heading);
    let roomy = area.height >= 10;
    let head = if roomy { 2 } else { 1 };
    let foot = if roomy { 3 } else { 1 };
    if let (true, true, Some((proof, role))) = (named, roomy, words::proof(answer)) {
        put(buffer, area.x, area.y + 1, end, &proof, theme.style(role));
    }
    let body = Rect { y: area.y + head, height: area.height.saturating_sub(head + foot), ..area };
    let mut pieces = vec![Piece::new(answer.reply.as_str(), theme.style(Role::Screen))];
    if comparison.stage == Stage::Answering && answer.end.is_none() {
        pieces.push(Piece::new("▌", theme.style(Role::Muted)));
    }
    // One column less, for the mark that more follows.
    let lines = layout(&pieces, body.width.saturating_sub(1), Wrap::Words);
    text::draw_lines(buffer, body, &lines, &answer.scroll, theme.style(Role::Focus));
    let pace_y = area.bottom().saturating_sub(foot.min(2));
    let pace = words::pace(answer, comparison, context.now.elapsed);
    put(buffer, area.x, pace_y, end, &pace, theme.style(Role::Muted));
    if let (true, true, Some((score, role))) = (named, roomy, words::score(answer)) {
        put(buffer, area.x, pace_y + 1, end, &fit(&score, usize::from(area.width)), theme.style(role));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_stand_beside_each_other_where_there_is_room() {
        let ([left, right], beside) = side_areas(Rect::new(0, 4, 80, 16));
        assert!(beside && left.width >= SIDE && right.width >= SIDE);
        assert!(left.right() + 2 < right.x + 1 && right.right() == 80);
        let ([upper, lower], beside) = side_areas(Rect::new(0, 4, 70, 16));
        assert!(!beside);
        assert!(upper.bottom() < lower.y && lower.bottom() == 20 && upper.width == 69);
        side_areas(Rect::new(0, 0, 0, 0));
    }
}
