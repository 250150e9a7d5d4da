//! The workbench as a person uses it: the real programs in a pseudo-terminal, with a tiny model.

use std::fs;

use luthier_tests::{Project, Terminal, is_alive, wait_for};

/// The training loss in the legend of the chart.
fn train_loss(screen: &str) -> Option<f64> {
    let after = screen.split("train ").nth(1)?;
    after.split_whitespace().next()?.parse().ok()
}

/// A tiny project whose runs last until they are stopped.
fn long_project() -> Project {
    let project = Project::tiny();
    let settings = Project::tiny_settings()
        .replace("max_steps = 12", "max_steps = 100000")
        .replace("eval_every = 4", "eval_every = 50")
        .replace("checkpoint_every = 4", "checkpoint_every = 50")
        .replace("learning_rate = 1e-2", "learning_rate = 2e-3");
    project.write("luthier.toml", settings);
    project
}

#[test]
fn from_the_data_to_a_verdict() {
    let project = long_project();
    let mut terminal = Terminal::open(&project, 120, 32);

    // Inspect the data.
    terminal.see("1 Data");
    terminal.keys("1");
    terminal.wait("the checked rows", |screen| screen.contains("24 train, 6 held out"));
    terminal.see("item 0 is red");
    terminal.keys("\t\t");
    terminal.see("▐ trained ▌");

    // Start a run and see it learn.
    terminal.keys("2");
    terminal.see("There are no runs in this project yet");
    terminal.keys("n");
    terminal.see("Start lora r8?");
    terminal.keys("y");
    terminal.wait("a running run with a loss", |screen| {
        screen.contains("▶ running") && train_loss(screen).is_some()
    });
    let run = project.run();
    // From the journal: at a hundred steps per second, a run may have learned everything before the first
    // frame.
    let first = Project::journal(&run).iter().find_map(|event| event["loss"].as_f64()).unwrap();
    terminal.wait("a falling loss", |screen| train_loss(screen).is_some_and(|loss| loss < first - 0.5));

    // Kill the workbench; the run is not affected.
    let pid = Project::status(&run)["pid"].as_u64().unwrap() as u32;
    terminal.kill();
    assert!(is_alive(pid));
    let before = Project::status(&run)["step"].as_u64().unwrap();
    wait_for("steps after the workbench is gone", || {
        let step = Project::status(&run)["step"].as_u64().unwrap_or(0);
        if step > before + 5 { Ok(()) } else { Err(format!("step {step}")) }
    });

    // Opened again, the workbench shows the run live, with its history.
    let mut terminal = Terminal::open(&project, 120, 32);
    terminal.keys("2");
    terminal.wait("the live run", |screen| screen.contains("▶ running") && train_loss(screen).is_some());

    // An edited learning rate reaches the run and is marked.
    let file = run.join("config.toml");
    let settings = fs::read_to_string(&file).unwrap();
    let line = settings.lines().find(|line| line.starts_with("learning_rate")).unwrap();
    fs::write(&file, settings.replace(line, "learning_rate = 0.0015")).unwrap();
    terminal.wait("the mark of the edit", |screen| {
        screen.contains("▲") && screen.contains("train.learning_rate 2e-3 → 1.5e-3")
    });

    // A broken file changes nothing and is reported.
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("learning_rate = 0.0015", "learning_rate = oops")).unwrap();
    terminal.see("config.toml is broken, so nothing has changed");
    fs::write(&file, &good).unwrap();
    terminal.see("▶ running");

    // Stop the run and save.
    terminal.keys("s\r");
    terminal.see("■ stopped");
    wait_for("the end of the engine", || if is_alive(pid) { Err("alive".to_owned()) } else { Ok(()) });
    assert!(run.join("adapter/adapter_model.safetensors").is_file());

    // Compare with the base model, blind.
    terminal.keys("a");
    terminal.see("blind");
    terminal.see("item 3 is white");
    terminal.keys("\r");
    terminal.wait("both answers", |screen| screen.matches("/s").count() >= 2);
    terminal.keys("=");
    wait_for("the verdict on disk", || {
        let stored = fs::read_to_string(project.path().join("verdicts.jsonl")).unwrap_or_default();
        if stored.lines().count() == 1 { Ok(()) } else { Err(stored) }
    });
    terminal.wait("the names of the sides", |screen| screen.contains("base"));

    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn every_pane_fits_every_size_and_a_small_one_is_reported() {
    let project = Project::tiny();
    let mut terminal = Terminal::open(&project, 80, 24);
    for (key, title) in [("1", "all rows"), ("2", "no runs yet"), ("3", "Nothing is queued"), ("4", "Review")]
    {
        terminal.keys(key);
        terminal.see(title);
    }
    terminal.resize(200, 60);
    terminal.keys("3");
    terminal.see("Which settings are best?");
    terminal.resize(60, 20);
    terminal.wait("a word about the size", |screen| screen.contains("80") && screen.contains("24"));
    terminal.resize(80, 24);
    terminal.see("Which settings are best?");
    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_signal_leaves_the_terminal_clean() {
    let project = Project::tiny();
    let terminal = Terminal::open(&project, 80, 24);
    terminal.see("1 Data");
    terminal.signal("TERM");
    assert_eq!(terminal.ended(), 130);
}

#[test]
fn nothing_is_written_while_nothing_happens() {
    let project = Project::tiny();
    let mut terminal = Terminal::open(&project, 80, 24);
    terminal.keys("3");
    terminal.see("Nothing is queued");
    // Each key without an effect makes one round trip through the program's loop.
    terminal.keys("j");
    let settled = terminal.bytes();
    terminal.keys("jjjj2");
    terminal.see("no runs yet");
    assert!(terminal.bytes() - settled < 40_000, "{} bytes", terminal.bytes() - settled);
    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn broken_settings_are_shown_with_their_place() {
    let project = Project::tiny();
    project.write("luthier.toml", Project::tiny_settings().replace("rank = 8", "rnak = 8"));
    let mut terminal = Terminal::open(&project, 100, 30);
    terminal.wait("the caret", |screen| {
        screen.contains("rnak") && screen.contains('^') && screen.contains("rank")
    });
    project.write("luthier.toml", Project::tiny_settings());
    terminal.keys("\x1b");
    terminal.keys("1");
    terminal.see("24 train, 6 held out");
    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn an_unknown_theme_is_reported_with_the_known_ones() {
    let project = Project::tiny();
    project.write("luthier.toml", format!("{}\n[ui]\ntheme = \"nonsense\"\n", Project::tiny_settings()));
    let mut terminal = Terminal::open(&project, 80, 24);
    terminal.wait("the themes there are", |screen| {
        let words = screen.split_whitespace().collect::<Vec<_>>().join(" ");
        words.contains("there is no theme \"nonsense\", so luthier is used")
            && words.contains("high-contrast")
    });
    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_refused_setting_stays_in_its_box() {
    let project = Project::tiny();
    let mut terminal = Terminal::open(&project, 80, 24);
    terminal.keys("2");
    terminal.see("no runs yet");
    terminal.keys("Nmethod.rank=4 method.rnak=3\r");
    terminal.wait("the key at fault below what was typed", |screen| {
        screen.contains("method.rank=4 method.rnak=3") && screen.contains("unknown key `rnak`")
    });
    // Typing now edits the setting; it is not a command.
    terminal.keys("\x15method.rank=4 method.alpha=3\r");
    terminal.see("Start lora r4?");
    terminal.keys("n");
    terminal.see("no runs yet");
    terminal.keys("q");
    assert_eq!(terminal.ended(), 0);
}
