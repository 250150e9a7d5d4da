//! How the sweep pane looks.

use std::collections::BTreeSet;

use luthier_core::algorithms::Direction;
use luthier_core::config::headline;
use luthier_core::sweep::{Sweep, Trial, TrialState};
use luthier_core::units;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::state::SweepState;
use crate::app::Context;
use crate::theme::{Role, Theme};
use crate::widgets::chart::{Chart, Series, Shape};
use crate::widgets::rule;
use crate::widgets::text::{put, put_right};

/// From this width on, a chart is shown next to the table.
const WIDE: u16 = 110;

/// Columns of the chart next to the table.
const SIDE: u16 = 44;

const NUMBER: u16 = 4;
const STATE: u16 = 12;
const RESULT: u16 = 9;
const STEP: u16 = 11;
const SETTING: u16 = 14;

/// Draws the pane.
pub fn view(state: &SweepState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    if area.height < 3 {
        return;
    }
    if let Some(problem) = &state.problem {
        put(buffer, area.x + 1, area.y, area.right(), problem, theme.style(Role::Error));
        return;
    }
    let Some(queue) = &state.queue else {
        put(buffer, area.x + 1, area.y, area.right(), "reading the queue …", theme.style(Role::Muted));
        return;
    };
    if queue.trials.is_empty() {
        draw_empty(area, buffer, theme);
        return;
    }
    draw_summary(state, area, buffer, theme);
    let line = Rect { y: area.y + 1, height: 1, ..area };
    rule::horizontal(line, buffer, theme);
    let mut rest = Rect { y: area.y + 2, height: area.height - 2, ..area };
    if rest.width >= WIDE {
        let side = Rect { x: rest.right() - SIDE, width: SIDE, ..rest };
        rest.width -= SIDE + 1;
        rule::vertical(Rect { x: rest.right(), width: 1, ..rest }, buffer, theme);
        draw_side(state, context, Rect { x: side.x + 1, width: SIDE - 2, ..side }, buffer, theme);
    }
    draw_table(state, rest, buffer, theme);
}

fn draw_empty(area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let lines = [
        ("Which settings are best?", Role::Title),
        ("", Role::Muted),
        ("Nothing is queued.", Role::Screen),
        ("n  queues the trials of a sweep file: a grid or random search over", Role::Screen),
        ("   any settings of luthier.toml, one run after the other.", Role::Screen),
        ("a  queues one run with some settings changed.", Role::Screen),
    ];
    for ((line, role), y) in lines.into_iter().zip(area.y + 1..area.bottom()) {
        put(buffer, area.x + 1, y, area.right(), line, theme.style(role));
    }
}

fn draw_summary(state: &SweepState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(sweep) = state.sweep() else { return };
    let trials = state.trials_of(sweep.id);
    let over = trials.iter().filter(|trial| trial.state.is_over()).count();
    let mut parts = vec![
        sweep.name.clone(),
        sweep.sampler.clone(),
        format!("{over}/{} done", trials.len()),
        format!("goal {} {}", sweep.goal.metric, sweep.goal.direction),
    ];
    if let Some(best) = state.best_of(sweep) {
        let result = best.result.map_or(f64::NAN, luthier_core::runs::Number::get);
        parts.push(format!("best {} (trial {})", units::number(result), best.id));
    }
    put(buffer, area.x + 1, area.y, area.right(), &parts.join(" · "), theme.style(Role::Strong));
}

fn look(trial: &Trial) -> (&'static str, String, Role) {
    let word = trial.state.to_string();
    match trial.state {
        TrialState::Queued => ("·", word, Role::Waiting),
        TrialState::Held => ("‖", word, Role::Paused),
        TrialState::Running if trial.cancelling => ("◍", "stopping".to_owned(), Role::Stopped),
        TrialState::Running => ("▶", word, Role::Running),
        TrialState::Finished => ("✓", word, Role::Finished),
        TrialState::Stopped => ("■", word, Role::Stopped),
        TrialState::Failed => ("✗", word, Role::Failed),
        TrialState::Cancelled => ("✂", word, Role::Stopped),
        TrialState::Lost => ("?", word, Role::Lost),
    }
}

/// Why a trial ended, or its run's id.
fn reason(trial: &Trial) -> String {
    match (&trial.failure, trial.attempts) {
        (Some(failure), _) => format!("{}: {}", failure.class, headline(&failure.message)),
        (None, attempts) if attempts > 1 => format!("attempt {attempts}"),
        _ => String::new(),
    }
}

