//! The events in a run's journal.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::number::Number;
use super::status::{Failure, RunState};
use super::time::{self, millis};
use crate::json;

/// Metrics by name, as declared in [`crate::algorithms`], in the order in which they were reported.
pub type Metrics = IndexMap<String, Number>;

/// Limit on the values kept from a line that this version cannot read.
const UNKNOWN_VALUES: usize = 1 << 18;

/// The keys that belong to the line, not to its body.
const LINE_KEYS: [&str; 3] = ["kind", "time", "step"];

/// One line of a run's journal. Written as one flat JSON object: first `kind`, `time` and, if present,
/// `step`, then the keys of the body.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEvent {
    /// When it happened, to the millisecond.
    pub time: Timestamp,
    /// The number of optimiser updates made so far; the first update is 1. An event between two updates has
    /// the number of the earlier one.
    pub step: Option<u64>,
    pub body: EventBody,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventBody {
    /// `run`: a process started or resumed the run.
    Run(Box<RunEvent>),
    /// `step`: one optimiser update.
    Step(StepEvent),
    /// `eval`: an evaluation on the held-out examples.
    Eval(EvalEvent),
    /// `sample`: one reply to a prompt of the suite or of a user.
    Sample(SampleEvent),
    /// `checkpoint`: a checkpoint was published.
    Checkpoint(CheckpointEvent),
    /// `edit`: a setting was changed during the run.
    Edit(EditEvent),
    /// `alert`: something that needs attention.
    Alert(AlertEvent),
    /// `state`: the run's state changed.
    State(StateEvent),
    /// An unknown kind, or a known kind with a body that this version cannot read. Kept whole.
    Unknown {
        kind: String,
        /// All keys but `kind`, `time` and `step`.
        keys: Map<String, Value>,
    },
}

/// Body of `run`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunEvent {
    /// SHA-256 of the run's `config.toml`.
    pub config_hash: String,
    /// Identity of the prepared data.
    pub data_hash: String,
    /// Identity of the base model.
    pub model_fingerprint: String,
    /// Identity of the chat template.
    pub template_fingerprint: String,
    /// Versions by name: `luthier`, `libtorch` …
    pub versions: IndexMap<String, String>,
    /// `cpu`, `cuda:0` …
    pub device: String,
    /// The dtype of computation: `f32`, `bf16`.
    pub dtype: String,
    pub parameters: ParameterCount,
    /// Number of training rows.
    pub train_rows: u64,
    /// Number of held-out rows.
    pub eval_rows: u64,
    /// Number of steps planned.
    pub total_steps: u64,
    /// Seed of all randomness in the run.
    pub seed: u64,
    /// The step of the checkpoint from which this process continues. `step`, `eval` and `sample` events of
    /// later steps *before* this line were lost with the former process and are repeated; readers of curves
    /// drop them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u64>,
}

/// Number of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParameterCount {
    /// All, including the adapter's.
    pub total: u64,
    /// Those that the method trains.
    pub trainable: u64,
}

/// Body of `step`: one optimiser update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepEvent {
    /// The step's loss, as `train.algorithm` defines it. For SFT the mean over trained tokens, natural
    /// logarithm.
    pub loss: Number,
    /// The learning rate this update used.
    pub learning_rate: Number,
    /// Norm of the gradient before clipping.
    pub grad_norm: Number,
    /// Tokens in this step, without padding.
    pub tokens: u64,
    /// Tokens trained on in this step.
    pub trained_tokens: u64,
    /// `tokens / seconds`.
    pub tokens_per_second: Number,
    /// Wall time of the step, without pauses, evaluations and checkpoints.
    pub seconds: Number,
    /// Position in the data: 1.5 is the middle of the second epoch.
    pub epoch: Number,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// Memory allocated on the device, if it is not the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_bytes: Option<u64>,
    /// How busy the device was, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Number>,
    /// The other metrics that `train.algorithm` reports, measured before the update. Keys of their own in the
    /// line.
    #[serde(flatten, deserialize_with = "reported")]
    pub metrics: Metrics,
}

/// Body of `eval`: an evaluation on the held-out examples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalEvent {
    /// The loss on the held-out examples, as `train.algorithm` defines it.
    pub loss: Number,
    /// The other metrics that `train.algorithm` reports. Keys of their own in the line.
    #[serde(flatten, deserialize_with = "reported")]
    pub metrics: Metrics,
    /// The objective's scores by name, 0 to 1, if replies were generated.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub scores: IndexMap<String, Number>,
    /// Wall time.
    pub seconds: Number,
    /// Number of held-out rows evaluated.
    pub rows: u64,
}

/// Body of `sample`: one reply to one prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleEvent {
    /// The last user message.
    pub prompt: String,
    pub reply: String,
    /// Position in the suite, from 0; missing if a user sent the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The objective's scores of this reply by name, 0 to 1.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub scores: IndexMap<String, Number>,
    /// Whether the objective's check passed, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
}

