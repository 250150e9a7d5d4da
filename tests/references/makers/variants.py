"""variants/: small models with options that none of tiny/ has, and what transformers computes with them.

Each folder holds config.json, model.safetensors and ref.safetensors (the tensors that `luthier model verify` reads), and no
tokenizer.
"""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .common import write_tensors

COMMON = dict(vocab_size=512, bos_token_id=0, eos_token_id=1, pad_token_id=None)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
GATED = dict(SIZES, intermediate_size=48, num_key_value_heads=2)


def rope(kind, **options):
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


LONG = dict(
    short_factor=[1.0, 1.1],
    long_factor=[1.5, 3.0],
    partial_rotary_factor=0.5,
)

VARIANTS = {
    "llama-bias-tied": ("llama", dict(GATED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-linear": ("llama", dict(GATED, rope_parameters=rope("linear", factor=2.5))),
    "llama-dynamic": ("llama", dict(GATED, max_position_embeddings=8, rope_parameters=rope("dynamic", factor=2.0))),
    "llama-llama3": (
        "llama",
        dict(
            GATED,
            rope_parameters=rope(
                "llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "llama-yarn": (
        "llama",
        dict(GATED, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    ),
    "llama-yarn-mscale": (
        "llama",
        dict(
            GATED,
            rope_parameters=rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=8.0,
                beta_slow=2.0,
                mscale=0.7,
                mscale_all_dim=0.9,
                truncate=False,
            ),
        ),
    ),
    "mistral-all": ("mistral", dict(GATED, sliding_window=None, head_dim=12)),
    "qwen2-mixed": (
        "qwen2",
        dict(GATED, num_hidden_layers=3, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    ),
    "phi-qk-norm": ("phi", dict(SIZES, intermediate_size=64, num_key_value_heads=2, qk_layernorm=True)),
    "phi3-long-short": (
        "phi3",
        dict(
            GATED,
            max_position_embeddings=64,
            original_max_position_embeddings=32,
            sliding_window=None,
            rope_parameters=rope("longrope", **LONG),
        ),
    ),
    "phi3-long-beyond": (
        "phi3",
        dict(
            GATED,
            max_position_embeddings=64,
            original_max_position_embeddings=10,
            sliding_window=None,
            rope_parameters=rope("longrope", **LONG),
        ),
    ),
    "falcon-rw": (
        "falcon",
        dict(
            SIZES,
            num_attention_heads=6,
            hidden_size=48,
            alibi=True,
            bias=True,
            multi_query=False,
            parallel_attn=False,
            new_decoder_architecture=False,
        ),
    ),
    "falcon-11b": (
        "falcon",
        dict(SIZES, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, bias=False),
    ),
    "gpt_neox-serial": ("gpt_neox", dict(SIZES, intermediate_size=64, use_parallel_residual=False)),
    "gpt2-by-layer": (
        "gpt2",
        dict(n_embd=32, n_layer=3, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True),
    ),
}


def grow(name, model, prompt):
    """A prompt with the 16 most likely tokens after it. The model must not have computed before: some rotary embeddings keep the
    frequencies of the longest text so far."""
    # Where frequencies depend on the length, keys in a cache may be rotated with others: the whole text for each token.
    cached = not name.endswith(("-dynamic", "-beyond"))
    return model.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=cached)


def make(name, kind, options, folder):
    torch.manual_seed(sum(name.encode()))
    config = AutoConfig.for_model(kind, **{**COMMON, **options})
    # The usual path; the eager one of Falcon adds its position bias twice.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    fresh = copy.deepcopy(model)
    ids = torch.randint(2, 512, (2, 20))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    labels = torch.where((mask == 1) & (torch.rand(ids.shape) < 0.7), ids, -100)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    last = out.hidden_states[-1]
    tensors = dict(
        input_ids=ids, attention_mask=mask, labels=labels, logits=out.logits, last_hidden_state=last, loss=out.loss.view(1)
    )
    grown = grow(name, fresh, ids[:1, :9])
    tensors |= {"gen0.prompt": grown[0, :9], "gen0.tokens": grown[0, 9:]}
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tensors(folder / "ref.safetensors", tensors)
    print(name, float(out.loss))


def make_all(folder):
    for name, (kind, options) in VARIANTS.items():
        make(name, kind, options, folder / name)
