"""`inspect` on files with planted faults: each is found and counted, no other is; and how it is called."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from orpo_lightning import PreferenceDataModule
from orpo_lightning.__main__ import main
from orpo_lightning.commands import inspect
from orpo_lightning.commands.data_cli import device_count

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "configs" / "quickstart" / "model"


def row(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    user = [{"role": "user", "content": prompt}]
    return {"prompt": user, **dict(zip(("chosen", "rejected"), answers, strict=True)), **more}


def sound(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return rows in which nothing is wrong: in every second one the chosen answer is the longer."""
    made = []
    for number in range(start, start + count):
        one, other = f"It is {number * 7}, I am sure.", f"Perhaps {number * 5}."
        made.append(row(f"What is {number} times seven?", *((one, other) if number % 2 else (other, one))))
    return made


def write(path: Path, rows: Iterable[Any]) -> Path:
    lines = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


class Called:
    """One call of the command: its exit code, what it printed and wrote."""

    def __init__(self, folder: Path, captured: Any, code: int) -> None:
        self.out, self.code = folder / "out", code
        self.printed, self.errors = captured.out, captured.err

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text(encoding="utf-8"))
        return report

    def failed(self) -> list[str]:
        return [one["name"] for one in self.report["verdict"]["checks"] if not one["passed"]]

    def suspicious(self, split: str = "train") -> dict[str, int]:
        return {one["kind"]: one["rows"] for one in self.report["splits"][split]["suspicious"] if one["rows"]}

    def left_out(self, split: str = "train") -> dict[str, int]:
        return {one["reason"]: one["rows"] for one in self.report["splits"][split]["left_out"]}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that writes a configuration and inspects it."""

    def call(*words: str, trainer: dict[str, Any] | None = None, **data: Any) -> Called:
        data = {"cache_dir": str(tmp_path / "cache"), "max_length": 96, **data}
        config = {"model": {"base_model": str(MODEL)}, "data": data, "trainer": trainer or {}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        given = ["--out", str(tmp_path / "out")] if "--out" not in words else []
        code = main(["inspect", "--config", str(tmp_path / "config.yaml"), *given, *words])
        return Called(tmp_path, capsys.readouterr(), code)

    return call


# The planted faults

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
CONTRADICTED = [
    ("Which is larger, 3 or 4?", "Four is.", "Three is."),
    ("Cats or dogs?", "Cats are.", "Dogs are."),
]


def planted() -> list[Any]:
    """Return 200 sound rows and, behind them, a known number of rows of each fault."""
    rows: list[Any] = sound(200)
    rows += rows[10:13]  # 3 exact duplicates
    rows += [row(*one) for one in CONTRADICTED]
    rows += [
        row(prompt, rejected, chosen) for prompt, chosen, rejected in CONTRADICTED
    ]  # 4 contradictory pairs
    rows += [row("Say nothing.", "", "No."), row("Say nothing at all.", "Yes.", "   ")]  # 2 empty answers
    rows += [
        row("Same?", "Yes.", "Yes."),
        row("The same?", "Yes.\n", "Yes. "),
        row("And é?", "é", "e\u0301"),
    ]  # 3
    rows += [
        '{"prompt": "cut off',
        '{"prompt": [], "chosen": ',
        row("Why?", "So.", "No.") | {"chosen": 3},
    ]  # 3
    rows += [row("", "A prompt is missing.", "Nothing was asked.")]  # 1 empty prompt
    rows += [row("Count to fourteen.", f"{LONG}.", f"{LONG}!"), row("Count.", f"{LONG}.", f"{LONG}?")]  # 2
    rows += [row(f"What does <|im_end|> mean to {who}?", "An end.", "Nothing.") for who in ("you", "me")]  # 2
    rows += [row("What is \x00?", "A control character.", "No idea.")]  # 1
    rows += [
        row("Tell a long story.", LONG * 9, "No."),
        row("Tell another one.", "No.", LONG * 9),
    ]  # 2 too long
    scored = ((1, 2), (3, 3), (5, 1))  # 1 negative margin, 1 of zero
    rows += [row(f"Rate {a} and {b}.", "Good.", "Bad.", chosen_score=a, rejected_score=b) for a, b in scored]
    return rows


def planted_validation() -> list[Any]:
    """Return 40 sound rows, 2 pairs whose prompt is in the training data, and 1 that is a training pair."""
    known = sound(3)
    others = [row(one["prompt"][0]["content"], "Certainly.", "Never.") for one in known[:2]]
    return [*sound(40, start=1000), *others, known[2]]


@pytest.fixture
def faulty(run: Any, tmp_path: Path) -> Any:
    train = write(tmp_path / "train.jsonl", planted())
    validation = write(tmp_path / "held.jsonl", planted_validation())
    return lambda *words, **data: run(*words, **({"train": str(train), "validation": str(validation)} | data))


def test_every_planted_fault_is_found_and_no_other(faulty: Any) -> None:
    called = faulty(duplicates="keep")
    assert called.code == 0
    assert called.left_out() == {
        "empty answer": 2,
        "identical answers": 1,
        "identical after normalisation": 2,
        "broken row": 3,
        "empty prompt": 1,
        "pair too long": 2,
    }
    assert called.suspicious() == {
        "exact duplicates": 3,
        "contradictory pairs": 4,
        "near-identical answers": 2,
        "control token written in a text": 2,
        "control characters": 1,
        "negative score margin": 1,
        "equal scores": 1,
    }
    across = called.report["across"]["train_validation"]
    assert {key: value for key, value in across.items() if key != "examples"} == {
        "shared_prompts": 3,
        "validation_pairs_of_shared_prompts": 3,
        "shared_pairs": 1,
        "validation_pairs": 43,
    }
    assert called.suspicious("validation") == {}
    assert called.left_out("validation") == {"also in train": 1}


def test_every_row_of_the_file_is_kept_or_left_out(faulty: Any, tmp_path: Path) -> None:
    called = faulty()
    for split, file in (("train", "train.jsonl"), ("validation", "held.jsonl")):
        rows = called.report["splits"][split]["rows"]
        assert rows["read"] == len((tmp_path / file).read_text(encoding="utf-8").splitlines())
        assert rows["read"] == rows["kept"] + rows["left_out"]
        assert rows["left_out"] == sum(called.left_out(split).values())
    lines = (called.out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = [json.loads(line) for line in lines]
    reports = called.report["splits"].values()
    assert sum(one["rows"] for one in dropped) == sum(part["rows"]["left_out"] for part in reports)
    assert {one["reason"] for one in dropped} == {*called.left_out(), *called.left_out("validation")}


def test_examples_name_the_file_and_the_line(faulty: Any) -> None:
    called = faulty(duplicates="keep")
    train = called.report["splits"]["train"]
    suspicious = {one["kind"]: one["examples"] for one in train["suspicious"]}
    # Behind the 200 sound rows stand 3 copies of rows 11 to 13, then two pairs and their contraries.
    assert [place.split("/")[-1] for place in suspicious["exact duplicates"]] == [
        "train.jsonl:201",
        "train.jsonl:202",
        "train.jsonl:203",
    ]
    assert suspicious["exact duplicates"][0].split(" and ")[0].endswith("train.jsonl:11")
    assert suspicious["contradictory pairs"][0].split(" and ")[0].endswith("train.jsonl:204")
    assert suspicious["contradictory pairs"][0].endswith("train.jsonl:206")
    broken = next(one for one in train["left_out"] if one["broken"])
    assert [place.split(":")[-1] for place in broken["examples"]] == ["213", "214", "215"]


def test_copies_that_fit_leaves_out_are_left_out_here_and_judged_all_the_same(faulty: Any) -> None:
    called = faulty()
    assert called.left_out()["exact duplicate"] == 3
    assert "exact duplicates" not in called.suspicious()
    checks = {one["name"]: one for one in called.report["verdict"]["checks"]}
    pairs = called.report["splits"]["train"]["pairs"]
    assert checks["train: exact duplicates"]["found"] == 3 / (pairs + 3)


def test_strict_exits_with_three_and_says_which_checks_failed(faulty: Any) -> None:
    called = faulty("--strict")
    assert called.code == 3
    assert called.report["verdict"]["strict"]
    assert called.failed() == [
        "train: broken rows",
        "train: exact duplicates",
        "train: contradictory pairs",
        "validation: pairs also in train",
        "validation: pairs whose prompt is in train",
    ]
    for name in called.failed():
        assert name in called.printed


def test_without_strict_the_same_verdict_is_printed_and_the_exit_code_is_zero(faulty: Any) -> None:
    called = faulty()
    assert called.code == 0
    assert not called.report["verdict"]["passed"]
    assert "failed: 5 of 18 checks" in called.printed


def test_the_users_limit_of_rows_left_out_stops_nothing_here_and_is_what_the_verdict_holds(
    faulty: Any,
) -> None:
    # 9 of the 226 rows are broken or of no use: 3.9 %. The two that are too long are the limit's doing.
    called = faulty("--strict", max_dropped=0.03)
    assert called.code == 3
    assert "train: rows left out" in called.failed()
    check = next(one for one in called.report["verdict"]["checks"] if one["name"] == "train: rows left out")
    assert (check["found"], check["limit"]) == (9 / 226, 0.03)


# Data in which nothing is wrong


def test_the_quickstart_pairs_pass_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "quickstart.yaml")
    words = ["--config", config, "--data.cache_dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    code = main(["inspect", *words, "--strict"])
    assert code == 0
    called = Called(tmp_path, capsys.readouterr(), code)
    assert called.report["verdict"]["passed"]
    rows = {name: part["rows"]["read"] for name, part in called.report["splits"].items()}
    assert rows == {"train": 3000, "validation": 420, "test": 420}
    # 3000 pairs in steps of 16: 187 whole ones and a rest.
    assert called.report["epoch"][0]["steps"] == 188
    assert not (called.out / "dropped.jsonl").exists()
    assert "Ready to train" in (called.out / "report.html").read_text(encoding="utf-8")


def test_a_held_out_share_and_the_rest_account_for_every_row_once(run: Any, tmp_path: Path) -> None:
    rows = [*sound(50), row("Same?", "Yes.", "Yes."), "{"]
    called = run(train=str(write(tmp_path / "all.jsonl", rows)), validation=0.2)
    train, validation = (called.report["splits"][name]["rows"] for name in ("train", "validation"))
    assert validation == {"read": 10, "kept": 10, "left_out": 0}
    assert train == {"read": 42, "kept": 40, "left_out": 2}
    assert called.report["across"]["train_validation"]["shared_prompts"] == 0
    assert called.report["settings"]["validation"] == "0.2 of train"


def test_several_sources_are_counted_each_by_itself_and_mixed_by_their_weights(
    run: Any, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", [*sound(30), "["])
    two = write(tmp_path / "two.jsonl", sound(10, start=500))
    called = run(train=[{"path": str(one), "weight": 1}, {"path": str(two), "weight": 3}], batch_size=4)
    sources = called.report["splits"]["train"]["sources"]
    assert [(source["rows"], source["kept"], source["weight"]) for source in sources] == [
        (31, 30, 1),
        (10, 10, 3),
    ]
    assert called.report["epoch"][0]["steps"] == 10


def test_rows_of_text_whose_answers_repeat_the_prompt_are_found(run: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n} even? ", "chosen": "Yes, it is.", "rejected": "No."} for n in range(90)]
    rows += [
        {"prompt": f"Is {n} odd? ", "chosen": f"Is {n} odd? No, it is not.", "rejected": f"Is {n} odd? Yes."}
        for n in range(10)
    ]
    called = run("--strict", train=str(write(tmp_path / "text.jsonl", rows)))
    assert called.code == 3
    assert called.suspicious() == {"prompt repeated in the answers": 10}
    assert called.failed() == ["train: prompt repeated in the answers"]


def test_prompts_repeated_everywhere_stop_fit_but_not_the_report_on_them(run: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is {n} odd? ", "chosen": f"Is {n} odd? No, it is not.", "rejected": f"Is {n} odd? Yes."}
        for n in range(10)
    ]
    called = run(train=str(write(tmp_path / "text.jsonl", rows)))
    assert called.code == 0
    assert called.suspicious() == {"prompt repeated in the answers": 10}


def test_answers_cut_at_the_limit_are_counted_and_too_many_fail(run: Any, tmp_path: Path) -> None:
    rows = [row(f"Tell story {n}.", f"{n} {LONG * 9}", "No.") for n in range(10)]
    called = run("--strict", train=str(write(tmp_path / "long.jsonl", rows)), overlong="truncate")
    assert called.code == 3
    assert called.report["splits"]["train"]["answers"]["cut"] == 10
    assert "train: answers cut" in called.failed()
    assert any("of the chosen answers are cut" in hint for hint in called.report["splits"]["train"]["hints"])


# How it is called


def test_three_rows_are_shown_as_the_model_is_given_them(run: Any, tmp_path: Path) -> None:
    called = run(train=str(write(tmp_path / "train.jsonl", sound(5))))
    first = called.report["splits"]["train"]["rendered"][0]
    text = "".join(token["text"] for token in first["tokens"])
    assert "What is 0 times seven?" in text
    assert "Perhaps 0.<|im_end|>" in text
    assert [token["kind"] for token in first["tokens"]].count("stop") == 2


def test_json_prints_verdict_and_counts_and_nothing_else(faulty: Any) -> None:
    called = faulty("--json")
    printed = json.loads(called.printed)
    assert printed["splits"]["train"]["reasons"]["broken row"] == 3
    assert printed["verdict"] == called.report["verdict"]
    assert [Path(file).name for file in printed["files"]] == ["report.html", "report.json", "dropped.jsonl"]
    assert called.errors == ""


def test_no_model_is_loaded_and_no_run_is_begun(tmp_path: Path, run: Any) -> None:
    weightless = tmp_path / "tokenizer-only"
    weightless.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL / name, weightless)
    train = write(tmp_path / "train.jsonl", sound(5))
    called = run("--model.base_model", str(weightless), "--run_dir", str(tmp_path / "run"), train=str(train))
    assert called.code == 0
    assert not (tmp_path / "run").exists()


def test_without_out_the_report_goes_into_the_runs_folder(run: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", sound(5))
    words = ("inspect", "--config", str(tmp_path / "config.yaml"), "--run_dir", str(tmp_path / "run"))
    run(train=str(train))
    assert main(list(words)) == 0
    assert (tmp_path / "run" / "inspect" / "report.html").is_file()


def test_a_list_of_left_out_rows_of_an_earlier_report_does_not_stay(run: Any, tmp_path: Path) -> None:
    assert (run(train=str(write(tmp_path / "a.jsonl", [*sound(5), "{"]))).out / "dropped.jsonl").is_file()
    assert not (run(train=str(write(tmp_path / "b.jsonl", sound(5)))).out / "dropped.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--data.trian", "x.jsonl"], 2, "did you mean data.train?"),
        (["--strct"], 2, "did you mean strict?"),
        (["--data.max_length", "many"], 2, "data.max_length"),
        (["--data.batch_size", "0"], 2, "data.batch_size: expected at least 1, found 0"),
        (["--data.train", "nowhere.jsonl"], 3, "nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_the_exit_code_of_fit(
    run: Any, words: list[str], code: int, line: str
) -> None:
    called = run(*words)
    assert called.code == code
    assert line in called.errors
    assert len(called.errors.splitlines()) == 1
    assert not called.out.exists()


def test_a_configuration_without_data_is_a_mistake(run: Any) -> None:
    called = run()
    assert called.code == 2
    assert called.errors == "error: data.train is not set; name a file or a hub id\n"


def test_a_folder_that_cannot_be_written_is_named(run: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", sound(5))
    called = run("--out", str(train / "report"), train=str(train))
    assert called.code == 5
    assert str(train) in called.errors


def test_help_shows_the_commands_own_options_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--help"]) == 0
    printed = capsys.readouterr().out
    for word in ("--out", "--strict", "--json", "--config", "examples:"):
        assert word in printed


class Sums(PreferenceDataModule):
    """Somebody else's pairs, made on the spot."""

    def load_rows(self, split: str) -> Iterable[dict[str, str]]:
        count = {"train": 12, "validation": 4}.get(split, 0)
        for a in range(count):
            yield {"prompt": f"{split}: {a} + 1 =", "chosen": f" {a + 1}", "rejected": f" {a + 22}"}


