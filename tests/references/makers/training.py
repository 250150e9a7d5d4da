"""training/: runs of 20 steps in f32 on a CPU, with plain PyTorch and PEFT, over a model of tiny/.

Every folder has trajectory.json: settings, then loss, gradient norm and learning rate of each step. A run of PEFT has its
adapter before and after; one of all weights has some of them. The loss is the sum over all trained tokens of a step divided
by their number, and weights decay alike, unless the folder's name says otherwise.
"""

import copy

import peft
import torch
import torch.nn.functional as functional
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from . import labels, preferences
from .common import IGNORED, REFERENCES, fresh, load_tiny, write_json, write_tensors

STEPS, ACCUMULATION, WARMUP, CLIP, DECAY, BETAS, EPSILON = 20, 2, 4, 1.0, 0.01, (0.9, 0.999), 1e-8
ROWS, WIDTH = 2, 24
SEED = 7
SETTINGS = {"steps": STEPS, "accumulation": ACCUMULATION, "warmup": WARMUP, "clip": CLIP, "weight_decay": DECAY,
            "betas": BETAS, "eps": EPSILON}
VERSIONS = {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
TASK = {"task_type": "CAUSAL_LM"}
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Every linear layer of a block, by family. IA3 scales what attention keys and values give, and what the last layer of the
# feed-forward part takes.
LINEAR = {
    "llama": SPLIT, "mistral": SPLIT, "qwen2": SPLIT, "qwen3": SPLIT, "gemma2": SPLIT, "gemma3": SPLIT,
    "falcon-40b": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "falcon-7b": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj", "c_fc"],
}


def linear_layers(family):
    if family not in LINEAR:
        raise SystemExit(f"references: makers/training.py does not say which linear layers a block of {family} has")
    return LINEAR[family]


def make_batches(tokenizer, folder):
    """Micro-batches of two rows, padded on the right; labels leave out padding and a prompt of 0 to 5 tokens."""
    source = (REFERENCES.parents[1] / "LICENSE-APACHE").read_text()
    texts = [" ".join(part.split()) for part in source.split("\n\n") if len(part.split()) > 20]
    generator = torch.Generator().manual_seed(SEED)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    shape = (STEPS * ACCUMULATION, ROWS, WIDTH)
    ids, labels = torch.full(shape, tokenizer.pad_token_id), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for batch in range(shape[0]):
        for row in range(ROWS):
            tokens = tokenizer.encode(texts[(ROWS * batch + row) % len(texts)])
            length, prompt = draw(10, WIDTH + 1), draw(0, 6)
            start = draw(0, max(1, len(tokens) - length))
            tokens = torch.tensor(tokens[start : start + length])
            ids[batch, row, : len(tokens)], mask[batch, row, : len(tokens)] = tokens, 1
            labels[batch, row, prompt : len(tokens)] = tokens[prompt:]
    write_tensors(folder / "batches.safetensors", {"input_ids": ids, "attention_mask": mask, "labels": labels})
    return ids, mask, labels


def loss_sum(logits, labels, virtual):
    """The sum over target tokens, and their number; `virtual` positions at the start have no labels."""
    logits, targets = logits[:, virtual:][:, :-1].float(), labels[:, 1:]
    flat = logits.reshape(-1, logits.shape[-1])
    total = functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return total, int((targets != IGNORED).sum())


def train(model, batches, learning_rate, mean_of_means=False, groups=None, virtual=0):
    ids, mask, labels = batches
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups or parameters, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    log = []
    for step in range(STEPS):
        optimizer.zero_grad()
        micro = range(step * ACCUMULATION, (step + 1) * ACCUMULATION)
        targets = sum(int((labels[batch][:, 1:] != IGNORED).sum()) for batch in micro)
        total, means = 0.0, []
        for batch in micro:
            logits = model(input_ids=ids[batch], attention_mask=mask[batch]).logits
            summed, count = loss_sum(logits, labels[batch], virtual)
            loss = summed / count / ACCUMULATION if mean_of_means else summed / targets
            loss.backward()
            total += loss.item()
            means.append(summed.item() / count)
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        log.append({"step": step + 1, "loss": total, "micro_mean_losses": means, "target_tokens": targets,
                    "grad_norm": float(norm), "lr": optimizer.param_groups[0]["lr"]})
        optimizer.step()
        schedule.step()
    return log


def first_logits(model, batches, virtual=0):
    ids, mask, _ = batches
    with torch.no_grad():
        return model(input_ids=ids[0], attention_mask=mask[0]).logits[:, virtual:].float()


def fill(model):
    """Small numbers where PEFT starts with nothing, so that a wrong scale or a transposed factor shows at once."""
    generator = torch.Generator().manual_seed(SEED + 2)
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if parameter.requires_grad and ("lora_B" in name or "ia3_l" in name):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.05 * noise if "lora_B" in name else 1 + 0.1 * noise)


