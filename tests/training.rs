//! Runs from the command line, from their start to their results.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use luthier_tests::{Project, is_alive, reference, send, wait_for};
use serde_json::{Value, json};

/// Settings with which a run takes far longer than any test, with regular checkpoints and evaluations.
const LONG: [&str; 6] =
    ["--set", "train.max_steps=100000", "--set", "train.eval_every=0", "--set", "train.checkpoint_every=25"];

fn kinds<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

fn losses(events: &[Value]) -> Vec<f64> {
    kinds(events, "step").iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

fn wait_for_state(run: &Path, state: &str) -> Value {
    wait_for(&format!("{} to be {state}", run.display()), || {
        let status = Project::status(run);
        if status["state"] == state { Ok(status) } else { Err(status.to_string()) }
    })
}

fn wait_for_step(run: &Path, step: u64) -> Value {
    wait_for(&format!("{} to reach step {step}", run.display()), || {
        let status = Project::status(run);
        if status["step"].as_u64().is_some_and(|done| done >= step) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
}

/// Starts a long run and waits for its first steps.
fn start_long(project: &Project) -> std::path::PathBuf {
    let started =
        project.luthier(["train", "--detach", "--json"].into_iter().chain(LONG)).run().expect(0).json();
    let run = project.run();
    assert_eq!(started["id"].as_str().unwrap(), run.file_name().unwrap());
    wait_for_step(&run, 3);
    run
}

#[test]
fn a_run_streams_its_journal_and_learns() {
    let project = Project::tiny();
    let told = project.luthier(["train", "--json"]).run().expect(0);
    let events = told.json_lines();
    assert_eq!(events, Project::journal(&project.run()));
    assert_eq!(kinds(&events, "run").len(), 1);
    let losses = losses(&events);
    assert_eq!(losses.len(), 12);
    assert!(losses[11] < losses[0] - 0.5, "{losses:?}");
    for key in [
        "learning_rate",
        "grad_norm",
        "tokens",
        "trained_tokens",
        "tokens_per_second",
        "seconds",
        "memory_bytes",
    ] {
        assert!(kinds(&events, "step").iter().all(|step| step[key].is_number()), "{key}: {told}");
    }
    let evaluations = kinds(&events, "eval");
    assert!(evaluations.len() >= 3, "{told}");
    assert!(evaluations.last().unwrap()["loss"].as_f64() < evaluations[0]["loss"].as_f64(), "{told}");
    assert_eq!(kinds(&events, "state").last().unwrap()["state"], "finished");

    let run = project.run();
    assert!(run.join("adapter/adapter_model.safetensors").is_file());
    assert!(run.join("adapter/adapter_config.json").is_file());
    let listed = project.luthier(["runs", "--json"]).run().expect(0).json();
    assert_eq!(listed[0]["state"], "finished");
    assert_eq!((&listed[0]["step"], &listed[0]["total_steps"]), (&json!(12), &json!(12)));
    let words = project.luthier(["runs"]).run().expect(0);
    assert!(words.stdout.contains("finished") && words.stdout.contains("12/12"), "{words}");
    let shown = project.luthier(["run", "show", "latest"]).run().expect(0);
    assert!(shown.stdout.contains("evaluations"), "{shown}");
    project.luthier(["run", "pause", "latest"]).run().expect(1).complains(&["it is finished"]);
    project.luthier(["run", "resume", "latest"]).run().expect(1).complains(&["planned end"]);
}

#[test]
fn qlora_needs_less_memory_and_learns_as_well() {
    let project = Project::tiny();
    let qlora = ["--set", "method.kind=qlora"];
    let weights = |set: &[&str]| {
        let planned = project.luthier(["plan", "--json"].iter().chain(set).copied()).run().expect(0).json();
        planned["memory"]["weights"].as_u64().unwrap()
    };
    assert!(weights(&qlora) < weights(&[]) * 2 / 3);
    let told = project.luthier(["train", "--json"].into_iter().chain(qlora)).run().expect(0);
    let losses = losses(&told.json_lines());
    assert!(losses[11] < losses[0] - 0.5, "{losses:?}");
    assert!(project.run().join("adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_foreground_run_ends_with_a_summary() {
    let project = Project::tiny();
    let told = project.luthier(["train"]).run().expect(0);
    assert!(told.stdout.contains("finished after 12 steps") && told.stdout.contains("adapter"), "{told}");
    assert!(told.stderr.contains("12/12") && told.stderr.contains("held-out loss"), "{told}");
}

#[test]
fn a_detached_run_can_be_controlled() {
    let project = Project::tiny();
    let run = start_long(&project);
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    project.luthier(["run", "resume", "latest"]).run().expect(1).complains(&["already running"]);

    project.luthier(["run", "pause", "latest"]).run().expect(0);
    let paused = wait_for_state(&run, "paused")["step"].clone();
    let shown = project.luthier(["run", "show", "latest", "--json"]).run().expect(0).json();
    assert_eq!((&shown["state"], &shown["step"], &shown["pid"]), (&json!("paused"), &paused, &json!(pid)));

    project.luthier(["run", "resume", "latest"]).run().expect(0);
    wait_for_step(&run, paused.as_u64().unwrap() + 1);

    project.luthier(["run", "edit", "latest", "train.learning_rate=5e-3"]).run().expect(0);
    let edit = wait_for("the edit in the journal", || {
        let journal = Project::journal(&run);
        kinds(&journal, "edit")
            .first()
            .map(|edit| (*edit).clone())
            .ok_or_else(|| format!("{} events", journal.len()))
    });
    assert_eq!((&edit["key"], &edit["new"]), (&json!("train.learning_rate"), &json!("5e-3")));
    let differing = project.luthier(["run", "diff", "latest", "--json"]).run().expect(0).json();
    let keys: Vec<_> = differing["differences"].as_array().unwrap().iter().map(|edit| &edit["key"]).collect();
    assert!(
        keys.contains(&&json!("train.learning_rate")) && keys.contains(&&json!("train.max_steps")),
        "{differing}"
    );
    project.luthier(["run", "edit", "latest", "method.rank=4"]).run().expect(1).complains(&["method.rank"]);
    project
        .luthier(["run", "edit", "latest", "train.learning_rte=1"])
        .run()
        .expect(2)
        .complains(&["learning_rate", "\n  | ^"]);

    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
    wait_for("the engine to end", || if is_alive(pid) { Err("it is alive".to_owned()) } else { Ok(()) });
    assert!(run.join("adapter/adapter_model.safetensors").is_file());
}

#[test]
fn a_stopped_run_continues_where_it_was() {
    let project = Project::tiny();
    let run = start_long(&project);
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    let stopped = wait_for_state(&run, "stopped")["step"].as_u64().unwrap();
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    wait_for_step(&run, stopped + 2);
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
    let journal = Project::journal(&run);
    let starts = kinds(&journal, "run");
    assert_eq!(starts.len(), 2);
    assert_eq!(starts[1]["resumed_from"].as_u64(), Some(stopped));
    let steps: Vec<u64> = kinds(&journal, "step").iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "no step is lost or made twice");
}

/// Limits how long the files of a process may become, in bytes; writes beyond fail as on a full disk.
fn limit_files(pid: u32, bytes: Option<u64>) {
    let limit = rustix::process::Rlimit { current: bytes, maximum: None };
    let pid = rustix::process::Pid::from_raw(pid as i32);
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
}

#[test]
fn a_run_that_ends_on_a_full_disk_holds_still_until_there_is_room() {
    let project = Project::tiny();
    let run = start_long(&project);
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    // The status fits, the journal and what is to be saved do not.
    limit_files(pid, Some(2048));
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    let waiting = wait_for_state(&run, "paused");
    assert_eq!(waiting["reason"], "waiting for room on the disk");
    for command in [&["runs"] as &[&str], &["run", "show", "latest"]] {
        let told = project.luthier(command.iter().copied()).run().expect(0);
        assert!(told.stdout.contains("paused: waiting for room on the disk"), "{told}");
    }
    project.luthier(["run", "pause", "latest"]).run().expect(1).complains(&["waits for room on the disk"]);
    project.luthier(["run", "resume", "latest"]).run().expect(0);

    limit_files(pid, None);
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    let step = wait_for_state(&run, "stopped")["step"].as_u64().unwrap();
    wait_for("the engine to end", || if is_alive(pid) { Err("it is alive".to_owned()) } else { Ok(()) });
    assert!(run.join("adapter/adapter_model.safetensors").is_file());
    assert!(run.join(format!("checkpoints/step-{step}/manifest.json")).is_file());
    let journal = Project::journal(&run);
    let steps: Vec<u64> = kinds(&journal, "step").iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=step).collect::<Vec<_>>(), "no line is lost");
    assert_eq!(kinds(&journal, "state").last().unwrap()["state"], "stopped");
}

#[test]
fn stop_now_ends_a_run_that_waits_for_room() {
    let project = Project::tiny();
    let run = start_long(&project);
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    limit_files(pid, Some(2048));
    send("USR1", pid);
    wait_for_state(&run, "paused");
    project.luthier(["run", "stop", "latest", "--when", "now"]).run().expect(0);
    let stopped = wait_for_state(&run, "stopped");
    assert!(stopped["reason"].as_str().unwrap().contains("at once"), "{stopped}");
    wait_for("the engine to end", || if is_alive(pid) { Err("it is alive".to_owned()) } else { Ok(()) });
}

#[test]
fn signals_that_ask_a_run_to_end_are_named() {
    for (signal, saves) in [("INT", true), ("USR1", true), ("USR2", true), ("ALRM", true), ("QUIT", false)] {
        let project = Project::tiny();
        let run = start_long(&project);
        send(signal, Project::status(&run)["pid"].as_u64().unwrap() as u32);
        let stopped = wait_for_state(&run, "stopped");
        let reason = stopped["reason"].as_str().unwrap();
        assert!(reason.contains(&format!("received SIG{signal}")), "{reason}");
        assert_eq!(run.join("adapter/adapter_model.safetensors").is_file(), saves, "{signal}");
    }
}

#[test]
fn a_run_tells_of_changes_of_its_base_model_and_has_last_words_when_that_is_cut() {
    let project = Project::tiny();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        project.write(&format!("model/{name}"), fs::read(reference("tiny/llama").join(name)).unwrap());
    }
    let model = ["train", "--detach", "--set", "model.path=model"];
    project.luthier(model.into_iter().chain(LONG)).run().expect(0);
    let run = project.run();
    wait_for_step(&run, 3);
    let weights = project.path().join("model/model.safetensors");
    let file = fs::File::options().write(true).open(&weights).unwrap();
    // The same bytes, so that only its time changes.
    file.write_all_at(&fs::read(&weights).unwrap()[..8], 0).unwrap();
    let alert = wait_for("an alert", || {
        let journal = Project::journal(&run);
        kinds(&journal, "alert")
            .first()
            .map(|alert| alert["message"].clone())
            .ok_or_else(|| "none".to_owned())
    });
    let alert = alert.as_str().unwrap();
    assert!(alert.contains("model.safetensors") && alert.contains("was written to"), "{alert}");

    file.set_len(64).unwrap();
    let lost = wait_for("the run to be lost", || {
        let shown = project.luthier(["run", "show", "latest", "--json"]).run().expect(0).json();
        if shown["state"] == "lost" { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert!(lost["reason"].as_str().unwrap().contains("SIGBUS"), "{lost}");
    let log = fs::read_to_string(run.join("engine.log")).unwrap();
    assert!(log.contains("SIGBUS"), "{log}");
}

#[test]
fn a_long_log_begins_anew() {
    let project = Project::tiny();
    let run = start_long(&project);
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
    let log = run.join("engine.log");
    fs::File::options().append(true).open(&log).unwrap().set_len(17 << 20).unwrap();
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    wait_for_state(&run, "running");
    assert!(fs::metadata(&log).unwrap().len() < 1 << 20);
    assert!(fs::metadata(run.join("engine.log.1")).unwrap().len() >= 17 << 20);
}

/// Signals may come before the engine handles them, while it loads libtorch and starts itself again.
#[test]
fn a_signal_during_the_start_ends_a_run_with_a_word() {
    let project = Project::tiny();
    project.luthier(["train", "--detach"].into_iter().chain(LONG)).run().expect(0);
    let run = project.run();
    send("TERM", Project::status(&run)["pid"].as_u64().unwrap() as u32);
    let stopped = wait_for_state(&run, "stopped");
    assert!(stopped["reason"].as_str().unwrap().contains("received SIGTERM"), "{stopped}");
}

#[test]
fn a_killed_run_is_lost_and_resumes_from_its_checkpoint() {
    let project = Project::tiny();
    let run = start_long(&project);
    let status = wait_for_step(&run, 30);
    send("KILL", status["pid"].as_u64().unwrap() as u32);
    let lost = wait_for("the run to be lost", || {
        let shown = project.luthier(["run", "show", "latest", "--json"]).run().expect(0).json();
        if shown["state"] == "lost" { Ok(shown) } else { Err(shown.to_string()) }
    });
    let checkpoint = lost["checkpoints"].as_array().unwrap().last().unwrap()["step"].as_u64().unwrap();
    project.luthier(["run", "pause", "latest"]).run().expect(1).complains(&["resume it first"]);
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    wait_for_state(&run, "running");
    wait_for_step(&run, checkpoint + 2);
    let journal = Project::journal(&run);
    assert_eq!(kinds(&journal, "run")[1]["resumed_from"].as_u64(), Some(checkpoint));
}

#[test]
fn a_resume_refuses_what_a_live_run_refuses_and_puts_it_back() {
    let project = Project::tiny();
    let run = start_long(&project);
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
    let file = run.join("config.toml");
    let before = fs::read_to_string(&file).unwrap();
    let after = before.replace("schedule = \"cosine\"", "schedule = \"constant\"");
    assert_ne!(before, after);
    fs::write(&file, &after).unwrap();
    let told = ["train.schedule = \"constant\"; in force is \"cosine\"", "config.toml", "--put-back"];
    project.luthier(["run", "resume", "latest"]).run().expect(2).complains(&told);
    assert_eq!(Project::status(&run)["state"], "stopped");
    project.luthier(["run", "resume", "latest", "--put-back"]).run().expect(0);
    wait_for_state(&run, "running");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    // Asked at once, before the run has said that it is paused.
    project.luthier(["run", "pause", "latest"]).run().expect(0);
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    let step = Project::status(&run)["step"].as_u64().unwrap();
    wait_for_step(&run, step + 3);
}

#[test]
fn every_request_to_a_run_can_be_made_from_the_command_line() {
    let project = Project::tiny();
    let run = start_long(&project);
    project.luthier(["run", "undo", "latest"]).run().expect(1).complains(&["there is no edit left to undo"]);
    project.luthier(["run", "checkpoint", "latest"]).run().expect(0).says(&["writes a checkpoint"]);
    project.luthier(["run", "evaluate", "latest"]).run().expect(0).says(&["evaluates"]);
    project.luthier(["run", "sample", "latest", "hello"]).run().expect(0).says(&["answers"]);
    let edits = || -> Vec<Value> {
        let journal = Project::journal(&run);
        kinds(&journal, "edit").into_iter().map(|edit| json!([edit["key"], edit["new"]])).collect()
    };
    let edited = |count: usize| {
        wait_for("edits", || if edits().len() >= count { Ok(()) } else { Err(format!("{:?}", edits())) });
    };
    project.luthier(["run", "edit", "latest", "train.learning_rate=1e-5"]).run().expect(0);
    edited(1);
    project.luthier(["run", "edit", "latest", "train.eval_every=7"]).run().expect(0);
    edited(2);
    for count in [3, 4] {
        project.luthier(["run", "undo", "latest"]).run().expect(0).says(&["from the next"]);
        edited(count);
    }
    project.luthier(["run", "undo", "latest"]).run().expect(1).complains(&["there is no edit left to undo"]);
    let found = edits();
    assert_eq!((&found[2], &found[3][0]), (&json!(["train.eval_every", "0"]), &found[0][0]));
    let journal = Project::journal(&run);
    let sample = kinds(&journal, "sample").into_iter().find(|sample| sample["prompt"] == "hello");
    assert!(sample.is_some() && !kinds(&journal, "eval").is_empty());
}

#[test]
fn a_killed_run_without_a_readable_status_is_shown_and_resumes() {
    let project = Project::tiny();
    let run = start_long(&project);
    wait_for_step(&run, 26);
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    send("KILL", pid);
    wait_for("the engine to end", || if is_alive(pid) { Err("it lives".to_owned()) } else { Ok(()) });
    fs::write(run.join("status.json"), "null").unwrap();
    let listed = project.luthier(["runs"]).run().expect(0);
    assert!(
        listed.stdout.contains("lost") && listed.stdout.contains("status.json cannot be read"),
        "{listed}"
    );
    let shown = project.luthier(["run", "show", "latest", "--json"]).run().expect(0).json();
    assert!(shown["state"] == "lost" && shown["step"].as_u64().unwrap() >= 25, "{shown}");
    let resumed = project.luthier(["run", "resume", "latest"]).run().expect(0);
    assert!(resumed.stdout.contains("continues from step"), "{resumed}");
    wait_for_state(&run, "running");
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
}

#[test]
fn a_live_run_without_its_settings_goes_on_and_can_be_stopped() {
    let project = Project::tiny();
    let run = start_long(&project);
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = session.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    fs::remove_file(run.join("config.toml")).unwrap();
    let alerts = || {
        let mut alerts = Project::journal(&run);
        alerts.retain(|event| {
            event["kind"] == "alert" && event["message"].as_str().unwrap().contains("config.toml")
        });
        alerts.len()
    };
    wait_for("an alert", || if alerts() == 0 { Err("none".to_owned()) } else { Ok(()) });
    let listed = project.luthier(["runs"]).run().expect(0);
    assert!(
        listed.stdout.contains("running") && listed.stdout.contains("config.toml is missing"),
        "{listed}"
    );
    let again = project.luthier(["run", "resume", "latest"]).run().expect(1);
    again.complains(&["config.toml is missing", &format!("process {pid}")]);
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
    assert_eq!(alerts(), 1);
    project
        .luthier(["run", "resume", "latest"])
        .run()
        .expect(1)
        .complains(&["config.toml is missing", "--put-back"]);
    project
        .luthier(["run", "resume", "latest", "--put-back"])
        .run()
        .expect(0)
        .says(&["config.toml", "checkpoint"]);
    wait_for_state(&run, "running");
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    wait_for_state(&run, "stopped");
}

#[test]
fn of_many_resumes_one_wins_and_the_others_say_who() {
    let project = Project::tiny();
    let run = start_long(&project);
    project.luthier(["run", "stop", "latest", "--when", "now"]).run().expect(0);
    wait_for_state(&run, "stopped");
    let resumes: Vec<_> = std::thread::scope(|scope| {
        let resume = || project.luthier(["run", "resume", "latest"]).run();
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(resume)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) =
        resumes.into_iter().partition(|resume| resume.stdout.contains("continues"));
    assert_eq!(won.len(), 1);
    let pid = Project::status(&run)["pid"].to_string();
    for resume in lost {
        resume.expect(1).complains(&[&format!("process {pid}")]);
    }
    wait_for_state(&run, "running");
    project.luthier(["run", "stop", "latest", "--when", "now"]).run().expect(0);
    wait_for_state(&run, "stopped");
}

#[test]
fn a_run_can_be_waited_for_from_elsewhere() {
    let project = Project::tiny();
    let run = start_long(&project);
    let waiting = project.luthier(["wait", "latest"]).start();
    project.luthier(["run", "stop", "latest"]).run().expect(0);
    waiting.finish().expect(0).says(&["stopped after", "asked to stop"]);
    let checkpoints = fs::read_dir(run.join("checkpoints")).unwrap().count();
    project.luthier(["wait", "latest"]).run().expect(0);
    assert!(checkpoints > 0);
    project.luthier(["run", "resume", "latest"]).run().expect(0);
    let pid = wait_for_state(&run, "running")["pid"].as_u64().unwrap() as u32;
    let waiting = project.luthier(["wait", "latest"]).start();
    send("KILL", pid);
    waiting.finish().expect(1).complains(&["run resume"]);
}

#[test]
fn ctrl_c_leaves_the_run_and_says_how_to_stop_it() {
    let project = Project::tiny();
    let mut followed = project.luthier(["train", "--json"].into_iter().chain(LONG)).start();
    followed.line("a step", |line| line.contains("\"kind\":\"step\""));
    followed.interrupt();
    followed.finish().expect(130).complains(&["luthier run stop"]);
    let run = project.run();
    let left = Project::status(&run)["step"].as_u64().unwrap();
    wait_for_step(&run, left + 2);
}

#[test]
fn a_failed_run_ends_with_status_1() {
    let project = Project::tiny();
    // The last tensor of the file is set to NaN.
    let mut weights = fs::read(reference("tiny/llama/model.safetensors")).unwrap();
    let length = weights.len();
    for value in weights[length - 256..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        project.write(&format!("broken/{name}"), fs::read(reference("tiny/llama").join(name)).unwrap());
    }
    project.write("broken/model.safetensors", weights);
    let told = project.luthier(["train", "--json", "--set", "model.path=broken"]).run().expect(1);
    let told = told.complains(&["nan"]);
    assert_eq!(told.json_lines().last().unwrap()["state"], "failed");
    let listed = project.luthier(["runs", "--json"]).run().expect(0).json();
    assert_eq!(listed[0]["failure"]["class"], "nan");
}

#[test]
fn an_engine_that_dies_silently_is_reported_with_its_log() {
    let project = Project::tiny();
    let engine = project.beside("engine");
    fs::write(&engine, "#!/bin/sh\necho 'libtorch_cpu.so: cannot open shared object file' >&2\nexit 127\n")
        .unwrap();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o755)).unwrap();
    let told = project.luthier(["train"]).variable("LUTHIER_ENGINE", &engine).run().expect(1);
    let told =
        told.complains(&["exited without reporting an error", "libtorch_cpu.so: cannot open", "engine.log"]);
    assert_eq!(told.stdout, "");
    let doctor = project.luthier(["doctor"]).variable("LUTHIER_ENGINE", &engine).run().expect(3);
    assert!(doctor.stdout.contains("does not run") && doctor.stdout.contains("make build"), "{doctor}");
}

#[test]
fn a_closed_pipe_ends_the_command_but_not_the_run() {
    let project = Project::tiny();
    let mut follower = project.luthier(["train", "--json"].into_iter().chain(LONG)).start();
    follower.line("the first event", |_| true);
    follower.close();
    let told = follower.finish().expect(0);
    assert_eq!(told.stderr, "");
    let left = Project::status(&project.run())["step"].as_u64().unwrap_or(0);
    wait_for_step(&project.run(), left + 2);
}

/// Rows of the reference's batches for `format = "tokens"`, without padding: two per micro-batch, two
/// micro-batches per step.
fn reference_rows(family: &str) -> Vec<Value> {
    let bytes = fs::read(reference(&format!("training/{family}/batches.safetensors"))).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = |name: &str| -> Vec<i64> {
        let place = |index: usize| header[name]["data_offsets"][index].as_u64().unwrap() as usize;
        let data = &bytes[8 + length + place(0)..8 + length + place(1)];
        data.chunks_exact(8).map(|number| i64::from_le_bytes(number.try_into().unwrap())).collect()
    };
    let width = header["input_ids"]["shape"][2].as_u64().unwrap() as usize;
    let (ids, counts, labels) = (tensor("input_ids"), tensor("attention_mask"), tensor("labels"));
    ids.chunks(width)
        .zip(counts.chunks(width))
        .zip(labels.chunks(width))
        .map(|((ids, counts), labels)| {
            let length = counts.iter().sum::<i64>() as usize;
            json!({ "input_ids": ids[..length], "labels": labels[..length] })
        })
        .collect()
}

/// The largest difference between two safetensors files of f32 with the same tensor names.
fn furthest(ours: &Path, expected: &Path) -> f64 {
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: serde_json::Map<String, Value> =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header.remove("__metadata__");
        let tensors = header.into_iter().map(|(name, entry)| {
            let place = |index: usize| 8 + length + entry["data_offsets"][index].as_u64().unwrap() as usize;
            let numbers = bytes[place(0)..place(1)].chunks_exact(4);
            let numbers: Vec<f32> =
                numbers.map(|number| f32::from_le_bytes(number.try_into().unwrap())).collect();
            (name, numbers)
        });
        tensors.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (ours, expected) = (read(ours), read(expected));
    assert!(ours.keys().eq(expected.keys()));
    let pairs = ours.values().flatten().zip(expected.values().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// The families in the reference runs of transformers and PEFT, and the settings of each method in them.
const FAMILIES: [&str; 3] = ["llama", "phi", "falcon-40b"];
const METHODS: [(&str, &str); 11] = [
    ("lora", "rank = 8\nalpha = 16"),
    ("lora-default-init", "rank = 8\nalpha = 16"),
    ("lora-qv-r4", "rank = 4\nalpha = 32\ntargets = [\"q_proj\", \"v_proj\"]"),
    (
        "lora-modules-to-save",
        "rank = 8\nalpha = 16\ntargets = [\"q_proj\", \"v_proj\"]\nmodules_to_save = [\"lm_head\"]",
    ),
    ("rslora", "rank = 8\nalpha = 16\nvariant = \"rslora\""),
    ("dora", "rank = 8\nalpha = 16\nvariant = \"dora\""),
    ("qlora-nf4", "kind = \"qlora\"\nrank = 8\nalpha = 16"),
    ("ia3", "kind = \"ia3\""),
    ("prefix", "kind = \"prefix\"\nvirtual_tokens = 8"),
    ("prompt", "kind = \"prompt\"\nvirtual_tokens = 8"),
    ("full", "kind = \"full\""),
];

/// The reference runs, repeated from the command line with the same start, batches and settings.
#[test]
fn runs_of_every_method_equal_the_reference() {
    let runs = FAMILIES
        .iter()
        .flat_map(|family| METHODS.iter().map(move |(name, settings)| (*family, *name, *settings)));
    let mut made = 0;
    for (family, name, settings) in runs {
        let folder = reference(&format!("training/{family}")).join(name);
        if !folder.exists() {
            continue;
        }
        made += 1;
        let project = Project::empty();
        project.write_rows("train.jsonl", &reference_rows(family));
        let stored: Value =
            serde_json::from_slice(&fs::read(folder.join("trajectory.json")).unwrap()).unwrap();
        let start = match name {
            "full" => String::new(),
            _ => format!("init = \"{}\"\n", folder.join("adapter-init").display()),
        };
        project.write(
            "luthier.toml",
            format!(
                "[model]\npath = \"{}\"\ndtype = \"f32\"\ndevice = \"cpu\"\n[data]\ntrain = \"train.jsonl\"\neval = 0.0\n\
                 format = \"tokens\"\nshuffle = false\npacking = false\n[method]\n{settings}\n{start}[train]\n\
                 max_steps = {}\nbatch_size = 2\naccumulate = {}\nlearning_rate = {}\nwarmup = {}\nschedule = \"cosine\"\n\
                 weight_decay = {}\nmax_grad_norm = {}\neval_every = 0\nsample_every = 0\ncheckpoint_every = 0\n",
                reference(&format!("tiny/{family}")).display(),
                stored["steps"],
                stored["accumulation"],
                stored["lr"],
                stored["warmup"],
                stored["weight_decay"],
                stored["clip"]
            ),
        );
        let events = project.luthier(["train", "--json"]).run().expect(0).json_lines();
        let steps = kinds(&events, "step");
        let expected = stored["log"].as_array().unwrap();
        assert_eq!(steps.len(), expected.len(), "{family} {name}");
        for (ours, expected) in steps.iter().zip(expected) {
            let number = |value: &Value| value.as_f64().unwrap();
            let apart = |ours: &Value, expected: &Value| (number(ours) / number(expected) - 1.0).abs();
            assert!(apart(&ours["loss"], &expected["loss"]) <= 1e-4, "{family} {name}: {ours} {expected}");
            assert!(
                apart(&ours["grad_norm"], &expected["grad_norm"]) <= 1e-3,
                "{family} {name}: {ours} {expected}"
            );
            assert_eq!(ours["trained_tokens"], expected["target_tokens"], "{family} {name}");
        }
        let run = project.run();
        if name == "full" {
            assert!(run.join("model/config.json").is_file() && run.join("model/tokenizer.json").is_file());
            let model = run.join("model").display().to_string();
            let again =
                project.luthier(["model", "inspect", "--json", model.as_str()]).run().expect(0).json();
            assert_eq!(again["family"], family.trim_end_matches("-40b"));
        } else {
            let weights = |folder: &Path| folder.join("adapter_model.safetensors");
            let distance = furthest(&weights(&run.join("adapter")), &weights(&folder.join("adapter-final")));
            assert!(distance <= 1e-4, "{family} {name}: the final adapter is {distance} away");
        }
    }
    assert_eq!(made, 27);
}

/// Evaluating, chatting and continuing work for a fully trained model as for an adapter.
#[test]
fn a_fully_trained_model_is_used_like_an_adapter() {
    let project = Project::tiny();
    let full = ["--set", "method.kind=full", "--set", "train.learning_rate=1e-3"];
    let told = project.luthier(["train", "--json"].into_iter().chain(full)).run().expect(0);
    let events = told.json_lines();
    let parameters = &kinds(&events, "run")[0]["parameters"];
    let planned = project.luthier(["plan", "--json"].into_iter().chain(full)).run().expect(0).json();
    assert_eq!(parameters["trainable"], planned["parameters"]["trainable"]);
    assert_eq!(parameters["trainable"], planned["parameters"]["total"]);
    let run = project.run();
    assert!(run.join("model/model.safetensors").is_file() && !run.join("adapter").exists());
    let result = project.luthier(["eval", "latest", "--json"]).run().expect(0).json();
    let loss = |side: &str| result[side]["loss"].as_f64().unwrap();
    assert!(loss("tuned") < loss("base"), "{result}");
    let chat = project.luthier(["chat", "latest", "--ab"]).input("item 3 is white\n").run().expect(0);
    assert!(chat.stdout.contains("tuned"), "{chat}");
    let shown = project.luthier(["run", "show", "latest", "--json"]).run().expect(0).json();
    assert_eq!(shown["model"], json!(run.join("model")));
    assert!(shown["adapter"].is_null());
}
