//! How the data pane looks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use luthier_core::data::{Example, Row, Severity, Split, TokenPiece};
use luthier_core::units;

use super::state::{DataState, Filter, Form, Rendered};
use crate::app::Context;
use crate::theme::{Role, Theme};
use crate::ui::layout::{Split as Layout, list_and_detail};
use crate::widgets::rule;
use crate::widgets::sparkline::sparkline;
use crate::widgets::text::{self, Piece, Wrap, fit_middle, put, put_pieces, put_right};

/// Columns of the list of rows.
const LIST_WIDTH: u16 = 38;

/// Kinds of problems listed above the rows.
const GROUPS: usize = 6;

/// Draws the pane.
pub fn view(state: &DataState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if area.height < 4 {
        return;
    }
    draw_summary(state, area, buffer, theme);
    rule::horizontal(Rect { y: area.y + 1, height: 1, ..area }, buffer, theme);
    let rest = Rect { y: area.y + 2, height: area.height - 2, ..area };
    if let Some(problem) = &state.problem {
        draw_problem(problem, rest, buffer, theme);
        return;
    }
    if state.rows.is_none() {
        let text = if context.config.is_some() {
            "reading the rows …"
        } else {
            "luthier.toml has mistakes; space e opens it"
        };
        put(buffer, rest.x + 1, rest.y, rest.right(), text, theme.style(Role::Muted));
        return;
    }
    match list_and_detail(rest, LIST_WIDTH, buffer, theme) {
        Layout::Wide { list, detail } => {
            let below = draw_groups(state, list, buffer, theme);
            draw_rows(state, below, buffer, theme);
            draw_detail(state, detail, buffer, theme);
        }
        Layout::Narrow { selector, detail } => {
            let position = state.list.selected().map_or(0, |position| position + 1);
            let text = format!(" {}  row {position} of {}  ↑↓", filter_title(state), state.list.length());
            put(buffer, selector.x, selector.y, selector.right(), &text, theme.style(Role::Muted));
            draw_search(
                state,
                Rect { x: selector.right().saturating_sub(30), width: 30, ..selector },
                buffer,
                theme,
            );
            let detail = Rect { x: detail.x + 1, width: detail.width.saturating_sub(2), ..detail };
            draw_detail(state, detail, buffer, theme);
        }
    }
}

fn glyph(severity: Severity) -> (&'static str, Role) {
    match severity {
        Severity::Blocks => ("✗", Role::Error),
        Severity::Warning => ("!", Role::Warning),
        Severity::Note => ("·", Role::Note),
    }
}

fn draw_problem(problem: &str, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let pieces = [
        Piece::new("The data cannot be used.\n\n", theme.style(Role::Error)),
        Piece::new(problem, theme.style(Role::Screen)),
        Piece::new("\n\nc reads everything again; space e opens luthier.toml.", theme.style(Role::Muted)),
    ];
    let area = Rect { x: area.x + 1, width: area.width.saturating_sub(2), ..area };
    let lines = text::layout(&pieces, area.width, Wrap::Words);
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        buffer.set_line(area.x, y, line, area.width);
    }
}

fn draw_summary(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let y = area.y;
    let end = area.right().saturating_sub(1);
    if let Some((done, total)) = state.checking {
        let rows = state.rows.as_ref().map_or(0, |rows| rows.len());
        let progress = if total == 0 { String::new() } else { format!(": {done} of {total}") };
        let text = format!("{} · checking{progress} …", units::counted(rows, "row", "rows"));
        put(buffer, area.x + 1, y, end, &text, theme.style(Role::Waiting));
        return;
    }
    let Some(report) = &state.report else { return };
    let mut right = end;
    for (severity, word) in
        [(Severity::Note, "note"), (Severity::Warning, "warning"), (Severity::Blocks, "blocker")]
    {
        let count = report.count(severity);
        if count > 0 {
            let (glyph, role) = glyph(severity);
            let text = format!("{glyph} {}", units::counted(count, word, &format!("{word}s")));
            right = put_right(buffer, area.x, y, right, &text, theme.style(role)).saturating_sub(2);
        }
    }
    if report.problems.is_empty() {
        right = put_right(buffer, area.x, y, right, "✓ no problems found", theme.style(Role::Success));
        right = right.saturating_sub(2);
    }
    let fingerprint: String = report.template_fingerprint.chars().take(4).collect();
    let mut text = format!(
        "{} · {} train, {} held out · {} tokens, {} trained · template {} ({fingerprint}…)",
        units::counted(report.rows, "row", "rows"),
        report.train_rows,
        report.eval_rows,
        units::count(report.tokens),
        units::percent(report.trained_share()),
        report.template,
    );
    if report.quarantined > 0 {
        text.push_str(" · ");
        text.push_str(&units::counted(report.quarantined, "row", "rows"));
        text.push_str(" in quarantine");
    }
    put(buffer, area.x + 1, y, right, &text, theme.style(Role::Strong));
}