fn draw_table(state: &SweepState, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let shown = state.shown();
    let keys: BTreeSet<&String> = shown.iter().flat_map(|trial| trial.settings.keys()).collect();
    let keys: Vec<&String> = keys.into_iter().collect();
    let muted = theme.style(Role::Muted);
    let fixed = [("#", NUMBER), ("state", STATE), ("result", RESULT), ("step", STEP)];
    let mut x = area.x + 1;
    for (index, (title, width)) in fixed.into_iter().enumerate() {
        if index == 1 {
            put(buffer, x + 2, area.y, area.right(), title, muted);
        } else {
            put_right(buffer, x, area.y, (x + width).min(area.right()), title, muted);
        }
        x += width + 1;
    }
    let settings_x = x + 1;
    x = settings_x;
    let mut columns = Vec::new();
    for key in keys {
        if x + SETTING > area.right() {
            break;
        }
        let short = key.rsplit('.').next().unwrap_or(key);
        put_right(buffer, x, area.y, x + SETTING - 1, short, muted);
        columns.push((key, x));
        x += SETTING;
    }
    let rows = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    for (index, y) in state.list.visible(rows.height).zip(rows.top()..rows.bottom()) {
        let trial = shown[index];
        let selected = state.list.selected() == Some(index);
        if selected {
            buffer.set_style(Rect { y, height: 1, ..rows }, theme.style(Role::Selection));
        }
        let style = |role| if selected { Style::new() } else { theme.style(role) };
        let mut x = rows.x + 1;
        put_right(buffer, x, y, x + NUMBER, &trial.id.to_string(), style(Role::Screen));
        x += NUMBER + 1;
        let (sign, word, role) = look(trial);
        put(buffer, x, y, x + STATE, &format!("{sign} {word}"), style(role));
        x += STATE + 1;
        let result = trial.result.map_or_else(String::new, |result| units::number(result.get()));
        put_right(buffer, x, y, x + RESULT, &result, style(Role::Strong));
        x += RESULT + 1;
        put_right(buffer, x, y, x + STEP, &progress(state, trial), style(Role::Muted));
        for (key, x) in &columns {
            let value = trial.settings.get(*key).map_or("", String::as_str);
            put_right(buffer, *x, y, x + SETTING - 1, value, style(Role::Screen));
        }
        let after = columns.last().map_or(settings_x, |(_, x)| x + SETTING) + 1;
        put(buffer, after, y, rows.right(), &reason(trial), style(Role::Muted));
    }
}

fn progress(state: &SweepState, trial: &Trial) -> String {
    let made = state.queue.as_ref().zip(trial.run.as_ref()).and_then(|(queue, run)| queue.progress.get(run));
    made.map_or_else(String::new, |(step, total)| format!("{step}/{total}"))
}

fn draw_side(state: &SweepState, context: &Context, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let Some(sweep) = state.sweep() else { return };
    let chart_height = (area.height / 2).max(8).min(area.height);
    draw_results(state, sweep, Rect { height: chart_height, ..area }, buffer, theme);
    let Some(trial) = state.selected() else { return };
    let mut y = area.y + chart_height + 1;
    let mut line = |text: String, role: Role| {
        if y < area.bottom() {
            put(buffer, area.x, y, area.right(), &text, theme.style(role));
            y += 1;
        }
    };
    line(format!("trial {} of {}", trial.id, trial.sweep_name), Role::Title);
    for (key, value) in &trial.settings {
        line(format!("{key} = {value}"), Role::Screen);
    }
    if let Some(run) = &trial.run {
        line(format!("run {run}"), Role::Muted);
    }
    if let Some(started) = trial.started {
        let ended = trial.ended.map_or_else(String::new, |ended| format!(" – {}", context.clock(ended)));
        line(format!("{}{ended}", context.clock(started)), Role::Muted);
    }
    if let Some(failure) = &trial.failure {
        line(format!("{}: {}", failure.class, headline(&failure.message)), Role::Error);
        line(failure.remedy.clone(), Role::Screen);
    }
}

fn draw_results(state: &SweepState, sweep: &Sweep, area: Rect, buffer: &mut Buffer, theme: &Theme) {
    let title = format!("{} by trial   ── best so far", sweep.goal.metric);
    put(buffer, area.x, area.y, area.right(), &title, theme.style(Role::Title));
    let trials = state.trials_of(sweep.id);
    let results: Vec<(f64, f64)> =
        trials.iter().filter_map(|trial| Some((trial.number as f64 + 1.0, trial.result?.get()))).collect();
    let mut best = Vec::new();
    for &(x, y) in results.iter().filter(|point| point.1.is_finite()) {
        let so_far = best.last().map_or(y, |last: &(f64, f64)| match sweep.goal.direction {
            Direction::Min => last.1.min(y),
            Direction::Max => last.1.max(y),
        });
        best.push((x, so_far));
    }
    let label = |value: f64| units::number(value);
    let chart = Chart {
        series: vec![
            Series { points: &best, style: theme.style(Role::Series1), shape: Shape::Line },
            Series { points: &results, style: theme.style(Role::Series2), shape: Shape::Points("•") },
        ],
        x: (1.0, (trials.len() as f64).max(2.0)),
        logarithmic: false,
        marks: Vec::new(),
        cursor: None,
        label: &label,
    };
    chart.draw(Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area }, buffer, theme);
}
