use proptest::prelude::*;

use super::writer::Stage;
use super::*;

fn write(run: &Path, step: u64, content: &[u8]) -> Checkpoint {
    fill(run, step, content).finish(serde_json::json!({"epoch": 0.5})).unwrap()
}

fn fill(run: &Path, step: u64, content: &[u8]) -> CheckpointWriter {
    let writer = CheckpointWriter::begin(run, step).unwrap();
    fs::write(writer.path().join("adapter_model.safetensors"), content).unwrap();
    fs::write(writer.path().join("optimizer.safetensors"), b"moments").unwrap();
    writer
}

fn steps(run: &Path) -> Vec<u64> {
    list_checkpoints(run).iter().map(|checkpoint| checkpoint.step).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn it_is_published_whole_and_verifies() {
    let run = tempfile::tempdir().unwrap();
    let checkpoint = write(run.path(), 100, b"weights");
    assert_eq!(checkpoint.path, run.path().join("checkpoints/step-100"));
    let manifest = checkpoint.verify().unwrap();
    assert_eq!(manifest.bytes(), 14);
    assert_eq!(manifest.notes["epoch"], 0.5);
    assert_eq!(newest_valid(run.path()).0, Some(checkpoint));
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_or_the_new_one() {
    for new_step in [10, 20] {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), 10, b"old");
        let remains = tempfile::tempdir().unwrap();
        let mut stages = Vec::new();
        fill(run.path(), new_step, b"new")
            .finish_watched(Value::Null, &mut |stage| {
                copy_folder(run.path(), &remains.path().join(stages.len().to_string()));
                stages.push(stage);
                Ok(())
            })
            .unwrap();
        assert_eq!(stages.len(), 9, "two files and seven further stages: {stages:?}");
        let mut found = Vec::new();
        for (number, stage) in stages.iter().enumerate() {
            let run = remains.path().join(number.to_string());
            let before = newest_valid(&run);
            assert!(before.1.is_empty(), "{stage:?}: {:?}", before.1);
            sweep_debris(&run);
            let (newest, damaged) = newest_valid(&run);
            assert!(damaged.is_empty(), "{stage:?}: {damaged:?}");
            let newest = newest.unwrap();
            found.push(fs::read(newest.path.join("adapter_model.safetensors")).unwrap());
            let left: Vec<_> = fs::read_dir(run.join(CHECKPOINT_FOLDER)).unwrap().flatten().collect();
            assert_eq!(left.len(), steps(&run).len(), "{stage:?}: leftovers: {left:?}");
        }
        let published = stages.iter().position(|stage| *stage == Stage::SyncParent).unwrap();
        assert!(found[..published].iter().all(|content| content == b"old"));
        assert!(found[published..].iter().all(|content| content == b"new"));
    }
}

#[test]
fn an_error_while_writing_leaves_nothing_behind() {
    for failing in [Stage::SyncFile, Stage::HalfManifest, Stage::SyncFolder, Stage::Publish] {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), 10, b"old");
        let error = fill(run.path(), 20, b"new")
            .finish_watched(Value::Null, &mut |stage| {
                if stage == failing { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            })
            .unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(fs::read_dir(run.path().join(CHECKPOINT_FOLDER)).unwrap().count(), 1);
        assert_eq!(steps(run.path()), [10]);
    }
}

#[test]
fn an_error_after_the_exchange_is_none_of_the_checkpoint() {
    for failing in [Stage::SyncParent, Stage::RemoveReplaced] {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), 10, b"old");
        let fault = |stage| {
            if stage == failing { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
        };
        let checkpoint = fill(run.path(), 10, b"new").finish_watched(Value::Null, &mut { fault }).unwrap();
        checkpoint.verify().unwrap();
        assert_eq!(fs::read(checkpoint.path.join("adapter_model.safetensors")).unwrap(), b"new");
        assert_eq!(sweep_debris(run.path()), usize::from(failing == Stage::RemoveReplaced));
        assert_eq!(fs::read_dir(run.path().join(CHECKPOINT_FOLDER)).unwrap().count(), 1);
    }
}

