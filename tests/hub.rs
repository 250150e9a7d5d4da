//! Models of a hub: downloaded from a fake hub on this machine, found in the cache, trained.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use luthier_tests::hub_server::{FakeHub, Repository, Request, etag};
use luthier_tests::{Luthier, Project, reference, wait_for};
use serde_json::Value;

const TOKEN: &str = "hf_NobodyMaySeeThis";
const WEIGHTS: &str = "model.safetensors";

/// The files of the tiny llama that Luthier needs.
const NEEDED: [&str; 5] =
    ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];

fn content(name: &str) -> Vec<u8> {
    fs::read(reference("tiny/llama").join(name)).unwrap()
}

/// The tiny llama with other files that a repository usually has.
fn tiny() -> Repository {
    let needed = NEEDED.map(|name| (name, content(name)));
    let besides =
        ["README.md", "pytorch_model.bin", "tf_model.h5", "model.onnx", "handler.py", "onnx/config.json"];
    Repository::new(needed.into_iter().chain(besides.map(|name| (name, b"not needed".to_vec()))))
}

fn cache(project: &Project) -> PathBuf {
    project.beside("cache/huggingface/hub")
}

fn repository(project: &Project) -> PathBuf {
    cache(project).join("models--org--tiny")
}

fn pull(project: &Project, hub: &FakeHub, model: &str) -> Luthier {
    project.luthier(["model", "pull", model, "--json"]).variable("HF_ENDPOINT", hub.endpoint())
}

/// The files requested, with the number of bytes sent for each.
fn files(requests: &[Request]) -> Vec<(String, usize)> {
    let name = |request: &Request| {
        let path = request.path.split('?').next().unwrap();
        path.rsplit('/').next().unwrap().to_owned()
    };
    requests
        .iter()
        .filter(|request| !request.path.starts_with("/api/"))
        .map(|request| (name(request), request.sent))
        .collect()
}

fn names(pulled: &Value) -> BTreeSet<&str> {
    pulled["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect()
}

/// Bytes of a pulled model's weights that came over the network.
fn fetched(pulled: &Value, name: &str) -> u64 {
    let files = pulled["files"].as_array().unwrap();
    files.iter().find(|file| file["name"] == name).unwrap()["fetched_bytes"].as_u64().unwrap()
}

/// All paths below a folder.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { all_below(&path) } else { vec![path] }).collect()
}

#[test]
fn a_model_is_downloaded_once_and_found_without_network() {
    let project = Project::tiny();
    let hub = FakeHub::with("org/tiny", tiny());
    let commit = tiny().commit;
    let first = pull(&project, &hub, "hf:org/tiny").run().expect(0);
    let pulled = first.json();
    let needed: u64 = NEEDED.iter().map(|name| content(name).len() as u64).sum();
    assert_eq!(names(&pulled), BTreeSet::from(NEEDED));
    assert_eq!((pulled["bytes"].as_u64(), pulled["fetched_bytes"].as_u64()), (Some(needed), Some(needed)));
    assert_eq!((&pulled["model"], &pulled["revision"]), (&"hf:org/tiny".into(), &commit.as_str().into()));
    let asked: BTreeSet<String> = files(&hub.requests()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(asked, NEEDED.map(str::to_owned).into());
    assert!(first.stderr.contains("fetching 5 files") && !first.stderr.contains('\u{1b}'), "{first}");

    let snapshot = repository(&project).join("snapshots").join(&commit);
    assert_eq!(pulled["path"].as_str().map(Path::new), Some(snapshot.as_path()));
    assert_eq!(fs::read_to_string(repository(&project).join("refs/main")).unwrap(), commit);
    for name in NEEDED {
        let blob = fs::read_link(snapshot.join(name)).unwrap();
        assert_eq!(blob, Path::new("../../blobs").join(etag(name, &content(name))));
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), content(name));
    }
    assert!(
        all_below(&repository(&project)).iter().all(|path| !path.to_string_lossy().contains(".incomplete"))
    );

    let again = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert_eq!((&again["bytes"], &again["fetched_bytes"]), (&pulled["bytes"], &0.into()));
    assert_eq!(files(&hub.requests()), []);
    drop(hub);

    let inspect = |model: &str| project.luthier(["model", "inspect", model, "--json"]).run().expect(0).json();
    let tiny = reference("tiny/llama");
    assert_eq!(inspect("hf:org/tiny")["fingerprint"], inspect(tiny.to_str().unwrap())["fingerprint"]);
    assert_eq!(inspect(&format!("hf:org/tiny@{commit}"))["path"], pulled["path"]);
    let train = ["train", "--json", "--set", "model.path=hf:org/tiny", "--set", "train.max_steps=2"];
    let events = project.luthier(train).run().expect(0).json_lines();
    let states: Vec<&Value> = events.iter().filter(|event| event["kind"] == "state").collect();
    assert_eq!(states.last().unwrap()["state"], "finished");
    let adapter = fs::read_to_string(project.run().join("adapter/adapter_config.json")).unwrap();
    let adapter: Value = serde_json::from_str(&adapter).unwrap();
    assert_eq!(adapter["base_model_name_or_path"], "org/tiny");
}

