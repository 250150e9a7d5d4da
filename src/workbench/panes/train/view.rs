//! How the train pane looks.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use luthier_core::config::headline;
use luthier_core::runs::{RunState, RunSummary, Status};
use luthier_core::units;

use super::curves::{At, Curves, Metric, Notice};
use super::look;
use super::state::{Detail, Focus, OpenRun, TrainState};
use crate::app::Context;
use crate::theme::{Role, Theme};
use crate::ui::layout::{Split, list_and_detail};
use crate::widgets::chart::{Chart, Mark, Series, Shape};
use crate::widgets::sparkline::sparkline;
use crate::widgets::text::{self, Piece, Wrap, fit, put, put_pieces, put_right};

/// Columns of the list of runs.
const LIST_WIDTH: u16 = 36;

/// Columns of a small chart's name and of its newest value.
const NAME_WIDTH: u16 = 14;
const VALUE_WIDTH: u16 = 9;

/// Below this height the detail shows less of everything.
const TALL: u16 = 22;

const OVERLAY_ROLES: [Role; 5] = [Role::Series3, Role::Series4, Role::Series5, Role::Series6, Role::Series2];

/// Draws the pane.
pub fn view(state: &TrainState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    match list_and_detail(area, LIST_WIDTH, buffer, theme) {
        Split::Wide { list, detail } => {
            draw_list(state, context, list, buffer, theme);
            draw_detail(state, context, detail, buffer, theme);
        }
        Split::Narrow { selector, detail } => {
            draw_selector(state, context, selector, buffer, theme);
            let detail = Rect { x: detail.x + 1, width: detail.width.saturating_sub(2), ..detail };
            draw_detail(state, context, detail, buffer, theme);
        }
    }
}

/// What is shown when there are no runs to list.
fn absence(state: &TrainState) -> &'static str {
    match &state.runs {
        None => "reading the runs …",
        Some(runs) if runs.is_empty() => "no runs yet",
        Some(_) => "no run matches the filter",
    }
}

fn draw_list(state: &TrainState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let heading = if state.focus == Focus::List { Role::Focus } else { Role::Title };
    let x = put(buffer, area.x + 1, area.y, area.right(), "Runs", theme.style(heading));
    draw_filter(state, x + 2, area, buffer, theme);
    let rows = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let shown = state.shown();
    if shown.is_empty() {
        put(buffer, rows.x + 1, rows.y, rows.right(), absence(state), theme.style(Role::Muted));
    }
    let visible = state.list.visible(rows.height);
    for (index, y) in visible.zip(rows.top()..rows.bottom()) {
        let selected = state.list.selected() == Some(index);
        let row = Rect { y, height: 1, ..rows };
        if selected {
            let role = if state.focus == Focus::List { Role::Selection } else { Role::SelectionIdle };
            buffer.set_style(row, theme.style(role));
        }
        draw_run(state, context, shown[index], row, buffer, theme, selected);
    }
}

fn draw_filter(state: &TrainState, x: u16, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if let Some(line) = &state.typing {
        let x = put(buffer, x, area.y, area.right(), "/", theme.style(Role::Key));
        let field = Rect { x, width: area.right().saturating_sub(x + 1), height: 1, ..area };
        line.draw(field, buffer, theme, true);
    } else if !state.filter.is_empty() {
        put(buffer, x, area.y, area.right(), &format!("/{}", state.filter), theme.style(Role::Match));
    } else if let Some(problem) = &state.problem {
        put(buffer, x, area.y, area.right(), problem, theme.style(Role::Error));
    }
}

