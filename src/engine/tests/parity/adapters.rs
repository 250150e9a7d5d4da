//! Adapter invariants: initial values, what is trained, what is stored.

use luthier_engine::csrc;
use luthier_engine::error::EngineError;
use luthier_engine::layers::{Active, Adapter, Mask, Noise, Pass};
use luthier_engine::methods::lora::Lora;
use luthier_engine::methods::{self, LoraMethod, Method, Purpose};
use luthier_engine::models::Model;
use luthier_engine::models::head::{Targets as LossTargets, loss_sum};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{
    columns, distance, distance_where, hidden, json, logits, lora, peft_config, reference, tensors, tiny,
};

/// A LoRA adapter whose B is not zero.
fn trained(model: &Model, seed: u64) -> Box<dyn Adapter> {
    let adapter = lora(4, &[]).create(model, seed).unwrap();
    let _guard = tch::no_grad_guard();
    for (place, (_, tensor)) in adapter.parameters().iter().enumerate() {
        let noise = Tensor::from_slice(
            &(0..tensor.numel() as u64)
                .map(|i| luthier_core::random::unit(seed * 1000 + place as u64 * 7919 + i) as f32 - 0.5)
                .collect::<Vec<f32>>(),
        );
        tensor.shallow_clone().copy_(&(noise.view(tensor.size().as_slice()) * 0.2));
    }
    adapter
}

fn stored(run: &str) -> Lora {
    Lora::load(&reference(&format!("training/llama/{run}/adapter-init")), &tiny(Kind::Float)).unwrap()
}

/// Accumulates the gradients of one optimiser step's loss in the adapter and returns the loss. A step has two
/// micro-batches.
fn accumulate(model: &Model, adapter: &dyn Adapter, step: i64, recompute: bool) -> f64 {
    let data = tensors("training/llama/batches.safetensors");
    let batches: Vec<(Tensor, LossTargets)> = (2 * step..2 * step + 2)
        .map(|micro| {
            let labels = Vec::<i64>::try_from(data["labels"].get(micro).flatten(0, -1)).unwrap();
            (data["input_ids"].get(micro), LossTargets::shifted(&labels, 24, Device::Cpu).unwrap())
        })
        .collect();
    let total: usize = batches.iter().map(|(_, targets)| targets.count).sum();
    let share = Tensor::from(1.0_f32 / total as f32);
    let positions = columns(2, 24);
    let adapters = Active::All(adapter);
    let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
    let mut sum = 0.0;
    for (ids, targets) in &batches {
        if recompute {
            let trace = model.hidden_recomputed(ids, &pass).unwrap();
            let loss = loss_sum(model, adapters, &trace.hidden, targets, false).unwrap().sum;
            csrc::backward(&[&loss], &[Some(&share)]).unwrap();
            sum += loss.double_value(&[]);
            drop(loss);
            model.backward(trace, ids, &pass, &mut || Ok(())).unwrap();
        } else {
            let loss = loss_sum(model, adapters, &model.hidden(ids, &pass, None).unwrap(), targets, false)
                .unwrap()
                .sum;
            csrc::backward(&[&loss], &[Some(&share)]).unwrap();
            sum += loss.double_value(&[]);
        }
    }
    sum / total as f64
}

fn gradients(adapter: &dyn Adapter) -> Vec<Tensor> {
    adapter.parameters().values().map(Tensor::grad).collect()
}

