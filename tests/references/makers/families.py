"""tiny/: a model of each family with random weights, and what transformers computes with it."""

import copy
import dataclasses
import math
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .common import IGNORED, REFERENCES, fresh, write_json, write_tensors

SIZES = dict(vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128)
GROUPED = dict(SIZES, num_key_value_heads=2)
BYTES = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
PIECES = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
FALCON = dict(SIZES, bos_token_id=0, eos_token_id=1, alibi=False, bias=False, multi_query=True, parallel_attn=True,
              layer_norm_epsilon=1e-5, hidden_dropout=0.0, attention_dropout=0.0, rope_theta=10000.0)
UNTIED_SILU = dict(tie_word_embeddings=False, hidden_act="silu")
PHI_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0)


@dataclasses.dataclass
class Family:
    model_type: str
    seed: int
    # A folder of tiny/_tokenizers.
    tokenizer: str
    # As config.json on the hub has them.
    settings: dict


FAMILIES = {
    "llama": Family("llama", 1, "bytelevel-bos", dict(
        GROUPED, **BYTES, **UNTIED_SILU, intermediate_size=128, rms_norm_eps=1e-5, rope_theta=10000.0, attention_bias=False,
        mlp_bias=False)),
    "mistral": Family("mistral", 2, "metaspace", dict(
        GROUPED, **PIECES, **UNTIED_SILU, intermediate_size=128, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=8)),
    "qwen2": Family("qwen2", 3, "bytelevel", dict(
        GROUPED, **BYTES, **UNTIED_SILU, intermediate_size=128, rms_norm_eps=1e-6, rope_theta=1000000.0,
        use_sliding_window=False, sliding_window=None, max_window_layers=3)),
    "qwen3": Family("qwen3", 4, "bytelevel", dict(
        GROUPED, **BYTES, intermediate_size=128, head_dim=24, rms_norm_eps=1e-6, rope_theta=1000000.0,
        use_sliding_window=False, sliding_window=None, tie_word_embeddings=True, hidden_act="silu", attention_bias=False)),
    "phi": Family("phi", 5, "bytelevel", dict(
        SIZES, **BYTES, **PHI_DROPOUT, num_key_value_heads=4, intermediate_size=256, layer_norm_eps=1e-5, rope_theta=10000.0,
        partial_rotary_factor=0.5, qk_layernorm=False, tie_word_embeddings=False, hidden_act="gelu_new")),
    "phi3": Family("phi3", 6, "metaspace", dict(
        GROUPED, **PIECES, **UNTIED_SILU, **PHI_DROPOUT, intermediate_size=128, rms_norm_eps=1e-5, rope_theta=10000.0,
        rope_scaling=None, original_max_position_embeddings=128, sliding_window=8)),
    "falcon-7b": Family("falcon", 7, "bytelevel", dict(FALCON, new_decoder_architecture=False)),
    "falcon-40b": Family("falcon", 8, "bytelevel", dict(FALCON, num_kv_heads=2, new_decoder_architecture=True)),
    "gemma2": Family("gemma2", 9, "metaspace", dict(
        GROUPED, **PIECES, intermediate_size=128, head_dim=16, rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=8,
        query_pre_attn_scalar=20, attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, attention_bias=False)),
    "gemma3": Family("gemma3_text", 10, "metaspace", dict(
        GROUPED, **PIECES, intermediate_size=128, head_dim=24, rms_norm_eps=1e-6, rope_theta=1000000.0,
        rope_local_base_freq=10000.0, sliding_window=8, sliding_window_pattern=3, query_pre_attn_scalar=20,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, attention_bias=False)),
    "gpt_neox": Family("gpt_neox", 11, "bytelevel", dict(
        SIZES, **BYTES, intermediate_size=256, rotary_pct=0.25, rotary_emb_base=10000, use_parallel_residual=True,
        layer_norm_eps=1e-5, hidden_act="gelu", tie_word_embeddings=False, attention_bias=True)),
    "gpt2": Family("gpt2", 12, "bytelevel", dict(
        vocab_size=512, n_embd=64, n_layer=3, n_head=4, n_positions=128, n_inner=None, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1)),
}

TEXTS = [
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation",
    "The licence applies to all of the code below, without limitation",
    "Copyright notice: 2001",
]
LENGTHS = [27, 19, 11]
# Beginnings of TEXTS, row and length, that a continuation may start from.
PROMPTS = [(0, 7), (1, 12), (2, 5), (0, 11), (1, 6), (2, 9), (0, 15), (1, 9)]
NEW_TOKENS = 24


def randomise(model, generator):
    """Gives every parameter a value that matters: no bias is 0, no norm is 1."""
    gemma = model.config.model_type.startswith("gemma")
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            centre = 0.0 if gemma or name.endswith("bias") else 1.0
            value = centre + 0.2 * noise
        elif "embed" in name or "wte" in name or "wpe" in name:
            value = noise * (0.05 if gemma else 0.2 if model.config.tie_word_embeddings else 0.35)
        else:
            transposed = model.config.model_type == "gpt2" and "lm_head" not in name
            value = noise * (1.2 / math.sqrt(parameter.shape[0 if transposed else 1]))
        with torch.no_grad():
            parameter.copy_(value)


def padded(rows, padding):
    """Rows side by side, with a mask, and labels from the fifth token on with one left out."""
    shape = (len(rows), max(map(len, rows)))
    ids, mask, labels = torch.full(shape, padding), torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for place, row in enumerate(rows):
        row = torch.tensor(row)
        ids[place, : len(row)], mask[place, : len(row)], labels[place, 4 : len(row)] = row, 1, row[4:]
    labels[0, 9] = IGNORED
    return ids, mask, labels