fn draw_run(
    state: &TrainState,
    context: &Context,
    run: &RunSummary,
    row: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
    selected: bool,
) {
    // A selected row keeps the selection's style throughout.
    let style = |role| if selected { Style::new() } else { theme.style(role) };
    let glyph = look::glyph(run.state);
    let end = row.right();
    put(buffer, row.x + 1, row.y, end, glyph, style(look::role(run.state)));
    if run.remark.is_some() {
        put(buffer, row.x + 2, row.y, end, "!", style(Role::Error));
    }
    let right = end.saturating_sub(1);
    let outcome = match (&run.failure, run.state) {
        (Some(failure), RunState::Failed) => failure.class.to_string(),
        (_, RunState::Lost) => "lost".to_owned(),
        _ => run
            .best_eval_loss
            .or(run.eval_loss)
            .or(run.loss)
            .map_or_else(String::new, |loss| units::number(loss.get())),
    };
    let outcome_x = right.saturating_sub(6);
    put_right(buffer, outcome_x, row.y, right, &outcome, style(Role::Strong));
    let step_x = outcome_x.saturating_sub(7);
    put_right(buffer, step_x, row.y, outcome_x - 1, &run.step.to_string(), style(Role::Muted));
    let overlaid = state.overlays.get_index_of(&run.id);
    if let Some(index) = overlaid {
        let role = OVERLAY_ROLES[index % OVERLAY_ROLES.len()];
        put(buffer, row.x, row.y, end, "┃", theme.style(role));
    }
    let x = put(buffer, row.x + 3, row.y, step_x, &context.clock(run.started), style(Role::Muted));
    put(buffer, x + 1, row.y, step_x, &run.method, style(Role::Screen));
}

fn draw_selector(state: &TrainState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(run) = state.selected() else {
        put(buffer, area.x + 1, area.y, area.right(), absence(state), theme.style(Role::Muted));
        return;
    };
    let shown = state.list.length();
    let position = state.list.selected().map_or(0, |index| index + 1);
    let row = Rect { width: area.width.min(46), ..area };
    draw_run(state, context, run, row, buffer, theme, false);
    let count = format!("run {position} of {shown}  ↑↓ ");
    let start = put_right(buffer, row.right(), area.y, area.right(), &count, theme.style(Role::Muted));
    let rest = Rect { x: row.right(), width: start.saturating_sub(row.right()), ..area };
    draw_filter(state, rest.x + 1, rest, buffer, theme);
}

fn draw_detail(state: &TrainState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if let Some((done, total)) = state.planning {
        let text = if total == 0 {
            "preparing: reading the base model and the data …".to_owned()
        } else {
            format!(
                "preparing: {} of {} rows tokenised …",
                units::count(done as u64),
                units::count(total as u64)
            )
        };
        put(buffer, area.x, area.bottom().saturating_sub(1), area.right(), &text, theme.style(Role::Waiting));
    }
    let Some(open) = &state.open else {
        draw_empty(state, context, area, buffer, theme);
        return;
    };
    draw_title(state, context, open, area, buffer, theme);
    let rest = Rect { y: area.y + 2, height: area.height.saturating_sub(2), ..area };
    match state.detail {
        Detail::Log => draw_log(state, open, rest, buffer, theme),
        Detail::Charts => draw_charts(state, context, open, rest, buffer, theme),
    }
}

fn draw_empty(state: &TrainState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if !state.runs.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    let mut lines = vec![
        ("How is it going?", Role::Title),
        ("", Role::Muted),
        ("There are no runs in this project yet.", Role::Screen),
        ("n  plans one with the settings of luthier.toml: parameters, steps,", Role::Screen),
        ("   memory. It starts only after you have said yes, and goes on when", Role::Screen),
        ("   you leave.", Role::Screen),
        ("1  shows what it would be trained on.", Role::Screen),
    ];
    if context.config.is_none() {
        lines.push(("luthier.toml has mistakes; space e opens it.", Role::Error));
    }
    for ((line, role), y) in lines.into_iter().zip(area.y + 1..area.bottom()) {
        put(buffer, area.x + 1, y, area.right(), line, theme.style(role));
    }
}

