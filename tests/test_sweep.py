"""`orpo-lightning sweep` as a user calls it, on the quickstart's model: killed, started again, used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from orpo_lightning import __main__ as front
from orpo_lightning.commands.sweep import _Sweep

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
KEY = "model.optimizer.init_args.lr"
SMALL = [
    *("--trainer.max_steps=8", "--trainer.val_check_interval=4", "--save_every=1", "--data.batch_size=8"),
    *("--data.validation_size=16", "--model.quantization=none", "--model.warmup=0"),
]


class Done(NamedTuple):
    """A sweep that was killed in its second trial and started again."""

    folder: Path
    words: list[str]
    first: str
    second: str


def sweep(words: list[str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / "cache")}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "orpo_lightning", "sweep", *words],
            cwd=cwd,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    cwd = tmp_path_factory.mktemp("sweep")
    (cwd / "configs").symlink_to(ROOT / "configs")
    (cwd / "rates.yaml").write_text(f"{KEY}: [1e-7, 1e-3]\n")
    words = ["--config", CONFIG, "--search", "rates.yaml", *SMALL]
    logs, folder = [cwd / "first", cwd / "second"], cwd / "sweeps" / "rates"
    first = sweep(words, logs[0], cwd)
    under_way = folder / "trials" / "0002" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not under_way.is_file():
        assert first.poll() is None, logs[0].read_text()
        assert time.monotonic() < deadline, logs[0].read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = sweep(words, logs[1], cwd)
    assert second.wait(300) == 0, logs[1].read_text()
    return Done(folder, words, *(log.read_text() for log in logs))


def report(done: Done) -> dict[str, Any]:
    return json.loads((done.folder / "sweep.json").read_text())


def test_it_finds_the_better_of_two_learning_rates(done: Done) -> None:
    found = report(done)
    by_rate = {trial["settings"][KEY]: trial for trial in found["trials"]}
    assert by_rate[1e-3]["value"] < by_rate[1e-7]["value"] - 0.01
    assert found["best"] == by_rate[1e-3]["number"]
    assert {trial["state"] for trial in found["trials"]} == {"complete"}


def test_a_killed_sweep_goes_on_with_its_trial_from_the_last_checkpoint(done: Done) -> None:
    assert "trial 1 ended" in done.first
    assert "trial 2 was interrupted: it goes on from where it was" in done.second
    assert "trial 1 (" not in done.second, "what has ended is not run again"
    console = (done.folder / "trials" / "0002" / "console").read_text()
    assert "the sweep of this run is gone: stopping" in console
    assert "0002/checkpoints/last.ckpt" in console
    (trial,) = (one for one in report(done)["trials"] if one["number"] == 2)
    assert [step for step, _ in trial["values"]] == [4, 8]


def test_a_trial_is_a_run_like_any_other(done: Done) -> None:
    for number in ("0001", "0002"):
        run = done.folder / "trials" / number
        assert (run / "adapter" / "adapter_config.json").is_file()
        assert (run / "checkpoints" / "best.ckpt").is_file()
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["trainer"]["callbacks"] is None, (
            "what watches the trial would end the run that repeats it"
        )


def test_its_best_settings_are_a_configuration_for_fit(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder.parent.parent)
    best = done.folder / "best.yaml"
    assert best.read_text().startswith("# Trial ")
    assert front.main(["fit", "--config", str(best), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert float(config["model"]["optimizer"]["init_args"]["lr"]) == 1e-3
    assert config["trainer"]["max_steps"] == 8
    assert config["trainer"]["callbacks"] is None
    assert config["run_dir"] is None


def test_a_sweep_that_is_over_says_so_again_as_json(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder.parent.parent)
    assert front.main(["sweep", *done.words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == report(done)["best"]
    assert len(found["trials"]) == 2


def test_the_folder_is_not_used_for_another_question(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder.parent.parent)
    assert front.main(["sweep", *done.words, "--model.lora_r", "8"]) == 2
    assert "holds a sweep with another configuration: set --out NEW" in capsys.readouterr().err


def test_the_command_that_is_kept_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.yaml").write_text(f"{KEY}: [1e-7, 1e-3]\n")
    secret = ("--data.test", "https://me:confidential@host/pairs.jsonl")
    made = _Sweep(["--config", CONFIG, "--search", "rates.yaml", *secret])
    assert made.facts["command"].endswith("--data.test https://***@host/pairs.jsonl")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--search is not set"),
        (["--search", "nowhere.yaml"], "--search nowhere.yaml: cannot be read"),
        (["--search", "wrong.yaml"], "did you mean model.lora_r?"),
        (["--search", "betas.yaml"], "its value depends on model.objective.init_args.beta itself"),
        (["--search", "rates.yaml", "--data.validation", "null"], "data.validation is not set"),
        (["--search", "rates.yaml", "--metric", "val/length/chosen"], "--goal: expected min or max"),
    ],
)
def test_a_mistake_is_one_line_before_any_trial(
    words: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.yaml").write_text(f"{KEY}: [1e-7, 1e-3]\n")
    Path("betas.yaml").write_text("model.objective.init_args.beta: [0.1, 1.0]\n")
    Path("wrong.yaml").write_text("model.lora_rr: [4, 8]\n")
    assert front.main(["sweep", "--config", CONFIG, *words]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert line in errors[0]
    assert not Path("sweeps").exists()
