use std::fs;
use std::os::unix::fs::symlink;

use pretty_assertions::assert_eq;
use proptest::prelude::*;

use super::*;
use crate::model::ModelFiles;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn parse(text: &str) -> HubModel {
    HubModel::parse(text).unwrap()
}

/// A cache with the tiny llama at [`COMMIT`], as `main`.
fn filled() -> (tempfile::TempDir, HubCache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = HubCache::new(folder.path().to_owned());
    let model = parse("hf:org/tiny");
    let snapshot = cache.snapshot(&model, COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.repository(&model).join("blobs")).unwrap();
    for (etag, entry) in fs::read_dir(TINY).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), cache.blob(&model, &etag.to_string())).unwrap();
        symlink(format!("../../blobs/{etag}"), snapshot.join(entry.file_name())).unwrap();
    }
    let reference = cache.reference(&model);
    fs::create_dir_all(reference.parent().unwrap()).unwrap();
    fs::write(reference, COMMIT).unwrap();
    (folder, cache)
}

#[test]
fn names_are_parsed_and_written_the_same() {
    let model = parse("hf:HuggingFaceTB/SmolLM2-135M_Instruct.v1");
    assert_eq!(model.repository(), "HuggingFaceTB/SmolLM2-135M_Instruct.v1");
    assert_eq!((model.revision(), model.file(), model.commit()), ("main", None, None));
    let file = parse("hf:org/name-GGUF@v1.0:name-Q8_0.gguf");
    assert_eq!((file.revision(), file.file()), ("v1.0", Some("name-Q8_0.gguf")));
    assert_eq!(parse(&format!("hf:org/name@{COMMIT}")).commit(), Some(COMMIT));
    assert_eq!(parse("hf:org/name@refs/pr/1").revision(), "refs/pr/1");
    for name in ["hf:a/b", "hf:a/b@c", "hf:a/b@c/d:e.gguf", "hf:a/b@c:d.gguf", "hf:a/b:d.gguf"] {
        assert_eq!(parse(name).to_string(), name);
    }
}

#[test]
fn names_that_could_lead_elsewhere_are_refused() {
    let commit_below = format!("hf:org/name@{COMMIT}/..");
    let long = format!("hf:org/{}", "n".repeat(97));
    for name in [
        "org/name",
        "hf:",
        "hf:name",
        "hf:/name",
        "hf:org/",
        "hf://org/name",
        "hf:org/name/more",
        "hf:../name",
        "hf:org/..",
        "hf:.org/name",
        "hf:org/na..me",
        "hf:org/na--me",
        "hf:-org/name",
        "hf:org/name.",
        "hf:org/name.git",
        "hf:org/na me",
        "hf:org/na\u{1b}[2Jme",
        "hf:org/na%2e",
        "hf:org/näme",
        "hf:org/name@",
        "hf:org/name@..",
        "hf:org/name@refs/",
        "hf:org/name@/refs",
        "hf:org/name@a//b",
        "hf:org/name@a/../b",
        "hf:org/name@a\nb",
        "hf:org/name@.a",
        "hf:org/name@a?b",
        "hf:org/name@a@b",
        "hf:org/name:",
        "hf:org/name:model.bin",
        "hf:org/name:../x.gguf",
        "hf:org/name:a/x.gguf",
        "hf:org/name:.gguf",
        "hf:org/name:x.gguf#",
        &commit_below,
        &long,
    ] {
        let error = HubModel::parse(name).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("names no model of the hub: ") && text.contains("hf:org/name"), "{text}");
        assert!(!text.contains(['\u{1b}', '\n']), "{text:?}");
    }
}

proptest! {
    /// Every accepted name stays within the cache and maps to one folder.
    #[test]
    fn no_name_leaves_the_cache(text in "hf:[a-zA-Z0-9./@:_ \\-]{0,24}") {
        if let Ok(model) = HubModel::parse(&text) {
            prop_assert_eq!(model.to_string(), text);
            let cache = HubCache::new("/cache".into());
            let below = |path: PathBuf| path.strip_prefix("/cache").unwrap().components().count();
            prop_assert_eq!(below(cache.repository(&model)), 1);
            // A revision may have slashes.
            prop_assert!(below(cache.reference(&model)) >= 3);
            prop_assert!(!cache.reference(&model).to_string_lossy().contains(".."));
        }
    }
}

