"""Two CPU processes over gloo give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def run(base: str, folder: Path, processes: int, split: tuple[int, int, int], layout: str) -> dict[str, Any]:
    """Run one optimizer step of twelve pairs in processes of its own and return what rank zero saw."""
    out = folder / "found.pt"
    words = [str(value) for value in (base, processes, *split, layout, out)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    done = subprocess.run(
        [sys.executable, str(HERE / "ddp_run.py"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.fixture(scope="module")
def whole(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the step of one process with all twelve pairs in one padded batch."""
    return run(tiny_base, tmp_path_factory.mktemp("whole"), 1, (12, 1, 0), "padded")


# Pairs in a micro-batch, micro-batches of a step, and a budget of tokens: under it one process has fewer
# micro-batches than the other, and both skip some.
@pytest.mark.parametrize(
    ("split", "layout"),
    [
        ((6, 1, 0), "padded"),
        ((1, 6, 200), "padded"),
        ((2, 3, 0), "shared_prefix"),
        ((1, 6, 100), "shared_prefix"),
    ],
)
def test_two_processes_have_the_gradients_and_metrics_of_one(
    whole: dict[str, Any], tiny_base: str, tmp_path: Path, split: tuple[int, int, int], layout: str
) -> None:
    two = run(tiny_base, tmp_path, 2, split, layout)
    assert (whole["world"], two["world"]) == (1, 2)
    assert whole["gradients"].keys() == two["gradients"].keys()
    for name, gradient in whole["gradients"].items():
        scale = gradient.abs().max().item()
        assert torch.allclose(two["gradients"][name], gradient, rtol=1e-6, atol=1e-6 * scale), name
    for name, value in whole["metrics"].items():
        if "per_second" not in name and "skipped" not in name:
            assert two["metrics"][name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    assert whole["metrics"]["val/length/chosen"] > 0
    assert whole["metrics"].keys() == two["metrics"].keys() >= {"val_ci_low/loss", "val/logps_change/chosen"}