/// Body of `checkpoint`: a checkpoint was published.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointEvent {
    /// Folder, relative to the run directory.
    pub path: String,
    /// Total size of its files.
    pub bytes: u64,
    /// How long training waited for it.
    pub seconds: Number,
}

/// Body of `edit`: a setting was changed during the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EditEvent {
    /// Dotted key, such as `train.learning_rate`.
    pub key: String,
    /// The old value, as TOML.
    pub old: String,
    /// The new value, as TOML.
    pub new: String,
    /// Who changed it: `config.toml`, or the name that the client of the control socket gave.
    pub who: String,
    /// The first step that uses the new value.
    pub applied_at_step: u64,
}

/// Body of `alert`: something that needs attention.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertEvent {
    pub alert: AlertKind,
    /// One or two sentences for the user.
    pub message: String,
    /// The rows that caused it, if any (indices into the dataset).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<u64>,
}

#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AlertKind {
    /// A loss or gradient was not a finite number.
    Nan,
    /// The loss jumped.
    Spike,
    /// The held-out loss rises while the training loss falls.
    Overfitting,
    /// The disk is full or nearly so.
    DiskLow,
    /// Memory ran out and the micro-batch was split.
    OomSplit,
    /// Journal lines were delayed or lost.
    JournalGap,
    /// A configuration edit was rejected.
    EditRefused,
    /// A checkpoint was unreadable and skipped, or could not be written.
    Checkpoint,
    /// A problem in the data.
    Data,
    /// A kind this version does not know.
    #[default]
    #[serde(other)]
    Other,
}

/// Body of `state`: the run's state changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateEvent {
    pub state: RunState,
    /// The reason, in words: who asked, or why the run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The failure, if `state` is `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl JournalEvent {
    /// An event with the current time.
    pub fn now(step: Option<u64>, body: impl Into<EventBody>) -> Self {
        Self { time: time::now(), step, body: body.into() }
    }

    /// Reads one journal line, with or without its line end. Unknown kinds are kept; unknown keys of known
    /// kinds are ignored.
    pub fn from_line(line: &[u8]) -> Result<Self, serde_json::Error> {
        let head: Head = serde_json::from_slice(line)?;
        let known = match head.kind.as_str() {
            "run" => body(line, |body| EventBody::Run(Box::new(body))),
            "step" => body(line, EventBody::Step),
            "eval" => body(line, EventBody::Eval),
            "sample" => body(line, EventBody::Sample),
            "checkpoint" => body(line, EventBody::Checkpoint),
            "edit" => body(line, EventBody::Edit),
            "alert" => body(line, EventBody::Alert),
            "state" => body(line, EventBody::State),
            _ => None,
        };
        let body = match known {
            Some(known) => known,
            None => unknown(head.kind, json::from_slice(line, UNKNOWN_VALUES)?),
        };
        Ok(Self { time: head.time, step: head.step, body })
    }

    /// The journal line, ending in a newline. JSON escapes newlines in text, so it is always one line.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_else(|error| {
            let alert = AlertEvent {
                alert: AlertKind::JournalGap,
                message: format!("an event could not be written as JSON: {error}"),
                rows: Vec::new(),
            };
            let fallback = serde_json::json!({
                "kind": "alert", "time": time::text(self.time), "alert": alert.alert, "message": alert.message
            });
            fallback.to_string().into_bytes()
        });
        line.push(b'\n');
        line
    }
}

impl EventBody {
    /// The value of `kind`.
    pub fn kind(&self) -> &str {
        match self {
            Self::Run(_) => "run",
            Self::Step(_) => "step",
            Self::Eval(_) => "eval",
            Self::Sample(_) => "sample",
            Self::Checkpoint(_) => "checkpoint",
            Self::Edit(_) => "edit",
            Self::Alert(_) => "alert",
            Self::State(_) => "state",
            Self::Unknown { kind, .. } => kind,
        }
    }
}

macro_rules! body_from {
    ($($event:ty => $variant:expr),* $(,)?) => {
        $(impl From<$event> for EventBody {
            fn from(event: $event) -> Self {
                $variant(event)
            }
        })*
    };
}

body_from! {
    RunEvent => |event| Self::Run(Box::new(event)),
    StepEvent => Self::Step,
    EvalEvent => Self::Eval,
    SampleEvent => Self::Sample,
    CheckpointEvent => Self::Checkpoint,
    EditEvent => Self::Edit,
    AlertEvent => Self::Alert,
    StateEvent => Self::State,
}

#[derive(Deserialize)]
struct Head {
    kind: String,
    #[serde(with = "millis")]
    time: Timestamp,
    #[serde(default)]
    step: Option<u64>,
}

