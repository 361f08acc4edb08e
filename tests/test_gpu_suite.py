"""The GPU suite where there is no GPU: its parts, clock and table; its cells are the benchmark's sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "scripts" / "gpu_suite"
sys.path.append(str(ROOT / "scripts"))

import gpu_parts  # noqa: E402
from gpu_parts import Suite, full_pairs  # noqa: E402
from gpu_table import table  # noqa: E402

SIZES = {"model": "2x64", "vocabulary": "500", "lengths": (64, 96), "square": 128, "steps": "1", "cores": "1"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    line = ["bash", str(SUITE), *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_without_a_folder_it_says_how_it_is_called() -> None:
    done = run()
    assert done.returncode == 2
    assert "scripts/gpu_suite OUT" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--device cuda: torch sees no GPU here; --device cpu --tiny tries the suite itself"
    )


def test_a_part_writes_figures_and_table_and_leaves_nothing_else(tmp_path: Path) -> None:
    suite = Suite(tmp_path, "cpu", SIZES, minutes=2)
    assert suite.run(["peak"])
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert written["parts"]["peak"]["flops_per_second"] > 0
    assert "TFLOP/s" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_parts_that_the_time_does_not_suffice_for_are_named(tmp_path: Path) -> None:
    suite = Suite(tmp_path, "cpu", SIZES, minutes=0)
    names = list(suite.parts())
    assert names == ["peak", "bf16-64", "nf4-64", "memory-plan", "layouts", "bf16-96", "nf4-96"]
    assert not suite.run(names)
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [part["error"] for part in written["parts"].values()] == ["no time left"] * len(names)


def test_pairs_nearly_fill_the_length_and_never_pass_it() -> None:
    for prompt, chosen, rejected in full_pairs(1024, 200, seed=1):
        assert 1024 * 0.8 < prompt + min(chosen, rejected) <= prompt + max(chosen, rejected) <= 1024


def side(tokens: float) -> dict[str, float]:
    return {"train_tokens_per_second": tokens, "model_mb": 4000.0, "peak_memory_above_model_mb": 2500.0}


def test_the_table_has_a_row_for_each_cell_and_names_what_failed() -> None:
    kernel = {"name": "gemm", "ms_per_step": 12.5, "share": 0.4, "calls_per_step": 224.0}
    cell: dict[str, Any] = {
        "ours": side(12000.0),
        "trl": side(6000.0),
        "mfu": 0.456,
        "layout": "shared_prefix",
    }
    cell |= {
        "step_over_matrix_products": 1.31,
        "gradient_checkpointing": "none",
        "kernels": {"ours": [kernel]},
    }
    facts = {
        "date": "2026-01-02T03:04",
        "cpu": "C",
        "cores_used": 8,
        "threads": 8,
        "python": "3.11",
        "versions": {},
    }
    found = {
        "machine": facts | {"gpu": {"name": "G"}},
        "parts": {
            "peak": {"flops_per_second": 7.9e14},
            "bf16-1024": cell,
            "nf4-1024": {"error": "Traceback:\nout of memory"},
            "layouts": {"summary": "12 passed", "failed": []},
            "nf4-2048": {name: value for name, value in cell.items() if name != "trl"}
            | {"error": "TRL's time"},
        },
    }
    text = table(found)
    assert "790 TFLOP/s" in text
    assert "| bf16-1024 | 6,000 | 12,000 | 2.00 | 6.50 | 6.50 | 1.31 | 46% | none |" in text
    assert "| 12.50 | 40% | 224 | `gemm` |" in text
    assert "nf4-1024: out of memory" in text
    assert "## Tests: layouts\n\n12 passed" in text
    assert "nf4-2048: TRL's time" in text


def test_tests_that_are_stopped_leave_what_they_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "test_slow.py"
    slow.write_text(
        "import time\n\nimport pytest\n\npytestmark = pytest.mark.gpu\n\n\n"
        "def test_one():\n    pass\n\n\ndef test_two():\n    assert not 1\n\n\n"
        "def test_three():\n    time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_parts, "_TESTS", tmp_path)
    monkeypatch.setattr(gpu_parts, "_TESTS_S", 15)
    found = Suite(tmp_path, "cpu", SIZES, minutes=1).tests("test_slow.py")
    assert found["error"] == "the tests were stopped, for want of time, behind 1 that passed"
    assert len(found["failed"]) == 1
    assert "test_two FAILED" in found["failed"][0]