def test_pairs_of_a_data_module_of_your_own_are_inspected_too(tmp_path: Path) -> None:
    words = [
        "--model.base_model",
        str(MODEL),
        "--data.cache_dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    assert inspect.main(words, Sums) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: part["rows"]["kept"] for name, part in report["splits"].items()} == {
        "train": 12,
        "validation": 4,
    }


def test_the_command_runs_as_a_program(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [*sound(5), "{"])
    words = ["--model.base_model", str(MODEL), "--data.cache_dir", str(tmp_path / "cache")]
    words += ["--data.train", str(train), "--out", str(tmp_path / "out"), "--strict"]
    command = [sys.executable, "-m", "orpo_lightning", "inspect", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "train: broken rows: 1, more than 0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("trainer", "devices"),
    [
        ({"devices": 4}, 4),
        ({"devices": "2"}, 2),
        ({"devices": [0, 3]}, 2),
        ({"devices": "0,1,2"}, 3),
        ({"devices": 2, "num_nodes": 3}, 6),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": -1, "accelerator": "cpu"}, 1),
        ({}, 1),
    ],
)
def test_the_devices_of_a_configuration_are_counted(
    trainer: dict[str, Any], devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_count(Namespace(**trainer)) == devices


def test_the_epoch_is_planned_for_the_devices_and_the_accumulation_of_the_trainer(
    run: Any, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", sound(48))
    called = run(train=str(train), batch_size=2, trainer={"devices": 2, "accumulate_grad_batches": 3})
    settings = called.report["settings"]
    assert (settings["accumulate"], settings["devices"]) == (3, 2)
    assert called.report["epoch"][0]["steps"] == 4  # 48 pairs in steps of 2 x 3 x 2
