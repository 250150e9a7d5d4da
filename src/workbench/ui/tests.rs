//! The frame around the panes and the boxes over them. Panes have tests of their own, so their rows are left out here.

use ratatui::buffer::Buffer;

use crate::app::{
    AppQuestion, Confirm, ConfirmBox, Event, Layer, Message, Pick, PickItem, Prompt, PromptBox, Question,
    Severity, Size,
};
use crate::command::{AppCommand, Command};
use crate::testing::{TestApp, config, snapshot};
use crate::theme::ColorDepth;
use crate::widgets::Scroll;

fn row(buffer: &Buffer, y: u16) -> String {
    (0..buffer.area.width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>() + "|"
}

/// Header, rules and footer.
fn frame(app: &TestApp) -> String {
    let buffer = app.buffer();
    let last = buffer.area.height - 1;
    [0, 1, last - 1, last].map(|y| row(&buffer, y)).join("\n")
}

/// The topmost box.
fn boxed(app: &TestApp) -> String {
    let buffer = app.buffer();
    let rows: Vec<String> = (0..buffer.area.height).map(|y| row(&buffer, y)).collect();
    let top = rows.iter().rposition(|row| row.contains('╭')).expect("a box has a top");
    let bottom = top + rows[top..].iter().position(|row| row.contains('╰')).expect("a box has a bottom");
    let side = |row: &str, sign| row.chars().position(|symbol| symbol == sign).expect("a box has corners");
    let (left, right) = (side(&rows[top], '╭'), side(&rows[top], '╮'));
    let cut = |row: &String| row.chars().skip(left).take(right - left + 1).collect::<String>();
    rows[top..=bottom].iter().map(cut).collect::<Vec<_>>().join("\n")
}

macro_rules! shown {
    ($name:expr, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        });
    };
}

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 36), (200, 60)];

#[test]
fn header_and_footer_at_every_size() {
    for (width, height) in SIZES {
        let mut app = TestApp::new(width, height);
        app.event(Event::Device("H200   78 %  61/139 GiB  64 °C  512 W".to_owned()));
        // The hints of a box, since those of the pane are the pane's to test.
        app.keys(":");
        let now = app.app.context.now;
        app.app.messages.push(Severity::Warning, &format!("a {} message", "very long ".repeat(30)), now);
        shown!(format!("frame_{width}"), frame(&app));
    }
}

#[test]
fn a_message_is_shown_whole_where_it_can_be() {
    let mut app = TestApp::new(80, 24);
    let say = |app: &mut TestApp, text: &str| {
        let now = app.app.context.now;
        app.app.messages.push(Severity::Error, text, now);
        let buffer = app.buffer();
        (18..24).map(|y| row(&buffer, y)).collect::<Vec<_>>().join("\n")
    };
    let fitting = "x".repeat(76);
    assert!(say(&mut app, &fitting).contains(&format!(" ✗ {fitting} |")));
    let long = format!("{} the end", "some words ".repeat(20));
    let shown = say(&mut app, &long);
    shown!("message_80", shown);
    assert!(shown.contains("the end"));
    let endless = format!("{} the end", "some words ".repeat(200));
    let shown = say(&mut app, &endless);
    assert!(shown.contains('…') && !shown.contains("the end"), "{shown}");
    app.keys("<esc>");
    assert!(!app.screen().contains("some words"));
}

#[test]
fn a_list_of_commands_gives_no_reason_that_ends_with_its_box() {
    let mut app = TestApp::new(80, 24);
    app.keys(":pane.next");
    let palette = boxed(&app);
    assert!(palette.contains("pane.next") && !palette.contains("a box is open"), "{palette}");
    app.keys("<esc>?G");
    assert!(!boxed(&app).contains("a box is open"));
}

#[test]
fn enter_without_matches_leaves_the_box_open() {
    let mut app = TestApp::new(80, 24);
    app.keys(":zzzz<enter>");
    assert!(boxed(&app).contains("no matches"));
    app.keys("<ctrl-u>redraw<enter>");
    assert!(app.app.layers.is_empty());
}

#[test]
fn help_keeps_its_columns_on_a_narrow_screen() {
    let mut app = TestApp::new(80, 24);
    app.keys("2?");
    shown!("help_80", boxed(&app));
}

#[test]
fn a_long_project_name_leaves_room_for_the_panes() {
    let mut app = TestApp::new(80, 24);
    app.app.context.project_name = "a-very-long-name-of-a-project".to_owned();
    let header = frame(&app);
    assert!(header.contains("a-very-l… ") && header.contains("4 Review"), "{header}");
}

#[test]
fn pending_keys_show_what_may_follow() {
    let mut app = TestApp::new(80, 24);
    app.keys("<ctrl-w>");
    shown!("pending", boxed(&app));
    assert!(frame(&app).contains("ctrl-w …"));
    app.keys("<esc>");
    assert!(app.app.pending.is_empty());
    assert!(!frame(&app).contains("ctrl-w"));
}

#[test]
fn palette_finds_and_runs_commands() {
    let mut app = TestApp::new(80, 24);
    app.keys("<ctrl-p>redraw");
    shown!("palette", boxed(&app).lines().take(4).collect::<Vec<_>>().join("\n"));
    app.take_effects();
    app.keys("<enter>");
    assert!(app.app.layers.is_empty());
    assert_eq!(format!("{:?}", app.effects), "[Terminal(Redraw)]");
}