fn draw_title(
    state: &TrainState,
    context: &Context,
    open: &OpenRun,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let summary = state.runs.iter().flatten().find(|run| run.id == open.id);
    let name = summary
        .map_or_else(|| open.id.clone(), |run| format!("{} · {}", run.method, context.clock(run.started)));
    let mut facts = Vec::new();
    if let Some(status) = &open.status {
        if status.total_steps > 0 {
            facts.push(format!("step {}/{}", open.step(), status.total_steps));
        }
        if let Some(config) = open.config.as_ref().filter(|_| status.epoch > 0.0) {
            facts.push(match config.train.max_steps {
                None => format!("epoch {:.2}/{}", status.epoch, config.train.epochs),
                Some(_) => format!("epoch {:.2}", status.epoch),
            });
        }
        if let Some(seconds) = open.seconds_left() {
            facts.push(format!("ETA {}", look::eta(seconds)));
        }
    }
    let run_state = open.status.as_ref().map(|status| status.state);
    let end = area.right();
    let mut right = end;
    if let Some(run_state) = run_state {
        let word = format!("{} {run_state}", look::glyph(run_state));
        right = put_right(buffer, area.x, area.y, end, &word, theme.style(look::role(run_state)));
    }
    let facts = facts.join("   ");
    right = put_right(buffer, area.x, area.y, right.saturating_sub(3), &facts, theme.style(Role::Strong));
    put(buffer, area.x, area.y, right.saturating_sub(2), &name, theme.style(Role::Title));
    let row = area.y + 1;
    if row >= area.bottom() {
        return;
    }
    let (text, role) = situation(open);
    let mut end = end;
    if let Some(left) = open.left_at.filter(|left| *left < open.step()) {
        let since = format!("since you left: +{} steps", open.step() - left);
        end = put_right(buffer, area.x, row, end, &since, theme.style(Role::Muted)).saturating_sub(2);
    }
    put(buffer, area.x, row, end, &text, theme.style(role));
}

/// The most important facts about the run besides its state.
fn situation(open: &OpenRun) -> (String, Role) {
    let Some(status) = &open.status else { return ("reading …".to_owned(), Role::Muted) };
    let (fact, role) = fact(open, status);
    match &status.remark {
        Some(remark) if fact.is_empty() => (remark.clone(), Role::Error),
        Some(remark) => (format!("{remark}; {fact}"), Role::Error),
        None => (fact, role),
    }
}

fn fact(open: &OpenRun, status: &Status) -> (String, Role) {
    let goes_on = || match open.checkpoints.last() {
        Some(step) => format!("r goes on from its checkpoint at step {step}"),
        None => "r begins again; it has no checkpoint".to_owned(),
    };
    match (status.state, &status.failure) {
        (RunState::Failed, Some(failure)) => {
            (format!("{}: {} {}", failure.class, headline(&failure.message), failure.remedy), Role::Error)
        }
        (RunState::Lost, _) => {
            let said = status
                .reason
                .as_ref()
                .map_or_else(|| "and said nothing".to_owned(), |words| format!("({words})"));
            (format!("its process is gone {said}; {}", goes_on()), Role::Lost)
        }
        (RunState::Stopped, _) => {
            let reason = status.reason.clone().unwrap_or_else(|| "stopped".to_owned());
            (format!("{reason}; {}", goes_on()), Role::Muted)
        }
        _ if !open.caught_up && open.curves.last.is_none() && !status.state.is_live() => {
            ("reading …".to_owned(), Role::Muted)
        }
        _ => match (&status.activity, &status.reason) {
            (Some(activity), _) => (activity.clone(), Role::Waiting),
            (None, Some(reason)) => (reason.clone(), Role::Muted),
            (None, None) => {
                let device = status.device.clone();
                let parameters =
                    open.curves.run.as_ref().map(|run| run.parameters.trainable).filter(|count| *count > 0);
                let trained = parameters.map(|count| format!("{} parameters trained", units::count(count)));
                let dtype = open.curves.run.as_ref().map(|run| run.dtype.clone());
                let parts: Vec<String> = [Some(device), dtype, trained]
                    .into_iter()
                    .flatten()
                    .filter(|part| !part.is_empty())
                    .collect();
                (parts.join(" · "), Role::Muted)
            }
        },
    }
}

