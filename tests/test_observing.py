"""What a run tells of itself, without a run: lines, sentences, records, plots, names of GPUs."""

from __future__ import annotations

import errno
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orpo_lightning.batching.packing import FILLER
from orpo_lightning.errors import DataError, DivergedError, SurroundingsError
from orpo_lightning.observing.answers import markdown_table
from orpo_lightning.observing.canary import GENERAL, MOST_TEXTS, read_texts, text_batch
from orpo_lightning.observing.displacement import Change, meaning, sentence
from orpo_lightning.observing.files import append_values, cut_lines, read_lines
from orpo_lightning.observing.plots import layout
from orpo_lightning.observing.record import RunRecord, WarningsOf, how_it_failed, read_record
from orpo_lightning.observing.scored_pairs import ScoredPairs, scored_pairs
from orpo_lightning.planning.gpus import gpu_of_driver
from orpo_lightning.stop_signals import Stopped

# Lines


def test_lines_are_json_and_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "run" / "curves.jsonl"
    rows: list[dict[str, Any]] = [
        {"step": 1, "a": 0.1, "b": math.inf, "text": "ü\n|"},
        {"step": 2, "a": -math.inf, "b": math.nan},
    ]
    for row in rows:
        append_values(file, row, "the file")
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {"step": 1, "a": 0.1, "b": "Infinity", "text": "ü\n|"}
    assert second == {"step": 2, "a": "-Infinity", "b": "NaN"}
    found = read_lines(file)
    assert found[0] == rows[0]
    assert found[1]["a"] == -math.inf
    assert math.isnan(found[1]["b"])
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_line_that_a_kill_cut_short_is_left_out_and_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "curves.jsonl"
    append_values(file, {"step": 1}, "the file")
    with file.open("a") as stream:
        stream.write('{"step": 2, "los')
    assert read_lines(file) == [{"step": 1}]
    append_values(file, {"step": 3}, "the file")  # of a test, which cuts nothing
    assert read_lines(file) == [{"step": 1}, {"step": 3}]
    cut_lines(file, None)
    assert file.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_lines_from_a_step_on_are_cut_off_and_those_before_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "curves.jsonl"
    for step in (5, 10, 10, 15, 20):
        append_values(file, {"step": step, "x": 1 / 3}, "the file")
    before = file.read_bytes().splitlines(keepends=True)
    cut_lines(file, 15)
    assert file.read_bytes() == b"".join(before[:3])
    cut_lines(file, 0)
    assert file.read_bytes() == b""
    cut_lines(tmp_path / "none.jsonl", 0)


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(SurroundingsError, match=r"the disk is full: the record .*a\.json.*free are"):
        RunRecord(tmp_path / "a.json").write()
    with pytest.raises(SurroundingsError, match=r"the disk is full: the curves .*b\.jsonl"):
        append_values(tmp_path / "b.jsonl", {"step": 1}, "the curves")
    monkeypatch.undo()
    assert (tmp_path / "a.json").read_text() == "old"


# Displacement

UP, STILL, DOWN = Change(0.2, 0.1, 0.3), Change(0.02, -0.1, 0.14), Change(-0.2, -0.3, -0.1)
WRONG = "the preference goes the wrong way"
LEARNED = "preferences are learned"


