//! Continuation of prompts: comparison with transformers, and invariants of rows in a batch.

use std::ops::ControlFlow;

use luthier_core::model::Quantisation;
use luthier_engine::generation::{Completion, Ended, Row, Sampling, generate};
use luthier_engine::layers::{Active, Adapter};
use luthier_engine::methods::Method;
use luthier_engine::models::Model;
use tch::{Kind, Tensor};

use crate::methods::each;
use crate::references::{families, open};
use crate::support::{greedy_without_cache, ids, logits, lora, tensors, tiny, variant};

fn row(prompt: &[u32]) -> Row<'_> {
    Row { prompt, adapter: None, sampling: Sampling::GREEDY, seed: 0, stop: &[], max_new_tokens: 24 }
}

fn run(model: &Model, rows: &[Row]) -> Vec<Completion> {
    generate(model, rows, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

fn tokens(model: &Model, rows: &[Row]) -> Vec<Vec<u32>> {
    run(model, rows).into_iter().map(|completion| completion.tokens).collect()
}

/// A LoRA adapter that changes every layer.
fn adapter(model: &Model, seed: u64) -> Box<dyn Adapter> {
    let adapter = lora(4, &[]).create(model, seed).unwrap();
    tch::no_grad(|| {
        for tensor in adapter.parameters().values() {
            let mut tensor = tensor.shallow_clone();
            let _ = tensor.g_add_scalar_(0.05);
        }
    });
    adapter
}

#[test]
fn prompts_in_one_batch_equal_transformers() {
    for family in families() {
        let model = open(&family, Kind::Float, Quantisation::None);
        let stored = tensors(&format!("tiny/{family}/ref.safetensors"));
        let [first, second] = ["gen0", "gen1"].map(|name| ids(&stored[&format!("{name}.prompt")]));
        let wanted = ["gen0", "gen1"].map(|name| ids(&stored[&format!("{name}.tokens")]));
        assert_eq!(tokens(&model, &[row(&first), row(&second)]), wanted, "{family}");
    }
}

#[test]
fn rows_with_different_adapters_equal_each_row_alone() {
    let model = tiny(Kind::Float);
    let (first, second) = (adapter(&model, 1), adapter(&model, 2));
    let sampling = Sampling { temperature: 0.9, top_k: 50, top_p: 0.95 };
    let prompts: [&[u32]; 4] = [&[0, 39, 83, 355], &[0, 39, 83, 355], &[0, 56], &[0, 39, 83, 355, 8, 9, 10]];
    let adapters: [Option<&dyn Adapter>; 4] = [Some(&*first), None, Some(&*second), Some(&*first)];
    let rows: Vec<Row> = prompts
        .into_iter()
        .zip(adapters)
        .enumerate()
        .map(|(seed, (prompt, adapter))| {
            let max_new_tokens = [24, 9, 17, 3][seed];
            Row { adapter, sampling, seed: seed as u64, max_new_tokens, ..row(prompt) }
        })
        .collect();
    let together = tokens(&model, &rows);
    for (place, alone) in rows.iter().enumerate() {
        assert_eq!(together[place], tokens(&model, &[*alone])[0], "row {place}");
    }
    assert_ne!(together[0], together[1]);
}

#[test]
fn each_generation_follows_the_parameters_of_its_time() {
    let model = tiny(Kind::Float);
    let _guard = tch::no_grad_guard();
    for (name, adapter) in each(&model) {
        let prompts: [&[u32]; 2] = [&[0, 39, 83, 355], &[0, 56]];
        let rows = prompts.map(|prompt| Row { adapter: Some(&*adapter), ..row(prompt) });
        let before = tokens(&model, &rows);
        for parameter in adapter.parameters().values() {
            let _ = parameter.shallow_clone().g_add_scalar_(0.3);
        }
        let after = tokens(&model, &rows);
        assert_ne!(before, after, "{name}");
        for (prompt, found) in prompts.iter().zip(&after) {
            let mut text: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
            for &token in found.iter().take(6) {
                let all = logits(&model, &Tensor::from_slice(&text).unsqueeze(0), Active::All(&*adapter));
                assert_eq!(i64::from(token), all.get(0).get(-1).argmax(-1, false).int64_value(&[]), "{name}");
                text.push(i64::from(token));
            }
        }
    }
}

#[test]
fn sampling_depends_on_the_seed() {
    let model = tiny(Kind::Float);
    let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let with = |seed| tokens(&model, &[Row { sampling, seed, ..row(&[0, 39]) }]);
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn rows_end_independently_and_every_token_is_reported() {
    let model = tiny(Kind::Float);
    let long = tokens(&model, &[row(&[0, 39, 83, 355, 379, 354, 274, 73, 30])])[0].clone();
    let prompt = [0, 39, 83, 355, 379, 354, 274, 73, 30];
    let stop = [long[5]];
    let until = 1 + long.iter().position(|token| *token == stop[0]).unwrap();
    let rows = [
        Row { max_new_tokens: 3, ..row(&prompt) },
        Row { stop: &stop, ..row(&prompt) },
        row(&prompt),
        row(&prompt),
        Row { max_new_tokens: 0, ..row(&prompt) },
    ];
    let mut seen = vec![Vec::new(); rows.len()];
    let completions = generate(&model, &rows, &mut |row, token| {
        seen[row].push(token);
        if row == 3 && seen[row].len() == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    let wanted = [
        (&long[..3], Ended::Length),
        (&long[..until], Ended::Stop),
        (&long[..], Ended::Length),
        (&long[..7], Ended::Cancelled),
        (&[], Ended::Length),
    ];
    for (place, (tokens, ended)) in wanted.into_iter().enumerate() {
        assert_eq!(
            (&completions[place].tokens[..], completions[place].ended),
            (tokens, ended),
            "row {place}"
        );
        assert_eq!(seen[place], tokens);
    }
}

#[test]
fn generation_continues_beyond_the_caches_first_size() {
    let model = tiny(Kind::Float);
    let prompt: Vec<u32> = (0..250).map(|i| i * 7 % 512).collect();
    let short = [3, 4];
    let alone = tokens(&model, &[row(&prompt)]);
    assert_eq!(alone[0], greedy_without_cache(&model, &prompt, 24));
    assert_eq!(tokens(&model, &[row(&short), row(&prompt)])[1], alone[0]);
}

#[test]
fn a_reply_past_the_change_of_frequencies_equals_uncached_generation() {
    // Prompts shorter than, equal to and longer than the length at which frequencies change: 32 tokens and 8.
    for (name, lengths) in [("phi3-long-short", [28, 32, 40, 3]), ("llama-dynamic", [5, 8, 12, 2])] {
        let (model, _folder) = variant(name);
        let prompts =
            lengths.map(|length| (0..length).map(|i| (i * 37 + length) % 512).collect::<Vec<u32>>());
        let rows: Vec<Row> = prompts.iter().map(|prompt| Row { max_new_tokens: 12, ..row(prompt) }).collect();
        let together = tokens(&model, &rows);
        for (prompt, found) in prompts.iter().zip(&together) {
            assert_eq!(found, &greedy_without_cache(&model, prompt, 12), "{name}, {} tokens", prompt.len());
        }
        for (method, adapter) in each(&model).iter().filter(|(_, adapter)| adapter.virtual_tokens() > 0) {
            let rows: Vec<Row> = rows.iter().map(|row| Row { adapter: Some(&**adapter), ..*row }).collect();
            for (row, found) in rows.iter().zip(tokens(&model, &rows)) {
                let mut text: Vec<i64> = row.prompt.iter().map(|&id| i64::from(id)).collect();
                for token in found {
                    let ids = Tensor::from_slice(&text).unsqueeze(0);
                    let all = tch::no_grad(|| logits(&model, &ids, Active::All(&**adapter)));
                    let wanted = all.get(0).get(-1).argmax(-1, false).int64_value(&[]);
                    assert_eq!(i64::from(token), wanted, "{name}, {method}, {} tokens", text.len());
                    text.push(wanted);
                }
            }
        }
    }
}

#[test]
fn invalid_prompts_are_errors() {
    let model = tiny(Kind::Float);
    for prompt in [&[][..], &[512]] {
        assert!(generate(&model, &[row(prompt)], &mut |_, _| ControlFlow::Continue(())).is_err());
    }
}
