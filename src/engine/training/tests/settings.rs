//! No setting is accepted and ignored: each key, set to another legal value, changes what a run makes of its data, what
//! it writes or what it answers, or the run is refused with a reason.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use luthier_core::config::{Config, KEYS};
use luthier_core::data;
use luthier_core::plan::plan_at;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;
use crate::base::{Base, model_files};
use crate::device;
use crate::methods::method_of;
use crate::training::clock::Clock;
use crate::training::observe::{Observer, Questions};

/// Six steps of the tiny model with every kind of event.
const SETTINGS: [&str; 4] =
    ["train.max_steps=6", "train.eval_every=3", "train.sample_every=6", "train.checkpoint_every=3"];

/// Keys of events that are different each time, or only repeat a setting.
const LEFT_OUT: [&str; 12] = [
    "time",
    "load",
    "bytes",
    "seconds",
    "tokens_per_second",
    "memory_bytes",
    "config_hash",
    "data_hash",
    "model_fingerprint",
    "template_fingerprint",
    "dtype",
    "seed",
];

/// How a key's effect shows.
enum Shows {
    /// In what [`run_of`] tells about a run, with the other settings given here.
    InRun(&'static [&'static str]),
    /// In the memory that is forecast.
    InPlan,
    /// The run is refused, and this is in the reason.
    Refused(&'static [&'static str], &'static str),
    /// Not here, but in this test.
    In { file: &'static str, test: &'static str },
}

use Shows::{In, InPlan, InRun, Refused};

const CHAT: &[&str] = &["data.train=chats.jsonl", "data.template=chatml", "data.max_length=256"];
const PAIRS: &[&str] = &["data.train=pairs.jsonl", "train.algorithm=dpo"];
const LONG: &[&str] = &["data.train=long.jsonl"];
const LABELLED: &[&str] = &["data.train=labelled.jsonl", "train.algorithm=kto"];

