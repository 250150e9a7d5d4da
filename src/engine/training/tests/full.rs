//! Whole runs of full fine-tuning, which hold no base model while they train.

use super::*;

fn project() -> Project {
    let project = Project::new();
    project.write_pairs("pairs.jsonl");
    let path = project.path().join("luthier.toml");
    let text = fs::read_to_string(&path).unwrap();
    let full = text.replace("rank = 4\nalpha = 8\ndropout = 0.1", "kind = \"full\"");
    fs::write(path, full.replace("dtype = \"f32\"", "dtype = \"bf16\"")).unwrap();
    project
}

fn run(project: &Project, more: &[&str]) -> RunDir {
    project.run(&[&["train.learning_rate=1e-3"], more].concat())
}

fn model(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

fn result(run: &RunDir) -> Vec<u8> {
    model(&run.result_path(ResultForm::Model))
}

#[test]
fn a_run_in_bf16_learns_and_resumes_bit_for_bit() {
    for algorithm in ["sft", "dpo"] {
        let project = project();
        let pairs = ["data.train=pairs.jsonl", "train.algorithm=dpo"];
        let more = if algorithm == "dpo" { &pairs[..] } else { &[] };
        let [whole, late, resumed] = [0; 3].map(|_| run(&project, more));
        assert_eq!(work_on(&whole, Termination::default()).unwrap(), finished());
        let losses_of_all = losses(&whole);
        assert!(losses_of_all[7].1 < losses_of_all[0].1, "{losses_of_all:?}");
        if algorithm == "dpo" {
            let first = losses_of_all[0].1;
            assert!((first - std::f64::consts::LN_2).abs() < 1e-2, "at first the model is its base: {first}");
        }
        assert!(alerts(&whole).is_empty(), "{:?}", alerts(&whole));

        assert_eq!(work_reading(&late, Termination::default(), |_| Reading::Late).unwrap(), finished());
        assert_eq!((losses(&late), result(&late)), (losses_of_all.clone(), result(&whole)));

        copy_checkpoint(&whole, &resumed, 4);
        work_on(&resumed, Termination::default()).unwrap();
        assert_eq!(losses(&resumed), losses_of_all[4..]);
        assert_eq!(result(&resumed), result(&whole));
    }
}

#[test]
fn early_stop_keeps_the_best_model() {
    let project = project();
    let stop = ["train.learning_rate=0.1", "train.eval_every=1", "train.max_steps=60"];
    let run =
        run(&project, &[&stop[..], &["train.early_stop.patience=3", "train.schedule=constant"]].concat());
    let end = work_on(&run, Termination::default()).unwrap();
    assert_eq!(end.state, RunState::Stopped, "{end:?}");
    let best = Status::read(run.path()).unwrap().unwrap().best_step.unwrap();
    let kept = run.path().join(format!("checkpoints/step-{best}"));
    assert_eq!(result(&run), model(&kept));
}
