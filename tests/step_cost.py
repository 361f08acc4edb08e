"""What a training step costs, counted and not timed: the same on every machine, so that CI can compare it.

Instructions would be the better count, but neither way to them is open where CI runs: `perf stat` needs the
processor's counters, which a virtual machine seldom has, and callgrind had not finished importing PyTorch
after six minutes. So the things are counted that a slower step has more of: arithmetic in matrix products
and attention, memory written by operations, operations dispatched, Python functions called.

    python tests/step_cost.py    writes step_cost.json anew, after a change that is meant to cost more or less
"""

from __future__ import annotations

import inspect
import json
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orpo_lightning import PreferenceDataModule, PreferenceModule

FILE = Path(__file__).with_name("step_cost.json")
FIGURES = ("product_flops", "attention_flops", "bytes_written", "operations", "python_calls")
_SCRIPTS = Path(__file__).parent.parent / "scripts"
LAYOUTS = ("padded", "shared_prefix")
_STEPS = 4  # of which one is logged
_LENGTHS = [(40, 20, 30), (90, 12, 8), (25, 60, 45), (55, 33, 33)]
_BATCH = 2
_RANK = 4


class Counter(TorchDispatchMode):
    """Counts the operations that are dispatched, what they compute and what they write."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.counts = dict.fromkeys(FIGURES[:-1], 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        self.counts["operations"] += 1
        name = func.overloadpacket.__name__
        if name.removesuffix("_") in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            self.counts["product_flops"] += 2 * left.numel() * right.shape[-1]
        if name == "_linear_pointwise":  # oneDNN's, of the head: its right operand is transposed
            self.counts["product_flops"] += 2 * args[0].numel() * args[1].shape[0]
        if "scaled_dot_product" in name:
            # (B, H, L, D) queries; the backward pass computes the scores again and has four products.
            is_backward = name.endswith("backward")
            query, key = args[is_backward : is_backward + 2]
            products = 5 if is_backward else 2
            self.counts["attention_flops"] += products * 2 * query.numel() * key.shape[-2]
        aliases = (returned.alias_info for returned in func._schema.returns)
        if not any(alias and not alias.is_write for alias in aliases):  # else it is a view
            tensors = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            self.counts["bytes_written"] += sum(tensor.nbytes for tensor in tensors)
        return result


@contextmanager
def python_calls(counts: dict[str, int]) -> Iterator[None]:
    """Count the Python functions that are called."""
    counts["python_calls"] = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counts["python_calls"] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Windows(lightning.Callback):
    """Enters a context for some steps each, the first steps left out."""

    def __init__(self, contexts: list[Callable[[], Any]]) -> None:
        self.contexts, self.open = contexts, ExitStack()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx and batch_idx % _STEPS == 0:
            self.open.enter_context(self.contexts[batch_idx // _STEPS - 1]())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % _STEPS == 0:
            self.open.close()


def has_layouts() -> bool:
    """Return whether the data module has more than one layout to choose from."""
    return "layout" in inspect.signature(PreferenceDataModule).parameters


def measure(folder: Path, layout: str) -> dict[str, float]:
    """Return what a step of `Trainer.fit` costs: LoRA on a tiny Llama, two pairs a step.

    Args:
        folder: for model and pairs.
        layout: of the batches.
    """
    sys.path.append(str(_SCRIPTS))
    from benchmark_inputs import Lengths, sizes_of, write_model, write_pairs, write_tokenizer

    model, pairs, vocabulary = folder / "model", folder / "pairs.jsonl", 512
    write_model(model, sizes_of("2x64"), vocabulary, "float32", "cpu", seed=0)
    write_tokenizer(model, vocabulary)
    windows = 3  # the first is warm-up
    # The same four pairs again and again: every window holds them all.
    rounds = math.ceil(windows * _STEPS * _BATCH / len(_LENGTHS))
    write_pairs(pairs, [Lengths(*row) for row in _LENGTHS] * rounds, vocabulary, seed=0)
    counter = Counter()
    calls: dict[str, int] = {}
    settings = {"layout": layout} if has_layouts() else {}
    paths = {"train": str(pairs), "tokenizer": str(model), "cache_dir": str(folder / "cache")}
    data = PreferenceDataModule(batch_size=_BATCH, shuffle=False, **paths, **settings)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=windows * _STEPS,
        log_every_n_steps=_STEPS,
        gradient_clip_val=1.0,
        callbacks=[_Windows([lambda: counter, lambda: python_calls(calls)])],
        **dict.fromkeys(quiet, False),
    )
    module = PreferenceModule(str(model), lora_r=_RANK, lora_dropout=0.0, gradient_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return {name: count / _STEPS for name, count in (counter.counts | calls).items()}


def floor_flops(folder: Path) -> float:
    """Return the matrix products of a step, without attention, that `scripts/benchmark_floor.py` derives."""
    sys.path.append(str(_SCRIPTS))
    from benchmark_floor import products_of
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "model")
    batches = [_LENGTHS[start : start + _BATCH] for start in range(0, len(_LENGTHS), _BATCH)]
    groups = [group for batch in batches for group in products_of(batch, config, _RANK)]
    products = [product for group in groups if group.part != "attention" for product in group.products]
    return sum(product.flops for product in products) / len(batches)


def main() -> None:
    """Write the figures of this checkout."""
    with tempfile.TemporaryDirectory() as name:
        found = {layout: measure(Path(name), layout) for layout in LAYOUTS}
    versions = {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]}
    FILE.write_text(json.dumps({"versions": versions} | found, indent=1) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
