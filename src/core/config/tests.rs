//! Tests of the configuration as a whole.

use std::path::Path;

use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::*;

const SMALL: &str = "[model]\npath = \"m\"\n[data]\ntrain = \"t.jsonl\"\n";

fn parse(text: &str, set: &[&str]) -> Result<Config, Problems> {
    let set: Vec<_> = set.iter().map(ToString::to_string).collect();
    Config::parse(text, Path::new("luthier.toml"), &set)
}

fn problems(text: &str, set: &[&str]) -> Vec<String> {
    match parse(text, set) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(Problem::one_line).collect(),
    }
}

/// The problems of one line in a section of an otherwise sound file.
fn problems_of(section: &str, line: &str) -> Vec<String> {
    let text = match section {
        "model" => format!("[model]\n{line}\n[data]\ntrain = \"t.jsonl\"\n"),
        "data" => format!("[data]\n{line}\n[model]\npath = \"m\"\n"),
        _ => format!("[{section}]\n{line}\n{SMALL}"),
    };
    problems(&text, &[])
}

#[test]
fn a_small_file_gets_every_default() {
    let config = parse(SMALL, &[]).expect("valid");
    let expected = Config {
        model: ModelSection { path: "m".to_owned(), ..Config::default().model },
        data: DataSection { train: vec!["t.jsonl".into()], ..Config::default().data },
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.get_text("train.learning_rate").as_deref(), Some("2e-4"));
}

#[test]
fn the_full_file_changes_every_key() {
    let text = include_str!("../../../tests/configs/valid/full.toml");
    let config = parse(text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let file: toml::Value = toml::from_str(text).expect("valid");
    for key in KEYS {
        let written = key.path.split('.').try_fold(&file, |table, name| table.get(name));
        assert!(written.is_some(), "tests/configs/valid/full.toml lacks {}", key.path);
        let at_default = config.get_text(key.path) == Some(key.default());
        // Those of algorithms other than the default one would be refused.
        let of_algorithm =
            Algorithm::ALL.iter().any(|other| other.declaration().settings.contains(&key.path));
        assert_eq!(
            at_default,
            key.path == "train.algorithm" || of_algorithm,
            "{} in tests/configs/valid/full.toml",
            key.path
        );
    }
}

#[test]
fn values_of_every_form_are_read() {
    let text = include_str!("../../../tests/configs/valid/full.toml");
    let config = parse(text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.train.early_stop_patience, 3);
    assert_eq!(config.data.columns["prompt"], "question");
    assert_eq!(config.method.targets, Targets::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()]));
    assert_eq!(config.objective.schema.as_deref(), Some(Path::new("schema.json")));
    assert_eq!(config.train.warmup, Warmup::Steps(10));
    assert_eq!(config.data.eval, EvalSource::Paths(vec!["eval.jsonl".into()]));
}

#[test]
fn tables_may_be_inline_or_sections() {
    for text in [
        "[train]\nearly_stop = { patience = 3 }\n",
        "[train]\nearly_stop.patience = 3\n",
        "[train.early_stop]\npatience = 3\n",
        "train = { early_stop = { patience = 3 } }\n",
    ] {
        let config = parse(&format!("{text}{SMALL}"), &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.train.early_stop_patience, 3, "{text}");
    }
}

#[test]
fn mistakes_of_every_kind_are_reported_together() {
    let text = include_str!("../../../tests/configs/invalid/many.toml");
    let expected = include_str!("../../../tests/configs/invalid/many.txt");
    let problems = parse(text, &[]).expect_err("invalid");
    assert_eq!(format!("{problems}\n"), expected);
}

#[test]
fn broken_syntax_does_not_hide_the_other_mistakes() {
    let text = include_str!("../../../tests/configs/invalid/syntax.toml");
    let expected = include_str!("../../../tests/configs/invalid/syntax.txt");
    let problems = parse(text, &[]).expect_err("invalid");
    assert_eq!(format!("{problems}\n"), expected);
}