@pytest.mark.parametrize(
    ("chosen", "rejected", "gap", "expected"),
    [
        (UP, DOWN, UP, f"{LEARNED}, and the chosen answers come easier too"),
        (UP, STILL, UP, f"{LEARNED}: the chosen answers come easier, the rejected ones do not"),
        (UP, UP, UP, f"{LEARNED} while both kinds of answers come easier"),
        (UP, UP, STILL, "both gain alike: the style of the answers is learned, the preference not yet"),
        (UP, UP, DOWN, f"the rejected answers gain more than the chosen ones: {WRONG}"),
        (STILL, DOWN, UP, f"{LEARNED} by turning away from the rejected answers alone"),
        (STILL, STILL, STILL, "no movement that counts, or that this many pairs could show"),
        (STILL, UP, DOWN, f"the rejected answers gain and the chosen ones do not: {WRONG}"),
        (DOWN, DOWN, UP, f"{LEARNED}, fluency is being paid for it"),
        (DOWN, DOWN, STILL, "both lose alike: fluency is lost and no preference gained"),
        (
            DOWN,
            DOWN,
            DOWN,
            f"the chosen answers lose more than the rejected ones: {WRONG}, and fluency is lost",
        ),
        (DOWN, STILL, DOWN, f"the chosen answers lose and the rejected ones do not: {WRONG}"),
        (DOWN, UP, DOWN, f"{WRONG}: are chosen and rejected exchanged in the data?"),
    ],
    ids=str,
)
def test_every_combination_of_signs_has_its_meaning(
    chosen: Change, rejected: Change, gap: Change, expected: str
) -> None:
    assert meaning(chosen, rejected, gap) == expected


def test_each_of_the_twenty_seven_directions_has_a_meaning() -> None:
    signs = (UP, STILL, DOWN)
    assert len({meaning(a, b, c) for a in signs for b in signs for c in signs}) == 13


def test_the_sentence_gives_both_changes_with_signs_and_intervals() -> None:
    found = sentence(Change(-0.12, -0.15, -0.09), Change(-0.31, -0.36, -0.26), Change(0.19, 0.15, 0.23))
    assert found == (
        "chosen -0.12 [-0.15, -0.09], rejected -0.31 [-0.36, -0.26] since the base: "
        "preferences are learned, fluency is being paid for it"
    )
    assert str(Change(0.5)) == "+0.5"
    assert [Change(value).direction for value in (0.5, 0.0, -0.5)] == [1, 0, -1]
    assert Change(4e-7, 3e-7, 5e-7).direction == 0, "surely more than nothing, and still nothing"


# The record


def test_a_record_goes_on_where_an_earlier_process_left_it(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    first = RunRecord(file)
    first.warn("careful")
    first.warn("careful")
    first.write(steps=3, peak_memory_mb=50.0)
    started = first.facts["started"]
    content = json.loads(file.read_text()) | {"seconds": 100.0}
    assert (content["ended"], content["how"], content["canary"]) == (None, None, None)
    file.write_text(json.dumps(content))  # the process was killed after 100 seconds
    second = RunRecord(file, goes_on=True)
    second.warn("again")
    second.end("completed")
    second.write(steps=9, peak_memory_mb=40.0)
    found = read_record(file)
    assert found["started"] == started
    assert found["warnings"] == ["careful", "again"]
    assert (found["steps"], found["how"], found["peak_memory_mb"]) == (9, "completed", 50.0)
    assert 100 <= found["seconds"] < 160
    assert found["ended"] >= started
    anew = RunRecord(file)
    assert (anew.facts["warnings"], anew.facts["steps"]) == ([], None)


def test_the_record_keeps_warnings_and_errors_of_the_package_with_secrets_masked(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "record.json")
    logger = logging.getLogger("orpo_lightning.test")
    logger.addHandler(handler := WarningsOf(record))
    logger.info("nothing")
    logger.warning("see https://me:secret@example.org")
    logger.removeHandler(handler)
    assert len(record.facts["warnings"]) == 1
    assert "secret" not in record.facts["warnings"][0]


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (Stopped(15), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (DivergedError("no finite gradient in 5 steps"), "failed: no finite gradient in 5 steps"),
        (RuntimeError("\nCUDA error: bad\nmore"), "failed: CUDA error: bad"),
    ],
    ids=str,
)
def test_how_a_run_ended_is_told_from_its_error(error: BaseException, how: str) -> None:
    assert how_it_failed(error) == how


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"half')
    assert read_record(tmp_path / "record.json") == {}


# Pairs


