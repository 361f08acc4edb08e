"""Compare a finished run's adapter with its base model on the run's held-out pairs, pair by pair.

    python scripts/heldout.py runs/quickstart --samples 3 --out heldout.json

Held out are the test pairs where the run's config.yaml names some, else all validation pairs. The adapter is
loaded with plain PEFT. Intervals resample prompts, not pairs: pairs of one prompt are not independent.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import warnings
from pathlib import Path
from typing import Any, NamedTuple

# What libraries tell every CPU run while they are imported and used; nothing in it is wrong here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")

import torch  # noqa: E402
import yaml  # noqa: E402
from peft import PeftModel  # noqa: E402

from orpo_lightning import PreferenceDataModule  # noqa: E402
from orpo_lightning.batching import pad_pairs  # noqa: E402
from orpo_lightning.modeling import load_base  # noqa: E402
from orpo_lightning.scoring import score, take_apart  # noqa: E402

RESAMPLES = 4000


class Scores(NamedTuple):
    """Mean token log-probabilities of each pair under one model."""

    chosen: list[float]
    rejected: list[float]

    @property
    def wins(self) -> list[float]:
        """1 where the chosen answer is the likelier one."""
        return [float(c > r) for c, r in zip(self.chosen, self.rejected, strict=True)]


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def interval(values: list[float], prompts: list[Any], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean, whole prompts drawn with replacement."""
    groups: dict[Any, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        groups.setdefault(prompt, []).append(value)
    sums = [(sum(group), len(group)) for group in groups.values()]
    draw = random.Random(seed)
    means = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in chosen) / sum(count for _, count in chosen))
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


@torch.no_grad()
def score_pairs(model: Any, pairs: Any, batch_size: int) -> Scores:
    """Return every pair's mean log-probabilities, computed in batches of like length."""
    scorer, found = take_apart(model), {}
    model.eval()
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    for start in range(0, len(pairs), batch_size):
        batch = order[start : start + batch_size]
        logps = score(scorer, pad_pairs([pairs[index] for index in batch], pad_id=0))
        chosen = (logps.chosen_sum / logps.chosen_tokens).tolist()
        rejected = (logps.rejected_sum / logps.rejected_tokens).tolist()
        found.update(zip(batch, zip(chosen, rejected, strict=True), strict=True))
    return Scores(*([found[index][side] for index in range(len(pairs))] for side in (0, 1)))


def load_run(folder: Path) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Return (model with adapter, held-out pairs, tokenizer, config) of a run folder."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    settings = config["data"].get("init_args", config["data"])
    data = PreferenceDataModule(**{**settings, "validation_size": None})
    data.setup("test" if settings.get("test") else "validate")
    pairs = data.test_dataset if settings.get("test") else data.validation_dataset
    module = config["model"].get("init_args", config["model"])
    base = load_base(module["base_model"], revision=module["revision"], quantization=module["quantization"])
    return PeftModel.from_pretrained(base, folder / "adapter"), pairs, data.processor, config


def figures(base: Scores, trained: Scores, pairs: Any) -> dict[str, Any]:
    """Return the figures of both models and of their difference."""
    prompts = [tuple(pairs[index].prompt) for index in range(len(pairs))]
    longer = [len(pairs[index].chosen) > len(pairs[index].rejected) for index in range(len(pairs))]
    found: dict[str, Any] = {"pairs": len(pairs), "prompts": len(set(prompts))}
    for name, scores in (("base", base), ("trained", trained)):
        margins = [c - r for c, r in zip(scores.chosen, scores.rejected, strict=True)]
        found[name] = {
            "accuracy": mean(scores.wins),
            "accuracy_interval_95": interval(scores.wins, prompts),
            "margin_in_mean_logp": mean(margins),
            "margin_interval_95": interval(margins, prompts),
            "logps_chosen": mean(scores.chosen),
            "logps_rejected": mean(scores.rejected),
        }
        for label, wanted in (("chosen_longer", True), ("chosen_not_longer", False)):
            wins = [win for win, is_longer in zip(scores.wins, longer, strict=True) if is_longer is wanted]
            found[name][f"accuracy_where_{label}"] = mean(wins) if wins else None
    for name, one, other in (
        ("accuracy_change", trained.wins, base.wins),
        ("logps_chosen_change", trained.chosen, base.chosen),
        ("logps_rejected_change", trained.rejected, base.rejected),
    ):
        change = [a - b for a, b in zip(one, other, strict=True)]
        found[name] = {"mean": mean(change), "interval_95": interval(change, prompts)}
    return found


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    """Return the model's greedy answer."""
    ids = torch.tensor([prompt])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=pad,
    )
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()


def print_changed_answers(model: Any, pairs: Any, tokenizer: Any, count: int) -> None:
    """Print the first few prompts whose greedy answer the training changed."""
    for index in range(len(pairs)):
        if count == 0:
            return
        prompt = list(pairs[index].prompt)
        with model.disable_adapter():
            before = answer(model, tokenizer, prompt)
        after = answer(model, tokenizer, prompt)
        if before != after:
            print("\n" + tokenizer.decode(prompt, skip_special_tokens=True).strip())
            print(f"  before: {before}\n  after:  {after}")
            count -= 1


def main() -> None:
    """Print samples and, as the last line, the held-out accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--samples", type=int, default=0, help="answers to print before and after")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    options = parser.parse_args()
    model, pairs, tokenizer, _ = load_run(options.run)
    with model.disable_adapter():
        base = score_pairs(model, pairs, options.batch_size)
    trained = score_pairs(model, pairs, options.batch_size)
    print_changed_answers(model, pairs, tokenizer, options.samples)
    found = figures(base, trained, pairs)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    low, high = found["trained"]["accuracy_interval_95"]
    print(f"\nTensorBoard: tensorboard --logdir {options.run / 'tb'}\nadapter:     {options.run / 'adapter'}")
    print(
        f"held-out accuracy {found['base']['accuracy']:.3f} → {found['trained']['accuracy']:.3f} "
        f"({len(pairs)} pairs, 95 % interval {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