#[test]
fn findings_that_leave_nothing_to_train_on_cannot_be_allowed() {
    let with = |name: &str| format!("[model]\npath = \"m\"\n[data]\ntrain = \"t\"\nallow = [{name:?}]\n");
    assert_eq!(problems(&with("mask_uncertain"), &[]), [] as [String; 0]);
    let empty = problems(&with("empty_dataset"), &[]);
    assert!(empty[0].contains("\"empty_dataset\" cannot be allowed"), "{empty:?}");
    let unknown = problems(&with("mask_uncertian"), &[]);
    assert!(unknown[0].contains("did you mean \"mask_uncertain\"?"), "{unknown:?}");
}

#[test]
fn an_unclosed_value_causes_no_false_alarms() {
    let open_list = "[model]\npath = \"m\"\n[data]\ntrain = [\"a\", \"b\"\neval = 0.1\n[train]\nseed = 1\n";
    let found = problems(open_list, &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("luthier.toml:5:1: missing comma"), "{found:?}");
    let open_header = "[model\npath = \"m\"\n[data]\ntrain = 3\n";
    let found = problems(open_header, &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("luthier.toml:1:7: unclosed table"), "{found:?}");
    assert!(found[1].starts_with("luthier.toml:4:9: `data.train` must be"), "{found:?}");
    let twice = problems("[model]\npath = \"m\"\n[model]\ndtyp = 1\n[ui]\nthem = 1\n", &[]);
    assert_eq!(twice.len(), 2, "{twice:?}");
    assert!(twice[0].starts_with("luthier.toml:3:2: duplicate key"), "{twice:?}");
    let text = problems("[review]\nbaseline_system = \"\"\"\nYou are\n[data]\ntrain = 3\n", &[]);
    assert_eq!(text.len(), 1, "{text:?}");
}

#[test]
fn missing_keys_are_reported_at_their_section() {
    let found = problems("", &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|line| line.contains("`model.path` is missing")));
    assert!(found.iter().any(|line| line.contains("`data.train` is missing")));
    let found = problems("\n[data]\n[model]\npath = \"m\"\n", &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("luthier.toml:2:2: `data.train` is missing (add train = … to [data]"));
}

#[test]
fn values_out_of_range_are_refused() {
    let wrong = [
        ("train", "learning_rate = 0"),
        ("train", "learning_rate = -2e-4"),
        ("train", "learning_rate = nan"),
        ("train", "learning_rate = inf"),
        ("train", "learning_rate = 1e999"),
        ("train", "epochs = 0"),
        ("train", "max_steps = -1"),
        ("train", "max_steps = 99999999999999999999"),
        ("train", "max_steps = 1.5"),
        ("train", "batch_size = 0"),
        ("train", "accumulate = 0"),
        ("train", "warmup = -0.1"),
        ("train", "warmup = 1.0"),
        ("train", "warmup = \"3%\""),
        ("train", "min_learning_rate = -1e-9"),
        ("train", "weight_decay = -0.1"),
        ("train", "betas = [0.9]"),
        ("train", "betas = [0.9, 1.0]"),
        ("train", "betas = [-0.1, 0.9]"),
        ("train", "betas = 0.9"),
        ("train", "max_grad_norm = -1"),
        ("train", "seed = -1"),
        ("train", "recompute = true"),
        ("train", "early_stop = { patience = -1 }"),
        ("train", "early_stop = { patiense = 1 }"),
        ("train", "early_stop = 3"),
        ("train", "on_nan = \"ignore\""),
        ("model", "path = \"\""),
        ("model", "path = \"~/model\""),
        ("model", "path = \"a\\u0000b\""),
        ("model", "path = 3"),
        ("model", "path = \"hf:name\""),
        ("model", "path = \"hf:../name\""),
        ("model", "path = \"hf:org/name@a/../b\""),
        ("model", "path = \"hf:org/name:model.bin\""),
        ("model", "path = \"m\"\ndevice = \"gpu\""),
        ("model", "path = \"m\"\ndevice = \"cuda:\""),
        ("model", "path = \"m\"\ndevice = \"cuda:+1\""),
        ("model", "path = \"m\"\ndevice = []"),
        ("model", "path = \"m\"\ndevice = [1]"),
        ("model", "path = \"m\"\ndevice = 2024-01-01"),
        ("data", "train = []"),
        ("data", "train = \"\""),
        ("data", "train = [\"a\", \"\"]"),
        ("data", "train = [\"a\", 3]"),
        ("data", "train = \"a\"\neval = 1.0"),
        ("data", "train = \"a\"\neval = -0.5"),
        ("data", "train = \"a\"\neval = 3"),
        ("data", "train = \"a\"\neval = \"\""),
        ("data", "train = \"a\"\neval = true"),
        ("data", "train = \"a\"\nmax_length = 1"),
        ("data", "train = \"a\"\npacking = \"yes\""),
        ("data", "train = \"a\"\npacking = 1"),
        ("data", "train = \"a\"\ncolumns = { promt = \"q\" }"),
        ("data", "train = \"a\"\ncolumns = { prompt = 3 }"),
        ("data", "train = \"a\"\ncolumns = \"q\""),
        ("method", "rank = 0"),
        ("method", "rank = 16.0"),
        ("method", "alpha = 0"),
        ("method", "dropout = 1.0"),
        ("method", "targets = []"),
        ("method", "targets = \"\""),
        ("method", "targets = \"(q|v_proj\""),
        ("method", "targets = 3"),
        ("objective", "pattern = \"[\""),
        ("objective", "contains = [\"\"]"),
        ("train", "dpo_beta = 0"),
        ("train", "dpo_label_smoothing = 0.5"),
        ("train", "dpo_label_smoothing = -0.1"),
        ("review", "temperature = -1"),
        ("review", "top_p = 0"),
        ("review", "top_p = 1.01"),
        ("review", "top_k = -1"),
        ("review", "max_new_tokens = 0"),
        ("ui", "theme = true"),
    ];
    for (section, line) in wrong {
        let found = problems_of(section, line);
        assert_eq!(found.len(), 1, "{line}: {found:?}");
    }
}

