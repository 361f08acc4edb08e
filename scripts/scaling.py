"""What more devices give: measured with one, two and four processes here, computed for GPUs.

python scripts/scaling.py measure
python scripts/scaling.py compute -c configs/mistral.yaml [--KEY VALUE ...]
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # one thread for each process, or more processes would not mean more work

import json
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"
STEPS, FIRST, ROUNDS = 16, 4, 3
SIDES = [(1, "auto"), (2, "ddp"), (4, "ddp"), (2, "fsdp2"), (4, "fsdp2")]


class Link(NamedTuple):
    """How GPUs are connected: bytes/s that pass a GPU, or all links out of a node of eight."""

    name: str
    gpus: int
    bandwidth: float


LINKS = [
    Link("NVLink (A100)", 8, 230e9),
    Link("PCIe 4.0 x16", 8, 20e9),
    Link("8 nodes, 8 x 200 Gb/s InfiniBand each", 64, 180e9),
    Link("8 nodes, 100 Gb/s Ethernet each", 64, 11e9),
]


def fit(world: int, strategy: str, out: Path) -> None:
    """Train in this process, one of `world`; the first writes wall and processor seconds for a pair."""
    import lightning
    import torch

    from orpo_lightning import PreferenceDataModule, PreferenceModule
    from orpo_lightning.sharded_strategy import FSDP2Strategy

    class Clock(lightning.Callback):
        """Reads both clocks when the first steps are done and at the end."""

        marks: list[tuple[float, float]]

        def on_train_start(self, *_: Any) -> None:
            self.marks = []

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (FIRST, STEPS):
                self.marks.append((time.perf_counter(), time.process_time()))

    lightning.seed_everything(1)
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        accumulate_grad_batches=4 // world,
        max_steps=STEPS,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    model = str(QUICKSTART / "model")
    data = PreferenceDataModule(
        train=str(QUICKSTART / "train.jsonl"), tokenizer=model, max_length=128, batch_size=16
    )
    trainer.fit(PreferenceModule(model, gradient_checkpointing=False), datamodule=data)
    (first, last) = clock.marks[0], clock.marks[-1]
    pairs = 64 * (STEPS - FIRST)
    processor = torch.tensor(last[1] - first[1])
    if world > 1:
        torch.distributed.all_reduce(processor)
    if trainer.is_global_zero:
        out.write_text(json.dumps([(last[0] - first[0]) / pairs, processor.item() / pairs]))


def run(world: int, strategy: str, folder: Path) -> list[float]:
    """Return wall and processor seconds for a pair of a run in forked processes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if world > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "scaling"})
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            fit(world, strategy, folder / "seconds.json")
            code = 0
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * world, codes
    return json.loads((folder / "seconds.json").read_text())


def measure() -> None:
    """Print a table: medians of rounds in which every side has its turn."""
    import peft  # noqa: F401 - before the processes are forked
    import transformers.models.llama.modeling_llama  # noqa: F401

    from orpo_lightning import sharded_strategy  # noqa: F401

    found: dict[tuple[int, str], list[list[float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for side in SIDES:
                found[side].append(run(*side, Path(folder)))
    medians = {
        side: [statistics.median(column) for column in zip(*rows, strict=True)]
        for side, rows in found.items()
    }
    wall, processor = medians[SIDES[0]]
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}; {ROUNDS} rounds of {STEPS - FIRST} steps of 64 pairs")
    print("| processes | strategy | pairs/s | against one | processor time of a pair against one |")
    print("|---|---|---|---|---|")
    for (world, strategy), (each, work) in medians.items():
        name = "one" if strategy == "auto" else strategy
        print(f"| {world} | {name} | {1 / each:.1f} | {wall / each:.2f} | {work / processor:.2f} |")


def volumes(model: Any, training: Any) -> tuple[int, int]:
    """Return the bytes of the trained weights' gradients, and of all weights as FSDP2 sends them."""
    from orpo_lightning.planning import weights

    share = 2 if training.quantization == "nf4" else 1  # scales and tables are on every GPU
    each = 1 if training.quantization == "nf4" else training.weight_bytes
    matrices = sum(-(-m.weights // share) * each for layer in model.layers for m in layer.linears)
    sent = matrices + weights.unquantised_bytes(model, training) + weights.adapter_bytes(model, training)
    return weights.gradient_bytes(model, training), sent


def seconds(link: Link, gradients: int, sent: int, micro_batches: int) -> dict[str, float]:
    """Return what an optimizer step spends on sending, nothing of it hidden behind computing.

    A ring passes each link once: an all-reduce sends everything twice, a gathering or scattering once. DDP
    reduces the gradients once a step; FSDP2 gathers the weights forward and backward and scatters the
    gradients in every micro-batch.
    """
    part = (link.gpus - 1) / link.gpus / link.bandwidth
    return {"ddp": 2 * gradients * part, "fsdp2": micro_batches * (2 * sent + gradients) * part}


def compute(words: list[str]) -> None:
    """Print a table for a configuration on A100s, whose computing time is what `plan` says."""
    from orpo_lightning.commands.config_cli import ConfigCLI
    from orpo_lightning.commands.plan import subject_of
    from orpo_lightning.planning.gpus import find_gpu
    from orpo_lightning.planning.report import answer

    subject = subject_of(ConfigCLI("plan", words).config)
    gpu = answer(subject, find_gpu("A100-80GB"))
    gradients, sent = volumes(subject.model, gpu.training)
    batch = subject.largest()
    busy = batch.tokens / (gpu.tokens_per_second or 1)
    print(
        f"gradients {gradients / 1e6:.0f} MB, weights as sent {sent / 1e9:.2f} GB, {busy:.2f} s a micro-batch"
    )
    print("| GPUs | micro-batches a step | ddp, a step | at pace | fsdp2, a step | at pace |")
    print("|---|---|---|---|---|---|")
    for link in LINKS:
        for micro_batches in (1, 4):
            spent = seconds(link, gradients, sent, micro_batches)
            cells = [
                f"{1000 * value:.0f} ms | {100 * busy * micro_batches / (busy * micro_batches + value):.0f} %"
                for value in spent.values()
            ]
            print(f"| {link.gpus}, {link.name} | {micro_batches} | {' | '.join(cells)} |")


if __name__ == "__main__":
    measure() if sys.argv[1] == "measure" else compute(sys.argv[2:])