#[test]
fn a_stored_adapter_and_its_merged_weights_give_pefts_logits() {
    let (model, adapter) = (tiny(Kind::Float), stored("lora"));
    let data = tensors("training/llama/batches.safetensors");
    let (ids, mask) = (data["input_ids"].get(0), data["attention_mask"].get(0));
    let wanted = tensors("training/llama/lora/logits.safetensors");
    let found = logits(&model, &ids, Active::All(&adapter));
    let error = distance_where(&mask, &found, &wanted["init_logits"]);
    assert!(error <= 1e-5, "{error}");
    let x = Tensor::randn([5, 64], (Kind::Float, Device::Cpu));
    let positions = columns(1, 5);
    for linear in model.linears().filter(|linear| linear.in_features == 64) {
        let dense = linear.weight().dense(Kind::Float).unwrap();
        let merged = adapter.fold(linear, dense, None).unwrap().weight;
        let adapters = Active::All(&adapter);
        let pass = Pass { positions: &positions, mask: Mask::Causal, adapters, noise: None };
        let error = distance(&x.matmul(&merged.tr()), &linear.forward(&x, &pass).unwrap());
        assert!(error <= 1e-5, "{}: {error}", linear.name);
    }
}

#[test]
fn a_new_adapter_is_the_base_model_bit_for_bit() {
    let model = tiny(Kind::Float);
    let adapter = lora(8, &[]).create(&model, 42).unwrap();
    let ids = &tensors("tiny/llama/ref.safetensors")["input_ids"];
    let adapted = hidden(&model, ids, Active::All(adapter.as_ref()));
    assert_eq!(adapted, hidden(&model, ids, Active::Base));
    assert_eq!(adapter.parameters().len(), 3 * 7 * 2);
}

#[test]
fn a_new_adapter_depends_only_on_its_seed_and_is_within_pefts_bounds() {
    let model = tiny(Kind::Float);
    let [one, same, other] =
        [7, 7, 8].map(|seed| lora(8, &["q_proj", "down_proj"]).create(&model, seed).unwrap());
    assert_eq!(one.parameters().len(), 3 * 2 * 2);
    for (name, tensor) in one.parameters() {
        assert_eq!(tensor, &same.parameters()[name]);
        if name.contains("lora_B") {
            assert_eq!(tensor, &tensor.zeros_like(), "{name}");
            continue;
        }
        assert_ne!(tensor, &other.parameters()[name]);
        // kaiming_uniform_ with a = √5 over the columns.
        let bound = 1.0 / (tensor.size()[1] as f64).sqrt();
        let largest = tensor.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > 0.95 * bound, "{name}: {largest} {bound}");
        let spread = tensor.std(false).double_value(&[]) / (bound / 3.0_f64.sqrt());
        assert!((spread - 1.0).abs() < 0.1, "{name}: {spread}");
    }
}

#[test]
fn only_the_adapter_gets_gradients() {
    let (model, adapter) = (tiny(Kind::Float), stored("lora"));
    accumulate(&model, &adapter, 0, false);
    assert!(adapter.parameters().values().all(|tensor| tensor.grad().abs().max().double_value(&[]) > 0.0));
    for linear in model.linears() {
        let weight = linear.weight().dense(Kind::Float).unwrap();
        assert!(!weight.requires_grad() && !weight.grad().defined(), "{}", linear.name);
    }
}

#[test]
fn recomputed_gradients_equal_stored_ones() {
    let model = tiny(Kind::Float);
    let (kept, again) = (stored("lora"), stored("lora"));
    let losses = [accumulate(&model, &kept, 0, false), accumulate(&model, &again, 0, true)];
    assert_eq!(losses[0].to_bits(), losses[1].to_bits());
    for (kept, again) in gradients(&kept).iter().zip(&gradients(&again)) {
        assert_eq!(kept, again);
    }
}

#[test]
fn recomputing_repeats_dropout_exactly_and_only_noise_changes_it() {
    let model = tiny(Kind::Float);
    let ids = tensors("training/llama/batches.safetensors")["input_ids"].get(0);
    let positions = columns(2, 24);
    let method = LoraMethod { dropout: 0.3, ..lora(4, &[]) };
    let run = |seed: u64, recompute: bool| {
        let adapter = method.create(&model, 1).unwrap();
        tch::no_grad(|| {
            for tensor in adapter.parameters().values() {
                let mut tensor = tensor.shallow_clone();
                let _ = tensor.g_add_scalar_(0.05);
            }
        });
        let pass = Pass {
            positions: &positions,
            mask: Mask::Causal,
            adapters: Active::All(adapter.as_ref()),
            noise: Some(Noise { seed }),
        };
        if recompute {
            let trace = model.hidden_recomputed(&ids, &pass).unwrap();
            trace.hidden.square().sum(Kind::Float).backward();
            model.backward(trace, &ids, &pass, &mut || Ok(())).unwrap();
        } else {
            model.hidden(&ids, &pass, None).unwrap().square().sum(Kind::Float).backward();
        }
        gradients(adapter.as_ref())
    };
    let plain = run(5, false);
    assert_eq!(plain, run(5, false));
    assert_eq!(plain, run(5, true));
    assert_ne!(plain, run(6, false));
}