#[test]
fn a_template_for_tools_comes_with_its_folder() {
    let project = Project::empty();
    let name = "additional_chat_templates/tool_use.jinja";
    let files = NEEDED.map(|name| (name, content(name)));
    let templates = [(name, b"{{ tools }}".to_vec()), ("additional_chat_templates/rag.jinja", b"x".to_vec())];
    let hub = FakeHub::with("org/tiny", Repository::new(files.into_iter().chain(templates)));
    let pulled = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert!(names(&pulled).contains(name) && pulled["files"].as_array().unwrap().len() == NEEDED.len() + 1);
    let snapshot = Path::new(pulled["path"].as_str().unwrap());
    assert_eq!(fs::read_to_string(snapshot.join(name)).unwrap(), "{{ tools }}");
    let link = fs::read_link(snapshot.join(name)).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    let again = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert_eq!(again["fetched_bytes"], 0);
}

#[test]
fn the_output_says_what_was_downloaded() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    let told = project.luthier(["model", "pull", "hf:org/tiny"]).variable("HF_ENDPOINT", hub.endpoint());
    let told = told.run().expect(0);
    for said in ["hf:org/tiny: 5 files", &tiny().commit, "model.path = \"hf:org/tiny\""] {
        assert!(told.stdout.contains(said), "{told}");
    }
}

#[test]
fn a_download_continues_where_an_earlier_one_stopped() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    hub.behaviour().cut = Some((300_000, usize::MAX));
    let broken = pull(&project, &hub, "hf:org/tiny").run().expect(1);
    let broken =
        broken.complains(&[WEIGHTS, "was interrupted at 293 KiB of 693 KiB", "run the same command again"]);
    let whole = content(WEIGHTS);
    let partial = repository(&project).join(format!("blobs/{}.incomplete", etag(WEIGHTS, &whole)));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 300_000, "{broken}");
    let not_yet = project.luthier(["model", "inspect", "hf:org/tiny"]).run().expect(2);
    not_yet.complains(&["`luthier model pull hf:org/tiny`"]);
    hub.requests();

    hub.behaviour().cut = None;
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(0);
    assert!(told.stderr.contains("continues from 293 KiB"), "{told}");
    let pulled = told.json();
    assert_eq!(fetched(&pulled, WEIGHTS), whole.len() as u64 - 300_000);
    let elsewhere: Vec<Request> = hub.requests().into_iter().filter(|request| request.elsewhere).collect();
    assert_eq!(elsewhere.len(), 1, "{elsewhere:?}");
    assert_eq!(elsewhere[0].range.as_deref(), Some("bytes=300000-"));
    let path = Path::new(pulled["path"].as_str().unwrap()).join(WEIGHTS);
    assert!(fs::read(path).unwrap() == whole);
    assert!(!partial.exists());
}

#[test]
fn a_broken_connection_is_retried() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    hub.behaviour().cut = Some((200_000, 1));
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(0);
    assert!(told.stderr.contains("interrupted, trying again"), "{told}");
    assert_eq!(fetched(&told.json(), WEIGHTS), content(WEIGHTS).len() as u64);
    let ranges: Vec<Option<String>> =
        hub.requests().into_iter().filter(|request| request.elsewhere).map(|request| request.range).collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=200000-"].map(|range| Some(range.to_owned())));
}

