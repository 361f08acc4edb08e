"""What the fault tests share: a process that forks runs, and the words of a small run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Return the process that forks command lines."""
    process = Forks(tmp_path_factory.mktemp("streams"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.jsonl (26 pairs), other.jsonl (14) and validation.jsonl (6)."""
    folder = tmp_path_factory.mktemp("pairs")
    words = ["red", "blue", "green", "house", "tree", "cat", "dog", "sun", "moon", "sea"]

    def row(number: int, kind: str) -> dict[str, str]:
        first, second = words[number % 10], words[(3 * number + 1) % 10]
        chosen = " ".join([second] * (1 + number % 5) + [first])
        return {
            "prompt": f"{kind} {number} {first}",
            "chosen": chosen,
            "rejected": f"{first} no {number % 7}",
        }

    for name, count in (("train", 26), ("other", 14), ("validation", 6)):
        lines = [json.dumps(row(number, name)) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def fit(tiny_base: str, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Return a function that makes the words of a run of nine steps of four pairs, two micro-batches each.

    26 pairs are six such steps and one of two pairs; every second step is followed by a validation.
    """
    cache = tmp_path_factory.mktemp("cache")

    def words(run_dir: str, *more: Any, verb: str = "fit") -> list[Any]:
        settings = {
            "model.base_model": tiny_base,
            "model.lora_r": 4,
            "model.lora_dropout": 0.1,
            "model.optimizer.lr": 0.01,
            "model.gradient_checkpointing": "false",
            "data.train": pairs / "train.jsonl",
            "data.validation": pairs / "validation.jsonl",
            "data.cache_dir": cache,
            "data.duplicates": "keep",
            "data.batch_size": 2,
            "data.validation_batch_size": 2,
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 9,
            "trainer.accumulate_grad_batches": 2,
            "trainer.val_check_interval": 4,
            "trainer.check_val_every_n_epoch": "null",
            "trainer.log_every_n_steps": 2,
            "trainer.num_sanity_val_steps": 0,
            "save_every": 1,
            "run_dir": run_dir,
        }
        return [verb, *(f"--{key}={value}" for key, value in settings.items()), *more]

    return words