#[test]
fn a_replacement_interrupted_without_exchange_is_repaired() {
    let run = tempfile::tempdir().unwrap();
    let checkpoint = write(run.path(), 10, b"old");
    let folder = run.path().join(CHECKPOINT_FOLDER);
    fs::rename(&checkpoint.path, folder.join(".step-10.99.old.tmp")).unwrap();
    fs::create_dir(folder.join(".step-10.99.tmp")).unwrap();
    assert_eq!(sweep_debris(run.path()), 1);
    assert_eq!(newest_valid(run.path()).0, Some(checkpoint));
}

#[test]
fn steps_sort_as_numbers_and_other_names_are_ignored() {
    let run = tempfile::tempdir().unwrap();
    for step in [10_010, 9_990, 10_000, 0] {
        write(run.path(), step, b"x");
    }
    let folder = run.path().join(CHECKPOINT_FOLDER);
    for other in
        ["step-", "step-x", "step-007", "step--1", "step-99999999999999999999999", ".step-5.1.tmp", "best"]
    {
        fs::create_dir(folder.join(other)).unwrap();
    }
    fs::write(folder.join("step-3"), b"a file").unwrap();
    assert_eq!(steps(run.path()), [0, 9_990, 10_000, 10_010]);
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let run = tempfile::tempdir().unwrap();
    for step in [9_980, 9_990, 10_000, 10_010] {
        write(run.path(), step, b"x");
    }
    assert_eq!(prune(run.path(), 2, Some(9_980)).unwrap().removed, [9_990]);
    assert_eq!(steps(run.path()), [9_980, 10_000, 10_010]);
    assert_eq!(prune(run.path(), 0, None).unwrap().removed, [9_980, 10_000]);
    assert_eq!(steps(run.path()), [10_010]);
}

#[test]
fn pruning_removes_nothing_while_the_newest_is_damaged() {
    let run = tempfile::tempdir().unwrap();
    for step in [1, 2, 3] {
        write(run.path(), step, b"x");
    }
    fs::write(run.path().join("checkpoints/step-3/optimizer.safetensors"), b"momentz").unwrap();
    let pruned = prune(run.path(), 1, None).unwrap();
    assert!(pruned.removed.is_empty());
    assert!(pruned.kept_all.unwrap().to_string().contains("optimizer.safetensors"));
    let (newest, damaged) = newest_valid(run.path());
    assert_eq!((newest.unwrap().step, damaged.len()), (2, 1));
}

#[test]
fn a_manifest_that_names_files_elsewhere_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let checkpoint = write(run.path(), 1, b"x");
    fs::write(run.path().join("outside"), b"x").unwrap();
    let mut manifest = checkpoint.manifest().unwrap();
    let entry = manifest.files["adapter_model.safetensors"].clone();
    manifest.files.insert("../../outside".to_owned(), entry);
    manifest.digest = manifest.digest_of();
    fs::write(checkpoint.path.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert!(checkpoint.verify().unwrap_err().to_string().contains("names `../../outside`"));
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found_or_changes_nothing(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let run = tempfile::tempdir().unwrap();
        let checkpoint = write(run.path(), 5, b"weights");
        let whole = checkpoint.verify().unwrap();
        let files = ["adapter_model.safetensors", "optimizer.safetensors", MANIFEST_FILE];
        let sizes: Vec<_> = files.iter().map(|name| fs::read(checkpoint.path.join(name)).unwrap()).collect();
        let mut place = at.index(sizes.iter().map(Vec::len).sum());
        for (name, mut content) in files.iter().zip(sizes) {
            if place < content.len() {
                content[place] ^= 1 << bit;
                fs::write(checkpoint.path.join(name), content).unwrap();
                break;
            }
            place -= content.len();
        }
        if let Ok(found) = checkpoint.verify() {
            // RFC 3339 accepts lower-case `t` and `z` in a time as well.
            prop_assert_eq!(found, whole);
        } else {
            prop_assert_eq!(newest_valid(run.path()).0, None);
        }
    }
}
