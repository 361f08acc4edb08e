"""TRL's real ORPOTrainer on tiny models: the oracle of the parity tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from orpo_lightning.batching import TokenizedPair

WORDS = ["alpha", "beta", "gamma", "delta", "one", "two", "three", "up", "down", "left"]


def text_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return string pairs of ragged length, chosen never equal to rejected."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    return [
        {"prompt": words(2, 6), "chosen": " " + words(1, 5) + " yes", "rejected": " " + words(1, 5) + " no"}
        for _ in range(count)
    ]


class SequentialORPOTrainer(ORPOTrainer):
    """Takes the pairs in file order, as ours does with `shuffle=False`."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def make_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, **settings: Any
) -> Any:
    """Return a trainer ready to train or to be asked for one batch's loss."""
    defaults: dict[str, Any] = {
        "beta": 0.1,
        "max_length": 200,
        "per_device_train_batch_size": len(rows),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "weight_decay": 0.0,
    }
    config = ORPOConfig(output_dir=str(folder), **(defaults | settings))
    return SequentialORPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def pairs_of(trainer: Any) -> list[TokenizedPair]:
    """Return the trainer's own tokens as our pairs."""
    pairs = []
    for row in trainer.train_dataset:
        prompt = sum(label == -100 for label in row["chosen_labels"])
        pairs.append(
            TokenizedPair(
                row["chosen_input_ids"][:prompt],
                row["chosen_input_ids"][prompt:],
                row["rejected_input_ids"][prompt:],
            )
        )
    return pairs
