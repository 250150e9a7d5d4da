use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::config::{Dtype, Targets, Variant};
use crate::model::testing;

/// Parameters of SmolLM2-135M.
const TOTAL: u64 = 134_515_008;

/// The same model in NF4, exact; embedding and norms stay dense.
const QUANTISED: Held = Held { dense: 28_346_688, quantised: 54_770_040, largest_decoded: 1536 * 576 };

fn config() -> Config {
    let mut config = Config::default();
    config.method.rank = 16;
    config.train.batch_size = 1;
    config.train.accumulate = 1;
    config.data.max_length = 512;
    config.data.packing = false;
    config.train.recompute = Recompute::Off;
    config
}

fn data(lengths: &[usize]) -> DataSummary {
    let train_tokens = lengths.iter().map(|&length| length as u64).sum();
    DataSummary { train_lengths: lengths.to_vec(), train_tokens, ..DataSummary::default() }
}

const LARGE: Place =
    Place { gpu: false, bf16: false, kernels: false, available: 1 << 40, gpu_memory: 1 << 40, others: 0 };

#[test]
fn auto_takes_bf16_where_it_is_faster() {
    let slow = Place { bf16: false, ..LARGE };
    for place in [slow, Place { gpu: true, ..slow }] {
        let fast = Place { bf16: true, ..place };
        assert!(!is_half(Dtype::Auto, place) && is_half(Dtype::Auto, fast));
        assert!(is_half(Dtype::Bf16, place) && !is_half(Dtype::F32, fast));
    }
}

fn sizes(config: &Config, lengths: &[usize], place: Place) -> Result<Sizes, PlanError> {
    let architecture = testing::architecture(30);
    let model = Model { architecture: &architecture, parameters: TOTAL, quantised: QUANTISED };
    model.sizes(config, &data(lengths), place)
}

fn of(config: &Config, lengths: &[usize], place: Place) -> Sizes {
    sizes(config, lengths, place).unwrap()
}

#[test]
fn parameters_are_counted_as_in_peft() {
    assert_eq!(of(&config(), &[512], LARGE).trainable, 4_884_480);
    let mut queries = config();
    queries.method.targets = Targets::Names(vec!["q_proj".to_owned()]);
    assert_eq!(of(&queries, &[512], LARGE).trainable, 30 * 16 * (576 + 576));
}

#[test]
fn parts_follow_the_documented_sizes() {
    let memory = of(&config(), &[512], LARGE).memory;
    assert_eq!(memory.weights, TOTAL * 4);
    assert_eq!((memory.adapter, memory.gradients), (4_884_480 * 4, 4_884_480 * 4));
    assert_eq!(memory.optimizer, 4_884_480 * 8);
    let per_layer = 8 * 576 + 4 * 9 + 4 * (2 * 576 + 2 * 576 + 2 * 192 + 3 * 1536 + 7 * 16);
    assert_eq!(memory.activations, 512 * (30 * per_layer + 4 * (3 * 1536 + 2 * 576)));
    assert_eq!(memory.logits, 4 * (1 << 24) + 2 * 512 * 576 * 4);
    let parts = memory.weights + memory.adapter + memory.gradients + memory.optimizer;
    assert_eq!(memory.total, parts + memory.activations + memory.logits + memory.runtime);
}

#[test]
fn bf16_halves_what_our_cpu_kernels_keep() {
    let mut half = config();
    half.model.dtype = Dtype::Bf16;
    let (full, half) = (of(&config(), &[512], LARGE).memory, of(&half, &[512], LARGE).memory);
    // The normalisers of attention stay f32, and there is a bf16 copy of the factors.
    let normalisers = 512 * 30 * 4 * 9;
    assert_eq!(half.activations, (full.activations - normalisers) / 2 + normalisers + 2 * 4_884_480);
    assert_eq!(half.logits, full.logits / 2);
}