#[test]
fn help_names_the_keys_of_the_pane_and_of_everywhere() {
    let mut app = TestApp::new(120, 60);
    app.keys("?");
    let help = boxed(&app);
    assert!(help.contains("Keys · Data"), "{help}");
    app.keys("G");
    let end = boxed(&app);
    assert!(end.contains("Everywhere") && end.contains("Leave the workbench; runs continue"), "{end}");
    app.keys("?");
    assert!(app.app.layers.is_empty());
}

#[test]
fn boxes_that_ask() {
    let mut app = TestApp::new(80, 24);
    let question = Question::App(AppQuestion::Quit);
    let confirm = Confirm {
        title: "Stop lora r16?".to_owned(),
        lines: vec![
            "It has done 412 of 1200 steps.".to_owned(),
            "The last checkpoint is of step 400.".to_owned(),
        ],
        yes: "Stop".to_owned(),
        question: question.clone(),
    };
    app.app.layers.push(Layer::Confirm(ConfirmBox { confirm, yes: false }));
    shown!("confirm", boxed(&app));
    let prompt = Prompt {
        title: "Learning rate".to_owned(),
        initial: "2e-4".to_owned(),
        hint: "from the next step on; now 1.8e-4".to_owned(),
        question: question.clone(),
    };
    app.app.layers.push(Layer::Prompt(PromptBox::new(prompt)));
    shown!("prompt", boxed(&app));
    app.app.layers.clear();
    let item = |label: &str, detail: &str| PickItem { label: label.to_owned(), detail: detail.to_owned() };
    let pick = Pick {
        title: "Run".to_owned(),
        items: vec![item("14:02 lora r16", "running"), item("13:20 lora r8", "finished")],
        selected: 1,
        question,
    };
    let chooser = crate::app::Chooser::new(vec!["14:02 lora r16".into(), "13:20 lora r8".into()], 1);
    app.app.layers.push(Layer::Pick(pick, chooser));
    shown!("pick", boxed(&app));
}

#[test]
fn a_broken_config_is_shown_with_its_caret_and_goes_when_repaired() {
    let problem = "error: unknown key `lerning_rate`\n --> luthier.toml:6:1\n  |\n6 | lerning_rate = 1e-4\n  | ^^^^^^^^^^^^";
    let mut app =
        TestApp::open(80, 24, ColorDepth::True, "luthier", Err(problem.to_owned()), Box::new(|_| Vec::new()));
    shown!("problem", boxed(&app));
    app.event(Event::Config(Box::new(Ok(config()))));
    assert!(app.app.layers.is_empty());
    assert!(app.app.context.config.is_some() && app.app.context.config_problem.is_none());
}

#[test]
fn long_texts_scroll() {
    let mut app = TestApp::new(80, 24);
    let text = (1..=100).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
    let message = Message { title: "Log".to_owned(), text, severity: Severity::Note };
    app.app.layers.push(Layer::Message(message, Scroll::default()));
    assert!(boxed(&app).contains("line 1 ") && boxed(&app).contains('↓'));
    app.keys("G");
    assert!(boxed(&app).contains("line 100") && !boxed(&app).contains('↓'));
    app.keys("gg<esc>");
    assert!(app.app.layers.is_empty());
}

#[test]
fn a_terminal_too_small_says_so() {
    snapshot!(TestApp::new(60, 10), "");
}

#[test]
fn no_size_breaks_it() {
    let mut app = TestApp::new(80, 24);
    app.keys(":?<esc><ctrl-w>");
    for (width, height) in [(0, 0), (1, 1), (79, 24), (80, 23), (80, 24), (300, 100)] {
        app.event(Event::Resize(Size { width, height }));
        app.buffer();
    }
}

#[test]
fn every_depth_and_every_theme_draws_the_same_text() {
    let text = |depth, theme| {
        let mut app = TestApp::open(80, 24, depth, theme, Ok(config()), Box::new(|_| Vec::new()));
        app.keys("<ctrl-p>pane");
        app.screen().split("styles:").next().unwrap_or_default().to_owned()
    };
    let expected = text(ColorDepth::True, "luthier");
    for depth in [ColorDepth::None, ColorDepth::Ansi16, ColorDepth::Ansi256, ColorDepth::True] {
        for theme in ["luthier", "luthier-light", "high-contrast", "sixteen"] {
            assert_eq!(text(depth, theme), expected, "{theme} {depth:?}");
        }
    }
}

#[test]
fn the_selection_is_seen_without_colours() {
    let mut app = TestApp::open(80, 24, ColorDepth::None, "luthier", Ok(config()), Box::new(|_| Vec::new()));
    app.keys("<ctrl-p><down>");
    let buffer = app.buffer();
    let reversed = |y: u16| {
        (0..80).filter(|x| buffer[(*x, y)].modifier.contains(ratatui::style::Modifier::REVERSED)).count()
    };
    assert!((3..20).any(|y| reversed(y) > 40));
    let hint = app.app.keymap.label_of(&app.app.contexts(), Command::App(AppCommand::Palette));
    assert_eq!(hint.as_deref(), Some("ctrl-p"));
}
