//! A chat template, compiled and rendered.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::config::Config;
use luthier_core::data::{Message, Template};
use luthier_core::model::ModelFiles;
use luthier_fuzz::{Scratch, allow_guarded_panics, reference, settings};

static PROJECT: LazyLock<(Scratch, Config, ModelFiles)> = LazyLock::new(|| {
    let mut config = settings("train.jsonl");
    config.data.template = "own.jinja".to_owned();
    let model = ModelFiles::open(&reference("tiny/llama")).expect("the reference model is right");
    (Scratch::new(), config, model)
});

fuzz_target!(init: allow_guarded_panics(), |input: &[u8]| {
    let (scratch, config, model) = &*PROJECT;
    scratch.write("own.jinja", input);
    let Ok(template) = Template::resolve(config, scratch.path(), model) else { return };
    let talk = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hello\n{{ x }}"),
        Message::new("assistant", " Hi "),
    ];
    for count in 0..=talk.len() {
        let _ = template.render(&talk[..count], count % 2 == 0);
    }
});
