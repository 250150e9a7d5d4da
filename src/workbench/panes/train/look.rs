//! How states, times and values of runs are written, the same in every pane.

use std::time::Duration;

use luthier_core::runs::RunState;

use super::curves::Metric;
use crate::theme::Role;
use luthier_core::units;

/// The sign of a state, for places too narrow for its word.
pub fn glyph(state: RunState) -> &'static str {
    match state {
        RunState::Queued => "·",
        RunState::Starting => "◌",
        RunState::Running => "▶",
        RunState::Paused => "‖",
        RunState::Stopping => "◍",
        RunState::Finished => "✓",
        RunState::Stopped => "■",
        RunState::Failed => "✗",
        RunState::Lost => "?",
    }
}

/// The role that a state is drawn in.
pub fn role(state: RunState) -> Role {
    match state {
        RunState::Queued | RunState::Starting => Role::Waiting,
        RunState::Running => Role::Running,
        RunState::Paused => Role::Paused,
        RunState::Stopping | RunState::Stopped => Role::Stopped,
        RunState::Finished => Role::Finished,
        RunState::Failed => Role::Failed,
        RunState::Lost => Role::Lost,
    }
}

/// A value of a metric with its unit, as short as can be read.
pub fn value(metric: Metric, value: f64) -> String {
    if !value.is_finite() {
        return units::number(value);
    }
    match metric {
        Metric::Loss | Metric::GradientNorm => units::number(value),
        Metric::Reported(metric) => metric.notation.write(value),
        Metric::LearningRate => format!("{value:.2e}"),
        Metric::Throughput if value >= 10_000.0 => format!("{:.1} k", value / 1000.0),
        Metric::Throughput => format!("{value:.0}"),
        Metric::Memory | Metric::DeviceMemory => units::bytes(value as u64),
        Metric::Load => units::percent(value),
    }
}

/// `38 m`: how long something will take.
pub fn eta(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "–".to_owned(), short)
}

fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} m", seconds.div_ceil(60)),
        _ => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
    }
}
