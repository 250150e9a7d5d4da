//! `luthier.toml`, `--set` behind a NUL, and a sweep file of the same text.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use luthier_core::config::Config;
use luthier_core::sweep::SweepFile;
use luthier_fuzz::settings;

static BASE: LazyLock<Config> = LazyLock::new(|| settings("train.jsonl"));

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let (text, set) =
        text.split_once('\0').map_or((&*text, Vec::new()), |(text, set)| (text, vec![set.to_owned()]));
    match Config::parse(text, Path::new("luthier.toml"), &set) {
        Ok(config) => {
            let again = Config::parse(&config.to_toml(), Path::new("config.toml"), &[]);
            assert_eq!(again.as_ref(), Ok(&config));
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
    if let Err(problems) = SweepFile::parse(text, Path::new("sweep.toml"), &BASE) {
        assert!(!problems.to_string().is_empty());
    }
});