#[test]
fn values_at_the_edge_are_taken() {
    let right = [
        ("train", "learning_rate = 1"),
        ("train", "epochs = 0.5"),
        ("train", "warmup = 0"),
        ("train", "warmup = 0.0"),
        ("train", "max_grad_norm = 0"),
        ("train", "checkpoint_every = 0"),
        ("train", "eval_every = 0"),
        ("train", "betas = [0, 0.0]"),
        ("train", "seed = 9223372036854775807"),
        ("train", "algorithm = \"dpo\"\ndpo_beta = 1000\ndpo_label_smoothing = 0.49"),
        ("train", "min_learning_rate = 2e-4"),
        ("train", "warmup = 10\nmax_steps = 10"),
        ("model", "path = \"hf:org/name\""),
        ("model", "path = \"hf:org/name@v1.0\""),
        ("model", "path = \"hf:org/name-GGUF@main:name-Q8_0.gguf\""),
        ("model", "path = \"m\"\ndevice = \"cuda:1\""),
        ("data", "train = [\"a\", \"b\"]\neval = [\"c\"]"),
        ("data", "train = \"a\"\neval = 0"),
        ("method", "virtual_tokens = 8\nkind = \"prefix\""),
        ("method", "kind = \"ia3\"\nmodules_to_save = \"lm_head\"\ntargets = \"all-linear\""),
        ("method", "variant = \"dora\"\nbias = \"lora_only\"\ndropout = 0.1"),
        ("method", "targets = 'model\\.layers\\.\\d+\\..*_proj'"),
        ("method", "dropout = 0.99"),
        ("objective", "kind = \"length\"\nmin_length = 5\nmax_length = 5"),
        ("review", "temperature = 0\ntop_p = 1"),
    ];
    for (section, line) in right {
        assert_eq!(problems_of(section, line), [""; 0], "{line}");
    }
}

#[test]
fn what_other_tools_take_says_what_to_use() {
    let foreign = [
        ("model", "path = \"m\"\ndtype = \"f16\"", "use \"bf16\""),
        ("model", "path = \"m\"\ndevice = [0, 1]", "name it, such as \"cuda:0\""),
        ("train", "optimizer = \"lion\"", "AdamW is the only optimizer (remove this line)"),
    ];
    for (section, line, remedy) in foreign {
        let found = problems_of(section, line);
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert!(found[0].contains(remedy), "{}", found[0]);
    }
}