/// `time` and `step` have been read already. The line is parsed a second time for the body, which costs less
/// than serde's buffering for flattened enums.
fn body<T: DeserializeOwned>(line: &[u8], into: impl Fn(T) -> EventBody) -> Option<EventBody> {
    serde_json::from_slice(line).ok().map(into)
}

/// The metrics among the unknown keys of a body: all numbers, except the keys of the line itself.
fn reported<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Metrics, D::Error> {
    let keys = Map::<String, Value>::deserialize(deserializer)?;
    let number = |(name, value): (String, Value)| {
        let is_own = LINE_KEYS.contains(&name.as_str());
        Some((name, serde_json::from_value(value).ok()?)).filter(|_| !is_own)
    };
    Ok(keys.into_iter().filter_map(number).collect())
}

fn unknown(kind: String, mut keys: Map<String, Value>) -> EventBody {
    for taken in LINE_KEYS {
        keys.shift_remove(taken);
    }
    EventBody::Unknown { kind, keys }
}

impl Serialize for JournalEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.body.kind())?;
        map.serialize_entry("time", &time::text(self.time))?;
        if let Some(step) = self.step {
            map.serialize_entry("step", &step)?;
        }
        let flat = match &self.body {
            EventBody::Run(body) => serde_json::to_value(body),
            EventBody::Step(body) => serde_json::to_value(body),
            EventBody::Eval(body) => serde_json::to_value(body),
            EventBody::Sample(body) => serde_json::to_value(body),
            EventBody::Checkpoint(body) => serde_json::to_value(body),
            EventBody::Edit(body) => serde_json::to_value(body),
            EventBody::Alert(body) => serde_json::to_value(body),
            EventBody::State(body) => serde_json::to_value(body),
            EventBody::Unknown { keys, .. } => Ok(Value::Object(keys.clone())),
        }
        .map_err(S::Error::custom)?;
        if let Value::Object(keys) = flat {
            for (key, value) in keys {
                map.serialize_entry(&key, &value)?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for JournalEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Map::<String, Value>::deserialize(deserializer)?;
        let line = serde_json::to_vec(&value).map_err(D::Error::custom)?;
        Self::from_line(&line).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{changes, damage, damaged, spoilt};

    fn metrics(values: [f64; 2]) -> Metrics {
        ["reward_margin", "reward_accuracy"].map(str::to_owned).into_iter().zip(values.map(Number)).collect()
    }

    fn one_of_each() -> Vec<JournalEvent> {
        let bodies: Vec<EventBody> = vec![
            RunEvent {
                config_hash: "c0".into(),
                versions: IndexMap::from([("luthier".to_owned(), "0.1.0".to_owned())]),
                parameters: ParameterCount { total: 10, trainable: 2 },
                resumed_from: Some(100),
                ..RunEvent::default()
            }
            .into(),
            StepEvent {
                loss: f64::NAN.into(),
                grad_norm: f64::INFINITY.into(),
                load: Some(0.5.into()),
                ..StepEvent::default()
            }
            .into(),
            StepEvent { metrics: metrics([f64::NAN, 0.5]), ..StepEvent::default() }.into(),
            EvalEvent {
                loss: 0.25.into(),
                scores: IndexMap::from([("valid".to_owned(), 0.5.into())]),
                metrics: metrics([1.25, f64::INFINITY]),
                ..EvalEvent::default()
            }
            .into(),
            SampleEvent {
                prompt: "a\nb\u{1b}[2J".into(),
                reply: "\u{2028}".into(),
                passed: Some(false),
                ..SampleEvent::default()
            }
            .into(),
            CheckpointEvent { path: "checkpoints/step-3".into(), bytes: 7, seconds: 0.1.into() }.into(),
            EditEvent {
                key: "train.learning_rate".into(),
                old: "2e-4".into(),
                new: "1e-4".into(),
                ..EditEvent::default()
            }
            .into(),
            AlertEvent { alert: AlertKind::Spike, message: "up".into(), rows: vec![1, 2] }.into(),
            StateEvent {
                state: RunState::Failed,
                reason: None,
                failure: Some(Failure { message: "out of memory".into(), ..Failure::default() }),
            }
            .into(),
        ];
        bodies
            .into_iter()
            .enumerate()
            .map(|(step, body)| JournalEvent::now((step > 0).then_some(step as u64), body))
            .collect()
    }

    #[test]
    fn every_kind_reads_back_equal() {
        for event in one_of_each() {
            let line = event.to_line();
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            assert_eq!(JournalEvent::from_line(&line).unwrap(), event);
            assert_eq!(serde_json::from_slice::<JournalEvent>(&line).unwrap(), event);
        }
    }

    #[test]
    fn kind_time_and_step_come_first() {
        let event = JournalEvent {
            time: "2026-08-23T14:02:11.25Z".parse().unwrap(),
            step: Some(3),
            body: CheckpointEvent { path: "p".into(), bytes: 1, seconds: 2.0.into() }.into(),
        };
        assert_eq!(
            String::from_utf8(event.to_line()).unwrap(),
            "{\"kind\":\"checkpoint\",\"time\":\"2026-08-23T14:02:11.250Z\",\"step\":3,\"path\":\"p\",\"bytes\":1,\"seconds\":2.0}\n"
        );
    }

    #[test]
    fn metrics_are_keys_of_the_line() {
        let event =
            JournalEvent::now(Some(1), StepEvent { metrics: metrics([0.75, 0.5]), ..StepEvent::default() });
        let keys: Map<String, Value> = serde_json::from_slice(&event.to_line()).unwrap();
        assert_eq!(
            (&keys["reward_margin"], &keys["reward_accuracy"]),
            (&Value::from(0.75), &Value::from(0.5))
        );
        let plain = JournalEvent::now(Some(1), StepEvent::default());
        let EventBody::Step(read) = JournalEvent::from_line(&plain.to_line()).unwrap().body else {
            unreachable!()
        };
        assert!(read.metrics.is_empty(), "{read:?}");
    }

    #[test]
    fn undeclared_numbers_are_metrics_too() {
        let line = r#"{"kind":"eval","time":"2026-08-23T14:02:11.250Z","step":3,"loss":0.5,"kl":"NaN","note":"a","more":[1],"bleu":0.25}"#;
        let EventBody::Eval(eval) = JournalEvent::from_line(line.as_bytes()).unwrap().body else {
            unreachable!()
        };
        let expected =
            [("kl", f64::NAN), ("bleu", 0.25)].map(|(name, value)| (name.to_owned(), Number(value)));
        assert_eq!(eval.metrics, Metrics::from(expected));
    }

    #[test]
    fn unknown_kinds_and_bodies_are_kept() {
        for line in [
            r#"{"kind":"rung","time":"2026-08-23T14:02:11.250Z","step":3,"place":{"of":[1,2]}}"#,
            r#"{"kind":"step","time":"2026-08-23T14:02:11.250Z","step":3,"loss":["a","shape","of","the","future"]}"#,
        ] {
            let event = JournalEvent::from_line(line.as_bytes()).unwrap();
            assert!(matches!(event.body, EventBody::Unknown { .. }), "{event:?}");
            assert_eq!(String::from_utf8(event.to_line()).unwrap().trim_end(), line);
        }
        let known =
            r#"{"kind":"alert","time":"2026-08-23T14:02:11.250Z","alert":"aliens","message":"m","new":1}"#;
        let event = JournalEvent::from_line(known.as_bytes()).unwrap();
        assert_eq!(
            event.body,
            AlertEvent { alert: AlertKind::Other, message: "m".into(), rows: vec![] }.into()
        );
    }

    #[test]
    fn a_torn_line_is_an_error() {
        for event in one_of_each() {
            let line = event.to_line();
            for end in 0..line.len() - 2 {
                assert!(
                    JournalEvent::from_line(&line[..end]).is_err(),
                    "{:?}",
                    String::from_utf8_lossy(&line[..end])
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_numbers_and_texts_read_back_equal(
            loss in prop::num::f32::ANY,
            norm in prop::num::f32::ANY,
            step in any::<Option<u64>>(),
            texts in ("\\PC*", "[\\PC\n\u{0}-\u{1f}]*"),
            rows in prop::collection::vec(any::<u64>(), 0..4),
        ) {
            let bodies: [EventBody; 3] = [
                StepEvent { loss: loss.into(), grad_norm: norm.into(), ..StepEvent::default() }.into(),
                SampleEvent { prompt: texts.0.clone(), reply: texts.1.clone(), ..SampleEvent::default() }.into(),
                AlertEvent { message: texts.1, rows, ..AlertEvent::default() }.into(),
            ];
            for body in bodies {
                let event = JournalEvent::now(step, body);
                let line = event.to_line();
                prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
                prop_assert_eq!(JournalEvent::from_line(&line).unwrap(), event);
            }
        }

        #[test]
        fn a_damaged_line_is_refused_or_can_be_written(
            which in any::<prop::sample::Index>(),
            changes in changes(),
            damage in damage(),
        ) {
            let line = which.get(&one_of_each()).to_line();
            let spoilt = spoilt(&serde_json::from_slice(&line).unwrap(), &changes).to_string();
            for line in [spoilt.into_bytes(), damaged(&line, &damage)] {
                let Ok(event) = JournalEvent::from_line(&line) else { continue };
                // The first reading drops digits below a millisecond and repeated keys.
                let once = JournalEvent::from_line(&event.to_line()).unwrap();
                prop_assert_eq!(JournalEvent::from_line(&once.to_line()).unwrap(), once);
            }
        }
    }
}
