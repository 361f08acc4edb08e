"""`evaluate` on a small run: its numbers are those of `test`, and of one pair at a time."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reference import pair_sums, sequence_logps
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_lightning import PreferenceCLI, PreferenceDataModule
from orpo_lightning.__main__ import main
from orpo_lightning.commands.evaluate import HELP
from orpo_lightning.judging.pairs import held_out
from orpo_lightning.using.pushing import pack
from orpo_lightning.using.trained import find
from tests.judge_server import judge_server

ROOT = Path(__file__).parent.parent
WORDS = ("red", "blue", "one", "two", "sea", "sky", "the tall tree", "a", "no", "yes and no")


def row(number: int) -> dict[str, Any]:
    """Return a pair; every second prompt is asked twice, with other answers."""
    prompt = f"Say {WORDS[number // 2 % 10]} {number // 2}."
    chosen, rejected = WORDS[number % 10], WORDS[(number * 7 + 3) % 10] + "!"
    chat = [{"role": "user", "content": prompt}]
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {
        "prompt": chat,
        **dict(zip(("chosen", "rejected"), answers, strict=True)),
        "agreement": 2 + number % 2,
    }


def write(file: Path, numbers: range) -> Path:
    file.write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def run(folder: Path, tiny_base: str) -> tuple[Path, dict[str, float]]:
    """Train a little, test, and return the run's folder and what `test` logged."""
    words = [
        *("--model.base_model", tiny_base, "--model.lora_r", "4", "--model.optimizer", "torch.optim.SGD"),
        *("--model.optimizer.lr", "2.0", "--model.gradient_checkpointing", "false"),
        *("--data.train", str(write(folder / "train.jsonl", range(100, 140)))),
        *("--data.test", str(write(folder / "test.jsonl", range(40)))),
        *("--data.validation", "0.25", "--data.batch_size", "4", "--data.cache_dir", str(folder / "cache")),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", "6", "--trainer.logger", "false"),
        *("--run_dir", str(folder / "run")),
    ]
    PreferenceCLI(args=["fit", *words])
    tested = PreferenceCLI(args=["test", *words, "--resume", "auto"])
    logged = {name: float(value) for name, value in tested.trainer.callback_metrics.items()}
    return folder / "run", logged


@pytest.fixture(scope="module")
def report(run: tuple[Path, dict[str, float]]) -> dict[str, Any]:
    assert (
        main(["evaluate", str(run[0]), "--accelerator", "cpu", "--samples", "2", "--max_new_tokens", "8"])
        == 0
    )
    return json.loads((run[0] / "evaluation.json").read_text())


def pairs_of(folder: Path, tiny_base: str) -> Any:
    data = PreferenceDataModule(
        test=str(folder / "test.jsonl"), tokenizer=tiny_base, cache_dir=str(folder / "cache")
    )
    data.setup("test")
    return data.test_dataset


def test_the_adapters_figures_are_those_of_test(
    report: dict[str, Any], run: tuple[Path, dict[str, float]]
) -> None:
    own, logged = report["models"]["adapter"], run[1]
    for name, key in {
        "accuracy": "rewards/accuracies",
        "logps_chosen": "logps/chosen",
        "logps_rejected": "logps/rejected",
        "log_odds_ratio": "log_odds_ratio",
    }.items():
        assert own[name]["mean"] == pytest.approx(logged[f"test/{key}"], abs=2e-6), name
    assert report["models"]["base"]["logps_chosen"]["mean"] != pytest.approx(
        own["logps_chosen"]["mean"], abs=1e-3
    )


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_the_figures_are_those_of_one_pair_at_a_time(
    name: str, report: dict[str, Any], run: tuple[Path, Any], folder: Path, tiny_base: str
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base)
    if name == "adapter":
        model = PeftModel.from_pretrained(model, run[0] / "adapter")
    pairs = pairs_of(folder, tiny_base)
    assert report["pairs"] == len(pairs) == 40
    assert report["prompts"] == 20
    sums = []
    with torch.no_grad():
        for index in range(len(pairs)):
            pair = pairs[index]
            one = pair_sums(model.eval(), pair)
            chosen, rejected = one["chosen_sum"] / len(pair.chosen), one["rejected_sum"] / len(pair.rejected)
            sums.append((float(chosen), float(rejected)))
    count = len(sums)
    found = report["models"][name]
    assert found["logps_chosen"]["mean"] == pytest.approx(sum(c for c, _ in sums) / count, abs=1e-5)
    assert found["margin"]["mean"] == pytest.approx(sum(c - r for c, r in sums) / count, abs=1e-5)
    assert found["accuracy"]["mean"] == sum(c > r for c, r in sums) / count