/// Each key with another legal value and how it shows.
const FLIPS: &[(&str, &str, Shows)] = &[
    ("model.path", "biased", InRun(&[])),
    ("model.dtype", "bf16", InRun(&[])),
    ("model.device", "cuda:1023", Refused(&[], "cuda:1023")),
    ("model.tf32", "true", FLAGS),
    ("data.train", "other.jsonl", InRun(&[])),
    ("data.eval", "0.5", InRun(&[])),
    ("data.format", "text", InRun(&["data.train=wide.jsonl", "data.format=prompt-completion"])),
    (
        "data.columns",
        "{ prompt = \"question\" }",
        InRun(&["data.train=wide.jsonl", "data.format=prompt-completion"]),
    ),
    ("data.template", "llama3", InRun(CHAT)),
    (
        "data.template_variables",
        "{ ending = \"!\" }",
        InRun(&["data.train=chats.jsonl", "data.template=own.jinja"]),
    ),
    ("data.system", "be brief", InRun(CHAT)),
    (
        "data.system_role",
        "merge",
        InRun(&[
            "data.train=chats.jsonl",
            "data.template=chatml",
            "data.max_length=256",
            "data.system=brief",
        ]),
    ),
    ("data.train_on", "assistant", InRun(CHAT)),
    ("data.reasoning", "mask", InRun(&["data.train=thoughts.jsonl", "data.template=chatml"])),
    (
        "data.train_after_end",
        "true",
        In {
            file: "src/core/data/case_tests.rs",
            test: "what_follows_the_end_of_a_turn_is_trained_where_asked",
        },
    ),
    ("data.max_length", "24", InRun(LONG)),
    ("data.overflow", "drop", InRun(&["data.train=long.jsonl", "data.max_length=24"])),
    ("data.cut_limit", "0", Refused(&["data.train=cut.jsonl", "data.max_length=24"], "lose all their reply")),
    ("data.group_by", "row", InRun(&["data.train=groups.jsonl", "data.eval=0.25"])),
    (
        "data.allow",
        "[\"too_long\"]",
        In { file: "src/core/data/prepare/tests.rs", test: "a_finding_that_is_allowed_does_not_block" },
    ),
    ("data.packing", "false", InRun(&[])),
    ("data.shuffle", "false", InRun(&[])),
    ("method.kind", "ia3", InRun(&["method.dropout=0"])),
    ("method.rank", "2", InRun(&[])),
    ("method.alpha", "16", InRun(&[])),
    ("method.dropout", "0", InRun(&[])),
    ("method.targets", "[\"q_proj\"]", InRun(&[])),
    ("method.variant", "rslora", InRun(&[])),
    ("method.bias", "all", InRun(&["model.path=biased"])),
    ("method.modules_to_save", "[\"lm_head\"]", InRun(&[])),
    ("method.init", "start", InRun(&[])),
    ("method.virtual_tokens", "4", InRun(&["method.kind=prompt", "method.dropout=0"])),
    ("train.algorithm", "dpo", Refused(&[], "learns from those alone")),
    ("train.dpo_beta", "0.5", InRun(PAIRS)),
    ("train.dpo_label_smoothing", "0.25", InRun(PAIRS)),
    ("train.kto_beta", "0.5", InRun(LABELLED)),
    ("train.kto_desirable_weight", "0.5", InRun(LABELLED)),
    ("train.kto_undesirable_weight", "0.5", InRun(LABELLED)),
    ("train.epochs", "2", InRun(&["train.max_steps=0", "train.epochs=1"])),
    ("train.max_steps", "5", InRun(&[])),
    ("train.batch_size", "1", InRun(&[])),
    ("train.accumulate", "1", InRun(&[])),
    ("train.learning_rate", "1e-3", InRun(&[])),
    ("train.schedule", "linear", InRun(&[])),
    ("train.warmup", "3", InRun(&[])),
    ("train.min_learning_rate", "1e-3", InRun(&[])),
    ("train.weight_decay", "0.5", InRun(&[])),
    ("train.betas", "[0.5, 0.9]", InRun(&[])),
    ("train.max_grad_norm", "0.001", InRun(&[])),
    ("train.seed", "7", InRun(&[])),
    ("train.recompute", "on", InPlan),
    ("train.deterministic", "true", FLAGS),
    ("train.eval_every", "2", InRun(&[])),
    ("train.sample_every", "3", InRun(&[])),
    ("train.checkpoint_every", "2", InRun(&[])),
    ("train.keep_checkpoints", "1", InRun(&[])),
    (
        "train.early_stop.patience",
        "1",
        InRun(&["train.learning_rate=1.0", "train.eval_every=1", "train.schedule=constant"]),
    ),
    (
        "train.on_nan",
        "skip",
        In {
            file: "src/engine/training/tests/mod.rs",
            test: "a_loss_that_is_not_a_number_stops_is_skipped_or_rolled_back_as_configured",
        },
    ),
    ("objective.kind", "exact", InRun(&[])),
    (
        "objective.schema",
        "none.json",
        Refused(&["objective.kind=json", "objective.schema=any.json"], "none.json"),
    ),
    ("objective.pattern", "^never$", InRun(&["objective.kind=regex", "objective.pattern=."])),
    ("objective.contains", "[\"e\"]", InRun(&["objective.kind=contains", "objective.contains=never"])),
    ("objective.min_length", "1000", InRun(&[])),
    ("objective.max_length", "1", InRun(&[])),
    ("review.suite", "other-prompts.jsonl", InRun(&[])),
    (
        "review.baseline_system",
        "be brief",
        In {
            file: "src/engine/evaluate/tests.rs",
            test: "a_fresh_adapter_fares_as_its_base_and_the_baseline_is_asked_too",
        },
    ),
    ("review.temperature", "0", InRun(&[])),
    ("review.top_p", "0.01", InRun(&[])),
    ("review.top_k", "1", InRun(&[])),
    ("review.max_new_tokens", "3", InRun(&[])),
    (
        "ui.theme",
        "paper",
        In {
            file: "src/workbench/app/tests.rs",
            test: "a_changed_theme_is_loaded_and_an_unchanged_file_is_no_news",
        },
    ),
];

const FLAGS: Shows =
    In { file: "src/engine/tests/parity/seam.rs", test: "flags_hold_for_the_process_and_can_be_taken_back" };

/// A project with every file that the settings name.
fn project() -> Project {
    let project = Project::new();
    let write = |name: &str, row: &dyn Fn(usize) -> Value| {
        let rows: Vec<String> = (0..24).map(|index| row(index).to_string() + "\n").collect();
        fs::write(project.path().join(name), rows.concat()).unwrap();
    };
    write(
        "other.jsonl",
        &|index| serde_json::json!({ "prompt": format!("no {index}"), "completion": " yes" }),
    );
    write(
        "long.jsonl",
        &|index| serde_json::json!({ "prompt": format!("no {index}"), "completion": " yes".repeat(1 + index) }),
    );
    write("wide.jsonl", &|index| {
        serde_json::json!({
            "prompt": format!("the {index} th"), "completion": " word", "chosen": " word", "rejected": " no", "question": format!("which {index}"),
            "text": format!("all of {index}"),
        })
    });
    write("chats.jsonl", &|index| {
        let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let again = format!("and {index}");
        serde_json::json!({ "messages": [
            message("user", "a"), message("assistant", "b"), message("user", &again), message("assistant", "c"),
        ] })
    });
    write(
        "thoughts.jsonl",
        &|index| serde_json::json!({ "prompt": format!("no {index}"), "completion": "<think>well</think>yes" }),
    );
    write("cut.jsonl", &|index| {
        let asked = if index == 5 { "no ".repeat(40) } else { format!("no {index}") };
        serde_json::json!({ "prompt": asked, "completion": " yes" })
    });
    write(
        "groups.jsonl",
        &|index| serde_json::json!({ "prompt": format!("no {}", index / 6), "completion": format!(" yes {index}") }),
    );
    let own = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ ending }}\n{% endfor %}\
               {% if add_generation_prompt %}assistant: {% endif %}";
    fs::write(project.path().join("own.jinja"), own).unwrap();
    project.write_pairs("pairs.jsonl");
    project.write_labelled("labelled.jsonl");
    fs::write(project.path().join("other-prompts.jsonl"), "{\"prompt\": \"another\"}\n").unwrap();
    fs::write(project.path().join("any.json"), "{}").unwrap();
    copy_folder(&crate::testing::model().with_file_name("gpt2"), &project.path().join("biased"));
    let start = project.run(&["train.max_steps=1", "train.seed=3"]);
    work_on(&start, Termination::default()).unwrap();
    copy_folder(&start.result_path(ResultForm::Adapter), &project.path().join("start"));
    project
}