#[test]
fn a_downloaded_model_is_found_by_branch_and_by_commit() {
    let (_folder, cache) = filled();
    let snapshot = cache.snapshot(&parse("hf:org/tiny"), COMMIT);
    for name in ["hf:org/tiny".to_owned(), "hf:org/tiny@main".to_owned(), format!("hf:org/tiny@{COMMIT}")] {
        let found = cache.find(&parse(&name)).unwrap();
        assert_eq!(found, snapshot);
        assert_eq!(ModelFiles::open(&found).unwrap().architecture.family, "llama");
    }
}

#[test]
fn a_missing_model_says_how_to_download_it() {
    let (_folder, cache) = filled();
    for name in ["hf:org/other", "hf:org/tiny@v2", "hf:org/tiny:x.gguf"] {
        let error = cache.find(&parse(name)).unwrap_err().to_string();
        assert!(error.contains(&format!("`luthier model pull {name}`")), "{error}");
    }
    // Other tools may have downloaded the tokenizer alone.
    fs::remove_file(cache.snapshot(&parse("hf:org/tiny"), COMMIT).join("config.json")).unwrap();
    let error = cache.find(&parse("hf:org/tiny")).unwrap_err();
    assert!(matches!(error, ModelError::NotInCache { .. }), "{error}");
}

#[test]
fn a_gguf_file_is_found_beside_others() {
    let (_folder, cache) = filled();
    let model = parse("hf:org/tiny:tiny-Q8_0.gguf");
    let file = cache.snapshot(&model, COMMIT).join("tiny-Q8_0.gguf");
    fs::write(&file, "GGUF").unwrap();
    assert_eq!(cache.find(&model).unwrap(), file);
}

#[test]
fn a_damaged_reference_finds_no_model() {
    let (_folder, cache) = filled();
    let model = parse("hf:org/tiny");
    for held in ["", "../../other", ".", "..", "/etc", &"a".repeat(5000), "a\0b"] {
        fs::write(cache.reference(&model), held).unwrap();
        assert!(matches!(cache.find(&model), Err(ModelError::NotInCache { .. })), "{held:?}");
    }
}

#[test]
fn folders_are_found_as_huggingface_hub_finds_them() {
    let folders = |variables: &[(&str, &str)], user: Option<&str>| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let found = HubFolders::from_variables(&variable, user.map(Path::new))?;
        Some((found.cache.to_str()?.to_owned(), found.token.to_str()?.to_owned()))
    };
    let both = |cache: &str, token: &str| Some((cache.to_owned(), token.to_owned()));
    let user = Some("/home/me");
    assert_eq!(
        folders(&[], user),
        both("/home/me/.cache/huggingface/hub", "/home/me/.cache/huggingface/token")
    );
    assert_eq!(
        folders(&[("XDG_CACHE_HOME", "/c")], user),
        both("/c/huggingface/hub", "/c/huggingface/token")
    );
    let home = ("HF_HOME", "~/hf");
    assert_eq!(
        folders(&[home, ("XDG_CACHE_HOME", "/c")], user),
        both("/home/me/hf/hub", "/home/me/hf/token")
    );
    assert_eq!(folders(&[home, ("HF_HUB_CACHE", "/big")], user), both("/big", "/home/me/hf/token"));
    assert_eq!(
        folders(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_TOKEN_PATH", "~/secret")], user),
        both("/old", "/home/me/secret")
    );
    assert_eq!(folders(&[("HF_HOME", ""), ("HF_HUB_CACHE", "")], user), folders(&[], user));
    assert_eq!(folders(&[], None), None);
    assert_eq!(folders(&[("HF_HOME", "/hf")], None), both("/hf/hub", "/hf/token"));
}

#[test]
fn paths_are_left_as_they_are() {
    let project = Path::new("/project");
    assert_eq!(locate(Path::new("models/m"), project).unwrap(), Path::new("/project/models/m"));
    assert_eq!(locate(Path::new("/models/m"), project).unwrap(), Path::new("/models/m"));
    assert!(matches!(locate(Path::new("hf:../m"), project), Err(ModelError::HubName(_))));
    assert_eq!(public_name(Path::new("models/m")), "models/m");
    assert_eq!(public_name(Path::new("hf:org/name@main")), "org/name");
}