fn draw_log(state: &TrainState, open: &OpenRun, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if open.log.is_empty() {
        put(buffer, area.x, area.y, area.right(), "the engine has printed nothing", theme.style(Role::Muted));
        return;
    }
    let text = open.log.join("\n");
    let lines = text::layout(&[Piece::new(text, theme.style(Role::Screen))], area.width, Wrap::Anywhere);
    text::draw_lines(buffer, area, &lines, &state.log, theme.style(Role::Muted));
}

fn draw_charts(
    state: &TrainState,
    context: &Context,
    open: &OpenRun,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let tall = area.height >= TALL;
    let small: Vec<Metric> =
        state.metrics().into_iter().filter(|metric| *metric != state.main_metric()).collect();
    let small_rows = (small.len() as u16).div_ceil(2);
    let notices = open.curves.notices.len().min(if tall { 3 } else { 1 }) as u16;
    let sample = sample_lines(state, open, area.width, theme);
    let sample_height = (sample.len() as u16).min(if tall { (area.height / 4).max(4) } else { 2 });
    let gap = u16::from(tall);
    let fixed = small_rows + notices + sample_height + if tall { 3 } else { 0 };
    let chart_height = area.height.saturating_sub(fixed).max(6).min(area.height);
    let mut y = area.y;
    let part = |y: &mut u16, height: u16| {
        let top = (*y).min(area.bottom());
        let part = Rect { y: top, height: height.min(area.bottom() - top), ..area };
        *y = top + part.height;
        part
    };
    draw_main(state, open, part(&mut y, chart_height), buffer, theme);
    part(&mut y, gap);
    draw_small(state, open, &small, part(&mut y, small_rows), buffer, theme);
    part(&mut y, if notices > 0 { gap } else { 0 });
    draw_notices(context, &open.curves, part(&mut y, notices), buffer, theme);
    part(&mut y, if sample_height > 0 { gap } else { 0 });
    let area = part(&mut y, sample_height);
    for (line, y) in sample.iter().zip(area.top()..area.bottom()) {
        buffer.set_line(area.x, y, line, area.width);
    }
}

fn draw_main(state: &TrainState, open: &OpenRun, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let metric = state.main_metric();
    draw_legend(state, open, metric, area, buffer, theme);
    let held_out = open.curves.held_out();
    let mut series = Vec::new();
    for (index, (_, curves)) in state.overlays.iter().enumerate().filter(|(_, (id, _))| **id != open.id) {
        series.push(Series {
            points: curves.series(metric),
            style: theme.style(OVERLAY_ROLES[index % OVERLAY_ROLES.len()]),
            shape: Shape::Line,
        });
    }
    series.push(Series {
        points: open.curves.series(metric),
        style: theme.style(Role::Series1),
        shape: Shape::Line,
    });
    if metric == Metric::Loss {
        let style = theme.style(Role::Series2);
        series.push(Series { points: &held_out, style, shape: Shape::Signs("◆") });
    }
    let mut marks = Vec::new();
    for step in &open.curves.checkpoints {
        marks.push(Mark { x: *step as f64, sign: "•", style: theme.style(Role::MarkCheckpoint) });
    }
    for notice in &open.curves.notices {
        let (sign, role) = match notice.what {
            Notice::Edit(_) => ("▲", Role::MarkEdit),
            Notice::Alert(_) => ("!", Role::MarkAlert),
        };
        marks.push(Mark { x: notice.step as f64, sign, style: theme.style(role) });
    }
    let label = |value: f64| look::value(metric, value);
    let chart = Chart {
        series,
        x: state.window.map_or((0.0, state.span()), |window| (window.from, window.to)),
        logarithmic: state.logarithmic,
        marks,
        cursor: state.cursor.map(|step| step as f64),
        label: &label,
    };
    let plot = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    chart.draw(plot, buffer, theme);
}

