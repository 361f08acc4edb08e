"""`generate`: every row answered once, in order, and the same bytes after a kill."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_model, tiny_tokenizer

from orpo_lightning.__main__ import main
from orpo_lightning.data.prompts import Prompt
from orpo_lightning.modeling import add_lora, load_base
from orpo_lightning.using import answer_file
from orpo_lightning.using.generation import Answerer, Sampling

ROOT = Path(__file__).parent.parent
TEXTS = ["the", "an the other thing is on", "a" * 9, "You and the others", "i", "what is it then, you?", "or"]
ROWS = [
    {"id": n, "prompt": [{"role": "user", "content": text}], "kept": {"a": [n]}}
    for n, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer("chatml")
    tiny_model("llama", tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "variant": "lora"}
    adapted = add_lora(load_base(model), init="default", **settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    adapted.save_pretrained(folder)
    return str(folder)


def prompts(folder: Path, rows: list[Any] = ROWS) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def generate(model: str, asked: str, out: Path, *words: str) -> int:
    settings = ("--max_new_tokens", "6", "--batch_size", "3", "--accelerator", "cpu")
    return main(["generate", model, "--prompts", asked, "--out", str(out), *settings, *words])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_comes_out_in_order_with_what_it_had_and_its_answer(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, prompts(tmp_path), tmp_path / "out.jsonl") == 0
    rows = read(tmp_path / "out.jsonl")
    assert [{key: value for key, value in row.items() if key != "answer"} for row in rows] == ROWS
    one = Answerer(load_base(model), tiny_tokenizer("chatml"))
    ids = one.prompts.encode(Prompt(row["prompt"], "row") for row in ROWS)  # type: ignore[arg-type]
    assert [row["answer"] for row in rows] == [a.text for a in one.answers(ids, Sampling(max_new_tokens=6))]
    told = capsys.readouterr()
    assert told.out == ""
    assert "prompts       7 through the chat template\n" in told.err
    assert "7/7 rows" in told.err
    assert "eta 0:00:00" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_side_by_side_the_base_answers_too(model: str, adapter: str, tmp_path: Path) -> None:
    assert generate(adapter, prompts(tmp_path), tmp_path / "both.jsonl", "--side_by_side") == 0
    assert generate(model, prompts(tmp_path), tmp_path / "base.jsonl") == 0
    both, base = read(tmp_path / "both.jsonl"), read(tmp_path / "base.jsonl")
    assert [row["base_answer"] for row in both] == [row["answer"] for row in base]
    assert [row["answer"] for row in both] != [row["base_answer"] for row in both]


class Killed(BaseException):
    """Stands for a signal that nobody can handle."""


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    model: str,
    tmp_path: Path,
    temperature: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, out, whole = prompts(tmp_path), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    drawn = ("--temperature", temperature)
    assert generate(model, asked, whole, *drawn) == 0
    keep, calls = answer_file._keep, []

    def kept_and_killed(partial: Path, key: str, answers: Any) -> None:
        keep(partial, key, answers)
        calls.append(key)
        if len(calls) == 2:
            with partial.open("a") as stream:
                stream.write('\n{"batch": "cut of')
            raise Killed

    monkeypatch.setattr(answer_file, "_keep", kept_and_killed)
    with pytest.raises(Killed):
        generate(model, asked, out, *drawn)
    assert not out.exists()
    monkeypatch.setattr(answer_file, "_keep", lambda *words: (calls.append(words[1]), keep(*words)))
    capsys.readouterr()
    assert generate(model, asked, out, *drawn) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(calls) == 3  # three batches: the last of them alone was answered the second time
    assert "6 of 7 rows were answered before" in capsys.readouterr().err
    assert not Path(f"{out}.partial").exists()


@pytest.mark.parametrize(
    "change", ["row", "--seed 1 --temperature 1", "--max_new_tokens 5", "--batch_size 2", "model"]
)
def test_what_was_kept_counts_only_for_the_same_rows_model_and_settings(
    model: str, adapter: str, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"

    def full(rows: Any, path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(answer_file, "write_rows", full)
        with pytest.raises(Killed):
            generate(model, prompts(tmp_path), out)
    rows = (
        [{**ROWS[0], "prompt": [{"role": "user", "content": "other"}]}, *ROWS[1:]]
        if change == "row"
        else ROWS
    )
    kept = answer_file._kept(Path(f"{out}.partial"))
    assert len(kept) == 3
    keep, calls = answer_file._keep, []
    monkeypatch.setattr(answer_file, "_keep", lambda *words: (calls.append(words[1]), keep(*words)))
    words = change.split() if change.startswith("--") else []
    assert generate(adapter if change == "model" else model, prompts(tmp_path, rows), out, *words) == 0
    assert len(calls) >= (1 if change == "row" else 3)
    assert not set(calls) & set(kept)
    assert [row["id"] for row in read(out)] == list(range(7))


def test_killed_for_real_it_goes_on(model: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{text} {n}"} for n in range(9) for text in TEXTS]
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    words = ["generate", model, "--prompts", prompts(tmp_path, rows), "--out", str(out)]
    words += ["--max_new_tokens", "40", "--batch_size", "4", "--accelerator", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "orpo_lightning", *words], cwd=ROOT, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (partial.is_file() and partial.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = answer_file._kept(partial)
    assert done
    assert main(words) == 0
    assert [row["prompt"] for row in read(out)] == [row["prompt"] for row in rows]
    found = {row["answer"] for row in read(out)}
    assert {one[0]["text"] for answers in done.values() for one in answers} <= found


def test_through_standard_input_and_output(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b'{"prompt": "the"}\n{"messages": [{"role": "user", "content": "a"}]}\n'
    asked = io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines)))
    monkeypatch.setattr("sys.stdin", asked)
    words = ("--prompts", "-", "--out", "-", "--max_new_tokens", "3", "--accelerator", "cpu")
    assert main(["generate", model, *words]) == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "prompt"], ["answer", "messages"]]
    assert "1 through the chat template, 1 plain text, taken as it is" in told.err


def test_a_pair_is_answered_by_its_prompt(model: str, tmp_path: Path) -> None:
    pair = {
        "prompt": "the",
        "chosen": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "a"}],
    }
    pair["rejected"] = [pair["chosen"][0], {"role": "assistant", "content": "b"}]  # type: ignore[index]
    messages = {"prompt": [{"role": "user", "content": "the"}]}
    assert generate(model, prompts(tmp_path, [pair, messages]), tmp_path / "out.jsonl") == 0
    rows = read(tmp_path / "out.jsonl")
    assert rows[0]["answer"] == rows[1]["answer"]


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ('{"prompt": "a"', 3, "prompts.jsonl:2: is not JSON"),
        ("[1]", 3, "prompts.jsonl:2: expected an object with a prompt, found a list"),
        ('{"question": "a"}', 3, "prompts.jsonl:2: expected a key prompt or messages, found 'question'"),
        ('{"prompt": "a", "answer": "b"}', 3, "prompts.jsonl:2: has a key 'answer' already"),
        (json.dumps({"prompt": "a b " * 300}), 3, "prompts.jsonl:2: the prompt's "),
    ],
    ids=["json", "list", "key", "answered", "long"],
)
def test_a_row_that_cannot_be_used_is_a_line_with_its_place(
    model: str, tmp_path: Path, row: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "the"}}\n{row}\n')
    assert generate(model, str(file), tmp_path / "out.jsonl") == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 2), Decimal("1.5"), b"bytes", float("nan"), [{"at": date(2026, 1, 2)}]],
    ids=["time", "decimal", "bytes", "nan", "nested"],
)
def test_a_value_that_json_lacks_is_told_before_a_model_is_loaded(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["the", "a"], "when": pa.array([None, value])}), file)
    assert generate("no/such/model", str(file), tmp_path / "out.jsonl") == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {file} row 2: column 'when' cannot be written as JSON (")


def test_half_of_a_character_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = prompts(tmp_path, [{"prompt": "the", "note": "\ud83d"}])
    assert generate("no/such/model", asked, tmp_path / "out.jsonl") == 3
    assert "prompts.jsonl:1" in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, out = prompts(tmp_path), tmp_path / "out.jsonl"
    for words, line in [
        ((model, str(tmp_path / "none.jsonl"), out), "--prompts: expected a file or -, found nothing"),
        ((model, asked, tmp_path / "no" / "out.jsonl"), "--out: there is no folder"),
        ((model, asked, Path(asked)), "is there already"),
        ((model, asked, out, "--side_by_side"), "it has no adapter to switch off"),
        ((model, asked, out, "--batch_size", "0"), "--batch_size: expected 1 or more, found 0"),
        (
            (model, asked, out, "--temprature", "1"),
            "unknown option --temprature: did you mean --temperature?",
        ),
    ]:
        assert generate(*words) == 2  # type: ignore[arg-type]
        assert line in capsys.readouterr().err
