"""The package inside another Lightning project."""

from __future__ import annotations

import math
from pathlib import Path

import pytest


def test_a_subclass_adds_a_loss_term_and_a_metric_with_data_of_its_own(
    tiny_base: str, tmp_path: Path
) -> None:
    from second_project.length_aware import main

    logged = main(tiny_base, str(tmp_path))
    assert math.isfinite(logged["val/loss"])
    whole = logged["val/nll_loss"] + 0.2 * logged["val/odds_ratio_loss"] + 0.5 * logged["val/gap_loss"]
    assert logged["val/loss"] == pytest.approx(whole, rel=1e-5)
    assert logged["val/gap"] == pytest.approx(logged["val/gap_loss"], rel=1e-6)
    assert logged["train/gap"] > 0
