"""Figures in prose are those of the committed measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LENGTHS = ("short", "ultrafeedback", "long_prompt")
RATIOS = ("train_pairs_per_second", "validation_pairs_per_second", "peak_memory_above_model")


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / f"train_benchmark_{name}.json").read_text())
    return found


def test_the_seconds_of_a_validation_are_those_of_the_measured_rates() -> None:
    text = (DOCS / "performance.md").read_text().replace("\n", " ")
    said = re.search(
        r"at these rates: ([\d,]+), ([\d,]+) and ([\d,]+) s against TRL's (.*?) s, that is", text
    )
    assert said
    sides = [measured(name)["summary"]["neutral"] for name in LENGTHS]
    ours, trl = (
        [found[side]["validation_pairs_per_second"]["median"] for found in sides] for side in ("ours", "trl")
    )
    assert list(said.groups()[:3]) == [f"{256 / rate:,.0f}" for rate in ours]
    assert re.findall(r"[\d,]*\d", said[4]) == [f"{2000 / rate:,.0f}" for rate in trl]


def test_the_readmes_ranges_are_those_of_the_measured_medians() -> None:
    for row, key, names in (
        ("32,000", "ratios", LENGTHS),
        ("128,000", "ratios", ("short_128k", "ultrafeedback_128k")),
        ("32,000, TRL as it comes (recomputing)", "ratios_default_allocator",
         [f"{name}_as_trl_comes" for name in LENGTHS]),
    ):  # fmt: skip
        medians = [[measured(name)[key][ratio]["median"] for name in names] for ratio in RATIOS]
        train, validation, memory = ((min(values), max(values)) for values in medians)
        cells = [row, "{:.1f} to {:.1f} times".format(*train), "{:.1f} to {:.1f} times".format(*validation)]
        cells.append("{:.0f} to {:.0f} %".format(*(100 * share for share in memory)))
        assert f"| {' | '.join(cells)} |" in (ROOT / "README.md").read_text()
