"""tokenizer/: awkward texts through every tokenizer of tiny/_tokenizers."""

import json
import pathlib

import tokenizers
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from .common import REFERENCES

TEXTS = json.loads((pathlib.Path(__file__).parent / "texts.json").read_text())


def case(tokenizer, raw, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == raw.encode(text, add_special_tokens=False).ids, text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    decoded = raw.decode(ids, skip_special_tokens=False)
    return {
        "text": text, "ids": ids, "ids_with_special": tokenizer.encode(text), "tokens": tokenizer.convert_ids_to_tokens(ids),
        "offsets_chars": [list(offset) for offset in offsets], "decoded": decoded,
        "decoded_skip_special": raw.decode(ids, skip_special_tokens=True), "roundtrip": decoded == text,
    }


def streamed(raw, text):
    """The text after each token, as a streaming decoder must give it."""
    ids = raw.encode(text, add_special_tokens=False).ids
    prefixes = [raw.decode(ids[: count + 1], skip_special_tokens=False) for count in range(len(ids))]
    return {"text": text, "ids": ids, "prefix_decodes": prefixes}


def make(out):
    out.mkdir(parents=True, exist_ok=True)
    for folder in sorted((REFERENCES / "tiny" / "_tokenizers").iterdir()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        made = {
            "tokenizer": f"tiny/_tokenizers/{folder.name}", "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__, "vocab_size": raw.get_vocab_size(),
            "cases": [case(tokenizer, raw, text) for text in TEXTS["texts"]],
            "streaming": [streamed(raw, text) for text in TEXTS["streamed"]],
        }
        path = out / f"tiny-{folder.name}.json"
        path.write_text(json.dumps(made, ensure_ascii=True, indent=0))
        print(f"{path.name}: {sum(case['roundtrip'] for case in made['cases'])} of {len(made['cases'])} decode to themselves")