def test_pairs_are_told_from_shares_by_their_numbers_without_fillers_and_pairs_that_count_nothing() -> None:
    names = ["loss", "logps/chosen", "logps/rejected"]

    def share(*pairs: tuple[float, float, float]) -> torch.Tensor:
        """Chosen, rejected, count of each pair."""
        return torch.tensor([[[9.0, 9.0], [c * n, n], [r * n, n]] for c, r, n in pairs])

    base = np.array([[-1, -2], [-3, -4], [-5, -6], [np.nan, np.nan]], np.float32)
    shares = [share((-0.5, -0.7, 1), (-0.25, -0.75, 1)), share((-0.125, -0.5, 0), (0, 0, 0))]
    found = scored_pairs(shares, names, [[3, 0], [1, FILLER], [2]], base)
    assert found is not None
    assert found.numbers.tolist() == [3, 0]
    assert found.now.tolist() == pytest.approx(np.array([[-0.5, -0.7], [-0.25, -0.75]]))
    assert np.isnan(found.base[0]).all()
    assert found.base[1].tolist() == [-1, -2]
    other = ScoredPairs(np.array([2, 1]), np.array([[-3.0, -4], [-1, -2]]), np.full((2, 2), np.nan))
    joined = ScoredPairs.join([found, other])
    assert joined.numbers.tolist() == [0, 1, 2, 3]
    assert joined.now[:, 0].tolist() == pytest.approx([-0.25, -1, -3, -0.5])
    assert scored_pairs(shares, ["loss", "logps/chosen", "other"], [[0]], None) is None


# TensorBoard


def test_the_page_of_plots_names_each_tag_as_one_pattern_and_bands_by_their_three_tags() -> None:
    plots = [plot for category in layout().values() for plot in category.values()]
    for kind, tags in plots:
        assert kind in ("Multiline", "Margin")
        if kind == "Margin":
            name = tags[0].removeprefix("val/")
            assert tags == [f"val/{name}", f"val_ci_low/{name}", f"val_ci_high/{name}"]
        else:
            assert all(re.fullmatch(tag, tag[1:-1]) for tag in tags)
    some = layout(without={"train/mfu", "val/rewards/margins"})
    assert sum(map(len, some.values())) == len(plots) - 2
    assert "share of the peak (MFU)" not in some["3 How fast?"]


def test_an_answer_cannot_break_the_table_it_stands_in() -> None:
    rows = [
        {"prompt": "a|b\n\nc", "base": "<script>x</script>", "before": None, "now": "[link](http://x) **b**"}
    ]
    head, line, row = markdown_table(rows).splitlines()
    assert head == "| prompt | base | before | now |"
    assert line.count("---") == 4
    assert row.count("|") == 5
    assert "<script" not in row
    assert "a&#124;b<br><br>c" in row
    assert "](" not in row


# The canary


def test_the_packages_own_canary_is_a_dozen_texts() -> None:
    texts = read_texts(GENERAL)
    assert len(texts) == 12
    assert all(100 < len(text) < 250 for text in texts)


def test_a_canary_is_read_from_paragraphs_or_rows_and_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n\nthree\n")
    assert read_texts(str(tmp_path / "a.txt")) == ["one two", "three"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(MOST_TEXTS + 9)))
    assert len(read_texts(str(tmp_path / "a.jsonl"))) == MOST_TEXTS
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "empty.txt").write_text("\n\n")
    for name in ("b.jsonl", "empty.txt", "none.txt"):
        with pytest.raises(DataError, match=rf"canary: .*{name}"):
            read_texts(str(tmp_path / name))


def test_every_token_of_a_text_but_its_first_is_a_target() -> None:
    batch = text_batch([[5, 6, 7], [8, 9]])
    assert batch.model_inputs["input_ids"].tolist() == [[5, 6, 7], [0, 8, 9]]
    assert batch.model_inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch.target_ids.tolist() == [6, 7, 9]
    assert batch.target_positions.tolist() == [0, 1, 4]


# Speed


@pytest.mark.parametrize(
    ("driver", "gpu"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100-40GB"),  # of the same speed
        ("NVIDIA A100 80GB PCIe", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Radeon", None),
        ("", None),
    ],
)
def test_a_drivers_name_means_a_gpu_of_known_speed_or_none(driver: str, gpu: str | None) -> None:
    found = gpu_of_driver(driver)
    assert (None if found is None else found.name) == gpu