#[test]
fn a_removed_key_is_explained_and_older_runs_still_open() {
    let older = format!("[train]\noptimizer = \"adamw\"\n{SMALL}");
    let found = problems(&older, &[]);
    assert_eq!(
        found,
        [
            "luthier.toml:2:1: `train.optimizer` is no longer a setting: AdamW is the only optimizer (remove this line)"
        ]
    );
    let run = Config::parse(&older, Path::new("runs/1/config.toml"), &[]);
    assert_eq!(run, parse(SMALL, &[]));
    let other = older.replace("adamw", "sgd");
    assert!(Config::parse(&other, Path::new("runs/1/config.toml"), &[]).is_err());
    let given = problems(SMALL, &["train.optimizer=adamw"]);
    assert!(given[0].starts_with("--set:1:1: `train.optimizer` is no longer a setting"), "{given:?}");
}

#[test]
fn contradictions_are_reported_where_they_were_written() {
    let wrong = [
        (
            "[method]\nkind = \"prefix\"\nvariant = \"dora\"\n",
            "3:1: `method.variant` is a form of LoRA, and `method.kind` is \"prefix\"",
        ),
        ("[method]\nkind = \"full\"\ndropout = 0.1\n", "3:1: `method.dropout` belongs to LoRA"),
        ("[method]\nkind = \"ia3\"\nbias = \"all\"\n", "3:1: `method.bias` belongs to LoRA"),
        (
            "[method]\nmodules_to_save = [\"lm_head\"]\nkind = \"prompt\"\n",
            "2:1: `method.modules_to_save` belongs to LoRA and IA3",
        ),
        ("[method]\nkind = \"full\"\ntargets = [\"q_proj\"]\n", "3:1: `method.targets` names layers"),
        ("[train]\nwarmup = 11\nmax_steps = 10\n", "2:1: warm-up takes 11 steps"),
        ("[train]\nmin_learning_rate = 3e-4\n", "2:1: `train.min_learning_rate` is 3e-4"),
        ("[train]\nlearning_rate = 1e-5\nmin_learning_rate = 2e-5\n", "3:1: `train.min_learning_rate`"),
        (
            "[train]\non_nan = \"rollback\"\ncheckpoint_every = 0\n",
            "2:1: `train.on_nan` = \"rollback\" has no",
        ),
        ("[train]\neval_every = 0\nearly_stop.patience = 2\n", "3:12: `train.early_stop` never"),
        ("[objective]\nkind = \"json\"\n", "2:1: `objective.kind` = \"json\" needs a schema"),
        ("[objective]\nkind = \"regex\"\n", "2:1: `objective.kind` = \"regex\" needs"),
        ("[objective]\nkind = \"contains\"\ncontains = []\n", "2:1: `objective.kind`"),
        ("[objective]\nkind = \"length\"\n", "2:1: `objective.kind`"),
        ("[objective]\nmin_length = 5\nmax_length = 4\n", "2:1: `objective.min_length` is 5"),
    ];
    for (text, start) in wrong {
        let found = problems(&format!("{text}{SMALL}"), &[]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with(&format!("luthier.toml:{start}")), "{found:?}");
    }
    let over_file =
        problems(&format!("[train]\nmin_learning_rate = 1e-5\n{SMALL}"), &["train.learning_rate=1e-6"]);
    assert!(over_file[0].starts_with("--set:1:1: `train.min_learning_rate` is 1e-5"), "{over_file:?}");
    let same_file = "[model]\npath = \"m\"\n[data]\ntrain = [\"a\", \"b\"]\neval = \"b\"\n";
    assert!(problems(same_file, &[])[0].starts_with("luthier.toml:5:1: b is both trained on and held out"));
    let nothing_held_out = format!("[train]\nearly_stop = {{ patience = 1 }}\n{SMALL}eval = 0\n");
    assert!(problems(&nothing_held_out, &[])[0].contains("has nothing to evaluate"));
}

