"""training/<family>/kto: twenty steps over labelled answers, by TRL's own KTOTrainer."""

import tempfile

import torch
import trl
from datasets import Dataset

from .common import fresh, write_json, write_tensors

PROMPTS = ["The licence says", "Which licence applies to this work?", "You may", "Grant of patent"]
ANSWERS = [" that you may copy it.", " None.", " reproduce and distribute copies of the work", " xyz",
           " nothing at all", " The Apache licence, version 2.0.", " not do anything with it, ever, for any reason",
           " licence: each contributor grants you", " what you may do", " The one in the file LICENSE", " copy it",
           " and of copyright"]
# The last batch holds good answers only.
LABELS = [True, False, True, False, False, True, False, True, True, True, True, True]
BATCH, STEPS, LEARNING_RATE = 4, 20, 1e-3
BETA, DESIRABLE, UNDESIRABLE = 0.1, 0.8, 1.25


class Recorder(trl.KTOTrainer):
    """Keeps what each step computed in all its digits, and the batches of the first pass over the rows."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.losses, self.batches = [], []

    def compute_loss(self, model, inputs, *arguments, **options):
        if len(self.batches) < len(LABELS) // BATCH:
            self.batches.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
            self.batches[-1]["label"] = torch.as_tensor(inputs["label"]).long()
        loss = super().compute_loss(model, inputs, *arguments, **options)
        self.losses.append(float(loss))
        return loss


def make_kto(family, folder, tokenizer, model, save):
    """Trains `model`, whose adapter was just made."""
    fresh(folder)
    save(model, folder / "adapter-init")
    rows = [{"prompt": PROMPTS[place % len(PROMPTS)], "completion": answer, "label": label}
            for place, (answer, label) in enumerate(zip(ANSWERS, LABELS))]
    with tempfile.TemporaryDirectory() as scratch:
        settings = trl.KTOConfig(
            output_dir=scratch, per_device_train_batch_size=BATCH, max_steps=STEPS, beta=BETA, desirable_weight=DESIRABLE,
            undesirable_weight=UNDESIRABLE, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.01,
            max_grad_norm=1e9, logging_steps=1, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
            save_strategy="no", max_length=128, disable_tqdm=True, train_sampling_strategy="sequential", seed=0)
        trainer = Recorder(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        # TRL keeps a copy of an adapter that a run starts from as the reference; without it the reference is the base.
        if "ref" in trainer.model.peft_config:
            trainer.model.delete_adapter("ref")
        trainer.train()
    save(trainer.model, folder / "adapter-final")
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    names = {"rewards/chosen": "reward_desirable", "rewards/rejected": "reward_undesirable", "kl": "kl"}
    log = [{"step": place + 1, "loss": loss, "grad_norm": float(entry["grad_norm"]), "lr": LEARNING_RATE}
           | {ours: float(entry[theirs]) for theirs, ours in names.items() if theirs in entry}
           for place, (loss, entry) in enumerate(zip(trainer.losses, logs, strict=True))]
    tensors = {f"{place}.{name}": value for place, batch in enumerate(trainer.batches) for name, value in batch.items()}
    write_tensors(folder / "batches.safetensors", tensors)
    write_json(folder / "kto.json", {
        "beta": BETA, "desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE, "rows": rows, "log": log,
        "lr": "1e-3 constant, AdamW wd 0.01, no clipping", "trl": trl.__version__})
    print(f"{family} kto: loss {log[0]['loss']:.6f} to {log[-1]['loss']:.6f}", flush=True)