/// Everything that does not depend on the clock: the events of a run, its checkpoints and result, and a reply that is
/// drawn as review draws it; or why the run is refused.
fn run_of(project: &Project, set: &[&str]) -> Result<Vec<String>, String> {
    let run = project.run(&[&SETTINGS, set].concat());
    let end = work_on(&run, Termination::default()).map_err(|error| error.to_string())?;
    let mut seen = vec![format!("{end:?}")];
    for event in events(&run) {
        let mut event = serde_json::to_value(&event).unwrap();
        event.as_object_mut().unwrap().retain(|name, _| !LEFT_OUT.contains(&name.as_str()));
        seen.push(event.to_string());
    }
    let steps: Vec<u64> = run.checkpoints().iter().map(|checkpoint| checkpoint.step).collect();
    seen.push(format!("checkpoints {steps:?}"));
    seen.push(format!("result {:x}", Sha256::digest(adapter(&run))));
    seen.push(reply(&run, project));
    Ok(seen)
}

fn reply(run: &RunDir, project: &Project) -> String {
    let config = Config::load_file(&run.config_path(), &[]).unwrap();
    let base = Base::load(model_files(&config, project.path()).unwrap(), &config, project.path()).unwrap();
    let adapter = method_of(&config).create(&base.model, 1).unwrap();
    let control = Control::new(Termination::default());
    let questions = Questions::default();
    let clock = Clock::start();
    let observer = Observer {
        base: &base,
        control: &control,
        clock: &clock,
        config: &config,
        questions: &questions,
        adapter: adapter.as_ref(),
    };
    observer.sample_prompt("the 3 th", 1).unwrap().unwrap().reply
}

fn forecast(project: &Project, set: &[&str]) -> String {
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    let config = Config::load(project.path(), &set).unwrap();
    let files = model_files(&config, project.path()).unwrap();
    let prepared =
        data::prepare(&config, project.path(), &files, &mut |_, _| ControlFlow::Continue(())).unwrap();
    format!(
        "{:?}",
        plan_at(&files, &config, &prepared.checked.summary(), device::place(Device::Cpu)).unwrap().memory
    )
}

#[test]
fn every_setting_has_an_effect_or_is_refused() {
    let project = project();
    let mut before: HashMap<&[&str], Vec<String>> = HashMap::new();
    let mut failures = Vec::new();
    for (key, value, shows) in FLIPS {
        let flip = format!("{key}={value}");
        match shows {
            InRun(with) => {
                let before = before.entry(with).or_insert_with(|| {
                    run_of(&project, with).unwrap_or_else(|error| panic!("before {flip}: {error}"))
                });
                match run_of(&project, &[with, &[flip.as_str()][..]].concat()) {
                    Ok(after) if *before == after => failures.push(format!("{flip} changes nothing")),
                    Ok(_) => {}
                    Err(error) => failures.push(format!("{flip}: {error}")),
                }
            }
            InPlan => {
                if forecast(&project, &[]) == forecast(&project, &[&flip]) {
                    failures.push(format!("{flip} changes nothing"));
                }
            }
            Refused(with, reason) => {
                let refused = run_of(&project, &[with, &[flip.as_str()][..]].concat());
                if !refused.as_ref().is_err_and(|refused| refused.contains(reason)) {
                    failures.push(format!("{flip} is not refused: {refused:?}"));
                }
            }
            In { .. } => {}
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(run_of(&project, &[]).as_ref(), Ok(&before[&[][..]]), "only settings make a difference");
}

#[test]
fn every_setting_is_listed_with_another_value() {
    let listed: Vec<_> = FLIPS.iter().map(|(key, ..)| *key).collect();
    assert_eq!(listed, KEYS.iter().map(|key| key.path).collect::<Vec<_>>());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let elsewhere: HashSet<_> = FLIPS
        .iter()
        .filter_map(|(_, _, shows)| match shows {
            In { file, test } => Some((file, test)),
            _ => None,
        })
        .collect();
    for (file, test) in elsewhere {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(text.contains(&format!("#[test]\nfn {test}()")), "{file} has no test {test}");
    }
}
