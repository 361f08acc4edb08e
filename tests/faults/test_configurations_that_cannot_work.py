"""Rows C01 to C06: mistakes in configuration files and flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from surroundings import QUICKSTART, Run

from orpo_lightning import hardware, modeling

MODULE = """
from pathlib import Path
from lightning.pytorch.callbacks import Callback
Path(__file__).with_name("executed").touch()
class Harmless(Callback):
    pass
def optimizer(params):
    raise SystemExit
"""


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model.lora_rank=4", "unknown key --model.lora_rank=4: did you mean model.lora_r?"),
        ("--data.batchsize=4", "unknown key --data.batchsize=4: did you mean data.batch_size?"),
    ],
)
def test_c01_an_unknown_flag_is_answered_with_the_one_that_was_meant(run: Run, flag: str, words: str) -> None:
    done = run("fit", "-c", QUICKSTART, flag)
    assert done.code == 2
    assert words in done.line


def test_c01_an_unknown_key_of_a_file_is_answered_with_the_one_that_was_meant(run: Run) -> None:
    Path("mine.yaml").write_text("model:\n  optimiser: torch.optim.SGD\n")
    done = run("fit", "-c", QUICKSTART, "-c", "mine.yaml")
    assert done.code == 2
    assert "unknown key 'model.optimiser': did you mean model.optimizer?" in done.line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model__lora_r": "four"}, "model.lora_r: expected int, found four"),
        ({"model__lora_r": -1}, "model.lora_r: expected 0 (full fine-tuning) or more, found -1"),
        ({"model__lora_dropout": 1.5}, "model.lora_dropout: expected a share from 0 to below 1, found 1.5"),
        ({"model__optimizer__lr": "fast"}, "found fast"),
        ({"data__max_length": 0}, "data.max_length: expected at least 2, found 0"),
    ],
)
def test_c02_a_value_that_means_nothing_is_one_line_with_what_was_expected(
    run: Run, settings: dict[str, Any], words: str
) -> None:
    done = run.fit(**settings)
    assert done.code == 2
    assert words in done.line


@pytest.mark.parametrize("written", ["5e-6", "'5e-6'", "0.000005"])
def test_c02_a_learning_rate_is_a_number_however_it_is_written(run: Run, written: str) -> None:
    Path("rate.yaml").write_text(f"model:\n  optimizer:\n    init_args:\n      lr: {written}\n")
    done = run.fit("-c", "rate.yaml", trainer__max_steps=1)
    assert (done.code, done.err) == (0, "")
    assert (
        yaml.safe_load(Path("run/config.yaml").read_text())["model"]["optimizer"]["init_args"]["lr"] == 5e-6
    )


def test_c03_a_key_written_twice_is_refused_with_both_lines(run: Run) -> None:
    Path("twice.yaml").write_text("model:\n  lora_r: 4\n  lora_alpha: 8\n  lora_r: 8\n")
    done = run("fit", "-c", "twice.yaml")
    assert done.code == 2
    assert "twice.yaml: key model.lora_r stands twice, in lines 2 and 4" in done.line


# C04: class paths


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module on the path whose import leaves a file behind; return that file."""
    (tmp_path / "stranger.py").write_text(MODULE)
    (tmp_path / "callback.yaml").write_text("class_path: stranger.Harmless\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path / "executed"


FILES = {
    "class_path in a list": "trainer: {callbacks: [{class_path: stranger.Harmless}]}",
    "class_path alone": "trainer: {callbacks: {class_path: stranger.Harmless}}",
    "a name in a list": "trainer: {callbacks: [stranger.Harmless]}",
    "an optimizer": "model: {optimizer: {class_path: stranger.optimizer}}",
    "an optimizer's name": "model: {optimizer: stranger.optimizer}",
    "a section of the subcommand": "fit: {trainer: {logger: {class_path: stranger.Harmless}}}",
    "arguments of what is allowed": (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
        "init_args: {on_fit_start: {class_path: stranger.optimizer}}}]}"
    ),
    "an anchor": "x: &x {class_path: stranger.Harmless}\ntrainer: {callbacks: [*x]}",
    "another file": "trainer: {callbacks: callback.yaml}",
}
FLAGS = {
    "a flag": ["--trainer.callbacks=stranger.Harmless"],
    "a flag and its value": ["--trainer.callbacks", "stranger.Harmless"],
    "a flag that adds": ["--trainer.callbacks+=stranger.Harmless"],
    "JSON in a flag": ["--trainer.callbacks", '[{"class_path": "stranger.Harmless"}]'],
    "a class_path flag": ["--model.optimizer.class_path=stranger.optimizer"],
    "a flag that asks for help": ["--model.objective.help=stranger.Harmless"],
    "a file in a flag": ["--trainer.callbacks=callback.yaml"],
    "a configuration in a flag": ["--config", '{"trainer": {"callbacks": [{"class_path": "stranger.X"}]}}'],
}


@pytest.mark.parametrize("name", FILES)
def test_c04_a_safe_config_imports_nothing_that_a_file_names_beyond_its_list(
    run: Run, stranger: Path, name: str
) -> None:
    Path("mine.yaml").write_text(FILES[name])
    done = run("fit", "-c", QUICKSTART, "-c", "mine.yaml", "--safe-config")
    assert done.code == 2
    assert "stranger." in done.line
    assert "with --safe-config a class path must begin with torch.optim, " in done.line
    assert not stranger.exists()
    assert "stranger" not in sys.modules


@pytest.mark.parametrize("name", FLAGS)
def test_c04_a_safe_config_imports_nothing_that_a_flag_names_beyond_its_list(
    run: Run, stranger: Path, name: str
) -> None:
    done = run("fit", "-c", QUICKSTART, *FLAGS[name], "--safe-config")
    assert done.code == 2
    assert "stranger." in done.line
    assert not stranger.exists()


@pytest.mark.parametrize("verb", ["validate", "test", "inspect", "plan"])
def test_c04_every_command_keeps_a_safe_config_safe(run: Run, stranger: Path, verb: str) -> None:
    done = run(verb, "-c", QUICKSTART, "--trainer.callbacks=stranger.Harmless", "--safe-config")
    assert done.code == 2
    assert "error: --trainer.callbacks stranger.Harmless is not imported" in done.line
    assert not stranger.exists()


def test_c04_without_the_flag_the_module_is_imported(run: Run, stranger: Path) -> None:
    done = run.fit("--trainer.callbacks+=stranger.Harmless", trainer__max_steps=1)
    assert (done.code, done.err) == (0, "")
    assert stranger.exists()


def test_c04_what_the_raw_check_cannot_know_is_refused_by_the_parser(run: Run, stranger: Path) -> None:
    # A key of somebody's own that takes a class: nothing tells from outside that this text is one.
    from jsonargparse import ArgumentParser

    from orpo_lightning.safe_config import refuse_unlisted

    refuse_unlisted(["fit", "--safe-config", "--extra", "stranger.Harmless"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--extra", type=type)
    with pytest.raises(Exception, match="not allowed"):
        parser.parse_args(["--extra", "stranger.Harmless"])
    assert not stranger.exists()


def test_c04_what_an_allowed_module_merely_imports_is_not_allowed(run: Run) -> None:
    done = run.fit("--safe-config", "--model.optimizer=orpo_lightning.module.os.system")
    assert done.code == 2
    assert "is not imported" in done.line


def test_c04_a_file_that_asks_for_it_is_taken_for_a_strangers(run: Run, stranger: Path) -> None:
    Path("mine.yaml").write_text("safe_config: true\ntrainer: {callbacks: [stranger.Harmless]}\n")
    assert run("fit", "-c", QUICKSTART, "-c", "mine.yaml").code == 2
    assert not stranger.exists()


def test_c04_a_safe_config_does_not_trust_code_of_a_repository(run: Run) -> None:
    Path("mine.yaml").write_text("model: {trust_remote_code: true}\n")
    done = run("fit", "-c", QUICKSTART, "-c", "mine.yaml", "--safe-config")
    assert done.code == 2
    assert "model.trust_remote_code true runs code of that repository" in done.line


def test_c04_files_that_name_each_other_without_end_are_one_line(run: Run) -> None:
    Path("mine.yaml").write_text("trainer: mine.yaml\n")
    done = run("fit", "-c", "mine.yaml", "--safe-config")
    assert done.code == 2
    assert "without end" in done.line


def test_c04_a_safe_config_trains_with_what_is_on_its_list(run: Run) -> None:
    words = ["--safe-config", "--trainer.callbacks+=lightning.pytorch.callbacks.ModelSummary"]
    done = run.fit(*words, trainer__max_steps=1, model__optimizer="bitsandbytes.optim.AdamW")
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["safe_config"] is True


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.eval"])
def test_c04_what_runs_commands_is_refused_in_any_configuration(run: Run, name: str) -> None:
    done = run("fit", "-c", QUICKSTART, f"--model.optimizer={name}")
    assert done.code == 2
    assert f"{name} is not imported" in done.line


# C05: precision


@pytest.mark.parametrize(
    ("precision", "device", "words"),
    [
        ("16-true", hardware.Device("cpu", "CPU"), "use bf16-mixed or 32-true"),
        ("bf16-true", hardware.Device("cpu", "CPU"), "use bf16-mixed or 32-true"),
        ("bf16-true", hardware.Device("cuda", "A100", (8, 0)), "use bf16-mixed"),
        (
            "bf16-mixed",
            hardware.Device("cuda", "T4", (7, 5)),
            "needs compute capability 8.0 or newer, found T4",
        ),
    ],
)
def test_c05_a_precision_that_ruins_training_is_refused_with_the_one_to_use(
    run: Run, monkeypatch: pytest.MonkeyPatch, precision: str, device: hardware.Device, words: str
) -> None:
    monkeypatch.setattr(hardware, "detect_device", lambda accelerator: device)
    done = run.fit(trainer__precision=precision)
    assert done.code == 2
    assert words in done.line


# C06: contradictions


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"trainer__accumulate_grad_batches": 0},
            "trainer.accumulate_grad_batches: expected 1 or more, found 0",
        ),
        ({"trainer__max_steps": 0}, "trainer.max_steps: 0 trains nothing"),
        (
            {"trainer__val_check_interval": 9, "trainer__check_val_every_n_epoch": 1},
            "trainer.val_check_interval: 9 micro-batches, and a pass over the data has 8: lower it",
        ),
        (
            {"model__lora_r": 0, "model__quantization": "nf4"},
            "nf4 weights cannot be trained; set lora_r above 0",
        ),
    ],
)
def test_c06_contradictory_settings_are_refused_before_a_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    def not_yet(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(modeling, "load_base", not_yet)
    done = run.fit(**settings)
    assert done.code == 2
    assert words in done.line
