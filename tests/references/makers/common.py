"""What all makers of references share."""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

REFERENCES = pathlib.Path(__file__).resolve().parents[1]
# Labels with this value are not trained on.
IGNORED = -100
torch.set_num_threads(2)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1))


def write_tensors(path, tensors):
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def load_tiny(family, **options):
    """A model of tiny/ in f32, with attention as it is written in formulas."""
    folder = REFERENCES / "tiny" / family
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **options)
