"""How the training ratio moves with prompt share, length, batch and vocabulary: one run a point."""

from __future__ import annotations

import argparse
from typing import Any

from benchmark_inputs import draw_lengths
from benchmark_process import machine
from benchmark_report import disturbed, header, share_of_others, write_json
from benchmark_train import in_order, workplace
from benchmark_train_report import paint_curve
from benchmark_watch import COMPARED, largest_difference

from orpo_lightning.errors import first_line

_TOKENS = 640  # of a pair, where the length is not the axis
_SHARE = 0.3  # of the prompt, where it is not the axis
AXES: dict[str, tuple[float, ...]] = {
    "prompt share": (0.1, 0.3, 0.5, 0.7, 0.9),
    "tokens of a pair": (160, 320, 640, 1280),
    "pairs in a batch": (1, 2, 4, 8),
    "vocabulary, thousands": (8, 32, 128),
}


def curve(options: argparse.Namespace) -> None:
    """Run both sides once at every point; print and write the ratios, whatever is there after each."""
    found: dict[str, Any] = {
        "benchmark": "train, scaling",
        "machine": machine(options.cores),
        "settings": {"model": options.model, "steps": options.steps, "dtype": options.dtype},
        "curve": {axis: [] for axis in AXES},
    }
    for axis, values in AXES.items():
        for value in values:
            found["curve"][axis].append(_point(options, axis, value))
            write_json(options.out / "curve.json", found)
    paint_curve(found, options.out / "curve.png")
    print("\n" + header(found))
    points = [point for axis in found["curve"].values() for point in axis]
    if warning := disturbed(max(point["share_of_cores_taken_by_others"] for point in points)):
        print(warning)
    for axis, points in found["curve"].items():
        print(f"{axis:24} " + "  ".join(map(_words, points)))


def _words(point: dict[str, Any]) -> str:
    said = point["failed"] if "failed" in point else f"{point['ratio']:.2f}x"
    return f"{point['value']:g}: {said}"


def _point(options: argparse.Namespace, axis: str, value: float) -> dict[str, Any]:
    """Return the training speeds of both sides with one thing at a value."""
    print(f"{axis} {value:g}", flush=True)
    tokens = value if axis == "tokens of a pair" else _TOKENS
    share = value if axis == "prompt share" else _SHARE
    changes = {
        "pairs in a batch": {"batch": int(value)},
        "vocabulary, thousands": {"vocabulary": int(1000 * value)},
    }.get(axis, {})
    settings = argparse.Namespace(**(vars(options) | changes | {"profile": False}))
    settings.validation_batch = settings.validation_pairs = settings.batch
    pairs = (
        settings.warmup + settings.steps
    ) * settings.batch * settings.accumulate + settings.validation_pairs
    answer = tokens * (1 - share) / 2
    lengths = draw_lengths((tokens * share, answer, answer), pairs, settings.seed)
    with workplace(settings, lengths) as place:
        ours = place.run("ours")
        try:
            trl = place.run("trl", train=in_order(place, ours))
        except SystemExit as error:  # it takes more memory than ours, and may not have it
            failed = first_line(error).removesuffix(":")
            print(failed, flush=True)
            others = share_of_others([ours], options.cores)
            speed = ours["train_pairs_per_second"]
            return {"value": value, "ours": speed, "failed": failed, "share_of_cores_taken_by_others": others}
    speeds = {side: each["train_pairs_per_second"] for side, each in (("ours", ours), ("trl", trl))}
    gap = max(largest_difference(ours["losses"][:1], trl["losses"][:1], name) for name in COMPARED)
    share = share_of_others([ours, trl], options.cores)
    figures = {"ratio": speeds["ours"] / speeds["trl"], "losses_differ": gap}
    return {"value": value, **speeds, **figures, "share_of_cores_taken_by_others": share}