#[test]
fn a_part_that_cannot_be_continued_does_no_harm() {
    let whole = content(WEIGHTS);
    let partial_of = |project: &Project, part: &[u8]| {
        let path = repository(project).join(format!("blobs/{}.incomplete", etag(WEIGHTS, &whole)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, part).unwrap();
        path
    };
    let hub = FakeHub::with("org/tiny", tiny());
    let is_whole = |pulled: &Value| {
        fs::read(Path::new(pulled["path"].as_str().unwrap()).join(WEIGHTS)).unwrap() == whole
    };

    // The server sends the whole file, even if a range is requested.
    let project = Project::empty();
    partial_of(&project, &whole[..1000]);
    hub.behaviour().without_ranges = true;
    let pulled = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert!(is_whole(&pulled));
    hub.behaviour().without_ranges = false;

    // Complete, but not renamed yet.
    let project = Project::empty();
    partial_of(&project, &whole);
    let pulled = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert!(is_whole(&pulled) && fetched(&pulled, WEIGHTS) == 0, "{pulled}");

    // Longer than the file.
    let project = Project::empty();
    partial_of(&project, &[whole.as_slice(), b"more"].concat());
    let pulled = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    assert!(is_whole(&pulled), "{pulled}");

    // The beginning of another file, as the hash shows.
    let project = Project::empty();
    let partial = partial_of(&project, &[7; 1000]);
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(1);
    told.complains(&[WEIGHTS, "damaged", "run the same command again"]);
    assert!(!partial.exists());
    assert!(is_whole(&pull(&project, &hub, "hf:org/tiny").run().expect(0).json()));
}

#[test]
fn two_processes_do_not_write_one_file() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    let etag = etag(WEIGHTS, &content(WEIGHTS));
    let lock = cache(&project).join(format!(".locks/models--org--tiny/{etag}.lock"));
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let lock = File::create(lock).unwrap();
    lock.lock().unwrap();
    let waiting = pull(&project, &hub, "hf:org/tiny").start();
    let blobs = repository(&project).join("blobs");
    // Other files have smaller names and come first.
    wait_for("the first files", || {
        let count = fs::read_dir(&blobs).into_iter().flatten().count();
        if count >= 1 { Ok(()) } else { Err(format!("{count} files")) }
    });
    fs::write(blobs.join(&etag), content(WEIGHTS)).unwrap();
    lock.unlock().unwrap();
    let pulled = waiting.finish().expect(0).json();
    assert_eq!(fetched(&pulled, WEIGHTS), 0, "the other process's file is used");
}

#[test]
fn only_the_shards_in_the_index_are_downloaded() {
    let project = Project::empty();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-1.safetensors", vec![1; 5000]),
        ("model-2.safetensors", vec![2; 5000]),
        ("consolidated.safetensors", vec![3; 5000]),
    ];
    let hub = FakeHub::with("org/tiny", Repository::new(files.clone()));
    let pulled = pull(&project, &hub, "hf:org/tiny").run().expect(0).json();
    let shards =
        ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"];
    assert_eq!(names(&pulled), shards.into());

    let lacking = Repository::new(files.into_iter().filter(|(name, _)| *name != "model-2.safetensors"));
    hub.behaviour().repositories.insert("org/tiny".to_owned(), lacking);
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(2);
    told.complains(&["names model-2.safetensors, which it does not have"]);
}

#[test]
fn a_gguf_file_is_downloaded_if_named() {
    let project = Project::empty();
    let files =
        [("config.json", b"{}".to_vec()), ("tiny-Q8_0.gguf", vec![8; 900]), ("tiny-F16.gguf", vec![16; 900])];
    let hub = FakeHub::with("org/tiny", Repository::new(files));
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(2);
    told.complains(&["hf:org/tiny:tiny-F16.gguf", "tiny-Q8_0.gguf"]);
    pull(&project, &hub, "hf:org/tiny:other.gguf")
        .run()
        .expect(2)
        .complains(&["other.gguf", "tiny-Q8_0.gguf"]);
    hub.requests();
    let pulled = pull(&project, &hub, "hf:org/tiny:tiny-Q8_0.gguf").run().expect(0).json();
    assert_eq!(names(&pulled), ["tiny-Q8_0.gguf"].into());
    assert_eq!(fs::read(pulled["path"].as_str().unwrap()).unwrap(), vec![8; 900]);
    assert!(files_only(&hub, "tiny-Q8_0.gguf"));
}

fn files_only(hub: &FakeHub, name: &str) -> bool {
    let asked = files(&hub.requests());
    !asked.is_empty() && asked.iter().all(|(asked, _)| asked == name)
}

