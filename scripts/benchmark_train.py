"""The training benchmark: TRL's ORPOTrainer against this package, and against the bare matrix products."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from benchmark_inputs import (
    MIXES,
    Lengths,
    draw_lengths,
    read_lengths,
    sizes_of,
    write_pairs,
)
from benchmark_process import machine, run_fresh
from benchmark_report import share_of_others, write_json
from benchmark_train_figures import ABLATIONS, ablation, comparison
from benchmark_train_report import paint, print_ablation, print_comparison
from benchmark_watch import PROFILED_STEPS

_SIDES = Path(__file__).with_name("benchmark_train_sides.py")
_BARE = Path(__file__).with_name("benchmark_bare_sides.py")
_HUGE = str(1 << 40)
ALLOCATORS = {
    # glibc maps a large tensor anew for every use of it and gives it back at once: on its default, TRL spends
    # half its time in page faults on its logits. Kept, memory is asked for but a few times, until the heap
    # has found its size; that is somewhat larger than what is in use.
    "neutral": {f"MALLOC_{name}_": _HUGE for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
    | {"MALLOC_TOP_PAD_": str(1 << 28)},
    "default": {},
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far the losses of the first step may differ, relative, before the sides did different work."""
NOTES = (
    "Sides in turn, each in a process of its own; ratios are of one run, ours divided by TRL's.",
    "Seconds are those of the steps after the warm-up, until the device has finished.",
    "Peak memory: resident (on CUDA allocated) bytes during training above the loaded model with its LoRA.",
    "first_step_seconds: from the start of the process, imports, loading and tokenising included; "
    "after_call: from Trainer.fit, which loads the model, and from ORPOTrainer.train, which has it already.",
    "Tokens are unique and no padding: a prompt counts once for its pair, on every side.",
    "losses: of every step; LoRA starts from the same values, and without dropout the runs stay together. "
    "With accumulation TRL's NLL is a mean of micro-batch means, ours one over the step: it is not compared.",
    "floor: bare matrix products of the same micro-batches in the same dtype, prompts once, causal half.",
    "Weights, words and lengths (log-normal) are random; learning rate, clipping and AdamW are the same.",
)