#[test]
fn dropout_keeps_the_mean_and_zeroes_its_share() {
    let x = Tensor::ones([200, 500], (Kind::Float, Device::Cpu));
    let mask = csrc::dropout_mask(&x, 0.25, 9).unwrap();
    let zeros = mask.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
    assert!((mask.max().double_value(&[]) - 4.0 / 3.0).abs() < 1e-6);
    assert_eq!(mask, csrc::dropout_mask(&x, 0.25, 9).unwrap());
}

#[test]
fn a_saved_adapter_is_read_back_and_has_the_keys_that_peft_needs() {
    let (model, folder) = (tiny(Kind::Float), tempfile::tempdir().unwrap());
    let adapter = trained(&model, 3);
    let path = folder.path().join("adapter");
    methods::save(adapter.as_ref(), &path, Purpose::Result).unwrap();
    let back = lora(1, &[]).load(&path, &model).unwrap();
    assert_eq!(back.parameters(), adapter.parameters());
    assert_eq!(peft_config(back.as_ref()), peft_config(adapter.as_ref()));
    let config: Value =
        serde_json::from_slice(&std::fs::read(path.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(4)));
    let all = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(config["target_modules"], serde_json::json!(all));
    assert_eq!(config["lora_alpha"].to_string(), "16");
    let some = lora(2, &["layers.1.self_attn.q_proj", "v_proj"]).create(&model, 1).unwrap();
    let targets = serde_json::json!(["model.layers.1.self_attn.q_proj", "v_proj"]);
    assert_eq!(peft_config(some.as_ref())["target_modules"], targets);
}

#[test]
fn all_problems_of_an_adapter_are_reported_at_once() {
    let (model, folder) = (tiny(Kind::Float), tempfile::tempdir().unwrap());
    let mut weights = tensors("training/llama/lora/adapter-init/adapter_model.safetensors");
    let name = |module: &str, factor: &str| format!("base_model.model.model.layers.{module}.{factor}.weight");
    weights.remove(&name("0.mlp.up_proj", "lora_B"));
    weights.insert(name("0.self_attn.q_proj", "lora_A"), Tensor::zeros([8, 32], (Kind::Float, Device::Cpu)));
    weights.insert(
        name("1.self_attn.q_proj", "lora_A"),
        Tensor::full([8, 64], f64::NAN, (Kind::Float, Device::Cpu)),
    );
    weights.insert(name("9.self_attn.q_proj", "lora_A"), Tensor::zeros([8, 64], (Kind::Float, Device::Cpu)));
    let mut config = json("training/llama/lora/adapter-init/adapter_config.json");
    config["use_qalora"] = true.into();
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let pairs = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    luthier_engine::weights::safetensors::write(&folder.path().join("adapter_model.safetensors"), pairs)
        .unwrap();
    let Err(EngineError::Adapter { problems, .. }) = Lora::load(folder.path(), &model) else {
        panic!("it was accepted");
    };
    let found = problems.join("\n");
    for part in [
        "use_qalora",
        "0.mlp.up_proj.lora_A.weight has no lora_B",
        "[8, 32], but needs [8, 64]",
        "not finite",
        "layers.9.",
    ] {
        assert!(found.contains(part), "{part} in\n{found}");
    }
    assert_eq!(problems.len(), 5, "{found}");
}