def greedy(model, prompt):
    """The most likely tokens after a prompt, each from the whole text, and how far each was ahead of the second best."""
    ids, margins = list(prompt), []
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        best = logits.topk(2).values
        margins.append(float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
    return ids[len(prompt):], margins


def continuations(model, rows, padding):
    """Two prompts whose continuations are varied and never nearly a tie, so that rounding cannot change them."""
    found = []
    for row, length in PROMPTS:
        prompt = rows[row][:length]
        tokens, margins = greedy(model, prompt)
        found.append((min(margins) > 0.002, min(len(set(tokens)), 8), min(margins), prompt, tokens))
    found.sort(key=lambda candidate: candidate[:3], reverse=True)
    for _, _, margin, prompt, tokens in found[:2]:
        # transformers takes fields that are not set from the model's own settings.
        model.generation_config.eos_token_id = None
        settings = copy.deepcopy(model.generation_config)
        settings.pad_token_id, settings.max_new_tokens, settings.do_sample = padding, NEW_TOKENS, False
        ids = torch.tensor([prompt])
        cached = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, len(prompt):].tolist()
        yield prompt, tokens, cached, margin


def largest_difference(model, batch, logits):
    ids, mask = batch
    with torch.no_grad():
        found = model.eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return float((found - logits)[mask.bool()].abs().max())


def reloaded(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def checks(model, folder, batch, labels, rows, logits):
    """How far transformers is from itself: loaded again, in another arrangement, in another number format."""
    ids, mask = batch
    notes = {"reload_maxdiff": largest_difference(reloaded(folder, attn_implementation="eager"), batch, logits)}
    try:
        notes["sdpa_maxdiff"] = largest_difference(reloaded(folder, attn_implementation="sdpa"), batch, logits)
    except ValueError as error:  # some families have no such attention
        notes["sdpa_maxdiff"] = repr(error)[:100]
    with tempfile.TemporaryDirectory() as scratch:
        older = Path(scratch) / "older"
        shutil.copytree(folder, older)
        (older / "config_v4.json").rename(older / "config.json")
        notes["v4_config_maxdiff"] = largest_difference(reloaded(older, attn_implementation="eager"), batch, logits)
    with torch.no_grad():
        notes["row_alone_maxdiff"] = [
            float((model(input_ids=torch.tensor([row]), use_cache=False).logits[0] - logits[place, : len(row)]).abs().max())
            for place, row in enumerate(rows)
        ]
        notes["logit_abs_max"] = float(logits.abs().max())
        half = copy.deepcopy(model).to(torch.bfloat16)
        notes["bf16_maxdiff"] = largest_difference(half, batch, logits)
        notes["bf16_loss"] = float(half(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss)
    return notes


def write_model(family, folder):
    """The model in `folder`, with both spellings of its configuration and its tokenizer."""
    config = AutoConfig.for_model(family.model_type, **copy.deepcopy(family.settings))
    torch.manual_seed(family.seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(model, torch.Generator().manual_seed(family.seed))
    model.tie_weights()
    model.save_pretrained(fresh(folder))
    hub = dict(architectures=[type(model).__name__], model_type=family.model_type, **family.settings, torch_dtype="float32")
    write_json(folder / "config_v4.json", hub)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REFERENCES / "tiny" / "_tokenizers" / family.tokenizer / name, folder)
    return model


def make(name, folder):
    if name not in FAMILIES:
        raise SystemExit(f"references: {name} is not in makers/families.py, which has {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    model = write_model(family, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer.encode(text)[:length] for text, length in zip(TEXTS, LENGTHS)]
    ids, mask, labels = padded(rows, tokenizer.pad_token_id)
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True, use_cache=False)
    out.loss.backward()
    norms = {parameter: float(value.grad.norm()) for parameter, value in model.named_parameters()}
    logits = out.logits.detach().float()
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": logits, "loss": out.loss.reshape(1)}
    tensors |= {f"hidden_{layer}": state for layer, state in enumerate(out.hidden_states)}
    tensors["last_hidden_state"] = out.hidden_states[-1]
    notes = {"family": name, "model_type": family.model_type, "seed": family.seed, "transformers": transformers.__version__,
             "torch": torch.__version__, "loss": out.loss.item(), "lengths": [len(row) for row in rows], "texts": TEXTS,
             "grad_norm_total": math.sqrt(sum(norm * norm for norm in norms.values())), "grad_norms": norms,
             "tied": bool(model.config.tie_word_embeddings),
             "n_params": sum(parameter.numel() for parameter in model.parameters()), "generation": []}
    for place, (prompt, tokens, cached, margin) in enumerate(continuations(model, rows, tokenizer.pad_token_id)):
        tensors |= {f"gen{place}.prompt": torch.tensor(prompt), f"gen{place}.tokens": torch.tensor(tokens)}
        notes["generation"].append({
            "prompt": prompt, "tokens_nocache": tokens, "tokens_generate_kvcache": cached, "agree": cached == tokens,
            "min_top2_margin": margin, "distinct": len(set(tokens)), "text": tokenizer.decode(tokens)})
    write_tensors(folder / "ref.safetensors", tensors)
    notes |= checks(model, folder, (ids, mask), labels, rows, logits)
    write_json(folder / "ref.json", notes)
    print(f"{name}: loss {notes['loss']:.4f}, loaded again {notes['reload_maxdiff']:.1e}, "
          f"older configuration {notes['v4_config_maxdiff']:.1e}")