#[test]
fn logits_take_more_if_their_gradient_is_not_in_place() {
    let mut pairs = config();
    pairs.train.algorithm = crate::config::Algorithm::Dpo;
    let gpu = Place { gpu: true, bf16: true, ..LARGE };
    let states = 2 * 512 * 576 * 4;
    let logits = |config: &Config, place| of(config, &[512], place).memory.logits - states;
    assert_eq!(logits(&pairs, LARGE), 2 * logits(&config(), LARGE));
    let mut exact = config();
    exact.model.dtype = Dtype::F32;
    // All 512 rows of logits at once.
    assert_eq!(logits(&exact, gpu), 8 * 512 * 49_152);
    let small = Place { gpu_memory: 16 << 30, ..gpu };
    assert_eq!(of(&exact, &[2048], small).memory.logits, 8 * (1 << 25) + 4 * states);
}

#[test]
fn kernels_for_cuda_keep_less() {
    let mut half = config();
    half.model.dtype = Dtype::Bf16;
    let without = Place { gpu: true, bf16: true, ..LARGE };
    let with = Place { kernels: true, ..without };
    let memory = |config: &Config, place| of(config, &[512], place).memory;
    let (more, less) = (memory(&half, without), memory(&half, with));
    // The activated gate and the input of down, and eight of ten bytes of each logit.
    assert_eq!(more.activations - less.activations, 512 * 30 * 2 * 2 * 1536);
    assert_eq!(more.logits - less.logits, 8 * 512 * 49_152);
    half.method.variant = Variant::Dora;
    let (more, less) = (memory(&half, without), memory(&half, with));
    assert_eq!(more.activations - less.activations, 512 * 30 * 2 * 1536);
    let mut exact = config();
    exact.model.dtype = Dtype::F32;
    assert_eq!(memory(&exact, without).total, memory(&exact, with).total);
}

#[test]
fn only_what_adapters_read_back_is_kept() {
    let kept = |change: fn(&mut Config), place: Place| {
        let mut config = config();
        config.model.dtype = Dtype::F32;
        change(&mut config);
        of(&config, &[512], place).memory.activations
    };
    let queries = |config: &mut Config| config.method.targets = Targets::Names(vec!["q_proj".to_owned()]);
    let all = |_: &mut Config| ();
    let gpu = Place { gpu: true, bf16: true, ..LARGE };
    // Layers other than the query need the norm before the feed-forward part, its product, six times the
    // rank, and, without a fused kernel, the result of attention.
    let per_layer = 576 + 1536 + 6 * 16;
    assert_eq!(kept(all, LARGE) - kept(queries, LARGE), 512 * 30 * 4 * per_layer);
    assert_eq!(kept(all, gpu) - kept(queries, gpu), 512 * 30 * 4 * (per_layer + 576));
    let dropped = |config: &mut Config| config.method.dropout = 0.1;
    let inputs = 3 * 576 + 576 + 2 * 576 + 1536;
    let shared = 576 + 576 + 576 + 1536;
    assert_eq!(kept(dropped, gpu) - kept(all, gpu), 512 * 30 * 4 * (2 * inputs - shared));
}

/// Bytes per token that a layer of this `config.json` keeps for rows of these lengths, with a LoRA of rank 1
/// on a GPU.
fn kept_by(config_json: &Value, dtype: Dtype, lengths: &[usize]) -> u64 {
    let mut config = config();
    config.model.dtype = dtype;
    config.method.rank = 1;
    config.train.batch_size = lengths.len();
    let of = |layers: usize| {
        let mut config_json = config_json.clone();
        let key = if config_json["model_type"] == "gpt2" { "n_layer" } else { "num_hidden_layers" };
        config_json[key] = json!(layers);
        let architecture = testing::of_config(&config_json);
        let gpu = Place { gpu: true, bf16: true, ..LARGE };
        let quantised = Held::dense(TOTAL);
        let model = Model { architecture: &architecture, parameters: TOTAL, quantised };
        model.sizes(&config, &data(lengths), gpu).unwrap().memory.activations
    };
    // The difference of two layer counts removes gradients in passing and everything that exists once.
    let factors = testing::of_config(config_json).linear_modules();
    let factors = factors.iter().filter(|module| module.role != Role::Head);
    let factors: usize = factors.map(|module| module.in_features + module.out_features).sum();
    let copied = if dtype == Dtype::F32 { 0 } else { 2 * factors as u64 };
    (of(2) - of(1) - copied) / lengths.iter().sum::<usize>() as u64
}

