//! What tests of several rooms start from: hostile input for property tests (what is valid, spoilt a little, gets further
//! than noise), and a machine with GPUs.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use crate::machine::{CudaVersion, Gpu, Sighting};

/// A GPU as the driver describes it.
pub(crate) fn gpu(index: u32, uuid: &str) -> Gpu {
    Gpu {
        index,
        slice: None,
        name: "NVIDIA H200".to_owned(),
        uuid: Some(uuid.to_owned()),
        capability: Some((9, 0)),
        memory_total: 139 << 30,
        memory_used: 39 << 30,
        load_percent: None,
        temperature: None,
        power: None,
        power_limit: None,
        processes: Vec::new(),
    }
}

/// A machine with three GPUs, all of which libtorch can use.
pub(crate) fn server() -> Sighting {
    Sighting {
        has_driver: true,
        answers: true,
        driver_version: Some("580.65.06".to_owned()),
        driver_cuda: CudaVersion::parse("13.0"),
        gpus: vec![gpu(0, "GPU-aa01"), gpu(1, "GPU-ab02"), gpu(2, "GPU-ac03")],
        visible: None,
        torch_cuda: CudaVersion::parse("13.0"),
    }
}

/// JSON values that readers trip over.
pub(crate) fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![0, 1, 2, 3, 64, 1 << 28, 1 << 32, i64::MAX, i64::MIN, -1])
            .prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::sample::select(vec![0.5, -0.0, 1e-5, 1e300, -1e-300]).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["", "\u{0}", "\u{1b}[2J", "default", "../../x", "nan"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("\\PC{0,8}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Which of a document's values become something else, and what.
pub(crate) fn changes() -> impl Strategy<Value = Vec<(Index, Value)>> {
    prop::collection::vec((any::<Index>(), json()), 1..4)
}

/// The document with values within it exchanged.
pub(crate) fn spoilt(document: &Value, changes: &[(Index, Value)]) -> Value {
    let mut document = document.clone();
    for (index, value) in changes {
        let mut places = Vec::new();
        collect(&document, &mut String::new(), &mut places);
        if places.is_empty() {
            break;
        }
        let place = index.get(&places);
        if let Some(found) = document.pointer_mut(place) {
            found.clone_from(value);
        }
    }
    document
}

/// The JSON pointers of all values below `value`.
fn collect(value: &Value, here: &mut String, places: &mut Vec<String>) {
    let members: Vec<(String, &Value)> = match value {
        Value::Array(elements) => {
            elements.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        _ => return,
    };
    for (name, value) in members {
        let length = here.len();
        here.push('/');
        here.push_str(&name);
        places.push(here.clone());
        collect(value, here, places);
        here.truncate(length);
    }
}

/// One thing done to bytes.
#[derive(Debug, Clone)]
pub(crate) enum Damage {
    /// A byte becomes another.
    Set(Index, u8),
    /// Some are put in.
    Insert(Index, Vec<u8>),
    /// Some are taken out.
    Remove(Index, usize),
    /// The rest is missing.
    Cut(Index),
}

/// A few things done to bytes.
pub(crate) fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        2 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        2 => (any::<Index>(), 1..9_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ];
    prop::collection::vec(one, 1..5)
}

/// The bytes, damaged.
pub(crate) fn damaged(bytes: &[u8], damage: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damage {
        match damage {
            Damage::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Set(..) => {}
            Damage::Insert(at, new) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = at.index(bytes.len() + 1);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
        }
    }
    bytes
}

/// The folders of the tiny reference models.
pub(crate) fn tiny_models() -> Vec<PathBuf> {
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny"));
    let mut found: Vec<PathBuf> = std::fs::read_dir(tiny)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}