#[test]
fn preference_pairs_and_dpo_need_each_other() {
    let problems = |format: &str, more: &str| {
        problems(&format!("{more}[model]\npath = \"m\"\n[data]\ntrain = \"a\"\n{format}"), &[])
    };
    let dpo = "[train]\nalgorithm = \"dpo\"\n";
    assert_eq!(problems("format = \"preference\"\n", dpo), [""; 0]);
    assert_eq!(problems("", dpo), [""; 0]);
    let sft = problems("format = \"preference\"\n", "");
    assert!(
        sft[0].starts_with("luthier.toml:5:1: preference pairs need `train.algorithm` = \"dpo\""),
        "{sft:?}"
    );
    let other = problems("format = \"messages\"\n", dpo);
    assert!(other[0].contains("`data.format` is \"messages\""), "{other:?}");
    let all = problems("train_on = \"all\"\n", dpo);
    assert!(all[0].contains("the chosen and the rejected reply alone"), "{all:?}");
    assert_eq!([sft.len(), other.len(), all.len()], [1; 3]);
    let kto = "[train]\nalgorithm = \"kto\"\n";
    assert_eq!(problems("format = \"prompt-completion\"\n", kto), [""; 0]);
    let text = problems("format = \"text\"\n", kto);
    assert!(text[0].contains("learns from answers with a label"), "{text:?}");
    let full = problems("", "[train]\nalgorithm = \"kto\"\n[method]\nkind = \"full\"\n");
    assert!(full[0].contains("`method.kind` = \"full\" does not keep"), "{full:?}");
    let foreign = problems("", "[train]\nkto_beta = 0.5\n");
    assert!(foreign[0].contains("`train.kto_beta` belongs to \"kto\""), "{foreign:?}");
    assert_eq!([text.len(), full.len(), foreign.len()], [1; 3]);
    let mut config = Config::default();
    assert!(config.packs());
    config.train.algorithm = Algorithm::Dpo;
    assert!(config.data.packing && !config.packs());
}

