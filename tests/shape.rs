//! Invariants of the whole: what may depend on what.

#![expect(clippy::unwrap_used, reason = "a test ends where it meets what it did not expect")]

use std::collections::{HashMap, HashSet};
use std::process::Command;

use luthier_tests::{engine, luthier, needed_libraries};
use serde_json::Value;

#[test]
fn the_workbench_links_no_libtorch_and_the_engine_does() {
    let torch =
        |libraries: &[String]| libraries.iter().any(|name| name.contains("torch") || name.contains("c10"));
    let workbench = needed_libraries(&luthier());
    assert!(workbench.iter().any(|name| name.starts_with("libc.so")), "{workbench:?}");
    assert!(!torch(&workbench), "{workbench:?}");
    let engine = needed_libraries(&engine());
    assert!(torch(&engine), "{engine:?}");
}

#[test]
fn core_knows_neither_torch_nor_terminal_and_the_workbench_no_torch() {
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

/// Who needs whom to run, by package name.
struct Graph(HashMap<String, Vec<String>>);

impl Graph {
    fn read() -> Self {
        // Without the filter cargo asks for the crates of every platform, and a build fetches only this one's.
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