/// Draws the kinds of problems; returns the rest of `area` below them.
fn draw_groups(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) -> Rect {
    let groups = state.groups();
    if groups.is_empty() {
        return area;
    }
    let mut y = area.y;
    let shown = groups.len().min(GROUPS).min(usize::from(area.height / 3));
    for group in &groups[..shown] {
        let (glyph, role) = glyph(group.severity);
        let x = put(buffer, area.x + 1, y, area.right(), glyph, theme.style(role));
        let end = area.right().saturating_sub(1);
        let count = units::counted(group.count, "row", "rows");
        let right = put_right(buffer, x + 1, y, end, &count, theme.style(Role::Muted));
        put(buffer, x + 1, y, right.saturating_sub(1), group.kind.label(), theme.style(Role::Screen));
        y += 1;
    }
    rule::horizontal(Rect { y, height: 1, ..area }, buffer, theme);
    Rect { y: y + 1, height: area.bottom().saturating_sub(y + 1), ..area }
}

fn filter_title(state: &DataState) -> String {
    if let Some((what, _)) = &state.asked {
        return format!("rows of {what}");
    }
    match state.filter {
        Filter::All => "all rows".to_owned(),
        Filter::Train => "training rows".to_owned(),
        Filter::Eval => "held-out rows".to_owned(),
        Filter::Problem(kind) => kind.label().to_owned(),
        Filter::Quarantined => "in quarantine".to_owned(),
    }
}

fn draw_search(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if let Some(line) = &state.typing {
        let x = put(buffer, area.x, area.y, area.right(), "/", theme.style(Role::Key));
        let field = Rect { x, width: area.right().saturating_sub(x + 1), height: 1, ..area };
        line.draw(field, buffer, theme, true);
    } else if !state.search.is_empty() {
        put(buffer, area.x, area.y, area.right(), &format!("/{}", state.search), theme.style(Role::Match));
    }
}

fn draw_rows(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if area.height == 0 {
        return;
    }
    let heading = if state.reading { Role::Title } else { Role::Focus };
    let count = format!("{} · {}", filter_title(state), state.list.length());
    let x = put(buffer, area.x + 1, area.y, area.right(), &count, theme.style(heading));
    let search = Rect { x: x + 2, width: area.right().saturating_sub(x + 2), height: 1, ..area };
    draw_search(state, search, buffer, theme);
    let rows = Rect { y: area.y + 1, height: area.height - 1, ..area };
    if state.list.length() == 0 {
        put(buffer, rows.x + 1, rows.y, rows.right(), "none", theme.style(Role::Muted));
    }
    for (position, y) in state.list.visible(rows.height).zip(rows.top()..rows.bottom()) {
        let Some(row) = state.row_at(position) else { continue };
        let selected = state.list.selected() == Some(position);
        if selected {
            let role = if state.reading { Role::SelectionIdle } else { Role::Selection };
            buffer.set_style(Rect { y, height: 1, ..rows }, theme.style(role));
        }
        let style = |role| if selected { Style::new() } else { theme.style(role) };
        let end = rows.right().saturating_sub(1);
        let number_end = (rows.x + 6).min(end);
        put_right(buffer, rows.x, y, number_end, &row.index.to_string(), style(Role::Muted));
        let mut right = end;
        if let Some(severity) = worst(state, row.index) {
            let (glyph, role) = glyph(severity);
            right = put_right(buffer, number_end, y, right, glyph, style(role)).saturating_sub(1);
        }
        put(buffer, number_end + 2, y, right, &DataState::headline(row), style(Role::Screen));
    }
}