#[test]
fn a_wrong_value_is_not_reported_again_as_a_contradiction() {
    let found = problems(&format!("[train]\nlearning_rate = -1\nmin_learning_rate = 0.5\n{SMALL}"), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn overrides_go_over_the_file() {
    let set = [
        "train.learning_rate=1e-4",
        "train.schedule=linear",
        " review.suite = prompts.jsonl ",
        "review.baseline_system=You are \"brief\".",
        "model.path=2024-01-01",
        "data.train=[\"a\", 'b']",
        "data.columns.prompt=question",
        "train.early_stop.patience=2",
        "method={ rank = 4, alpha = 8 }",
        "objective.pattern=[a-z]+",
        "ui.theme='x'",
        "train.seed=1",
        "train.seed=2",
    ];
    let file = "[model]\npath = \"m\"\n[data]\ntrain = 3\ncolumns = { completion = \"answer\" }\n";
    let config = parse(file, &set).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.get_text("train.learning_rate").as_deref(), Some("1e-4"));
    assert_eq!(config.train.schedule, Schedule::Linear);
    assert_eq!(config.review.suite.as_deref(), Some(Path::new("prompts.jsonl")));
    assert_eq!(config.review.baseline_system, "You are \"brief\".");
    assert_eq!(config.model.path, "2024-01-01");
    assert_eq!(config.data.train, ["a", "b"].map(DataSource::from));
    let columns: Vec<_> =
        config.data.columns.iter().map(|(role, column)| format!("{role}={column}")).collect();
    assert_eq!(columns, ["completion=answer", "prompt=question"]);
    assert_eq!(config.train.early_stop_patience, 2);
    assert_eq!(config.method.rank, 4);
    assert_eq!(config.get_text("method.alpha").as_deref(), Some("8.0"));
    assert_eq!(config.objective.pattern.as_deref(), Some("[a-z]+"));
    assert_eq!(config.ui.theme, "x");
    assert_eq!(config.train.seed, 2);
}

#[test]
fn training_files_may_have_amounts() {
    let sources = |written: &str| {
        let text = format!("[model]\npath = \"m\"\n[data]\ntrain = {written}\n");
        let config = parse(&text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(parse(&config.to_toml(), &[]).as_ref(), Ok(&config));
        (config.get_text("data.train").unwrap_or_default(), config.data.train)
    };
    let (written, read) =
        sources("[\"a.jsonl\", { path = \"b*.csv\", rows = 1000 }, { share = 2, path = \"hf:org/name\" }]");
    assert_eq!(
        written,
        "[\"a.jsonl\", { path = \"b*.csv\", rows = 1000 }, { path = \"hf:org/name\", share = 2.0 }]"
    );
    let expected = [
        DataSource::from("a.jsonl"),
        DataSource { rows: Some(1000), ..DataSource::from("b*.csv") },
        DataSource { share: Some(2.0), ..DataSource::from("hf:org/name") },
    ];
    assert_eq!(read, expected);
    assert_eq!(sources("{ path = \"a\" }").0, "\"a\"");
    assert_eq!(sources("[{ path = \"a\", rows = 5 }]").0, "{ path = \"a\", rows = 5 }");
    let set = parse(SMALL, &["data.train={ path = \"a\", share = 0.5 }"]).expect("valid");
    assert_eq!(set.data.train, [DataSource { share: Some(0.5), ..DataSource::from("a") }]);
}

#[test]
fn wrong_training_files_are_pointed_at() {
    let wrong = [
        (
            "{ path = \"a\", row = 5 }",
            "4:23: `data.train` has a table with an unknown part `row` (did you mean `rows`?)",
        ),
        (
            "{ path = \"a\", share = -1 }",
            "4:31: `data.train` has `share`, which must be a number above 0 and at most 100",
        ),
        (
            "[\"a\", { path = \"b\", rows = 0 }]",
            "4:36: `data.train` has `rows`, which must be a whole number, at least 1",
        ),
        ("{ rows = 5 }", "4:9: `data.train` has a table without a path"),
        ("{ path = 3 }", "4:18: `data.train` has `path`, which must be a path in quotes, not 3"),
        ("{ path = \"\" }", "4:18: `data.train` has `path`, which has an empty path"),
        ("[]", "4:9: `data.train` has no path"),
        ("3", "4:9: `data.train` must be a file, folder, pattern or hf:org/name in quotes"),
        ("\"hf:name\"", "4:9: `data.train` names no dataset of the hub: it lacks"),
        ("\"hf:org/name:a.gguf\"", "4:9: `data.train` names no dataset of the hub: it ends with"),
    ];
    for (value, start) in wrong {
        let found = problems(&format!("[model]\npath = \"m\"\n[data]\ntrain = {value}\n"), &[]);
        assert_eq!(found.len(), 1, "{value}: {found:?}");
        assert!(found[0].starts_with(&format!("luthier.toml:{start}")), "{value}: {found:?}");
    }
    let both = |path: &str| {
        format!(
            "[model]\npath = \"m\"\n[data]\ntrain = {{ path = \"{path}\", rows = 5 }}\neval = \"{path}\"\n"
        )
    };
    assert!(problems(&both("a.jsonl"), &[])[0].contains("a.jsonl is both trained on and held out"));
    assert!(parse(&both("hf:org/name"), &[]).is_ok());
}

#[test]
fn problems_with_overrides_point_at_them() {
    let wrong = [
        ("learning_rate", "--set:1:1: has no `=` (write section.key=value"),
        (
            "train.learning_rat=1",
            "--set:1:1: unknown key `learning_rat` in [train] (did you mean `learning_rate`?)",
        ),
        (
            "learning_rate=1",
            "--set:1:1: unknown key `learning_rate` outside any section (`learning_rate` belongs",
        ),
        ("train.learning_rate=-1", "--set:1:21: `train.learning_rate` must be a number above 0"),
        ("train.learning_rate=fast", "--set:1:21: `train.learning_rate` must be a number above 0"),
        ("train.learning_rate=", "--set:1:21: `train.learning_rate` must be"),
        ("train=3", "--set:1:1: `train` is a section"),
        ("data.train=[1", "--set:1:14: unclosed array"),
        ("ui.theme=\"x", "--set:1:12: invalid basic string"),
        ("data.columns.promt=q", "--set:1:1: `data.columns` has no role `promt` (did you mean `prompt`?)"),
        ("train={ sed = 3 }", "--set:1:9: unknown key `sed` in [train] (did you mean `seed`?)"),
        ("train.warmup=9999\u{1b}[2J", "--set:1:14: `train.warmup` must be"),
        ("objective.kind=json", "--set:1:1: `objective.kind` = \"json\" needs a schema"),
        ("trian.epochs=1", "--set:1:1: unknown section [trian] (did you mean `train`?)"),
        ("=", "--set:1:1: unknown key `` outside any section"),
    ];
    for (set, start) in wrong {
        let found = problems(SMALL, &[set]);
        assert_eq!(found.len(), 1, "{set}: {found:?}");
        assert!(found[0].starts_with(start), "{set}: {found:?}");
        assert!(!found[0].contains('\u{1b}'));
    }
}

#[test]
fn hostile_files_are_read_in_bounds() {
    let many: Vec<_> = (0..50_000).map(|number| format!("k{number} = {number}\n")).collect();
    let many = many.concat();
    let found = problems(&many, &[]);
    assert!(found.len() <= 202, "{}", found.len());
    assert!(!problems(&"=\n".repeat(50_000), &[]).is_empty());
    assert!(!problems(&"[".repeat(100_000), &[]).is_empty());
    assert!(!problems(&"a.".repeat(50_000), &[]).is_empty());
    assert!(!problems(&format!("x = {}", "{a=".repeat(50_000)), &[]).is_empty());
}

#[test]
fn values_are_found_by_their_key() {
    let config = Config::default();
    assert_eq!(config.get("train.nothing"), None);
    assert_eq!(config.get("train.batch_size"), Some(toml::Value::Integer(4)));
}

#[test]
fn a_configuration_can_be_changed_like_a_file() {
    let config = parse(SMALL, &[]).expect("valid");
    let changed = config.with(&["train.epochs=5".to_owned()]).expect("valid");
    assert_eq!(changed.get_text("train.epochs").as_deref(), Some("5.0"));
    assert_eq!(Config { train: TrainSection { epochs: 3.0, ..changed.train.clone() }, ..changed }, config);
    assert!(config.with(&["train.epochs=0".to_owned()]).is_err());
}

#[test]
fn files_are_small_text() {
    let folder = tempfile::tempdir().expect("folder");
    let missing = Config::load(folder.path(), &[]).expect_err("missing").to_string();
    assert!(missing.contains("luthier.toml cannot be read: there is no such file"), "{missing}");
    assert!(missing.contains("luthier new"), "{missing}");
    let file = folder.path().join(FILE_NAME);
    std::fs::write(&file, SMALL).expect("write");
    assert_eq!(Config::load(folder.path(), &[]).expect("valid").model.path, "m");
    std::fs::write(&file, b"[model]\npath = \"\xff\"\n").expect("write");
    let error = Config::load(folder.path(), &[]).expect_err("not text").to_string();
    assert!(error.contains("is not UTF-8 text") && error.contains(":2:9"), "{error}");
    std::fs::write(&file, "#".repeat(2 << 20)).expect("write");
    let error = Config::load(folder.path(), &[]).expect_err("too large").to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
    assert!(Config::load_file(folder.path(), &[]).is_err());
}

/// Any valid configuration.
fn configs() -> impl Strategy<Value = Config> {
    let texts = "[ -~äöü\\n\\t\u{202e}]{0,12}";
    let model = (
        "[a-z/.\"\\\\]{1,9}",
        0..3_usize,
        prop::sample::select(vec![Device::Auto, Device::Cpu, Device::Cuda(3)]),
    );
    let data = (
        prop::collection::vec(
            ("[a-zA-Z. ]{1,8}", prop::option::of(1..1_000_000_u64), prop::option::of(1e-3..100.0_f64)),
            1..4,
        ),
        prop_oneof![
            (0.0..1.0).prop_map(EvalSource::Fraction),
            prop::collection::vec("[0-9]{1,8}".prop_map_into(), 1..3).prop_map(EvalSource::Paths)
        ],
        prop::collection::hash_map(prop::sample::select(vec!["prompt", "completion", "text"]), texts, 0..3),
        texts,
        2..100_000_usize,
    );
    let method = (
        1..1024_usize,
        1e-6..1e6_f64,
        0.0..1.0_f64,
        prop_oneof![
            Just(Targets::AllLinear),
            Just(Targets::Pattern(r"model\..*(q|v)_proj".to_owned())),
            prop::collection::vec("[a-z_.]{1,9}", 1..4).prop_map(Targets::Names)
        ],
        prop::option::of("[a-z/]{1,9}".prop_map_into()),
    );
    let train = (
        (1e-3..1e5_f64, 1e-12..1.0_f64, 0.0..1.0_f64, 0.0..10.0_f64, [0.0..1.0_f64, 0.0..1.0_f64]),
        prop::option::of(1..u64::from(u32::MAX)),
        prop_oneof![(0.0..1.0).prop_map(Warmup::Fraction), (0..1_u64).prop_map(Warmup::Steps)],
        (0..=i64::MAX as u64, 1..1000_u64, 0..1000_u64),
        (0..4_usize, 0..2_usize),
    );
    let rest = (texts, texts, prop::collection::vec("[a-z\"\\\\]{1,5}", 1..3), 0.0..10.0_f64, any::<bool>());
    (model, data, method, train, rest).prop_map(|(model, data, method, train, rest)| {
        let mut config = Config::default();
        config.model.path = model.0;
        config.model.dtype = Dtype::ALL[model.1];
        config.model.device = model.2;
        let sources = data.0.into_iter();
        config.data.train =
            sources.map(|(path, rows, share)| DataSource { path: path.into(), rows, share }).collect();
        config.data.eval = data.1;
        config.data.columns = data.2.into_iter().map(|(role, column)| (role.to_owned(), column)).collect();
        config.data.system = data.3;
        config.data.max_length = data.4;
        config.method.rank = method.0;
        config.method.alpha = method.1;
        config.method.dropout = method.2;
        config.method.targets = method.3;
        config.method.init = method.4;
        let (floats, max_steps, warmup, wholes, choices) = train;
        config.train.epochs = floats.0;
        config.train.learning_rate = floats.1;
        config.train.min_learning_rate = floats.1 * floats.2;
        config.train.weight_decay = floats.3;
        config.train.betas = floats.4;
        config.train.max_steps = max_steps;
        config.train.warmup = warmup;
        config.train.seed = wholes.0;
        config.train.eval_every = wholes.1;
        config.train.sample_every = wholes.2;
        config.train.schedule = Schedule::ALL[choices.0];
        config.train.on_nan = OnNan::ALL[choices.1];
        config.review.baseline_system = rest.0;
        config.ui.theme = rest.1;
        config.objective.contains = rest.2;
        config.objective.kind = ObjectiveKind::Contains;
        config.review.temperature = rest.3;
        config.data.packing = rest.4;
        config
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_equal(config in configs()) {
        let read = Config::parse(&config.to_toml(), Path::new("config.toml"), &[]);
        prop_assert_eq!(read, Ok(config));
    }

    #[test]
    fn any_text_is_read_without_panic(text in "\\PC{0,200}", set in "\\PC{0,60}") {
        if let Err(problems) = parse(&text, &[&set]) {
            prop_assert!(!problems.to_string().is_empty());
        }
    }

    #[test]
    fn any_mutilated_file_is_read_without_panic(
        cut in 0..1700_usize,
        length in 0..60_usize,
        put in "[\\[\\]{}=\"'.#,\\n\\\\0-9a-z \u{0}-\u{1f}é]{0,12}",
        set in "(train|data|x)(\\.[a-z_]{1,8})?=[\\[\\]{}=\"'.,0-9a-z ]{0,12}",
    ) {
        let mut text = Config::default().to_toml();
        let start = text.floor_char_boundary(cut);
        let end = text.floor_char_boundary(start + length);
        text.replace_range(start..end, &put);
        if let Err(problems) = parse(&text, &[&set]) {
            let drawn = problems.to_string();
            let is_plain = !drawn.contains(['\u{1b}', '\u{7}']);
            prop_assert!(is_plain && !drawn.is_empty());
        }
    }
}