def adapt(family, settings, base=None, filled=True):
    """A model with a new adapter."""
    torch.manual_seed(SEED + 1)
    model = get_peft_model(base if base is not None else load_tiny(family).train(), settings)
    for config in model.peft_config.values():
        config.base_model_name_or_path = family
    if filled:
        fill(model)
    return model.train()


def save(model, folder):
    model.save_pretrained(folder)
    for card in folder.glob("*.md"):
        card.unlink()


def lora(family, **options):
    return LoraConfig(**{**dict(r=8, lora_alpha=16, target_modules=linear_layers(family), lora_dropout=0.0, bias="none"),
                         **TASK, **options})


def run_peft(family, folder, settings, learning_rate, batches, filled=True, virtual=0, base=None, merge=False,
             mean_of_means=False):
    """A run of an adapter. One that counts otherwise leaves its trajectory alone."""
    fresh(folder)
    model = adapt(family, settings, base, filled)
    if not mean_of_means:
        save(model, folder / "adapter-init")
    logits = {"init_logits": first_logits(model, batches, virtual)}
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log = train(model, batches, learning_rate, mean_of_means, virtual=virtual)
    logits["final_logits"] = first_logits(model, batches, virtual)
    notes = {"family": family, "name": folder.name, "lr": learning_rate,
             "normalisation": "mean" if mean_of_means else "tokens", **SETTINGS, "trainable_params": trainable, "log": log,
             **VERSIONS}
    if merge:
        logits["merged_logits"] = first_logits(copy.deepcopy(model).merge_and_unload(), batches)
        notes["merged_vs_adapter_maxdiff"] = float((logits["merged_logits"] - logits["final_logits"]).abs().max())
    if not mean_of_means:
        save(model, folder / "adapter-final")
        if base is None:
            again = PeftModel.from_pretrained(load_tiny(family), folder / "adapter-final").eval()
            difference = first_logits(again, batches, virtual) - logits["final_logits"]
            notes["reload_maxdiff"] = float(difference.abs().max())
        write_tensors(folder / "logits.safetensors", logits)
    write_json(folder / "trajectory.json", notes)
    print(f"{family} {folder.name}: loss {log[0]['loss']:.4f} to {log[-1]['loss']:.4f}", flush=True)
    return notes


def run_full(family, folder, batches, mean_of_means=False, by_group=False):
    """A run of all weights; `by_group` as transformers' Trainer does it, with biases and norms that do not decay."""
    fresh(folder)
    model = load_tiny(family).train()
    named, groups, decaying = dict(model.named_parameters()), None, set()
    if by_group:
        kept = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
        decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], kept))
        groups = [{"params": [named[name] for name in named if (name in decaying) == decays], "weight_decay": weight}
                  for decays, weight in [(True, DECAY), (False, 0.0)]]
    log = train(model, batches, 1e-3, mean_of_means, groups)
    sizes = {name: [float(value.double().norm()), float(value.double().sum())] for name, value in named.items()}
    write_json(folder / "trajectory.json", {
        "family": family, "name": folder.name, "lr": 1e-3, "normalisation": "mean" if mean_of_means else "tokens",
        "no_decay": sorted(set(named) - decaying) if by_group else [], **SETTINGS, "final_param_norm_and_sum": sizes,
        "log": log, "transformers": VERSIONS["transformers"], "torch": VERSIONS["torch"]})
    if not mean_of_means and not by_group:
        some = {name: value for name, value in named.items() if ".0." in name or "norm" in name or "ln_f" in name}
        write_tensors(folder / "final.safetensors", {"final_logits": first_logits(model, batches)}
                      | {f"final.{name}": value for name, value in some.items()})
    print(f"{family} {folder.name}: loss {log[0]['loss']:.4f} to {log[-1]['loss']:.4f}", flush=True)


