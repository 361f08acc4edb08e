"""The benchmark itself: equal work on every side, memory that is really seen, rows that are really new."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

from benchmark_data import compare_digests  # noqa: E402
from benchmark_rows import json_line, numbered, read_pairs, write_rows  # noqa: E402
from benchmark_sides import SIDES  # noqa: E402

QUICKSTART = ROOT / "configs" / "quickstart"
MAX_LENGTH = 64
MEGABYTES = 60


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every side on the same forty rows, of which one has equal answers and one is too long."""
    folder = tmp_path_factory.mktemp("sides")
    rows = list(numbered(read_pairs(QUICKSTART / "train.jsonl"), max_rows=40))
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = [{"role": "assistant", "content": "word " * 2 * MAX_LENGTH}]
    write_rows(folder / "rows.jsonl", iter(rows))

    def job(side: str) -> dict[str, Any]:
        paths = {"rows": "rows.jsonl", "cache": "cache", "scratch": "trainer", "digests": f"{side}.npy"}
        settings = {"tokenizer": str(QUICKSTART / "model"), "max_length": MAX_LENGTH, "started": 0.0}
        return settings | {key: str(folder / name) for key, name in paths.items()}

    yield folder, {side: SIDES[side](job(side)) for side in ("ours", "warm", "trl", "encode")}
    datasets.enable_caching()


def digests(folder: Path, side: str) -> list[list[int]]:
    import numpy as np

    return np.load(folder / f"{side}.npy").T.tolist()


@pytest.mark.parametrize("side", ["trl", "encode"])
def test_the_sides_make_the_same_pairs_but_for_those_that_ours_says_it_left_out(
    found: tuple[Path, dict[str, Any]], side: str
) -> None:
    folder, results = found
    assert sum(results["ours"]["dropped"].values()) == 1
    check = compare_digests(digests(folder, "ours"), digests(folder, side), rows=40, left_out=1)
    assert check["problems"] == []
    # TRL ends an answer with a second stop token: no pair of its is ours as it stands.
    assert check["same"]["as they are"] == (39 if side == "encode" else 0)


def test_the_sides_differ_by_the_stop_tokens_that_trl_doubles(found: tuple[Path, dict[str, Any]]) -> None:
    _, results = found
    # A line end and a second stop token behind each answer of forty pairs but the one that is cut.
    doubled = 2 * (2 * 40 - 1)
    assert results["trl"]["tokens"] - results["encode"]["tokens"] == doubled


def test_the_second_start_does_not_prepare_again(found: tuple[Path, dict[str, Any]]) -> None:
    folder, results = found
    assert len([path for path in (folder / "cache").iterdir() if path.is_dir()]) == 1
    assert 0 < results["warm"]["seconds"] < results["warm"]["with_imports_seconds"]


def test_a_pair_that_differs_and_a_row_that_is_lost_are_told() -> None:
    ours = [[1, 2, 3]] * 3
    assert compare_digests(ours, [[1, 2, 3, 4]] * 3, rows=4, left_out=1)["problems"] == []
    assert compare_digests(ours, [[1, 2, 9, 4]] * 3, rows=4, left_out=1)["problems"] == [
        "1 of our 3 pairs are none of the other side's"
    ]
    assert compare_digests(ours, [[1, 2, 3, 4]] * 3, rows=4, left_out=0)["problems"] == [
        "4 rows, but 3 pairs and 0 rows left out"
    ]


def test_numbered_rows_are_all_different_and_as_many_bytes_as_were_asked_for() -> None:
    pairs = read_pairs(QUICKSTART / "train.jsonl")[:7]
    limit = 5000
    rows = list(numbered(pairs, max_bytes=limit))
    lines = [json_line(row) for row in islice(numbered(pairs), len(rows) + 1)]
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert len(set(lines)) == len(lines) > len(pairs)
    assert sum(map(len, lines[:-1])) <= limit < sum(map(len, lines))


def measured_alone(work: str) -> dict[str, float]:
    """Figures of the work in a process of its own, as every side is measured.

    In pytest's own process a collection of garbage frees, at any moment, more than the work takes.
    """
    lines = ["import json, subprocess, sys", f"sys.path.append({str(ROOT / 'scripts')!r})"]
    lines += ["from benchmark_process import Meter, memory", "with Meter(memory()) as meter:"]
    lines += [f"    {line}" for line in work.splitlines()] + ["print(json.dumps(meter.figures()))"]
    words = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def test_the_meter_sees_memory_that_came_and_went() -> None:
    figures = measured_alone(f"block = b'1' * {MEGABYTES * 10**6}\ndel block")
    assert 0.9 * MEGABYTES < figures["peak_mb"] < 2 * MEGABYTES
    assert figures["seconds"] > 0


def test_the_meter_sees_the_memory_of_worker_processes() -> None:
    worker = f"import time; block = b'1' * {MEGABYTES * 10**6}; time.sleep(1.5)"
    figures = measured_alone(f"subprocess.run([sys.executable, '-c', {worker!r}], check=True)")
    assert 0.9 * MEGABYTES < figures["worker_processes_mb"] < 2 * MEGABYTES
    assert figures["peak_anonymous_mb"] > 0.9 * MEGABYTES


def test_streamed_rows_are_all_accounted_for(tmp_path: Path) -> None:
    pairs = QUICKSTART / "train.jsonl"
    limit = 30_000
    job = {"rows": None, "pairs": str(pairs), "bytes": limit, "cache": str(tmp_path / "cache")}
    result = SIDES["stream"](job | {"tokenizer": str(QUICKSTART / "model"), "max_length": 1024})
    expected = sum(1 for _ in numbered(read_pairs(pairs), max_bytes=limit))
    assert result["rows"] == expected
    assert result["batches"] == -(-expected // 8)
    assert result["cache_bytes"] > 0


def test_the_command_prints_a_table_and_writes_figures_and_chart(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "data", "--out", str(tmp_path)]
    options = ["--rows", "50", "--runs", "1", "--sides", "encode"]
    done = subprocess.run(words + options, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "the tokenizer alone (floor)" in done.stdout
    written = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert written["summary"]["encode"]["pairs"]["median"] == 50
    assert (tmp_path / "data.png").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "data.png"]


def test_an_unknown_side_is_refused_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "data", "--out", str(tmp_path)]
    done = subprocess.run([*words, "--sides", "ours,trl9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "--sides: expected some of ours, trl, trl2, encode, found trl9"