class Workplace(NamedTuple):
    """A scratch folder with model and pairs in it, and the job that every side is given."""

    scratch: Path
    job: dict[str, Any]
    cores: int

    def run(
        self, side: str, allocator: str = "neutral", limit_s: float | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Run one side, or what a benchmark needs besides, in a fresh process."""
        job = self.job | {"side": side} | changes
        on_gpu = job["device"] == "cuda"
        child = _SIDES if side in ("ours", "trl") else _BARE
        print(f"  {side}{' without ' + job['without'] if job['without'] else ''} ...", end=" ", flush=True)
        settings = ALLOCATORS[allocator]
        how = {"settings": settings, "on_gpu": on_gpu, "limit_s": limit_s}
        found = run_fresh(child, job, self.scratch, self.cores, **how)
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)  # so that every start is a first one
        print(f"{found['seconds']:.1f} s" if "seconds" in found else "done", flush=True)
        return found | _rates(found, job) if "losses" in found else found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run every side `options.runs` times in turn under each allocator; print and write what came out.

    Raises:
        SystemExit: a side failed, or the sides did not do the same work.
    """
    with workplace(options) as place:
        facts = machine(options.cores) | ({"gpu": place.run("facts")} if options.device == "cuda" else {})
        runs: dict[str, list[dict[str, Any]]] = {}
        allocators = ["neutral"] if options.ablate else options.allocators.split(",")
        for allocator in allocators:
            runs[allocator] = []
            for number in range(options.runs):
                print(f"run {number + 1} of {options.runs}, {allocator} allocator", flush=True)
                take = _ablate_once if options.ablate else _compare_once
                runs[allocator].append(take(place, allocator))
    found = _describe(options, runs, facts) | (
        ablation(runs) if options.ablate else comparison(runs, options.accumulate)
    )
    name = "ablation" if options.ablate else "train"
    write_json(options.out / f"{name}.json", found)
    (print_ablation if options.ablate else print_comparison)(found)
    if not options.ablate:
        paint(found, options.out / f"{name}.png")
    limit = TOLERANCE[options.dtype]
    if not options.dropout and not found["equal_work"]["first_step"] <= limit:
        raise SystemExit(f"the sides did not do the same work: losses differ by more than {limit:g}")
    return found


@contextmanager
def workplace(
    options: argparse.Namespace, lengths: list[Lengths] | None = None, model: Path | None = None
) -> Iterator[Workplace]:
    """Make a scratch folder with model and pairs; remove it in the end.

    Args:
        options: of the command line.
        lengths: of the pairs, `pairs_needed` of them; those that the options ask for where left out.
        model: a folder with one that was written before; one is written where left out.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    sizes_of(options.model)  # refuses what is none
    pairs = pairs_needed(options) - options.validation_pairs
    lengths = lengths or _lengths(options, pairs + options.validation_pairs)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.out) as name:
        scratch = Path(name).resolve()
        for file, part in (("train", lengths[:pairs]), ("validation", lengths[pairs:])):
            write_pairs(scratch / f"{file}.jsonl", part, options.vocabulary, options.seed + len(file))
        job = _job(options, scratch, lengths) | {"model": str((model or scratch / "model").resolve())}
        place = Workplace(scratch, job, options.cores)
        if not (target := Path(job["model"])).is_dir():
            part = target.with_name(f"{target.name}.part")
            place.run("base", model=str(part))
            part.rename(target)  # what was written half is not taken for a model
        yield place


def pairs_needed(options: argparse.Namespace) -> int:
    """Return how many pairs training and validation take."""
    steps = options.warmup + options.steps + (PROFILED_STEPS if options.profile else 0)
    return steps * options.batch * options.accumulate + options.validation_pairs


def _lengths(options: argparse.Namespace, count: int) -> list[Lengths]:
    if options.lengths in MIXES:
        return draw_lengths(MIXES[options.lengths], count, options.seed)
    return read_lengths(Path(options.lengths), options.tokenizer, count)


def _job(options: argparse.Namespace, scratch: Path, lengths: list[Lengths]) -> dict[str, Any]:
    names = ("batch", "accumulate", "validation_batch", "validation_sample", "warmup", "steps", "dropout")
    names += ("lora_r", "dtype", "quantization", "gradient_checkpointing", "device", "seed", "profile")
    names += ("vocabulary",)
    paths = {"train": "train.jsonl", "validation": "validation.jsonl", "cache": "cache", "scratch": "trainer"}
    return {
        **{name: getattr(options, name) for name in names},
        **{name: str(scratch / path) for name, path in paths.items()},
        "sizes": options.model,
        "max_length": max(pair.prompt + max(pair.chosen, pair.rejected) for pair in lengths),
        "without": None,
    }


def _compare_once(place: Workplace, allocator: str) -> dict[str, Any]:
    """Run ours, then TRL on the same pairs in each step, then the floor."""
    ours = place.run("ours", allocator)
    trl = place.run("trl", allocator, train=in_order(place, ours))
    floor = place.run("floor", allocator, micro_batches=measured_lengths(place, ours))
    check_pairs(ours, trl, place.job["batch"] * place.job["accumulate"])
    return {"ours": ours, "trl": trl, "floor": floor}


def measured_lengths(place: Workplace, ours: dict[str, Any]) -> list[list[list[int]]]:
    """Return the lengths of the pairs in each of our micro-batches that were measured."""
    accumulate = place.job["accumulate"]
    order = ours["order"][place.job["warmup"] * accumulate :][: place.job["steps"] * accumulate]
    return [[ours["lengths"][index] for index in batch] for batch in order]


def _ablate_once(place: Workplace, allocator: str) -> dict[str, Any]:
    """Run ours as it is, and with each idea switched off alone."""
    ours = place.run("ours", allocator)
    found = {"ours": ours}
    for without in ABLATIONS:
        changes = {"train": in_order(place, ours)} if without == "sampler" else {}
        found[without] = place.run("ours", allocator, without=without, **changes)
    return found


def in_order(place: Workplace, ours: dict[str, Any]) -> str:
    """Write the training pairs as our steps took them, within a step as they stood in the file before.

    Returns:
        The file.
    """
    lines = Path(place.job["train"]).read_text(encoding="utf-8").splitlines(keepends=True)
    size = place.job["accumulate"]
    steps = [ours["order"][start : start + size] for start in range(0, len(ours["order"]), size)]
    numbers = [index for step in steps for index in sorted(chain.from_iterable(step))]
    file = place.scratch / "in_order.jsonl"
    file.write_text("".join(lines[index] for index in numbers), encoding="utf-8")
    return str(file)


def check_pairs(ours: dict[str, Any], trl: dict[str, Any], step: int) -> None:
    """Stop unless both sides took the same tokens in every step."""
    mine = [ours["train_pairs"][index] for batch in ours["order"] for index in batch]
    for start in range(0, len(mine), step):
        if sorted(mine[start : start + step]) != sorted(trl["train_pairs"][start : start + step]):
            raise SystemExit(f"the sides did not train on the same pairs: step {start // step + 1} differs")
    if ours["validation_pairs"] != trl["validation_pairs"]:
        raise SystemExit("the sides did not validate on the same pairs")


def _rates(found: dict[str, Any], job: dict[str, Any]) -> dict[str, float]:
    """Return what follows from the seconds of a side and the pairs it took in them."""
    step = job["batch"] * job["accumulate"]
    lengths = found["lengths"]
    if "order" in found:
        lengths = [lengths[index] for batch in found["order"] for index in batch]
    measured = lengths[job["warmup"] * step : (job["warmup"] + job["steps"]) * step]
    return {
        "train_pairs_per_second": len(measured) / found["seconds"],
        "train_tokens_per_second": sum(map(sum, measured)) / found["seconds"],
        "step_seconds": found["seconds"] / job["steps"],
        "validation_pairs_per_second": found["validated_pairs"] / found["validation_seconds"],
    }


def _describe(
    options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], facts: dict[str, Any]
) -> dict[str, Any]:
    hidden = ("out", "tokenizer", "benchmark", "curve", "runs", "ablate")
    settings = {name: value for name, value in vars(options).items() if name not in hidden}
    settings["lengths"] = Path(options.lengths).name
    results = [
        result for taken in runs.values() for run in taken for side, result in run.items() if side != "floor"
    ]
    return {
        "benchmark": "train, each idea switched off alone" if options.ablate else "train",
        "machine": facts,
        "settings": settings | {"runs": options.runs, "tokens_per_pair": _tokens_per_pair(runs)},
        "share_of_cores_taken_by_others": share_of_others(results, options.cores),
        "notes": NOTES,
    }


def _tokens_per_pair(runs: dict[str, list[dict[str, Any]]]) -> float:
    lengths = next(iter(runs.values()))[0]["ours"]["lengths"]
    return round(sum(map(sum, lengths)) / len(lengths), 1)