fn worst(state: &DataState, row: usize) -> Option<Severity> {
    let problems = state.report.iter().flat_map(|report| &report.problems);
    problems.filter(|problem| problem.row == Some(row)).map(|problem| problem.severity).min()
}

fn draw_detail(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(row) = state.selected() else {
        put(buffer, area.x, area.y, area.right(), "no row", theme.style(Role::Muted));
        return;
    };
    let rendered = state.rendered.as_ref().filter(|rendered| rendered.row == row.index);
    draw_heading(state, row, rendered, area, buffer, theme);
    let footer = 2.min(area.height.saturating_sub(4));
    let body = Rect { y: area.y + 2, height: area.height.saturating_sub(2 + footer), ..area };
    let lines = match (state.form, rendered) {
        (Form::Conversation, _) => conversation(row, rendered, body.width, theme),
        (_, None) => text::layout(&[Piece::new("…", theme.style(Role::Muted))], body.width, Wrap::Words),
        (Form::Text | Form::Tokens, Some(rendered)) => tokens(state.form, rendered, body.width, theme),
    };
    text::draw_lines(buffer, body, &lines, &state.scroll, theme.style(Role::Muted));
    if footer > 0 {
        draw_lengths(state, Rect { y: area.bottom() - 1, height: 1, ..area }, buffer, theme);
    }
}

fn draw_heading(
    state: &DataState,
    row: &Row,
    rendered: Option<&Rendered>,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let mut right = area.right();
    for form in Form::ALL.into_iter().rev() {
        let shown = form == state.form;
        let title = if shown { format!("▸{}◂", form.title()) } else { form.title().to_owned() };
        let role = if shown { Role::TabActive } else { Role::Tab };
        right = put_right(buffer, area.x, area.y, right, &title, theme.style(role)).saturating_sub(2);
    }
    let split = if row.split == Split::Train { "train" } else { "held out" };
    let title = format!("row {}", row.index);
    let mut facts = format!("   {split}");
    if let Some(label) = row.extras.label_name() {
        facts = format!("{facts}   {label}");
    }
    if let Some(Rendered { sides: Ok(sides), .. }) = rendered {
        let all = || sides.iter().flatten();
        let trained = all().filter(|token| token.trained).count();
        facts = format!("{facts}   {} tokens, {trained} trained", all().count());
    }
    if rendered.is_some_and(|rendered| rendered.truncated) {
        facts.push_str("   cut at max_length");
    }
    let pieces = [
        Piece::new(title, theme.style(if state.reading { Role::Focus } else { Role::Title })),
        Piece::new(facts, theme.style(Role::Muted)),
    ];
    let x = put_pieces(buffer, area.x, area.y, right, &pieces);
    let origin = row.origin.to_string();
    let room = usize::from(right.saturating_sub(x + 3));
    if room > 12 {
        put(buffer, x + 3, area.y, right, &fit_middle(&origin, room), theme.style(Role::Muted));
    }
    let problems: Vec<&str> = state.problems_of(row.index).map(|(_, message)| message).collect();
    let y = area.y + 1;
    if !problems.is_empty() && y < area.bottom() {
        put(buffer, area.x, y, area.right(), &problems.join(" · "), theme.style(Role::Warning));
    }
}