@pytest.mark.parametrize("split", ["validation", "test"])
def test_pairs_that_the_run_was_trained_on_are_no_held_out_ones(
    split: str, run: tuple[Path, Any], folder: Path
) -> None:
    trained = find(str(run[0]))
    shared = str(write(folder / "shared.jsonl", range(130, 150)))  # it was trained on those before 140
    data = {**trained.config["data"], "validation": None, "test": None, split: shared}
    held = held_out(trained._replace(config={**trained.config, "data": data}), None, None)
    assert held.pairs.places() == [f"{shared}:{line}" for line in range(11, 21)]


def test_pairs_are_told_apart_by_agreement(report: dict[str, Any]) -> None:
    found = {row["name"]: row["pairs"] for row in report["buckets"] if row["by"] == "agreement"}
    assert found == {"2": 20, "3": 20}


def test_the_page_and_the_numbers_lie_in_the_runs_folder(
    report: dict[str, Any], run: tuple[Path, Any]
) -> None:
    page = (run[0] / "evaluation" / "evaluation.html").read_text()
    assert f"Evaluation of {run[0]}" in page
    assert report["data"]["origin"] == f"data.test of {run[0]}"
    assert report["change"]["from"] == "base"
    for sample in report["samples"]:
        assert sample["base"] != sample["adapter"]


def test_the_numbers_say_of_which_weights_they_are(report: dict[str, Any], run: tuple[Path, Any]) -> None:
    weights = (run[0] / "adapter" / "adapter_model.safetensors").read_bytes()
    assert report["weights"] == {"adapter_model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert "accuracy" in pack(find(str(run[0])), "maker/base").card.partition("## Held-out pairs")[2]


def test_the_last_line_is_the_accuracy_before_and_after(
    report: dict[str, Any], run: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run[0]), "--accelerator", "cpu"]) == 0
    models = report["models"]
    low, high = (models["adapter"]["accuracy"][end] for end in ("low", "high"))
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"held-out accuracy {models['base']['accuracy']['mean']:.3f} → "
        f"{models['adapter']['accuracy']['mean']:.3f} (40 pairs, 95 % interval {low:.3f} to {high:.3f})"
    )


def test_validation_is_judged_whole_where_there_is_no_test(
    run: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "adapter").symlink_to(run[0] / "adapter")
    config = yaml.safe_load((run[0] / "config.yaml").read_text())
    config["data"]["test"], config["data"]["validation_size"] = None, 1
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(copy), "--json", "--accelerator", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["origin"] == f"data.validation of {copy}, 0.25 of the prompts"
    data = PreferenceDataModule(**{**config["data"], "validation_size": None})
    data.setup("fit")
    assert data.validation_pairs is not None
    assert found["pairs"] == len(data.validation_pairs.whole) > 1


def test_a_run_whose_base_has_moved_is_judged_on_the_same_pairs(
    report: dict[str, Any], run: tuple[Path, Any], tmp_path: Path, tiny_base: str
) -> None:
    import yaml

    copy = Path(shutil.copytree(run[0], tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation*")))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config["model"]["base_model"] == config["data"]["tokenizer"] == tiny_base
    config["model"]["base_model"] = config["data"]["tokenizer"] = "/gone/with/base"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(copy), "--base", tiny_base, "--accelerator", "cpu"]) == 0
    found = json.loads((copy / "evaluation.json").read_text())
    assert found["models"] == report["models"]