def run_nf4(family, folder, batches):
    """LoRA over weights that bitsandbytes quantised, and how far it is from plain layers with the same numbers."""
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.float32)
    base = load_tiny(family, quantization_config=nf4, device_map={"": "cpu"})
    dense = {name: dequantize_4bit(module.weight.data, module.weight.quant_state).float()
             for name, module in base.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    notes = run_peft(family, folder, lora(family), 5e-3, batches, base=base)
    first = {f"{name}.dequant": value for name, value in dense.items() if ".0." in name}
    write_tensors(folder / "dequant_layer0.safetensors", first)
    plain = load_tiny(family).train()
    with torch.no_grad():
        for name, module in plain.named_modules():
            if name in dense:
                module.weight.copy_(dense[name])
    log = train(adapt(family, lora(family), plain), batches, 5e-3)
    notes["plain_linear_on_dequantised_weights_max_loss_diff"] = max(
        abs(ours["loss"] - theirs["loss"]) for ours, theirs in zip(notes["log"], log))
    write_json(folder / "trajectory.json", notes)


def attention_and_last(family):
    """The layers that IA3 scales, and which of them it scales on the way in."""
    layers = linear_layers(family)
    fused = [name for name in layers if name in ("query_key_value", "qkv_proj", "c_attn")]
    last = next(name for name in ("down_proj", "dense_4h_to_h", "fc2", "mlp.c_proj") if name in layers)
    return [*(fused or ["k_proj", "v_proj"]), last], [last]


def make(family, out):
    torch.use_deterministic_algorithms(True, warn_only=True)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(REFERENCES / "tiny" / family)
    batches = make_batches(tokenizer, out)
    peft_run = lambda name, *arguments, **options: run_peft(family, out / name, *arguments[:2], batches, **options)
    run_full(family, out / "full", batches)
    run_full(family, out / "full-micromean", batches, mean_of_means=True)
    run_full(family, out / "full-hf-decay-groups", batches, by_group=True)
    peft_run("lora", lora(family), 5e-3, merge=True)
    peft_run("lora-default-init", lora(family), 5e-3, filled=False)
    peft_run("rslora", lora(family, use_rslora=True), 5e-3, merge=True)
    peft_run("dora", lora(family, use_dora=True), 5e-3, merge=True)
    peft_run("prefix", PrefixTuningConfig(num_virtual_tokens=8, **TASK), 2e-2)
    peft_run("prompt", PromptTuningConfig(num_virtual_tokens=8, **TASK), 2e-2, virtual=8)
    targets, feedforward = attention_and_last(family)
    peft_run("ia3", IA3Config(target_modules=targets, feedforward_modules=feedforward, **TASK), 1e-2, merge=True)
    if family != "llama":
        return
    # What does not depend on the family is run with one.
    two = ["q_proj", "v_proj"]
    peft_run("lora-micromean", lora(family), 5e-3, mean_of_means=True)
    peft_run("lora-qv-r4", lora(family, r=4, lora_alpha=32, target_modules=two), 5e-3, merge=True)
    peft_run("lora-modules-to-save", lora(family, target_modules=two, modules_to_save=["lm_head"]), 5e-3)
    peft_run("prefix-projection", PrefixTuningConfig(num_virtual_tokens=8, prefix_projection=True, encoder_hidden_size=32,
                                                     **TASK), 1e-2)
    run_nf4(family, out / "qlora-nf4", batches)
    preferences.make_dpo(family, out / "dpo", tokenizer, adapt(family, lora(family)), save)
    labels.make_kto(family, out / "kto", tokenizer, adapt(family, lora(family)), save)
