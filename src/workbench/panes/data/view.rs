//! How the data pane looks.

use std::ops::Range;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use luthier_core::data::{Example, Row, RowHead, Severity, Split, TokenPiece};
use luthier_core::units;

use super::compare::Pair;
use super::listing::Order;
use super::pool::Rendered;
use super::state::{DataState, Form};
use crate::app::Context;
use crate::theme::{Role, Theme};
use crate::ui::layout::{Split as Layout, list_and_detail, list_over_detail};
use crate::widgets::rule;
use crate::widgets::sparkline::sparkline;
use crate::widgets::text::{self, Piece, Wrap, fit_middle, put, put_pieces, put_right};

/// Least and most columns of the list of rows, which otherwise has a third of the screen.
const LIST_WIDTHS: [u16; 2] = [38, 72];

/// Rows of the list above a row on a narrow screen, with its heading.
const LIST_HEIGHT: u16 = 6;

/// Least columns of a list that shows how much of each row is trained.
const WITH_SHARES: u16 = 48;

/// Most lines about what is wrong with a row.
const PROBLEM_LINES: u16 = 4;

/// Least columns of the mark and the number of a row in the list.
const NUMBER: u16 = 7;

/// Most lines of problems above the rows.
const GROUPS: usize = 12;

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
    if let Some((list, detail)) = list_over_detail(rest, LIST_HEIGHT, buffer, theme) {
        draw_rows(state, list, buffer, theme);
        let detail = Rect { x: detail.x + 1, width: detail.width.saturating_sub(2), ..detail };
        draw_detail(state, detail, buffer, theme);
        return;
    }
    let [least, most] = LIST_WIDTHS;
    match list_and_detail(rest, (rest.width / 3).clamp(least, most), buffer, theme) {
        Layout::Wide { list, detail } => {
            let below = draw_groups(state, list, buffer, theme);
            draw_rows(state, below, buffer, theme);
            draw_detail(state, detail, buffer, theme);
        }
        Layout::Narrow { selector, detail } => {
            draw_selector(state, selector, buffer, theme);
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
        let doing = match state.reading_files {
            Some(share) if share > 0.0 => format!("reading: {}", units::percent(share)),
            Some(_) => "reading".to_owned(),
            None if total == 0 => "checking".to_owned(),
            None => format!("checking: {done} of {total}"),
        };
        let text = format!("{} · {doing} …", units::counted(rows, "row", "rows"));
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
    if report.left_out() > 0 {
        text.push_str(" · ");
        text.push_str(&units::count(report.left_out() as u64));
        text.push_str(" left out");
    }
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
    let room = GROUPS.min(usize::from(area.height / 3));
    let shown = if groups.len() > room { room.saturating_sub(1) } else { groups.len() };
    for group in &groups[..shown] {
        let (glyph, role) = glyph(group.severity);
        let x = put(buffer, area.x + 1, y, area.right(), glyph, theme.style(role));
        let end = area.right().saturating_sub(1);
        let count = units::counted(group.count, "row", "rows");
        let right = put_right(buffer, x + 1, y, end, &count, theme.style(Role::Muted));
        put(buffer, x + 1, y, right.saturating_sub(1), group.kind.label(), theme.style(Role::Screen));
        y += 1;
    }
    if shown < groups.len() && room > 0 {
        let more = format!("{} more kinds; the filter lists them", groups.len() - shown);
        put(buffer, area.x + 3, y, area.right().saturating_sub(1), &more, theme.style(Role::Muted));
        y += 1;
    }
    rule::horizontal(Rect { y, height: 1, ..area }, buffer, theme);
    Rect { y: y + 1, height: area.bottom().saturating_sub(y + 1), ..area }
}

/// What is listed, how many, in which order, and how many are marked.
fn listed(state: &DataState) -> String {
    let mut text = match &state.asked {
        Some((what, _)) => format!("rows of {what}"),
        None => state.filter.title(),
    };
    let (count, all) = (state.list.length() as u64, state.pool().map_or(0, |pool| pool.len()) as u64);
    let of = if count == all { String::new() } else { format!(" of {}", units::count(all)) };
    text = format!("{text} · {}{of}", units::count(count));
    if let Some(share) = state.searching.filter(|share| *share > 0.0) {
        text = format!("{text} · {} searched", units::percent(share));
    }
    if state.order != Order::File {
        text = format!("{text} · {}", state.order.title());
    }
    if !state.marked.is_empty() {
        text = format!("{text} · {} marked", units::count(state.marked.len() as u64));
    }
    text
}

/// Why no row is listed.
fn nothing(state: &DataState) -> String {
    if state.searching.is_some() {
        "searching …".to_owned()
    } else if state.lists_all() {
        "no row".to_owned()
    } else if state.search.is_empty() {
        "no row; esc lists all".to_owned()
    } else {
        format!("no row fits /{}; esc clears it", state.search)
    }
}

/// The list where there is room for one line only.
fn draw_selector(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    const SEARCH: u16 = 30;
    let searching = state.typing.is_some() || !state.search.is_empty();
    let end = if searching { area.right().saturating_sub(SEARCH) } else { area.right() };
    if let Some(problem) = &state.search_problem {
        put(buffer, area.x + 1, area.y, end, problem, theme.style(Role::Error));
    } else {
        let position = state.list.selected().map_or(0, |position| position + 1);
        let marked = state.position().is_some_and(|position| state.marked.contains(&position));
        let mark = if marked { "●" } else { " " };
        let x = put(buffer, area.x, area.y, end, mark, theme.style(Role::Marked));
        let text = format!("{}  ↑↓ {}", listed(state), units::count(position as u64));
        put(buffer, x, area.y, end, &text, theme.style(Role::Muted));
    }
    let field = Rect { x: end, width: area.right().saturating_sub(end), height: 1, ..area };
    draw_search(state, field, buffer, theme);
}

fn draw_search(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if let Some(line) = &state.typing {
        let x = put(buffer, area.x, area.y, area.right(), "/", theme.style(Role::Key));
        let field = Rect { x, width: area.right().saturating_sub(x + 1), height: 1, ..area };
        line.draw(field, buffer, theme, true);
        if line.value().is_empty() {
            let kinds = "words, re:pattern or ~letters";
            put(buffer, field.x + 1, field.y, field.right(), kinds, theme.style(Role::Muted));
        }
    } else if !state.search.is_empty() {
        put(buffer, area.x, area.y, area.right(), &format!("/{}", state.search), theme.style(Role::Match));
    }
}

fn draw_rows(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let heading = if state.reading || state.beside.is_some() { Role::Title } else { Role::Focus };
    let pieces = [Piece::new(listed(state), theme.style(heading))];
    let mut rows = area;
    for line in text::layout(&pieces, area.width.saturating_sub(2), Wrap::Words) {
        if rows.height > 0 {
            buffer.set_line(rows.x + 1, rows.y, &line, rows.width.saturating_sub(2));
            rows = Rect { y: rows.y + 1, height: rows.height - 1, ..rows };
        }
    }
    let searching = state.typing.is_some() || !state.search.is_empty();
    if searching && rows.height > 0 {
        let field = Rect { x: rows.x + 1, width: rows.width.saturating_sub(2), height: 1, ..rows };
        draw_search(state, field, buffer, theme);
        rows = Rect { y: rows.y + 1, height: rows.height - 1, ..rows };
    }
    if let Some(problem) = state.search_problem.as_ref().filter(|_| rows.height > 0) {
        put(buffer, rows.x + 1, rows.y, rows.right(), problem, theme.style(Role::Error));
        rows = Rect { y: rows.y + 1, height: rows.height - 1, ..rows };
    }
    if state.list.length() == 0 && rows.height > 0 {
        put(buffer, rows.x + 1, rows.y, rows.right(), &nothing(state), theme.style(Role::Muted));
    }
    for (position, y) in state.list.visible(rows.height).zip(rows.top()..rows.bottom()) {
        draw_row(state, position, Rect { y, height: 1, ..rows }, buffer, theme);
    }
}

fn draw_row(state: &DataState, position: usize, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(row) = state.head_at(position) else { return };
    let y = area.y;
    let selected = state.list.selected() == Some(position);
    if selected {
        let idle = state.reading || state.beside.is_some();
        let role = if idle { Role::SelectionIdle } else { Role::Selection };
        buffer.set_style(area, theme.style(role));
    }
    let style = |role| if selected { Style::new() } else { theme.style(role) };
    let end = area.right().saturating_sub(1);
    let digits = state.pool().map_or(0, |pool| pool.len().to_string().len()) as u16;
    let number_end = (area.x + NUMBER.max(digits + 2)).min(end);
    if state.listed.get(position).is_some_and(|at| state.marked.contains(at)) {
        put(buffer, area.x, y, number_end, "●", style(Role::Marked));
    }
    put_right(buffer, area.x + 1, y, number_end, &row.index.to_string(), style(Role::Muted));
    let mut right = end;
    if let Some(severity) = state.worst(row) {
        let (glyph, role) = glyph(severity);
        right = put_right(buffer, number_end, y, right, glyph, style(role)).saturating_sub(1);
    }
    if let Some(good) = row.label {
        let (word, role) = if good { ("good", Role::Added) } else { ("bad", Role::Removed) };
        right = put_right(buffer, number_end, y, right, word, style(role)).saturating_sub(1);
    }
    if let Some(size) = state.size(row).filter(|_| area.width >= WITH_SHARES) {
        let share = units::percent(size.trained as f64 / size.tokens as f64);
        let text = format!("{:>6} {share:>5}", size.tokens);
        right = put_right(buffer, number_end, y, right, &text, style(Role::Muted)).saturating_sub(1);
    }
    let headline = state.row_at(position).map_or_else(|| "…".to_owned(), DataState::headline);
    put(buffer, number_end + 1, y, right, &headline, style(Role::Screen));
}

fn draw_detail(state: &DataState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(head) = state.selected_head() else {
        put(buffer, area.x, area.y, area.right(), &nothing(state), theme.style(Role::Muted));
        return;
    };
    if let Some(pair) = &state.beside {
        draw_beside(state, pair, area, buffer, theme);
        return;
    }
    let rendered = state.rendered.as_ref().filter(|rendered| state.position() == Some(rendered.position));
    let heading = draw_heading(state, head, rendered, area, buffer, theme);
    let footer = 2.min(area.height.saturating_sub(heading + 2));
    let body = Rect { y: area.y + heading, height: area.height.saturating_sub(heading + footer), ..area };
    let lines = match (state.form, state.selected(), rendered) {
        (Form::Conversation, Some(row), _) => conversation(state, row, rendered, body.width, theme),
        (Form::Text | Form::Tokens, _, Some(rendered)) => tokens(state, rendered, body.width, theme),
        _ => text::layout(&[Piece::new("…", theme.style(Role::Muted))], body.width, Wrap::Words),
    };
    text::draw_lines(buffer, body, &lines, &state.scroll, theme.style(Role::Muted));
    if footer > 0 {
        draw_lengths(state, Rect { y: area.bottom() - 1, height: 1, ..area }, buffer, theme);
    }
}

/// Two rows beside each other; the words that only one of them has are marked.
fn draw_beside(state: &DataState, pair: &Pair, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    const GAP: u16 = 3;
    let width = area.width.saturating_sub(GAP) / 2;
    let columns = [area.x, area.x + width + GAP];
    let mut texts = Vec::new();
    for (side, role) in pair.sides.iter().zip([Role::Removed, Role::Added]) {
        let pieces: Vec<Piece<'_>> = side
            .iter()
            .map(|part| {
                let role = if part.changed { role } else { Role::Screen };
                Piece::new(part.text.as_str(), theme.style(role))
            })
            .collect();
        texts.push(text::layout(&pieces, width, Wrap::Words));
    }
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    for ((mut lines, x), row) in texts.into_iter().zip(columns).zip(pair.rows) {
        // Both columns scroll together, to the end of the longer one.
        lines.resize(longest, Line::default());
        let title = format!("row {row}");
        put(buffer, x, area.y, x + width, &title, theme.style(Role::Focus));
        if let Some(origin) = state.pool().and_then(|pool| Some(pool.origin(pool.heads().get(row)?))) {
            let room = usize::from(width).saturating_sub(text::width(&title) + 3);
            let origin = fit_middle(&origin.to_string(), room);
            put_right(buffer, x, area.y, x + width, &origin, theme.style(Role::Muted));
        }
        let body = Rect { x, y: area.y + 2, width, height: area.height.saturating_sub(2) };
        text::draw_lines(buffer, body, &lines, &state.scroll, theme.style(Role::Muted));
    }
    rule::vertical(Rect { x: area.x + width + 1, width: 1, ..area }, buffer, theme);
}

/// Draws what is known about a row, and what is wrong with it; the rows that this takes.
fn draw_heading(
    state: &DataState,
    row: &RowHead,
    rendered: Option<&Rendered>,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) -> u16 {
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
    if let Some(label) = row.label_name() {
        facts = format!("{facts}   {label}");
    }
    if row.is_edited() {
        facts.push_str("   edited");
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
    let origin = state.pool().map_or_else(String::new, |pool| pool.origin(row).to_string());
    let room = usize::from(right.saturating_sub(x + 3));
    if room > 12 {
        put(buffer, x + 3, area.y, right, &fit_middle(&origin, room), theme.style(Role::Muted));
    }
    let problems = state.problems_of(row);
    let pieces = [Piece::new(problems.join("\n"), theme.style(Role::Warning))];
    let mut lines = text::layout(&pieces, area.width, Wrap::Words);
    let most = usize::from(PROBLEM_LINES.min(area.height.saturating_sub(1)));
    let cut = lines.len() > most;
    lines.truncate(most);
    if let Some(last) = lines.last_mut().filter(|_| cut) {
        let shorter = text::fit(last.to_string().trim_end(), usize::from(area.width.saturating_sub(1)));
        *last = Line::styled(format!("{}…", shorter.trim_end_matches('…')), theme.style(Role::Warning));
    }
    for (line, y) in lines.iter().zip(area.y + 1..area.bottom()) {
        buffer.set_line(area.x, y, line, area.width);
    }
    1 + lines.len() as u16
}

/// Splits pieces where the search found something, and marks it.
fn with_matches(state: &DataState, pieces: Vec<Piece<'static>>, theme: &Theme) -> Vec<Piece<'static>> {
    let mut split = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let places = state.found_in(&piece.text);
        if places.is_empty() {
            split.push(piece);
            continue;
        }
        let part = |range: Range<usize>| piece.text.get(range).unwrap_or_default().to_owned();
        let mut end = 0;
        for place in places {
            split.push(Piece::new(part(end..place.start), piece.style));
            end = place.end;
            split.push(Piece::new(part(place), piece.style.patch(theme.style(Role::Match))));
        }
        split.push(Piece::new(part(end..piece.text.len()), piece.style));
    }
    split
}

fn conversation(
    state: &DataState,
    row: &Row,
    rendered: Option<&Rendered>,
    width: u16,
    theme: &Theme,
) -> Vec<Line<'static>> {
    let messages = rendered.and_then(|rendered| rendered.messages.clone()).or_else(|| row.example.messages());
    let mut pieces = Vec::new();
    if messages.is_none() {
        let text = match &row.example {
            Example::Tokens { .. } => "token ids without text; `tokens` shows them".to_owned(),
            Example::Preference { chosen, .. } => {
                pieces.push(Piece::new("chosen\n", theme.style(Role::Added).bold()));
                chosen.shown()
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
        if let Some(reasoning) = &message.reasoning {
            pieces.push(Piece::new(format!("{reasoning}\n\n"), theme.style(Role::Muted)));
        }
        let calls: Vec<String> = message.tool_calls.iter().map(|call| format!("calls {call}")).collect();
        let content = match (message.content.is_empty(), calls.is_empty()) {
            (true, true) => "(empty)".to_owned(),
            (true, false) => calls.join("\n"),
            (false, true) => message.content,
            (false, false) => format!("{}\n{}", message.content, calls.join("\n")),
        };
        pieces.push(Piece::new(content, theme.style(Role::Screen)));
    }
    if let Example::Preference { rejected, .. } = &row.example {
        pieces.push(Piece::new("\n\nrejected\n", theme.style(Role::Removed).bold()));
        pieces.push(Piece::new(rejected.shown(), theme.style(Role::Screen)));
    }
    text::layout(&with_matches(state, pieces, theme), width, Wrap::Words)
}

/// The rendered text, with line ends made visible. As tokens, each trained stretch is put between bars, so
/// that it is readable without colour, and neighbouring tokens alternate in style.
fn tokens(state: &DataState, rendered: &Rendered, width: u16, theme: &Theme) -> Vec<Line<'static>> {
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
        if state.form == Form::Text {
            let all: String = tokens.iter().map(|token| token.text.as_str()).collect();
            pieces.push(Piece::new(visible(&all), theme.style(Role::Screen)));
        } else {
            push_tokens(&mut pieces, tokens, state.ids, theme);
        }
    }
    if state.form == Form::Text {
        return text::layout(&with_matches(state, pieces, theme), width, Wrap::Anywhere);
    }
    pieces.push(Piece::new("\n\n", Style::new()));
    pieces.push(Piece::new("▐ trained ▌", theme.style(Role::Trained)));
    pieces.push(Piece::new("  everything else is context only", theme.style(Role::Muted)));
    text::layout(&pieces, width, Wrap::Anywhere)
}

fn visible(text: &str) -> String {
    text.replace('\n', "⏎\n")
}

fn push_tokens(pieces: &mut Vec<Piece<'static>>, tokens: &[TokenPiece], ids: bool, theme: &Theme) {
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
        let text = visible(&token.text);
        if ids {
            // The number stands before the line end that the token may close with.
            let (text, end) = text.strip_suffix('\n').map_or((text.as_str(), ""), |text| (text, "\n"));
            pieces.push(Piece::new(text.to_owned(), style));
            pieces.push(Piece::new(format!("‹{}›{end}", token.id), theme.style(Role::Muted)));
        } else {
            pieces.push(Piece::new(text, style));
        }
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
