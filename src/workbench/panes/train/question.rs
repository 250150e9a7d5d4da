//! What the train pane asks in a box.

/// What the pane asks in a box, so that the answer finds its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainQuestion {
    /// Start the run planned with these settings?
    Start(Vec<String>),
    /// The settings to override.
    Settings,
    /// How to end this run.
    Stop(String),
    /// Stop this run at once, without saving?
    StopNow(String),
    /// Which of these keys of this run to change.
    Key(String, Vec<&'static str>),
    /// The new value of a key of this run.
    Value(String, &'static str),
    /// Go on with a run whose process is gone?
    Restart(String),
}