#[test]
fn every_kind_of_block_keeps_what_its_forward_needs() {
    // Width 64, 4 heads of 16, feed-forward width 256.
    let (h, f) = (64, 256);
    let neox = json!({"model_type": "gpt_neox", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "intermediate_size": f, "num_hidden_layers": 1});
    // One input for both norms, both outputs, query, key, value and result (the result twice), up and its
    // activation.
    let elements = h + 2 * h + 4 * h + h + 2 * f + 4;
    assert_eq!(kept_by(&neox, Dtype::F32, &[100]), 4 * elements + 4 * 4);
    assert_eq!(kept_by(&neox, Dtype::Bf16, &[100]), 2 * elements + 4 * 4);
    let phi = json!({"model_type": "phi", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "intermediate_size": f, "num_hidden_layers": 1});
    // One output less, two low-rank inputs more.
    assert_eq!(kept_by(&phi, Dtype::F32, &[100]), 4 * (elements - h + 2) + 4 * 4);
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 99, "n_embd": h, "n_head": 4, "n_layer": 1});
    assert_eq!(kept_by(&gpt2, Dtype::F32, &[100]), 4 * (elements + h) + 4 * 4);
    let phi3 = json!({"model_type": "phi3", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "intermediate_size": f, "num_hidden_layers": 1});
    let gated = 2 * h + 2 * h + 4 * h + h + 4 * f + 4;
    assert_eq!(kept_by(&phi3, Dtype::F32, &[100]), 4 * gated + 4 * 4);
    assert_eq!(kept_by(&phi3, Dtype::Bf16, &[100]), 2 * gated + 4 * 4);
    // A window needs a mask if a row is longer.
    let mut windowed = phi3.clone();
    windowed["sliding_window"] = json!(60);
    assert_eq!(kept_by(&windowed, Dtype::F32, &[100]), kept_by(&phi3, Dtype::F32, &[100]) + 4 * 100);
    assert_eq!(kept_by(&windowed, Dtype::F32, &[60, 40]), kept_by(&phi3, Dtype::F32, &[60, 40]));
}

