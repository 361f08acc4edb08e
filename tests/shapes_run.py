"""Train two steps on each source that is named, in one process; prints a line of JSON for each.

Run by tests/test_shapes_train.py with HF_ENDPOINT set: the clients of the hub read it when they are imported.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule


def train(base: str, cache_dir: str, source: Any) -> dict[str, Any]:
    """Return the shape that was found, the pairs, the steps done and whether the adapter moved."""
    # Three samples are few rows to be picky about: none may stop the run.
    data = PreferenceDataModule(
        source, tokenizer=base, max_length=512, batch_size=1, cache_dir=cache_dir, max_dropped=1.0
    )
    module = PreferenceModule(base, lora_r=2, gradient_checkpointing=False)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, datamodule=data)
    moved = sum(float(p.detach().abs().sum()) for name, p in module.named_parameters() if "lora_B" in name)
    report = data.report()["train"]
    return {
        "shape": report.sources[0].shape,
        "rows": report.sources[0].rows,
        "pairs": report.pairs,
        "steps": trainer.global_step,
        "moved": moved > 0 and torch.isfinite(torch.tensor(moved)).item(),
    }


if __name__ == "__main__":
    base, cache_dir, sources = sys.argv[1:]
    for source in json.loads(sources):
        print(json.dumps(train(base, cache_dir, source)))