#[test]
fn pickle_is_refused_before_any_download() {
    let project = Project::empty();
    let repository = Repository::new(
        tiny()
            .files
            .iter()
            .filter_map(|(name, content)| (name != WEIGHTS).then_some((name.as_str(), content.clone()))),
    );
    let hub = FakeHub::with("org/tiny", repository);
    let told = pull(&project, &hub, "hf:org/tiny").run().expect(2);
    told.complains(&["pytorch_model.bin", "only as pickle", "save_pretrained"]);
    assert_eq!(files(&hub.requests()), []);
    assert!(!cache(&project).exists());
}

#[test]
fn the_token_is_sent_only_to_the_hub() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    hub.behaviour().token = Some(TOKEN.to_owned());
    pull(&project, &hub, "hf:org/tiny").run().expect(2).complains(&["org/tiny", "set HF_TOKEN"]);
    let wrong = pull(&project, &hub, "hf:org/tiny").variable("HF_TOKEN", "hf_wrong").run().expect(1);
    assert!(!wrong.complains(&["does not accept your token"]).stderr.contains("hf_wrong"));
    let unfit = pull(&project, &hub, "hf:org/tiny").variable("HF_TOKEN", "hf_a\nhf_b").run().expect(2);
    assert!(!unfit.complains(&["HF_TOKEN"]).stderr.contains("hf_a"));
    hub.requests();

    let file = project.beside("secret");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    hub.behaviour().cut = Some((1000, 1));
    let told = pull(&project, &hub, "hf:org/tiny")
        .variable("HF_TOKEN_PATH", &file)
        .variable("LUTHIER_LOG", "trace,ureq::run=trace,ureq_proto=trace")
        .run()
        .expect(0);
    fs::remove_file(file).unwrap();
    assert!(told.stderr.contains("DEBUG"), "the log is on: {told}");
    for (what, text) in [("stdout", &told.stdout), ("stderr", &told.stderr)] {
        assert!(!text.contains(TOKEN) && !text.contains("signature="), "{what}");
    }
    for path in all_below(&project.beside("")) {
        assert!(!String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(TOKEN), "{}", path.display());
    }
    let bearer = format!("Bearer {TOKEN}");
    for request in hub.requests() {
        let expected = if request.elsewhere { None } else { Some(bearer.as_str()) };
        assert_eq!(request.authorization.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn a_revision_may_have_slashes() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    hub.behaviour().repositories.get_mut("org/tiny").unwrap().revisions.push("refs/pr/1".to_owned());
    let pulled = pull(&project, &hub, "hf:org/tiny@refs/pr/1").run().expect(0).json();
    assert_eq!(pulled["revision"].as_str(), Some(tiny().commit.as_str()));
    assert_eq!(fs::read_to_string(repository(&project).join("refs/refs/pr/1")).unwrap(), tiny().commit);
    let inspected =
        project.luthier(["model", "inspect", "hf:org/tiny@refs/pr/1", "--json"]).run().expect(0).json();
    assert_eq!(inspected["family"], "llama");
    pull(&project, &hub, "hf:org/tiny@refs/pr/2").run().expect(2).complains(&["no revision `refs/pr/2`"]);
    // A branch's file is replaced by the folder of a branch below it, and the other way round.
    for revision in ["next", "next/week", "next"] {
        hub.behaviour().repositories.get_mut("org/tiny").unwrap().revisions.push(revision.to_owned());
        pull(&project, &hub, &format!("hf:org/tiny@{revision}")).run().expect(0);
        let noted = fs::read_to_string(repository(&project).join("refs").join(revision)).unwrap();
        assert_eq!(noted, tiny().commit);
    }
    assert!(repository(&project).join("refs/refs/pr/1").exists());
}

#[test]
fn errors_of_the_hub_say_what_to_do() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    let told = |model: &str, token: Option<&str>, status: i32, said: &[&str]| {
        let mut command = pull(&project, &hub, model);
        if let Some(token) = token {
            command = command.variable("HF_TOKEN", token);
        }
        let told = command.run().expect(status).complains(said);
        assert_eq!(told.stdout, "");
        assert!(!told.stderr.contains("message of the server") && !told.stderr.contains('\u{1b}'), "{told}");
    };
    told("hf:org/none", None, 2, &["no model hf:org/none", "check its name", "HF_TOKEN"]);
    told("hf:org/none", Some(TOKEN), 2, &["no model hf:org/none", "your token"]);
    told("hf:org/tiny@v9", None, 2, &["org/tiny has no revision `v9`"]);
    let other = "f".repeat(40);
    told(&format!("hf:org/tiny@{other}"), None, 2, &["no revision"]);
    hub.behaviour().repositories.get_mut("org/tiny").unwrap().gated = true;
    told("hf:org/tiny", None, 1, &["gated", "accept its conditions at http://127.0.0.1", "set HF_TOKEN"]);
    told("hf:org/tiny", Some(TOKEN), 1, &["gated", "accept its conditions", "your token must belong"]);
    for (status, said) in [
        (401, "denies access"),
        (403, "denies access"),
        (429, "refuses more requests"),
        (418, "does not answer as a hub does"),
        (503, "out of order (status 503)"),
    ] {
        hub.behaviour().status = Some(status);
        told("hf:org/tiny", None, 1, &[said]);
    }
    hub.behaviour().status = Some(200);
    told("hf:org/tiny", None, 1, &["does not answer as a hub does", "HF_ENDPOINT"]);
    let endpoint = hub.endpoint().to_owned();
    drop(hub);
    let alone = project.luthier(["model", "pull", "hf:org/tiny"]).variable("HF_ENDPOINT", endpoint).run();
    alone.expect(1).complains(&["cannot reach the hub", "check the network"]);
}

