"""training/<family>/dpo: ten steps over four preference pairs, by TRL's formulas, checked against TRL's own trainer."""

import tempfile

import torch
import torch.nn.functional as functional
import trl
from datasets import Dataset
from peft import PeftModel

from .common import fresh, load_tiny, write_json, write_tensors

PROMPTS = ["The licence says", "Which licence applies to this work?", "You may", "Grant of patent"]
CHOSEN = [" that you may copy it.", " The Apache licence, version 2.0.", " reproduce and distribute copies of the work",
          " licence: each contributor grants you"]
REJECTED = [" nothing at all", " None.", " not do anything with it, ever, for any reason", " xyz"]
STEPS, LEARNING_RATE, DECAY, BETAS, BETA, SMOOTHING = 10, 1e-3, 0.01, (0.9, 0.999), 0.1, 0.1


def lay_out(tokenizer, answers):
    """Tokens of `prompt + answer` of all pairs, padded on the right, and masks of what counts and of what is answer."""
    ending = [tokenizer.eos_token_id]
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    rows = [prompts[place % len(prompts)] + tokenizer.encode(answer, add_special_tokens=False) + ending
            for place, answer in enumerate(answers)]
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, tokenizer.pad_token_id)
    mask, answered = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        answered[place, len(prompts[place % len(prompts)]) : len(row)] = 1
    return ids, mask, answered


def answer_log_probs(model, ids, mask, answered):
    """Log-probability of each row's answer, summed over its tokens."""
    log_probs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
    return (log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1) * answered[:, 1:]).sum(1)


def other_losses(margin, chosen, rejected, lengths):
    """What TRL's other kinds of loss are for the same pairs."""
    good, bad = functional.logsigmoid(BETA * margin), functional.logsigmoid(-BETA * margin)
    pairs = len(margin)
    by_token = chosen / lengths[:pairs] - rejected / lengths[pairs:]
    return {
        "sigmoid": float(-good.mean()),
        "sigmoid_label_smoothing_0.1(cDPO)": float((-(1 - SMOOTHING) * good - SMOOTHING * bad).mean()),
        "robust_label_smoothing_0.1": float(((-(1 - SMOOTHING) * good + SMOOTHING * bad) / (1 - 2 * SMOOTHING)).mean()),
        "hinge": float(torch.relu(1 - BETA * margin).mean()),
        "ipo_length_normalised": float(((by_token - 1 / (2 * BETA)) ** 2).mean()),
    }


def trl_loss(family, adapter, tokenizer, ids):
    """The first loss of TRL's own trainer over the same pairs and adapter, with its reference and with the base model."""
    pairs = Dataset.from_list([{"prompt": prompt, "chosen": chosen, "rejected": rejected}
                               for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED)])
    model = PeftModel.from_pretrained(load_tiny(family).train(), adapter, is_trainable=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = trl.DPOConfig(output_dir=scratch, per_device_train_batch_size=len(PROMPTS), max_steps=1, beta=BETA,
                                 learning_rate=LEARNING_RATE, logging_steps=1, report_to="none", use_cpu=True, bf16=False,
                                 gradient_checkpointing=False, save_strategy="no", max_length=128, disable_tqdm=True)
        trainer = trl.DPOTrainer(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer)
        batch = next(iter(trainer.get_train_dataloader()))
        same = sorted(map(tuple, batch["input_ids"].tolist())) == sorted(map(tuple, ids.tolist()))
        notes = {"trl_batch_keys": {key: list(value.shape) for key, value in batch.items()},
                 "trl_loss_with_adapter_as_reference": float(trainer.compute_loss(trainer.model, batch))}
        # TRL keeps a copy of an adapter that a run starts from as the reference; without it the reference is the base.
        if "ref" in trainer.model.peft_config:
            trainer.model.delete_adapter("ref")
            notes["trl_loss_base_as_reference"] = float(trainer.compute_loss(trainer.model, batch))
    return notes | {"trl": trl.__version__, "trl_ids_equal": same}


def make_dpo(family, folder, tokenizer, model, save):
    """Trains `model`, whose adapter was just made."""
    fresh(folder)
    save(model, folder / "adapter-init")
    batch = lay_out(tokenizer, CHOSEN + REJECTED)
    pairs = len(PROMPTS)
    with torch.no_grad(), model.disable_adapter():
        reference = answer_log_probs(model, *batch)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, eps=1e-8, weight_decay=DECAY)
    log, first = [], None
    for step in range(STEPS):
        optimizer.zero_grad()
        policy = answer_log_probs(model, *batch)
        chosen, rejected = policy[:pairs] - reference[:pairs], policy[pairs:] - reference[pairs:]
        margin = chosen - rejected
        loss = -functional.logsigmoid(BETA * margin).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9)
        if first is None:
            first = {
                "policy_logps_chosen": policy[:pairs].tolist(), "policy_logps_rejected": policy[pairs:].tolist(),
                "ref_logps_chosen": reference[:pairs].tolist(), "ref_logps_rejected": reference[pairs:].tolist(),
                "losses": other_losses(margin, chosen, rejected, batch[2][:, 1:].sum(1).float()),
                "rewards_chosen": (BETA * chosen).tolist(), "rewards_rejected": (BETA * rejected).tolist()}
        log.append({"step": step + 1, "loss": loss.item(), "grad_norm": float(norm), "lr": LEARNING_RATE,
                    "reward_margin": float((BETA * margin).mean()), "accuracy": float((margin > 0).float().mean())})
        optimizer.step()
    save(model, folder / "adapter-final")
    names = ("input_ids", "attention_mask", "completion_mask")
    write_tensors(folder / "batch.safetensors", dict(zip(names, batch)))
    notes = {"beta": BETA, "layout": "rows 0..3 chosen, 4..7 rejected", "prompts": PROMPTS, "chosen": CHOSEN,
             "rejected": REJECTED, "first_step": first, "log": log, "lr": "1e-3 constant, AdamW wd 0.01, no clipping"}
    notes |= trl_loss(family, folder / "adapter-init", tokenizer, batch[0])
    write_json(folder / "dpo.json", notes)
    print(f"{family} dpo: loss {log[0]['loss']:.6f}, TRL's {notes.get('trl_loss_base_as_reference')}", flush=True)