fn draw_legend(
    state: &TrainState,
    open: &OpenRun,
    metric: Metric,
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let title = if state.focus == Focus::Chart { Role::Focus } else { Role::Title };
    let newest = open.curves.last.as_ref().map_or(0, |last| last.step);
    let at = state.cursor.unwrap_or(newest);
    let mut pieces = vec![Piece::new(format!("{}   ", metric.title()), theme.style(title))];
    if let Some((step, value)) = open.curves.at(metric, at) {
        let name = if metric == Metric::Loss { "── train " } else { "── " };
        pieces.push(Piece::new(name, theme.style(Role::Series1)));
        pieces.push(Piece::new(look::value(metric, value), theme.style(Role::Strong)));
        if state.cursor.is_some() {
            pieces.push(Piece::new(format!(" at step {step}"), theme.style(Role::ChartCursor)));
        }
    }
    if metric == Metric::Loss {
        let before = open.curves.evaluations.iter().rev().find(|evaluation| evaluation.step <= at);
        if let Some(evaluation) = before {
            pieces.push(Piece::new("   ◆ held-out ", theme.style(Role::Series2)));
            pieces.push(Piece::new(units::number(evaluation.what.loss.get()), theme.style(Role::Strong)));
        }
        if let Some(best) = open.curves.best() {
            let text = format!("   (best {} @ {})", units::number(best.what.loss.get()), best.step);
            pieces.push(Piece::new(text, theme.style(Role::Muted)));
        }
        let scores =
            open.curves.evaluations.iter().rev().find(|evaluation| !evaluation.what.scores.is_empty());
        if let Some(scored) = scores {
            let scores: Vec<String> = scored
                .what
                .scores
                .iter()
                .map(|(name, score)| format!("{name} {}", units::percent(score.get())))
                .collect();
            pieces.push(Piece::new(
                format!("   {} @ {}", scores.join("  "), scored.step),
                theme.style(Role::Muted),
            ));
        }
    }
    if state.logarithmic {
        pieces.push(Piece::new("   log", theme.style(Role::Muted)));
    }
    put_pieces(buffer, area.x, area.y, area.right(), &pieces);
}

fn draw_small(
    state: &TrainState,
    open: &OpenRun,
    metrics: &[Metric],
    area: Rect,
    buffer: &mut Buffer,
    theme: &Theme,
) {
    let width = area.width / 2;
    for (index, metric) in metrics.iter().enumerate() {
        let y = area.y + (index / 2) as u16;
        if y >= area.bottom() {
            return;
        }
        let x = area.x + (index % 2) as u16 * width;
        let end = x + width.saturating_sub(2);
        let series = open.curves.series(*metric);
        put(buffer, x, y, end, metric.title(), theme.style(Role::Muted));
        let newest = series.last().map_or_else(String::new, |point| look::value(*metric, point.1));
        let value_end = (x + NAME_WIDTH + VALUE_WIDTH).min(end);
        put_right(buffer, (x + NAME_WIDTH).min(end), y, value_end, &newest, theme.style(Role::Strong));
        let line = Rect { x: value_end + 1, y, width: end.saturating_sub(value_end + 1), height: 1 };
        let share = (open.step() as f64 / state.span()).clamp(0.0, 1.0);
        let done = Rect { width: ((f64::from(line.width) * share).ceil() as u16).min(line.width), ..line };
        let values: Vec<f64> = series.iter().map(|point| point.1).collect();
        let from_zero =
            matches!(metric, Metric::Memory | Metric::DeviceMemory | Metric::Load | Metric::Throughput);
        sparkline(&values, from_zero, done, buffer, theme.style(Role::Series1));
    }
}