#[test]
fn scores_held_in_memory_grow_with_the_row() {
    let (h, f) = (64, 256);
    let gemma = json!({"model_type": "gemma2", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": f, "num_hidden_layers": 1});
    let layer = 4 * h + 2 * h + 4 * h + h + 4 * f + 7;
    let scores = |row: u64, bytes: u64| row + 4 * row * bytes;
    assert_eq!(kept_by(&gemma, Dtype::F32, &[100]), 4 * layer + 4 * 4 + scores(100, 8));
    assert_eq!(kept_by(&gemma, Dtype::F32, &[50, 50]), 4 * layer + 4 * 4 + scores(50, 8));
    assert_eq!(kept_by(&gemma, Dtype::Bf16, &[100]), 2 * layer + 2 * 4 * h + 4 * 4 + scores(100, 8));
    let falcon = json!({"model_type": "falcon", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "alibi": true, "parallel_attn": false, "multi_query": false, "num_hidden_layers": 1});
    let layer = 2 * h + 2 * h + 4 * h + h + 2 * f + 4;
    assert_eq!(kept_by(&falcon, Dtype::F32, &[100]), 4 * layer + 4 * 4 + scores(100, 4));
    let qwen = json!({"model_type": "qwen3", "vocab_size": 99, "hidden_size": h, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": f, "num_hidden_layers": 1});
    // Norms of query and key heads keep both before they are rotated.
    let layer = 2 * h + 2 * h + 2 * h + 4 * h + h + 4 * f + 7;
    assert_eq!(kept_by(&qwen, Dtype::F32, &[100]), 4 * layer + 4 * 4);
}

#[test]
fn each_method_keeps_what_its_backward_pass_reads() {
    let of = |change: fn(&mut Config)| {
        let mut config = config();
        config.model.dtype = Dtype::F32;
        change(&mut config);
        of(&config, &[512], Place { gpu: true, bf16: true, ..LARGE }).memory
    };
    let lora = of(|_| ());
    let full = of(|config| config.method.kind = MethodKind::Full);
    // The same inputs are read, without low-rank inputs.
    assert_eq!(lora.activations - full.activations, 512 * 30 * 4 * 7 * 16);
    assert_eq!((full.weights, full.adapter, full.gradients), (0, TOTAL * 4, TOTAL * 4));
    assert_eq!(full.optimizer, TOTAL * 8);
    assert_eq!(full.logits - lora.logits, 8 * 49_152 * 576);
    let nothing = of(|config| config.method.kind = MethodKind::Prompt);
    let prefix = of(|config| config.method.kind = MethodKind::Prefix);
    let prompt_tokens = |memory: Memory, tokens: u64| memory.activations / (512 + 20) * tokens;
    assert_eq!(prefix.activations - prompt_tokens(nothing, 512), (512 + 20) * 30 * 2 * 192 * 4);
    let ia3 = of(|config| config.method.kind = MethodKind::Ia3);
    let scales = 1536 + 2 * 192;
    assert_eq!(ia3.activations - prompt_tokens(nothing, 512), 512 * 30 * 4 * scales);
    let dora = of(|config| config.method.variant = Variant::Dora);
    let outputs = 576 + 2 * 192 + 576 + 2 * 1536 + 576;
    assert_eq!(dora.activations - lora.activations, 512 * 30 * 4 * outputs);
    let head = of(|config| config.method.modules_to_save = vec!["lm_head".to_owned()]);
    assert_eq!((head.activations, head.logits), (lora.activations, full.logits));
}

#[test]
fn full_fine_tuning_in_bf16_has_a_working_copy_and_gradients_in_bf16() {
    let of = |accumulate, recompute| {
        let mut config = config();
        (config.method.kind, config.model.dtype) = (MethodKind::Full, Dtype::Bf16);
        (config.train.accumulate, config.train.recompute) = (accumulate, recompute);
        of(&config, &[512], Place { gpu: true, ..LARGE }).memory
    };
    let (one, several) = (of(1, Recompute::Off), of(4, Recompute::Off));
    assert_eq!((one.weights, one.adapter, one.optimizer), (0, TOTAL * 6, TOTAL * 8));
    assert_eq!((one.gradients, several.gradients), (TOTAL * 2, TOTAL * 4));
    // One micro-batch's gradient is complete when its activations are gone.
    assert!(one.activations > TOTAL * 2);
    assert_eq!(several.activations, one.activations);
    let (one, several) = (of(1, Recompute::On), of(4, Recompute::On));
    assert_eq!(several.activations - one.activations, TOTAL * 2 / 30);
}

#[test]
fn recompute_keeps_one_layer_and_is_used_if_memory_is_short() {
    let full = of(&config(), &[512], LARGE);
    let mut again = config();
    again.train.recompute = Recompute::On;
    let small = of(&again, &[512], LARGE);
    assert!(small.memory.activations < full.memory.activations / 8);
    let mut auto = config();
    auto.train.recompute = Recompute::Auto;
    assert!(!of(&auto, &[512], LARGE).recompute);
    let tight = Place { available: full.memory.total, ..LARGE };
    assert_eq!(of(&auto, &[512], tight).memory, small.memory);
}

#[test]
fn bf16_halves_weights_and_is_the_default_on_a_gpu() {
    let gpu = Place { gpu: true, bf16: true, ..LARGE };
    let plan = of(&config(), &[512], gpu);
    assert_eq!((plan.half, plan.memory.weights), (true, TOTAL * 2));
    assert_eq!(plan.memory.adapter, 4_884_480 * 4);
    assert!(!of(&config(), &[512], LARGE).half);
}

#[test]
fn qlora_weights_are_quantised_and_decoded_one_at_a_time() {
    let mut qlora = config();
    qlora.method.kind = MethodKind::Qlora;
    for (place, element, decoding) in
        [(LARGE, 4, 4), (Place { gpu: true, bf16: true, ..LARGE }, 2, 2 + DECODING)]
    {
        let (dense, quantised) = (of(&config(), &[512], place), of(&qlora, &[512], place));
        let (before, after) = (dense.memory, quantised.memory);
        assert_eq!(after.weights, QUANTISED.dense * element + QUANTISED.quantised);
        assert_eq!(after.activations, before.activations + 1536 * 576 * decoding);
        assert_eq!((after.adapter, after.optimizer), (before.adapter, before.optimizer));
        assert_eq!(quantised.trainable, dense.trainable);
    }
}

#[test]
fn the_largest_micro_batch_counts() {
    let mut three = config();
    three.train.batch_size = 3;
    let lengths = [10, 500, 20, 400, 300];
    assert_eq!(largest_batch(&three, &data(&lengths)), 1200);
    three.data.packing = true;
    assert_eq!(largest_batch(&three, &data(&lengths)), 1230);
    three.data.max_length = 256;
    assert_eq!(largest_batch(&three, &data(&lengths)), 768);
    let none = plan_at(&tiny(), &three, &data(&[]), LARGE).unwrap();
    assert_eq!((none.steps, none.tokens, none.memory.activations), (0, 0, 0));
}

#[test]
fn steps_and_tokens_follow_epochs_or_the_limit() {
    let mut config = config();
    config.train.epochs = 3.0;
    config.train.batch_size = 2;
    config.train.accumulate = 2;
    let lengths = [100; 40];
    let plan = plan_at(&tiny(), &config, &data(&lengths), LARGE).unwrap();
    assert_eq!((plan.steps, plan.tokens), (30, 12_000));
    config.train.max_steps = Some(5);
    let plan = plan_at(&tiny(), &config, &data(&lengths), LARGE).unwrap();
    assert_eq!((plan.steps, plan.tokens), (5, 2_000));
    config.train.max_steps = Some(1 << 40);
    config.data.packing = true;
    let plan = plan_at(&tiny(), &config, &data(&lengths), LARGE).unwrap();
    assert_eq!(plan.steps, 1 << 40);
    assert!(plan.tokens > 100 << 40);
}

fn tiny() -> ModelFiles {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
    ModelFiles::open(Path::new(path)).unwrap()
}

fn refusal(config: &Config, lengths: &[usize], available: u64) -> String {
    let place = Place { available, ..LARGE };
    match plan_at(&tiny(), config, &data(lengths), place) {
        Err(error @ PlanError::TooLarge { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_a_remedy() {
    let runtime = LARGE.runtime_bytes();
    let mut config = config();
    config.train.batch_size = 8;
    let total = |config: &Config| plan_at(&tiny(), config, &data(&[512; 8]), LARGE).unwrap().memory.total;
    let mut smaller = config.clone();
    smaller.train.recompute = Recompute::On;
    let error = refusal(&config, &[512; 8], total(&smaller));
    assert!(error.contains("the run needs about"), "{error}");
    assert!(error.contains("; train.recompute = \"on\" would bring it to"), "{error}");
    smaller.model.dtype = Dtype::Bf16;
    smaller.train.batch_size = 1;
    let error = refusal(&config, &[512; 8], total(&smaller));
    let changes = "train.recompute = \"on\" and model.dtype = \"bf16\" and train.batch_size = 1 with train.accumulate = 8";
    assert!(error.contains(changes), "{error}");
    smaller.train.accumulate = 8;
    smaller.method.kind = MethodKind::Qlora;
    let error = refusal(&config, &[512; 8], total(&smaller));
    assert!(error.contains("train.accumulate = 8 and method.kind = \"qlora\" would bring it to"), "{error}");
    let error = refusal(&config, &[512; 8], runtime);
    assert!(error.contains("it cannot fit here") && error.contains("the weights alone"), "{error}");
}

#[test]
fn full_over_gguf_and_wrong_targets_are_errors() {
    let mut gguf = tiny();
    gguf.kind = ModelKind::Gguf;
    let mut full = config();
    full.method.kind = MethodKind::Full;
    let error = plan_at(&gguf, &full, &data(&[8]), LARGE).unwrap_err();
    assert!(error.to_string().contains("is a GGUF file; give model.path"), "{error}");
    let mut wrong = config();
    wrong.method.targets = Targets::Names(vec!["wq".to_owned()]);
    let error = plan_at(&tiny(), &wrong, &data(&[8]), LARGE).unwrap_err();
    assert!(matches!(error, PlanError::Targets(TargetError::Unmatched { .. })), "{error}");
}

#[test]
fn the_json_has_the_fixed_keys() {
    let plan = plan_at(&tiny(), &config(), &data(&[512]), LARGE).unwrap();
    assert!(plan.checkpoint_bytes > plan.parameters.trainable * 12);
    let json = serde_json::to_value(plan).unwrap();
    for key in ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "total"] {
        assert!(json["memory"][key].is_u64(), "{key}");
    }
    assert!(json["parameters"]["trainable"].is_u64() && json["checkpoint_bytes"].is_u64());
}
