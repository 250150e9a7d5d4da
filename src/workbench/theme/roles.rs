//! What a style is for. Everything on screen is drawn in one of these roles.

use ratatui::style::Modifier;
use strum::{EnumIter, EnumString, IntoStaticStr};

/// What a style is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Role {
    /// The screen itself: background and ordinary text.
    Screen,
    /// Secondary text: units, times, explanations.
    Muted,
    /// Emphasised text: values, names.
    Strong,
    Title,
    /// Rules between parts.
    Rule,
    /// The project in the header.
    Project,
    /// Panes in the header that are not shown.
    Tab,
    /// The pane in the header that is shown.
    TabActive,
    /// A key in a hint.
    Key,
    /// What a key does.
    Hint,
    /// What has the focus: the heading or marker of the focused part.
    Focus,
    /// The selected row where the focus is.
    Selection,
    /// The selected row where the focus is not.
    SelectionIdle,
    Marked,
    /// What a search found.
    Match,
    /// A box over the panes.
    Popup,
    PopupTitle,
    PopupRule,
    Button,
    /// The button that enter presses.
    ButtonFocus,
    Input,
    InputCursor,
    /// The done part of a gauge.
    Gauge,
    /// The rest of a gauge.
    GaugeRest,
    /// For information.
    Note,
    /// A request was carried out.
    Success,
    /// Needs attention.
    Warning,
    Error,
    Running,
    /// Waiting for its turn, or starting.
    Waiting,
    Paused,
    /// Finished.
    Finished,
    /// Stopped, cancelled or pruned before its end.
    Stopped,
    Failed,
    /// The process is gone without reporting an end.
    Lost,
    /// The left, unnamed side of a comparison.
    SideLeft,
    /// The right, unnamed side of a comparison.
    SideRight,
    /// The base model.
    Base,
    /// The tuned model.
    Tuned,
    /// The baseline.
    Baseline,
    /// Tokens that are trained on.
    Trained,
    /// Tokens that are read only.
    Untrained,
    /// Special tokens.
    Special,
    /// A system message.
    SystemMessage,
    /// A user's message.
    UserMessage,
    /// An assistant's message.
    AssistantMessage,
    /// Text that is new in a comparison.
    Added,
    /// Text that is gone in a comparison.
    Removed,
    /// Axes, ticks and their numbers.
    Axis,
    /// The cursor of a chart.
    ChartCursor,
    /// Mark of an edit on a chart.
    MarkEdit,
    /// Mark of an evaluation on a chart.
    MarkEvaluation,
    /// Mark of a checkpoint on a chart.
    MarkCheckpoint,
    /// Mark of an alert on a chart.
    MarkAlert,
    /// First series of a chart: train.
    Series1,
    /// Second series: held-out.
    Series2,
    /// Third series.
    Series3,
    /// Fourth series.
    Series4,
    /// Fifth series.
    Series5,
    /// Sixth series.
    Series6,
}

impl Role {
    /// The name in theme files.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The broader role whose style is used if a theme has none for this one.
    pub fn parent(self) -> Option<Self> {
        Some(match self {
            Self::Screen => return None,
            Self::Muted
            | Self::Strong
            | Self::Title
            | Self::Focus
            | Self::Selection
            | Self::Popup
            | Self::Input
            | Self::Note
            | Self::Success
            | Self::Warning
            | Self::Error
            | Self::Gauge
            | Self::Series1
            | Self::Series2
            | Self::Series3
            | Self::Series4
            | Self::Series5
            | Self::Series6
            | Self::Trained => Self::Screen,
            Self::Rule
            | Self::Tab
            | Self::Hint
            | Self::GaugeRest
            | Self::Axis
            | Self::Waiting
            | Self::Untrained
            | Self::PopupRule
            | Self::Stopped
            | Self::SystemMessage => Self::Muted,
            Self::Project | Self::PopupTitle | Self::Key => Self::Title,
            Self::TabActive | Self::Match | Self::ChartCursor | Self::Marked | Self::Running => Self::Focus,
            Self::SelectionIdle | Self::ButtonFocus | Self::InputCursor => Self::Selection,
            Self::Button => Self::Popup,
            Self::Paused | Self::Lost | Self::MarkAlert | Self::MarkEdit => Self::Warning,
            Self::Finished | Self::Added => Self::Success,
            Self::Failed | Self::Removed => Self::Error,
            Self::SideLeft | Self::Tuned | Self::AssistantMessage | Self::MarkEvaluation => Self::Series2,
            Self::SideRight | Self::Base | Self::UserMessage => Self::Series1,
            Self::Baseline | Self::MarkCheckpoint | Self::Special => Self::Series3,
        })
    }

    /// The style of the role without colours. Together with the words and signs that
    /// views write, every screen stays readable.
    pub fn plain(self) -> Modifier {
        match self {
            Self::Strong
            | Self::Title
            | Self::Project
            | Self::Key
            | Self::Focus
            | Self::PopupTitle
            | Self::Warning
            | Self::Error
            | Self::Running
            | Self::Failed
            | Self::Lost
            | Self::Special
            | Self::UserMessage
            | Self::AssistantMessage
            | Self::MarkAlert
            | Self::MarkEdit => Modifier::BOLD,
            Self::Selection | Self::InputCursor | Self::ButtonFocus | Self::ChartCursor => Modifier::REVERSED,
            Self::TabActive => Modifier::BOLD.union(Modifier::REVERSED),
            Self::SelectionIdle | Self::Input | Self::Trained | Self::Added | Self::Marked => {
                Modifier::UNDERLINED
            }
            Self::Match => Modifier::BOLD.union(Modifier::UNDERLINED),
            Self::Removed => Modifier::CROSSED_OUT,
            _ => Modifier::empty(),
        }
    }
}