fn draw_notices(context: &Context, curves: &Curves, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let newest = curves.notices.iter().rev();
    for (At { time, step, what }, y) in newest.zip(area.top()..area.bottom()) {
        let (sign, role, text) = match what {
            Notice::Edit(edit) => (
                "▲",
                Role::MarkEdit,
                format!("{} {} → {} ({}) from step {step}", edit.key, edit.old, edit.new, edit.who),
            ),
            Notice::Alert(alert) => {
                let rows: Vec<String> = alert.rows.iter().take(4).map(u64::to_string).collect();
                let rows =
                    if rows.is_empty() { String::new() } else { format!(": rows {}", rows.join(", ")) };
                ("!", Role::Warning, format!("{}{rows}", headline(&alert.message)))
            }
        };
        let mut x = put(buffer, area.x, y, area.right(), sign, theme.style(role));
        x = put(buffer, x + 1, y, area.right(), &context.clock(*time), theme.style(Role::Muted));
        put(buffer, x + 2, y, area.right(), &text, theme.style(Role::Screen));
    }
}

/// The newest sample of the chosen prompt: prompt and check on the first line, then the reply with what is
/// new in it set off.
fn sample_lines(
    state: &TrainState,
    open: &OpenRun,
    width: u16,
    theme: &Theme,
) -> Vec<ratatui::text::Line<'static>> {
    let prompts = open.curves.sampled();
    let Some(index) = prompts.get(state.sample.min(prompts.len().saturating_sub(1))) else {
        return Vec::new();
    };
    let Some((newest, before)) = open.curves.sample(*index) else { return Vec::new() };
    let check = match newest.what.passed {
        Some(true) => Piece::new("  ✓ passes", theme.style(Role::Success)),
        Some(false) => Piece::new("  ✗ fails", theme.style(Role::Failed)),
        None => Piece::new("", Style::new()),
    };
    let count =
        format!("sample @ {} {}/{}   ", newest.step, state.sample.min(prompts.len() - 1) + 1, prompts.len());
    let room = usize::from(width).saturating_sub(text::width(&count) + text::width(&check.text));
    let heading = [
        Piece::new(count, theme.style(Role::Title)),
        Piece::new(fit(&newest.what.prompt, room), theme.style(Role::Muted)),
        check,
    ];
    let mut lines = text::layout(&heading, width, Wrap::Never);
    let reply = difference(before.map_or("", |before| &before.what.reply), &newest.what.reply, theme);
    lines.extend(text::layout(&reply, width, Wrap::Words));
    lines
}

/// `new` in two styles: what it shares with `old` at start and end, and what is new between.
fn difference<'a>(old: &str, new: &'a str, theme: &Theme) -> Vec<Piece<'a>> {
    let plain = theme.style(Role::Screen);
    if old.is_empty() || old == new {
        return vec![Piece::new(new, plain)];
    }
    let start = common(old.chars(), new.chars());
    let end = common(old[start..].chars().rev(), new[start..].chars().rev());
    let (head, rest) = new.split_at(start);
    let (middle, tail) = rest.split_at(rest.len() - end);
    vec![Piece::new(head, plain), Piece::new(middle, theme.style(Role::Added)), Piece::new(tail, plain)]
}

/// Bytes of the characters that both begin with.
fn common(left: impl Iterator<Item = char>, right: impl Iterator<Item = char>) -> usize {
    left.zip(right).take_while(|(left, right)| left == right).map(|(left, _)| left.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::theme::Library;

    #[test]
    fn what_is_new_in_a_reply_is_set_off() {
        let theme = Library::default().load("luthier").0;
        let texts = |old, new| -> Vec<String> {
            difference(old, new, &theme).iter().map(|piece| piece.text.to_string()).collect()
        };
        assert_eq!(texts("the cat sat", "the dog sat"), ["the ", "dog", " sat"]);
        assert_eq!(texts("aa", "aaa"), ["aa", "a", ""]);
        assert_eq!(texts("grün", "grüß"), ["grü", "ß", ""]);
        assert_eq!(texts("", "all new"), ["all new"]);
    }
}
