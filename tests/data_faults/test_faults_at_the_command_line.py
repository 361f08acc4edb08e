"""The fault table from outside: exit codes, one line on stderr, and what a run writes of what it left out."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import amid, chats, line_of, texts, turn, write

ROOT = Path(__file__).parent.parent.parent


def lines(*items: Any) -> bytes:
    return b"".join(line_of(item) + b"\n" for item in items)


def reversed_by_length(count: int) -> list[dict[str, Any]]:
    """Return pairs of which the chosen answer is always the shorter and poorer one."""
    good = " It is so for a good reason, which is easy to see."
    worse = [row["rejected"][0]["content"] + good for row in chats(count)]
    return [
        row | {"rejected": [turn("assistant", text)]} for row, text in zip(chats(count), worse, strict=True)
    ]


def amid_chats(bad: Any) -> bytes:
    return lines(*amid(bad, chats()))


CHAT, TEXT = chats(1)[0], texts(1)[0]
DEEP = '{"a": ' + "[" * 9999 + "]" * 9999 + "}"
# id and name of a fault: the content of its file, and what the line on stderr says behind the file's path.
STOPPING: dict[str, tuple[bytes, str]] = {
    "D01 empty": (b"", " is empty: expected at least one preference pair"),
    "D03 cut off": (lines(*chats(200))[:-9], ":200: is not JSON: "),
    "D03 packed and cut off": (gzip.compress(lines(*chats()))[:-9], ": its gzip data ends too early, "),
    "D04 broken": (amid_chats('{"prompt"'), ":21: is not JSON: "),
    "D05 latin-1": (amid_chats(b'{"prompt": "\xe9"}'), ":21: is not UTF-8 text (byte 12); "),
    "D09 a list": (amid_chats("[1, 2]"), ":21: expected an object with chosen and rejected, found a list"),
    "D12 null": (amid_chats(CHAT | {"chosen": None}), ":21: chosen must be text or a list of messages"),
    "D21 role": (lines(CHAT | {"prompt": [turn("bot", "Hi")]}), ":1: prompt[0]: role must be one of"),
    "D37 surrogate": (lines(TEXT | {"chosen": "\ud800"}), ":1: chosen is not valid Unicode: "),
    "D38 deep": (lines(DEEP), ":1: is not usable JSON: lists and objects stand more than 100 deep"),
    "D41 bad": (lines(*texts(4), *[TEXT | {"chosen": ""}] * 6), ": 6 of 10 rows (60.0%) cannot be used"),
}
PLAIN = ("--trainer.max_steps", "1", "--trainer.log_every_n_steps", "1", "--data.validation", "null")
LONG = [
    {"prompt": "Why? " * 99, "chosen": "So.", "rejected": "No."},
    {"prompt": "Why? ", "chosen": "So. " * 99, "rejected": "No."},
]
HUGE = CHAT | {"rejected": [turn("assistant", "the cat and you " * (20_000_000 // 16))]}


class Done(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str
    peak: int
    folder: Path

    def header(self) -> dict[str, str]:
        rows = (line.split("  ", 1) for line in self.out.splitlines() if "  " in line)
        return {label: text.strip() for label, text in rows}

    def left_out(self) -> list[tuple[str, str]]:
        file = self.folder / "run" / "dropped.jsonl"
        items = map(json.loads, file.read_text().splitlines())
        return [(item["where"].removeprefix(f"{self.folder}/"), item["reason"]) for item in items]


def fit(folder: Path, content: dict[str, bytes], *words: str) -> list[str]:
    """Write files into a folder, and return the words that train on the first of them."""
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    train = next(iter(content))
    words = (*words, "--data.train", str(folder / train), "--data.cache_dir", str(folder / "cache"))
    return ["fit", "-c", "configs/quickstart.yaml", *PLAIN, *words, "--run_dir", str(folder / "run")]


def command_lines(root: Path) -> dict[str, list[str]]:
    cases = {name: fit(root / name, {"x.jsonl": data}) for name, (data, _) in STOPPING.items()}
    cases["D02 missing"] = [*fit(root / "D02 missing", {"pairs.jsonl": b""})]
    cases["D02 missing"] += ["--data.train", str(root / "D02 missing" / "pair.jsonl")]
    skip, truncate = ("--data.on_error", "skip"), ("--data.overlong", "truncate")
    cases["D04 skipped"] = fit(root / "D04 skipped", {"x.jsonl": lines(*amid("{", chats()))}, *skip)
    quality = lines(*amid(CHAT | {"chosen": []}, chats()), *LONG)
    cases["D28 long"] = fit(root / "D28 long", {"x.jsonl": lines(*texts(), *LONG)}, *truncate)
    cases["D16 quality"] = fit(root / "D16 quality", {"x.jsonl": quality}, *skip, "--data.max_dropped", "0.5")
    cases["baseline"] = fit(root / "baseline", {"x.jsonl": lines(*chats())})
    cases["D32 huge"] = fit(root / "D32 huge", {"x.jsonl": lines(*chats(), HUGE)}, *truncate)
    small = ("--data.batch_size", "8", "--trainer.accumulate_grad_batches", "4")
    cases["D40 one row"] = fit(root / "D40 one row", {"x.jsonl": lines(*chats(1))}, *small)
    empty = {"x.jsonl": lines(*chats()), "v.jsonl": b""}
    cases["D40 empty validation"] = fit(root / "D40 empty validation", empty)
    cases["D40 empty validation"] += ["--data.validation", str(root / "D40 empty validation" / "v.jsonl")]
    cases["D42 first"] = fit(root / "D42", {"x.jsonl": lines(*chats())})
    resumed = [*cases["D42 first"], "--resume", "auto", "--trainer.max_steps", "2"]
    write(root / "D42" / "changed.jsonl", chats(38))
    cases["D42"] = ["copy", str(root / "D42" / "changed.jsonl"), str(root / "D42" / "x.jsonl")]
    cases["D42 changed"] = resumed
    cases["D42 accepted"] = [*resumed, "--data.changed_data", "accept"]
    cases["D44 inspect"] = inspect(root / "D44 inspect", {"x.jsonl": lines(*reversed_by_length(40))})
    return cases


def inspect(folder: Path, content: dict[str, bytes]) -> list[str]:
    """Return the words that inspect what `fit` would train on."""
    words = fit(folder, content)
    words[0], words[words.index("--run_dir")] = "inspect", "--out"
    return words


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run all command lines, one behind the other."""
    root = tmp_path_factory.mktemp("command_lines")
    cases, results = root / "cases.json", root / "results.json"
    cases.write_text(json.dumps(command_lines(root)))
    command = [sys.executable, str(Path(__file__).parent / "command_lines.py"), str(cases), str(results)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ORPO_DEBUG": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    return {name: Done(**one, folder=root / name) for name, one in json.loads(results.read_text()).items()}


@pytest.mark.parametrize("name", STOPPING)
def test_a_fault_ends_fit_with_exit_code_3_and_one_line_that_names_its_place(
    name: str, done: dict[str, Done]
) -> None:
    found, (_, words) = done[name], STOPPING[name]
    assert found.code == 3
    assert len(found.err.splitlines()) == 1, found.err
    assert f"{found.folder / 'x.jsonl'}{words}" in found.err
    assert "Traceback" not in found.out + found.err
    assert not (found.folder / "run" / "checkpoints").exists()


def test_d02_a_missing_file_ends_fit_with_the_nearest_name(done: dict[str, Done]) -> None:
    found = done["D02 missing"]
    assert found.code == 3
    (line,) = found.err.splitlines()
    assert f"no such file (did you mean {found.folder / 'pairs.jsonl'}?)" in line


def test_d04_a_skipped_row_is_counted_in_the_header_and_listed_in_the_run_folder(
    done: dict[str, Done],
) -> None:
    found = done["D04 skipped"]
    assert (found.code, found.err) == (0, "")
    assert found.left_out() == [("x.jsonl:21", "broken row")]
    assert found.header()["train"].startswith("40 pairs of ")
    assert found.header()["left out"].startswith("1 rows, each with its reason in ")


def test_d16_every_kind_of_left_out_row_is_listed_with_its_reason_and_content(done: dict[str, Done]) -> None:
    found = done["D16 quality"]
    assert found.code == 0, found.err
    # The last two have no messages, where the first row had.
    assert found.left_out() == [(f"x.jsonl:{number}", "broken row") for number in (21, 42, 43)]
    items = map(json.loads, (found.folder / "run" / "dropped.jsonl").read_text().splitlines())
    assert [item["row"].get("prompt") for item in items][1:] == [row["prompt"] for row in LONG]


def losses(found: Done) -> list[float]:
    steps = [line for line in found.out.splitlines() if line.startswith("step 1/")]
    return [float(line.partition("loss ")[2].split()[0]) for line in steps]


def test_d28_training_on_cut_pairs_has_a_finite_loss_above_zero(done: dict[str, Done]) -> None:
    found = done["D28 long"]
    assert (found.code, found.err) == (0, "")
    assert found.left_out() == [("x.jsonl:41", "prompt leaves no room for an answer")]
    (loss,) = losses(found)
    assert 0 < loss < 100


def test_d32_a_row_of_20_megabytes_takes_little_memory_and_is_trained_on(done: dict[str, Done]) -> None:
    found = done["D32 huge"]
    assert (found.code, found.err) == (0, "")
    assert "1 answers cut" in found.header()["train"]
    assert found.peak - done["baseline"].peak < 300e6


def test_d40_one_row_in_batches_of_32_is_trained_on(done: dict[str, Done]) -> None:
    found = done["D40 one row"]
    assert (found.code, found.err) == (0, "")
    assert found.header()["steps"] == "1 in all, 1 per pass over the data"
    (loss,) = losses(found)
    assert 0 < loss < 100


def test_d40_an_empty_validation_file_is_named(done: dict[str, Done]) -> None:
    found = done["D40 empty validation"]
    assert found.code == 3
    (line,) = found.err.splitlines()
    assert f"{found.folder}/v.jsonl is empty: expected at least one preference pair" in line


def test_d42_a_run_does_not_go_on_with_other_data_unless_it_is_told_to(done: dict[str, Done]) -> None:
    assert done["D42 first"].code == 0, done["D42 first"].err
    changed = done["D42 changed"]
    assert changed.code == 4
    (line,) = changed.err.splitlines()
    assert "the training data differs from the checkpoint's" in line
    assert "--data.changed_data accept" in line
    assert done["D42 accepted"].code == 0, done["D42 accepted"].err


def test_d44_pairs_whose_chosen_answer_is_always_shorter_are_told_by_the_length_baseline(
    done: dict[str, Done],
) -> None:
    found = done["D44 inspect"]
    assert found.code == 0, found.err
    report = json.loads((found.folder / "run" / "report.json").read_text())["splits"]["train"]
    assert report["longer"]["longer_wins_accuracy"] == 0
    assert report["longer"]["rejected_longer"] == 1
    (hint,) = report["hints"]
    assert "is right for only 0.0% of the pairs: labels may be reversed" in hint
    assert "labels may be reversed" in " ".join(found.out.split())
