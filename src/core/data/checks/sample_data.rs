//! The sample data must not alarm.

use std::path::Path;

use serde_json::Value;

use super::encoding::{escaped, mojibake};
use super::outliers::outliers;
use super::replies::{Replies, broken_json, echoes, repetition, unclosed_fence};
use super::secrets::Secrets;

#[test]
fn the_tickets_raise_no_alarm() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../sample-data/tickets"));
    let (replies, secrets) = (Replies::new(), Secrets::new());
    let mut alarms = Vec::new();
    let mut rows = 0;
    let mut lengths = Vec::new();
    for file in ["train.jsonl", "held-out.jsonl", "prompts.jsonl"] {
        for line in std::fs::read_to_string(folder.join(file)).unwrap().lines() {
            rows += 1;
            let row: Value = serde_json::from_str(line).unwrap();
            let texts: Vec<&str> = row["messages"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|message| message["content"].as_str())
                .chain(row["expected"].as_str())
                .collect();
            let (prompt, reply) = (texts[0], texts[texts.len() - 1]);
            lengths.push(reply.len());
            let mut alarm = |check: &str, found: bool| {
                if found {
                    alarms.push(format!("{file}: {check}: {line}"));
                }
            };
            for text in &texts {
                alarm("refusal", replies.refusal(text));
                alarm("boilerplate", replies.boilerplate(text).is_some());
                alarm("fence", unclosed_fence(text));
                alarm("repetition", repetition(text).is_some());
                alarm("mojibake", mojibake(text).is_some());
                alarm("escapes", escaped(text));
                alarm("secret", secrets.secret(text).is_some());
                alarm("personal data", secrets.personal(text).is_some());
            }
            alarm("JSON", broken_json(reply).is_some());
            alarm("echo", echoes(prompt, reply));
        }
    }
    assert!(rows > 400, "{rows}");
    assert_eq!(alarms, [""; 0]);
    assert_eq!(outliers(&lengths), None);
}
