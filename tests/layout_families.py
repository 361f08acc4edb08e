"""Which layout each architecture gets, and the table of it in the README.

`python tests/layout_families.py` (in the repository) writes the table anew.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from reference import sequence_logps
from tiny_families import FAMILIES, PADDED_ONLY
from tiny_models import tiny_model
from torch import Tensor

from orpo_lightning.batching import TokenizedPair
from orpo_lightning.hardware import Choice
from orpo_lightning.layouts import choose_layout, unfit
from orpo_lightning.scoring import take_apart

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- layouts of architectures: written by tests/layout_families.py -->\n", "<!-- end -->\n"
# Ragged, beyond the tiny windows of eight tokens; one prompt of a single token, one empty.
PAIRS = [
    TokenizedPair([5, 9, 12, 33, 8, 71, 40, 3, 15, 22, 61], [7, 18, 90, 4, 55], [66, 21, 9]),
    TokenizedPair([17], [30, 31, 99, 100, 6, 41, 28, 77, 13, 50], [8]),
    TokenizedPair([], [44, 12, 9], [70, 71, 72, 5, 5, 19]),
    TokenizedPair([88, 23], [14, 2], [14, 60, 33, 2]),
]


@functools.cache
def layout_of(family: str) -> Choice:
    """Return what a tiny model of the family gets without being asked."""
    return choose_layout("auto", take_apart(tiny_model(family)))


def one_at_a_time(model: torch.nn.Module, pairs: list[TokenizedPair]) -> Tensor:
    """Return log p of the targets, (N,), in the order of a batch's, each sequence by itself."""
    chosen = [sequence_logps(model, pair.prompt + pair.chosen) for pair in pairs]
    rejected = [
        sequence_logps(model, pair.prompt + pair.rejected)[max(0, len(pair.prompt) - 1) :] for pair in pairs
    ]
    return torch.cat(chosen + rejected)


def table() -> str:
    """Return the README's table: what each family that is tested gets, families of like fate in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for family in sorted([*FAMILIES, *PADDED_ONLY]):
        layout = layout_of(family).value
        found = "equal numbers" if layout == "shared_prefix" else "the check on a batch finds other numbers"
        why = unfit(tiny_model(family)) or found
        rows.setdefault((layout, why.removeprefix(f"{family}: ")), []).append(f"`{family}`")
    ordered = sorted(rows.items(), key=lambda row: -len(row[1]))
    lines = [f"| {', '.join(names)} | `{layout}` | {why} |" for (layout, why), names in ordered]
    return "\n".join(["| architectures | layout | why |", "|---|---|---|", *lines]) + "\n"


def written_table() -> str:
    """Return the table that stands in the README."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
