//! Which crates may depend on what.

#![expect(clippy::unwrap_used, reason = "a test fails at the first surprise")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use luthier_tests::{engine, luthier, needed_libraries};
use serde_json::Value;

#[test]
fn only_the_engine_links_libtorch() {
    let torch =
        |libraries: &[String]| libraries.iter().any(|name| name.contains("torch") || name.contains("c10"));
    let workbench = needed_libraries(&luthier());
    assert!(workbench.iter().any(|name| name.starts_with("libc.so")), "{workbench:?}");
    assert!(!torch(&workbench), "{workbench:?}");
    let engine = needed_libraries(&engine());
    assert!(torch(&engine), "{engine:?}");
}

#[test]
fn core_needs_no_torch_or_terminal_and_the_workbench_no_torch() {
    let graph = Graph::read();
    let core = graph.dependencies("luthier-core");
    for forbidden in ["tch", "torch-sys", "ratatui", "crossterm", "indicatif", "clap"] {
        assert!(!core.contains(forbidden), "luthier-core depends on {forbidden}");
    }
    assert!(core.contains("serde"));
    let workbench = graph.dependencies("luthier");
    for forbidden in ["tch", "torch-sys", "luthier-engine"] {
        assert!(!workbench.contains(forbidden), "luthier depends on {forbidden}");
    }
    let engine = graph.dependencies("luthier-engine");
    for forbidden in ["ratatui", "crossterm", "luthier"] {
        assert!(!engine.contains(forbidden), "luthier-engine depends on {forbidden}");
    }
}

/// The rooms of the engine, each importing only from those before it.
const ENGINE_ROOMS: [&str; 21] = [
    "error",
    "csrc",
    "in_halves",
    "ops",
    "trials",
    "weights",
    "layers",
    "models",
    "methods",
    "device",
    "process",
    "base",
    "step",
    "algorithms",
    "generation",
    "evaluate",
    "verify",
    "training",
    "serve",
    "bench",
    "doctor",
];

/// The rooms of core. `config`, `algorithms`, `model` and `data` are one floor: a setting takes an algorithm, an algorithm
/// checks rows, and rows are read as settings say.
const CORE_ROOMS: [&str; 15] = [
    "text", "hash", "random", "panics", "paths", "units", "json", "files", "machine", "hub", "config",
    "plan", "runs", "eval", "sweep",
];

/// The rooms of core that count as `config`.
const WITH_CONFIG: [&str; 3] = ["algorithms", "model", "data"];

/// The rooms of the workbench. `app` and what its closed enums are made of are one floor: the list of panes makes the
/// commands, and commands name keys.
const WORKBENCH_ROOMS: [&str; 9] =
    ["telemetry", "theme", "hub", "project", "app", "term", "effects", "runtime", "cli"];

/// The rooms of the workbench that count as `app`.
const WITH_APP: [&str; 5] = ["panes", "command", "keymap", "widgets", "ui"];

#[test]
fn rooms_import_only_from_those_before_them() {
    check_order("src/engine", &ENGINE_ROOMS, &[]);
    check_order("src/core", &CORE_ROOMS, &[("config", &WITH_CONFIG)]);
    check_order("src/workbench", &WORKBENCH_ROOMS, &[("app", &WITH_APP)]);
}

/// `floors` has the rooms that count as another one, which they may also be imported by.
fn check_order(folder: &str, order: &[&str], floors: &[(&str, &[&str])]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let place_of = |room: &str| {
        let floor = floors.iter().find(|(_, rooms)| rooms.contains(&room));
        let room = floor.map_or(room, |(floor, _)| floor);
        order.iter().position(|known| *known == room)
    };
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut seen = 0;
    for path in files {
        let inside = path.strip_prefix(&root).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let place =
            place_of(room).unwrap_or_else(|| panic!("{folder}/{room} is missing in the list of rooms"));
        let text = fs::read_to_string(&path).unwrap();
        // Tests may import what they like.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for imported in code.split("crate::").skip(1).flat_map(names) {
            let Some(other) = place_of(&imported) else { continue };
            seen += 1;
            assert!(other <= place, "{} imports {imported}, which comes after {room}", inside.display());
        }
    }
    assert!(seen > 50, "{folder}: only {seen} imports were found");
}

/// The first names of a path behind `crate::`, of all paths in braces.
fn names(path: &str) -> Vec<String> {
    let first = |path: &str| path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    match path.strip_prefix('{') {
        Some(list) => {
            let list = list.split('}').next().unwrap();
            assert!(!list.contains('{'), "import one room at a time: crate::{{{list}");
            list.split(',').map(first).collect()
        }
        None => vec![first(path)],
    }
}

/// The sources below a folder, without those of tests.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !["tests.rs", "testing.rs", "lib.rs", "main.rs", "build.rs", "boundaries.rs"].contains(&name)
        {
            files.push(path);
        }
    }
}

/// Dependencies at run time, by package name.
struct Graph(HashMap<String, Vec<String>>);

impl Graph {
    fn read() -> Self {
        // Without the filter cargo needs the crates of every platform, and a build downloads only those of
        // this one.
        let version = cargo(&["-vV"]);
        let platform = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let arguments =
            ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", platform];
        let metadata: Value = serde_json::from_str(&cargo(&arguments)).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let names: HashMap<String, String> = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let needs = |node: &Value| {
            let normal = |needed: &&Value| {
                needed["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
            };
            let needed = node["deps"].as_array().unwrap().iter().filter(normal);
            needed.map(|needed| names[needed["pkg"].as_str().unwrap()].clone()).collect::<Vec<_>>()
        };
        let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
        Self(nodes.iter().map(|node| (names[node["id"].as_str().unwrap()].clone(), needs(node))).collect())
    }

    fn dependencies(&self, package: &str) -> HashSet<&str> {
        let mut found = HashSet::new();
        let mut open = vec![package];
        while let Some(package) = open.pop() {
            for needed in &self.0[package] {
                if found.insert(needed.as_str()) {
                    open.push(needed);
                }
            }
        }
        found
    }
}

fn cargo(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
