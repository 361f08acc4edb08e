"""Folders of runs that never were, in the formats that runs write."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Row = dict[str, Any]


def pairs(
    count: int = 200,
    *,
    base: tuple[float, float] = (0.0, 0.5),
    moved: tuple[float, float] = (0.1, -0.4),
    noise: float = 0.1,
    a_prompt: int = 1,
    seed: int = 0,
    first: int = 0,
) -> Row:
    """Return the content of a pairs.npz.

    Args:
        count: of pairs.
        base: mean and spread of the margin under the base.
        moved: how far chosen and rejected went since, on average.
        noise: spread of these.
        a_prompt: pairs of each prompt.
        seed: of all draws but the keys.
        first: the number of the first pair; the same numbers are the same pairs.
    """
    dice = random.Random(seed)
    rejected = [dice.gauss(-2, 0.3) for _ in range(count)]
    chosen = [r + dice.gauss(*base) for r in rejected]
    numbers = range(first, first + count)
    return {
        "keys": np.array([(n // a_prompt + 10**9, n + 10**10, n + 10**11) for n in numbers], np.uint64),
        "base_chosen": np.array(chosen, np.float32),
        "base_rejected": np.array(rejected, np.float32),
        "chosen": np.array([c + dice.gauss(moved[0], noise) for c in chosen], np.float32),
        "rejected": np.array([r + dice.gauss(moved[1], noise) for r in rejected], np.float32),
        "tokens_prompt": np.full(count, 20, np.int32),
        "tokens_chosen": np.array([dice.randint(5, 60) for _ in numbers], np.int32),
        "tokens_rejected": np.array([dice.randint(5, 60) for _ in numbers], np.int32),
        "source": np.zeros(count, np.int16),
        "sources": np.array(["pairs.jsonl"]),
        "step": np.int64(100),
    }


def curve(name: str, values: Sequence[float], every: int = 5) -> list[Row]:
    """Return the lines of one quantity."""
    return [{"step": every * (index + 1), name: value} for index, value in enumerate(values)]


def noisy(start: float, end: float, count: int = 20, noise: float = 0.02, seed: int = 0) -> list[float]:
    """Return values that go from one to another, fast at first."""
    dice = random.Random(f"{seed}{start}{end}")
    return [end + (start - end) * math.exp(-4 * i / count) + dice.gauss(0, noise) for i in range(count)]


def curves(seed: int = 0) -> list[Row]:
    """Return the lines of a run that learns."""
    rows: list[Row] = []
    shapes = {
        "train/loss": (3.0, 1.2),
        "train/rewards/accuracies": (0.5, 0.95),
        "train/rewards/margins": (0.0, 0.9),
        "train/logps/chosen": (-2.0, -1.6),
        "train/logps/rejected": (-2.0, -2.4),
        "train/grad_norm": (4.0, 1.0),
        "train/pairs_per_second": (40.0, 44.0),
        "train/tokens_per_second": (900.0, 1000.0),
        "train/peak_memory_mb": (801.0, 803.0),
    }
    for name, (start, end) in shapes.items():
        rows += curve(name, noisy(start, end, seed=seed))
    rows += curve("train/lr", [1e-3 * (1 - i / 20) for i in range(20)])
    for index, at in enumerate((25, 50, 75, 100)):
        row: Row = {"step": at}
        for name, start, end, half in (
            ("loss", 2.6, 1.4, 0.1),
            ("rewards/accuracies", 0.6, 0.93, 0.05),
            ("rewards/accuracies_longer_is_wrong", 0.5, 0.9, 0.08),
            ("rewards/margins", 0.2, 0.8, 0.06),
            ("logps/chosen", -1.9, -1.6, 0.05),
            ("logps/rejected", -2.1, -2.4, 0.05),
            ("logps_change/chosen", 0.05, 0.1, 0.02),
            ("logps_change/rejected", -0.1, -0.4, 0.03),
        ):
            value = start + (end - start) * index / 3 + 0.01 * seed
            row |= {
                f"val/{name}": value,
                f"val_ci_low/{name}": value - half,
                f"val_ci_high/{name}": value + half,
            }
        rows.append(row)
    return sorted(rows, key=lambda one: one["step"])


def config(**changes: Any) -> Row:
    """Return a config.yaml's content; `changes` are of the model."""
    return {
        "seed_everything": 42,
        "trainer": {"max_steps": 100, "precision": "32-true", "log_every_n_steps": 5},
        "model": {
            "base_model": "example/tiny-7b",
            "quantization": "nf4",
            "lora_r": 16,
            "lora_variant": "lora",
            "lora_init": "default",
            "trainable_tokens": None,
            "objective": {"class_path": "orpo_lightning.ORPO", "init_args": {"beta": 1.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            **changes,
        },
        "data": {"train": "pairs.jsonl", "hub_token": "hf_0123456789abcdef0123", "max_length": 1024},
        "run_dir": "runs/good",
        "save_every": 50,
    }


def record(**changes: Any) -> Row:
    """Return a record.json's content."""
    return {
        "package": "0.1.0",
        "versions": {"python": "3.12.0", "torch": "2.13.0"},
        "device": "a CPU",
        "started": "2026-11-25T10:00:00+00:00",
        "ended": "2026-11-25T10:02:05+00:00",
        "how": "completed",
        "steps": 100,
        "seconds": 125.0,
        "header": {"model": "example/tiny-7b (LlamaForCausalLM)", "precision": "32-true (CPU)"},
        "parameters": {"total": 7000000, "trained": 70000},
        "peak_memory_mb": 803.2,
        "data": {
            "train": {"pairs": 3000, "left_out": {"identical answers": 12, "pair longer than max_length": 3}},
            "validation": {"pairs": 200, "left_out": {}},
        },
        "warnings": ["step 12: loss 9.1, usual is 3"],
        "canary": None,
        **changes,
    }


def samples() -> list[Row]:
    """Return samples.jsonl's lines: three prompts, two steps."""
    asked = ("Name a fruit.", "Is 91 prime?", "Übersetze:\tgood morning")
    return [
        {
            "step": step,
            "index": index,
            "prompt": prompt,
            "base": "I am not sure what you mean.",
            "before": f"An answer before step {step}.",
            "now": f"An answer after step {step}.",
        }
        for step in (50, 100)
        for index, prompt in enumerate(asked)
    ]


def write_run(folder: Path, **files: Any) -> Path:
    """Write the folder of a run; a file given as None is left out.

    Args:
        folder: to make.
        files: `curves`, `pairs`, `config`, `record`, `samples`, `adapter` instead of those of a good run.
    """
    content = {
        "curves": curves(),
        "pairs": pairs(),
        "config": config(),
        "record": record(),
        "samples": samples(),
        "adapter": True,
    } | files
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("curves", "samples"):
        if content[name] is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content[name])
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if content["pairs"] is not None:
        np.savez(folder / "pairs.npz", allow_pickle=False, **content["pairs"])
    if content["config"] is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(content["config"]), encoding="utf-8")
    if content["record"] is not None:
        (folder / "record.json").write_text(json.dumps(content["record"]), encoding="utf-8")
    if content["adapter"]:
        (folder / "adapter").mkdir(exist_ok=True)
    return folder