fn conversation(row: &Row, rendered: Option<&Rendered>, width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let messages = rendered.and_then(|rendered| rendered.messages.clone()).or_else(|| row.example.messages());
    let mut pieces = Vec::new();
    if messages.is_none() {
        let text = match &row.example {
            Example::Tokens { .. } => "token ids without text; `tokens` shows them".to_owned(),
            Example::Preference { chosen, .. } => {
                pieces.push(Piece::new("chosen\n", theme.style(Role::Added).bold()));
                chosen.clone()
            }
            other => other.plain_text(),
        };
        pieces.push(Piece::new(text, theme.style(Role::Screen)));
    }
    let messages = messages.unwrap_or_default();
    let chosen = messages.len().checked_sub(1).filter(|_| row.example.is_pair());
    for (index, mut message) in messages.into_iter().enumerate() {
        if chosen == Some(index) {
            "chosen".clone_into(&mut message.role);
        }
        let role = match message.role.as_str() {
            "system" => Role::SystemMessage,
            "user" => Role::UserMessage,
            "assistant" => Role::AssistantMessage,
            "chosen" => Role::Added,
            _ => Role::Muted,
        };
        let lead = if index > 0 { "\n\n" } else { "" };
        pieces.push(Piece::new(format!("{lead}{}\n", message.role), theme.style(role).bold()));
        let content = if message.content.is_empty() { "(empty)".to_owned() } else { message.content };
        pieces.push(Piece::new(content, theme.style(Role::Screen)));
    }
    if let Example::Preference { rejected, .. } = &row.example {
        pieces.push(Piece::new("\n\nrejected\n", theme.style(Role::Removed).bold()));
        pieces.push(Piece::new(rejected.clone(), theme.style(Role::Screen)));
    }
    text::layout(&pieces, width, Wrap::Words)
}

/// The rendered text, with line ends made visible. As tokens, each trained stretch is put between bars, so
/// that it is readable without colour, and neighbouring tokens alternate in style.
fn tokens(form: Form, rendered: &Rendered, width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let sides = match &rendered.sides {
        Ok(sides) => sides,
        Err(problem) => {
            return text::layout(
                &[Piece::new(problem.clone(), theme.style(Role::Error))],
                width,
                Wrap::Words,
            );
        }
    };
    let mut pieces: Vec<Piece<'static>> = Vec::new();
    for (index, tokens) in sides.iter().enumerate() {
        if index > 0 {
            pieces.push(Piece::new("\n\nrejected\n", theme.style(Role::Removed).bold()));
        }
        if form == Form::Text {
            let all: String = tokens.iter().map(|token| token.text.as_str()).collect();
            pieces.push(Piece::new(visible(&all), theme.style(Role::Screen)));
        } else {
            push_tokens(&mut pieces, tokens, theme);
        }
    }
    if form == Form::Text {
        return text::layout(&pieces, width, Wrap::Anywhere);
    }
    pieces.push(Piece::new("\n\n", Style::new()));
    pieces.push(Piece::new("▐ trained ▌", theme.style(Role::Trained)));
    pieces.push(Piece::new("  everything else is context only", theme.style(Role::Muted)));
    text::layout(&pieces, width, Wrap::Anywhere)
}

fn visible(text: &str) -> String {
    text.replace('\n', "⏎\n")
}

fn push_tokens(pieces: &mut Vec<Piece<'static>>, tokens: &[TokenPiece], theme: &Theme) {
    let mut inside = false;
    for (index, token) in tokens.iter().enumerate() {
        if token.trained != inside {
            pieces.push(Piece::new(if token.trained { "▐" } else { "▌" }, theme.style(Role::Trained)));
            inside = token.trained;
        }
        let mut style = theme.style(if token.trained { Role::Trained } else { Role::Untrained });
        if index % 2 == 1 {
            style = style.underlined();
        }
        pieces.push(Piece::new(visible(&token.text), style));
    }
    if inside {
        pieces.push(Piece::new("▌", theme.style(Role::Trained)));
    }
}

fn draw_lengths(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(report) = &state.report else { return };
    let lengths = &report.lengths;
    let x = put(buffer, area.x, area.y, area.right(), "tokens per row  ", theme.style(Role::Muted));
    let filled = lengths.histogram.iter().skip_while(|bin| bin.rows == 0);
    let bins: Vec<f64> = filled.map(|bin| bin.rows as f64).collect();
    let width = (bins.len() as u16).min(24).min(area.right().saturating_sub(x));
    sparkline(&bins, true, Rect { x, width, ..area }, buffer, theme.style(Role::Series1));
    let text = format!("  p50 {}  p95 {}  max {}", lengths.p50, lengths.p95, lengths.max);
    put(buffer, x + width, area.y, area.right(), &text, theme.style(Role::Muted));
}
