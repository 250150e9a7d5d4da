//! Tests the serving process through its socket.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use luthier_core::config::Config;
use luthier_core::data::{Extras, Message};
use luthier_core::runs::serving::{
    DoneReason, GenerateRow, SERVING_VERSION, Sampling, ServeReply, ServeRequest, ServingClient,
};

use super::serve;
use crate::base::{Base, model_files};
use crate::methods::{self, Purpose, method_of};
use crate::process::Termination;
use crate::testing::Project;

const PATIENCE: Duration = Duration::from_mins(1);

struct Served {
    project: Project,
    client: ServingClient,
    termination: Termination,
    serving: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        let project = Project::new();
        let socket = project.path().join("serve.sock");
        let termination = Termination::default();
        let serving = {
            let (folder, socket, termination) =
                (project.path().to_owned(), socket.clone(), termination.clone());
            thread::spawn(move || serve(&folder, &socket, None, &termination).unwrap())
        };
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match ServingClient::connect(&socket) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::yield_now();
        };
        Self { project, client, termination, serving: Some(serving) }
    }

    fn send(&mut self, request: &ServeRequest) {
        self.client.sender.send(request).unwrap();
    }

    fn next(&mut self) -> ServeReply {
        self.client.receiver.receive(PATIENCE).unwrap().expect("an answer within a minute")
    }

    fn greet(&mut self) {
        self.send(&ServeRequest::Hello { version: SERVING_VERSION });
        assert!(matches!(self.next(), ServeReply::Loading { .. }));
        assert!(matches!(self.next(), ServeReply::Ready { .. }));
    }

    /// A folder with an adapter whose weights are not zero.
    fn adapter(&self, seed: u64) -> PathBuf {
        let config = Config::load(self.project.path(), &[]).unwrap();
        let files = model_files(&config, self.project.path()).unwrap();
        let base = Base::load(files, &config, self.project.path()).unwrap();
        let adapter = method_of(&config).create(&base.model, seed).unwrap();
        for (name, parameter) in adapter.parameters() {
            if name.contains("lora_B") {
                tch::no_grad(|| parameter.shallow_clone().fill_(0.05)).size();
            }
        }
        let folder = self.project.path().join(format!("adapter-{seed}"));
        methods::save(adapter.as_ref(), &folder, Purpose::Result).unwrap();
        folder
    }

    /// Text, reason and weights by row.
    fn answers(&mut self, id: u64, rows: usize) -> Vec<(String, DoneReason, String)> {
        let mut texts = vec![String::new(); rows];
        let mut done: Vec<Option<(DoneReason, String)>> = vec![None; rows];
        while done.iter().any(Option::is_none) {
            match self.next() {
                ServeReply::Token { id: of, row, text } if of == id => texts[row] += &text,
                ServeReply::Done { id: of, row, reason, weights, .. } if of == id => {
                    done[row] = Some((reason, weights));
                }
                other => panic!("{other:?}"),
            }
        }
        texts
            .into_iter()
            .zip(done.into_iter().flatten())
            .map(|(text, (reason, weights))| (text, reason, weights))
            .collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.termination.raise();
        if let Some(serving) = self.serving.take() {
            assert!(serving.join().is_ok() || thread::panicking());
        }
    }
}

fn row(adapter: Option<PathBuf>) -> GenerateRow {
    GenerateRow {
        adapter,
        messages: vec![Message::new("user", "the 3 th")],
        extras: Extras::default(),
        seed: 5,
    }
}

fn greedy(id: u64, rows: Vec<GenerateRow>, max_new_tokens: usize) -> ServeRequest {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_new_tokens };
    ServeRequest::Generate { id, rows, sampling }
}

#[test]
fn base_and_tuned_answer_the_same_in_one_batch_and_alone() {
    let mut served = Served::new();
    served.greet();
    let (first, second) = (served.adapter(1), served.adapter(2));
    served.send(&greedy(1, vec![row(None), row(Some(first.clone())), row(Some(second.clone()))], 8));
    let together = served.answers(1, 3);
    for (index, adapter) in [None, Some(first.clone()), Some(second)].into_iter().enumerate() {
        served.send(&greedy(2, vec![row(adapter)], 8));
        assert_eq!(served.answers(2, 1)[0], together[index], "row {index}");
    }
    let mut weights: Vec<&String> = together.iter().map(|answer| &answer.2).collect();
    weights.sort();
    weights.dedup();
    assert_eq!(weights.len(), 3, "each side names other weights");

    // Other files in the same folder are different weights.
    let third = served.adapter(3);
    std::fs::copy(third.join("adapter_model.safetensors"), first.join("adapter_model.safetensors")).unwrap();
    served.send(&greedy(3, vec![row(Some(first))], 8));
    assert_ne!(served.answers(3, 1)[0].2, together[1].2);
}

#[test]
fn a_generation_can_be_cancelled_and_a_bad_request_is_explained() {
    let mut served = Served::new();
    served.greet();
    served.send(&greedy(7, vec![row(None)], 100_000));
    served.send(&ServeRequest::Cancel { id: 7 });
    let answer = served.answers(7, 1).remove(0);
    assert!(matches!(answer.1, DoneReason::Cancelled | DoneReason::Stop | DoneReason::Length), "{answer:?}");

    served.send(&greedy(8, vec![row(Some("nowhere".into()))], 4));
    let ServeReply::Error { id: 8, message } = served.next() else { panic!("no error") };
    assert!(message.contains("nowhere"), "{message}");
    served.send(&greedy(9, vec![], 4));
    assert!(matches!(served.next(), ServeReply::Error { id: 9, .. }));
    served.send(&greedy(10, vec![row(None)], 4));
    assert_eq!(served.answers(10, 1).len(), 1, "it still answers");
}

#[test]
fn hello_then_load_loads_the_model_once() {
    let mut served = Served::new();
    let run = served.project.run(&[]);
    served.send(&ServeRequest::Hello { version: SERVING_VERSION });
    served.send(&ServeRequest::Load { run: Some(run.path().to_owned()) });
    assert!(matches!(served.next(), ServeReply::Loading { .. }));
    assert!(matches!(served.next(), ServeReply::Ready { .. }));
    assert!(matches!(served.next(), ServeReply::Ready { .. }));
    served.send(&ServeRequest::Hello { version: 99 });
    let ServeReply::Error { id: 0, message } = served.next() else { panic!("no error") };
    assert!(message.contains("version"), "{message}");
    served.send(&ServeRequest::Load { run: Some("nowhere".into()) });
    assert!(matches!(served.next(), ServeReply::Error { id: 0, .. }));
}