#[test]
fn a_hostile_hub_writes_only_into_its_folder() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    for etag in ["../../../../evil", "..", "/tmp/evil", ".hidden", "a/b", "", "a b"] {
        hub.behaviour().etag = Some(etag.to_owned());
        let told = pull(&project, &hub, "hf:org/tiny").run().expect(1);
        told.complains(&["does not answer as a hub does"]);
    }
    hub.behaviour().etag = None;
    for commit in ["../../../evil", "..", "a/b", ""] {
        hub.behaviour().repositories.get_mut("org/tiny").unwrap().commit = commit.to_owned();
        let told = pull(&project, &hub, "hf:org/tiny").run().expect(1);
        told.complains(&["does not answer as a hub does"]);
    }
    assert_eq!(all_below(&project.beside("")), [""; 0].map(PathBuf::from));
}

#[test]
fn names_are_checked_before_any_request() {
    let project = Project::tiny();
    let hub = FakeHub::with("org/tiny", tiny());
    for name in [
        "org/tiny",
        "hf:tiny",
        "hf:../tiny",
        "hf:org/tiny@../main",
        "hf:org/tiny:model.bin",
        "hf:org/t\u{1b}y",
    ] {
        let told = pull(&project, &hub, name).run().expect(2).complains(&["names no model of the hub"]);
        assert!(!told.stderr.contains('\u{1b}'), "{told}");
    }
    assert!(hub.requests().is_empty());
    let plan =
        |model: &str| project.luthier(["plan", "--set", &format!("model.path={model}")]).run().expect(2);
    plan("hf:org/tiny@../main").complains(&[
        "model.path",
        "names no model of the hub",
        "hf:org/name@revision",
    ]);
    plan("hf:org/tiny@v1").complains(&["not in the download cache", "`luthier model pull hf:org/tiny@v1`"]);
    let wrong = pull(&project, &hub, "hf:org/tiny").variable("HF_ENDPOINT", "https://me:secret@host").run();
    assert!(!wrong.expect(2).complains(&["HF_ENDPOINT"]).stderr.contains("secret"));
}

#[test]
fn the_cache_is_where_other_tools_look() {
    let project = Project::empty();
    let hub = FakeHub::with("org/tiny", tiny());
    let home = project.beside("home/hf");
    let pulled = pull(&project, &hub, "hf:org/tiny").variable("HF_HOME", "~/hf").run().expect(0).json();
    assert!(Path::new(pulled["path"].as_str().unwrap()).starts_with(home.join("hub/models--org--tiny")));
    let elsewhere = project.beside("elsewhere");
    let pulled =
        pull(&project, &hub, "hf:org/tiny").variable("HF_HUB_CACHE", &elsewhere).run().expect(0).json();
    assert!(Path::new(pulled["path"].as_str().unwrap()).starts_with(elsewhere.join("models--org--tiny")));
    let new = project.luthier(["new", "fresh", "--model", "hf:org/tiny"]).run().expect(0);
    let settings = fs::read_to_string(project.path().join("fresh/luthier.toml")).unwrap();
    assert!(settings.contains("path = \"hf:org/tiny\""), "{new}");
}