@pytest.fixture(scope="module")
def merged(run: tuple[Path, Any], folder: Path, tiny_base: str) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(model, run[0] / "adapter").merge_and_unload()
    model.save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder / "merged")
    return folder / "merged"


def test_a_merged_model_has_the_adapters_figures_and_no_change_from_it(
    report: dict[str, Any], run: tuple[Path, Any], merged: Path, tmp_path: Path, folder: Path
) -> None:
    words = [
        "evaluate",
        str(run[0]),
        "--against",
        str(merged),
        "--accelerator",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert main([*words, "--canary", str(canary_file(tmp_path))]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(found["models"]) == ["base", "adapter", "against"]
    assert found["against"]["logps_chosen"]["mean"] == pytest.approx(0, abs=1e-5)
    assert found["models"]["adapter"] == report["models"]["adapter"]
    perplexity = found["canary"]["perplexity"]
    assert perplexity["against"]["mean"] == pytest.approx(perplexity["adapter"]["mean"], rel=1e-4)
    alone = tmp_path / "alone"
    words = ["evaluate", str(merged), "--pairs", str(folder / "test.jsonl"), "--accelerator", "cpu"]
    assert main([*words, "--out", str(alone)]) == 0
    found = json.loads((alone / "evaluation.json").read_text())
    assert list(found["models"]) == ["model"]
    assert found["change"] is None
    accuracy = found["models"]["model"]["accuracy"]
    assert accuracy == report["models"]["adapter"]["accuracy"]


def canary_file(folder: Path) -> Path:
    file = folder / "canary.txt"
    file.write_text("The sea is blue.\n\nOne and two are\nthree, and that is all there is to say.\n")
    return file


def test_the_perplexity_of_the_canary_is_that_of_its_tokens(
    run: tuple[Path, Any], tmp_path: Path, tiny_base: str
) -> None:
    words = ["evaluate", str(run[0]), "--canary", str(canary_file(tmp_path)), "--out", str(tmp_path)]
    assert main([*words, "--accelerator", "cpu"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["canary"]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_base),
        AutoModelForCausalLM.from_pretrained(tiny_base),
    )
    texts = ("The sea is blue.", "One and two are three, and that is all there is to say.")
    with torch.no_grad():
        logps = torch.cat([sequence_logps(model.eval(), tokenizer(text)["input_ids"]) for text in texts])
    assert found["tokens"] == len(logps)
    assert found["perplexity"]["base"]["mean"] == pytest.approx(math.exp(-float(logps.mean())), rel=1e-5)
    ratio = found["perplexity"]["adapter"]["mean"] / found["perplexity"]["base"]["mean"]
    assert found["factor"]["mean"] == pytest.approx(ratio)


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def test_an_evaluation_that_was_killed_asks_the_judge_for_the_rest_only(
    run: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key = tmp_path / "out", "sk-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = ["evaluate", str(run[0]), "--accelerator", "cpu", "--out", str(out), "--max_new_tokens", "6"]
    with judge_server(tmp_path / "judge", key=key, seconds=0.2) as server:
        words += f"--judge {server.url} --judge_model m --judge_prompts 8 --judge_parallel 1".split()
        with subprocess.Popen([sys.executable, "-m", "orpo_lightning", *words], cwd=ROOT) as first:
            end = time.monotonic() + 120
            while len(lines_of(out / "verdicts.jsonl")) < 4:
                assert first.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            first.kill()
        before, asked = len(lines_of(out / "verdicts.jsonl")), len(server.requests())
        assert main([*words, "--json"]) == 0
        requests = server.requests()
    printed = capsys.readouterr().out
    judge = json.loads(printed)["judge"]
    assert judge["name"] == f"m at {server.url}"
    assert judge["prompts"] == judge["judged"] == judge["wins"] + judge["losses"] + judge["ties"] == 8
    # Each two answers in both orders: what was not kept before the kill, and nothing else.
    assert len(requests) - asked == 2 * (8 - judge["identical"]) - before > 0
    assert len(lines_of(out / "answers.jsonl")) == 16
    assert all(key not in file.read_text() for file in out.iterdir())
    assert key not in printed


def test_a_reward_model_judges_the_model_named_for_it(
    run: tuple[Path, Any], merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_judging_models import reward_model

    judge = reward_model(tmp_path / "reward")
    words = f"evaluate {run[0]} --accelerator cpu --judge {judge} --judge_prompts 6 --max_new_tokens 6 --json"
    assert main([*words.split(), "--out", str(tmp_path / "base")]) == 0
    found = json.loads(capsys.readouterr().out)["judge"]
    assert (found["name"], found["from"], found["to"]) == (judge, "base", "adapter")
    # Of two rewards one is the higher, in whichever order the answers are shown.
    assert (found["judged"], found["disagreements"]) == (6, 0)
    assert main([*words.split(), "--against", str(merged), "--out", str(tmp_path / "merged")]) == 0
    found = json.loads(capsys.readouterr().out)["judge"]
    assert (found["from"], found["to"]) == ("against", "adapter")
    # The merged model writes what the adapter writes.
    assert (found["identical"], found["win_rate"]["mean"]) == (6, 0.5)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["nowhere/at/all"], 2, "nowhere/at/all: expected"),
        (["RUN", "--pairs", "no.jsonl"], 3, "no.jsonl: no such file"),
        (["RUN", "--pairs", "EMPTY"], 3, "empty"),
        (["BASE"], 2, "belongs to no run that names held-out pairs: name some, --pairs"),
        (["BASE", "--pairs", "TEST", "--judge", "x/y"], 2, "a whole model alone has no opponent"),
        (["RUN", "--judge", "http://127.0.0.1:9/v1"], 2, "--judge_model: name the model"),
        (["RUN", "--judge", "http://127.0.0.1:9/v1", "--judge_model", "m"], 5, "Connection refused"),
        (
            ["RUN", "--judge", "http://a/v1", "--judge_model", "m", "--judge_key_env", "NOT_SET"],
            2,
            "the environment variable NOT_SET is not set",
        ),
        (["RUN", "--batch_size", "0"], 2, "--batch_size: expected 1 or more, found 0"),
        (["RUN", "--canary", "no.txt"], 3, "no.txt"),
        (["RUN", "--agianst", "x"], 2, "unknown option --agianst: did you mean --against?"),
        (["RUN", "--against", "OTHER"], 2, "its tokenizer is not"),
    ],
)
def test_what_cannot_work_is_one_line_and_its_exit_code(
    words: list[str],
    code: int,
    line: str,
    run: tuple[Path, Any],
    folder: Path,
    tiny_base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "empty.jsonl").write_text("")
    names = {
        "RUN": run[0],
        "BASE": tiny_base,
        "TEST": folder / "test.jsonl",
        "EMPTY": tmp_path / "empty.jsonl",
    }
    if "OTHER" in words:
        from tiny_models import save_tiny_mistral

        names["OTHER"] = save_tiny_mistral(tmp_path / "other")
    given = [str(names.get(word, word)) for word in words]
    assert main(["evaluate", *given, "--accelerator", "cpu", "--out", str(tmp_path / "out")]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert line in errors[0]


def test_every_option_stands_in_the_help() -> None:
    import inspect

    from orpo_lightning.commands import evaluate

    source = inspect.getsource(evaluate._options)
    for name in ("max_length", "batch_size", "samples", "judge_prompts", "judge_parallel", "judge_timeout"):
        assert f"--{name} " in HELP
        assert name in source
