"""Run by test_distributed.py: one optimizer step and a validation, each in one or several forks."""

from __future__ import annotations

import json
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import socket
import traceback
from pathlib import Path
from typing import Any

import lightning
import peft  # noqa: F401 - before the processes are forked
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.callbacks import Canary, Samples, ValidatedPairs
from orpo_lightning.sharded_strategy import FSDP2Strategy
from orpo_lightning.sharding import is_sharded, whole


class Words(PreferenceDataModule):
    """Ragged pairs, thirty-one to validate on: not divisible by anything."""

    pairs = 12
    """To train on."""

    def load_rows(self, split: str) -> list[dict[str, str]]:
        """Return the pairs of a split."""
        first = 0 if split == "train" else 100
        count = self.pairs if split == "train" else 31
        return [
            {
                "prompt": "count " * (1 + k % 4) + str(k),
                "chosen": " up" * (1 + k % 5) + str(k),
                "rejected": " down" * (1 + k % 3) + str(k),
            }
            for k in range(first, first + count)
        ]


class Recorder(lightning.Callback):
    """Keeps the whole gradients of the first optimizer step, and what of the weights was shared out."""

    def __init__(self) -> None:
        """Start empty."""
        self.gradients: dict[str, torch.Tensor] = {}
        self.sharded: list[str] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Copy every gradient."""
        if not self.gradients:
            named = module.named_parameters()
            self.gradients = {name: whole(p.grad).clone() for name, p in named if p.grad is not None}
            self.sharded = [name for name, p in module.named_parameters() if is_sharded(p)]


def run(case: dict[str, Any], bases: dict[str, str], folder: Path) -> None:
    """Fit one optimizer step of all pairs, validate, and save what rank zero saw."""
    lightning.seed_everything(3)
    settings = {"lora_r": 4, "lora_dropout": 0.0, "lora_init": "gaussian", **case.get("model", {})}
    base = bases[case["family"]]
    module = PreferenceModule(base, **settings)
    batch_size, accumulate, tokens = case["split"]
    data = Words(
        tokenizer=base,
        layout=case["layout"],
        batch_size=batch_size,
        tokens_per_batch=tokens or None,
        validation_batch_size=3,
        max_length=128,
        cache_dir=str(folder / f"{case['name']}.d"),
    )
    data.pairs = case["pairs"]
    recorder = Recorder()
    strategies = {"ddp": "ddp", "fsdp2": FSDP2Strategy()}
    trainer = make_trainer(
        max_steps=1,
        devices=case["world"],
        strategy=strategies[case["strategy"]] if case["world"] > 1 else "auto",
        accumulate_grad_batches=accumulate,
        callbacks=[recorder, Canary(), Samples(max_new_tokens=4), ValidatedPairs()],
        default_root_dir=str(folder / f"{case['name']}.d"),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        found = {
            "gradients": recorder.gradients,
            "metrics": {name: value.clone() for name, value in trainer.callback_metrics.items()},
            "world": trainer.world_size,
            "sharded": len(recorder.sharded),
            "parameters": sum(1 for _ in module.parameters()),
            "described": dict(module.describe()),
            "why_full_logits": module._take_apart().why_full_logits,
        }
        torch.save(found, folder / f"{case['name']}.pt")


def fork(
    rank: int, world: int, port: int, cases: list[dict[str, Any]], bases: dict[str, str], folder: Path
) -> int:
    """Run the cases in a process of its own, as torchrun would start it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if world > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"})
        for case in cases:
            run(case, bases, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main(order: str) -> int:
    """Run all cases, those of equally many processes one after the other."""
    told = json.loads(Path(order).read_text())
    codes = []
    for world in sorted({case["world"] for case in told["cases"]}):
        cases = [case for case in told["cases"] if case["world"] == world]
        port = free_port()
        children = [
            fork(rank, world, port, cases, told["bases"], Path(order).parent) for rank in range(world)
        ]
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
