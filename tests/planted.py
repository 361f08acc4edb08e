"""Real small runs with something planted in them: what is wrong is known, and so is what should be said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from orpo_lightning.cli import main

Pair = tuple[str, str]  # chosen and rejected
Source = Path | Callable[[random.Random], Pair]
_WORDS = ("red", "oak", "sun", "ice", "map", "cat", "pen", "fog")


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(_WORDS) for _ in range(count))


def right_first(dice: random.Random) -> Pair:
    """The better answer says yes, the worse one nay; both are as long."""
    rest = words(dice, dice.randint(1, 5))
    return f"yes {rest}", f"nay {rest}"


def wrong_first(dice: random.Random) -> Pair:
    """The same with the labels reversed."""
    chosen, rejected = right_first(dice)
    return rejected, chosen


def longer_first(dice: random.Random) -> Pair:
    """The longer answer is always the chosen one, and nothing else tells them apart."""
    return words(dice, dice.randint(7, 12)), words(dice, dice.randint(1, 4))


def either_first(dice: random.Random) -> Pair:
    """Answers like these, chosen whatever their lengths."""
    pair = longer_first(dice)
    return pair if dice.random() < 0.5 else pair[::-1]


def shouted(dice: random.Random) -> Pair:
    """Right answers in letters that the held-out ones do not have."""
    chosen, rejected = right_first(dice)
    return chosen.upper(), rejected.upper()


def write_pairs(path: Path, make: Source, count: int, seed: int) -> Path:
    """Write pairs, each with a prompt of its own; of a file its first ones."""
    if isinstance(make, Path):
        lines = make.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")
        return path
    dice = random.Random(seed)
    rows = []
    for index in range(count):
        chosen, rejected = make(dice)
        rows.append({"prompt": f"{index} {words(dice, 2)}?", "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(
    folder: Path,
    base: str,
    train: Source,
    held_out: Source,
    *,
    lr: float = 5e-3,
    steps: int = 45,
    more: tuple[str, ...] = (),
) -> int:
    """Train on pairs of one kind, validate on another, and return the exit code.

    Args:
        folder: of the run.
        base: folder of the base model.
        train: makes a pair to train on, or is a file of them.
        held_out: makes a pair to validate on, or is a file of them.
        lr: the learning rate.
        steps: of the optimizer.
        more: further flags.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = {
        "train": write_pairs(folder.with_suffix(".train.jsonl"), train, 400, 1),
        "validation": write_pairs(folder.with_suffix(".held.jsonl"), held_out, 120, 2),
    }
    settings = {
        "run_dir": folder,
        "model.base_model": base,
        "model.optimizer.class_path": "torch.optim.AdamW",
        "model.optimizer.init_args.lr": lr,
        "model.objective.class_path": "orpo_lightning.ORPO",
        "model.objective.init_args.beta": 1.0,
        "model.gradient_checkpointing": "false",
        "data.train": files["train"],
        "data.validation": files["validation"],
        "data.validation_size": "null",
        "data.cache_dir": folder.parent / "cache",
        "data.layout": "padded",
        "data.batch_size": 16,
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": 2,
        "trainer.val_check_interval": steps // 3,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_checkpointing": "false",
    }
    # What is not looked at here takes longer than the training of so small a model.
    off = [("Samples", {"prompts": 0}), ("Canary", {"file": None})]
    settings["trainer.callbacks"] = json.dumps(
        [{"class_path": f"orpo_lightning.callbacks.{name}", "init_args": how} for name, how in off]
    )
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return main(["fit", *flags, *more])
