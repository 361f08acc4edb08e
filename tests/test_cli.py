"""The command line: what it fills, what it refuses and in which words, where it writes, how it goes on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from orpo_lightning import PreferenceCLI, PreferenceModule, runfolder
from orpo_lightning.callbacks import BestCheckpoint, PlainProgress, ResumeCheckpoint, RunHeader
from orpo_lightning.callbacks.header import aligned
from orpo_lightning.callbacks.progress import remaining
from orpo_lightning.cli import main
from orpo_lightning.cli_errors import explain
from orpo_lightning.cli_fill import fill_tokenizer, filled_places
from orpo_lightning.cli_parser import duplicate_keys, readable, suggestion
from orpo_lightning.errors import CheckpointError, DataError, DivergedError, SurroundingsError, UsageError
from orpo_lightning.schedules import warmup_steps

ROOT = Path(__file__).parent.parent


class Line(lightning.LightningModule):
    """A module of somebody else's: none of the keys that the command line fills, no `describe`."""

    def __init__(self, width: int = 2, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = (self.layer(batch) - 1).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.layer(batch) - 1).pow(2).mean())

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("test/loss", (self.layer(batch) - 1).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class Points(lightning.LightningDataModule):
    """Somebody else's data."""

    def __init__(self, batches: int = 24) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        points = torch.randn(2 * self.batches, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(points, batch_size=2)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


class Recorder(lightning.Callback):
    """Notes the optimizer step of every validation and of every saved checkpoint."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.saved: list[int] = []

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.saved.append(checkpoint["global_step"])


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orpo-lightning"])
    monkeypatch.delenv("ORPO_DEBUG", raising=False)


def run(*words: object) -> int:
    return main([str(word) for word in words], Line, Points)


class Closed(CSVLogger):
    """A logger whose service has an exception of its own."""

    def __init__(self) -> None:
        raise RuntimeError("the service is shut\n  and has a second line")


def run_cli(*words: object, **settings: Any) -> PreferenceCLI:
    return PreferenceCLI(Line, Points, args=[str(word) for word in words], **settings)


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what stands on stderr, having checked that it is one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def saved_config(folder: str = "runs/default") -> dict[str, Any]:
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its place in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FIT = ("fit", "--trainer.max_steps", 6, "--trainer.accumulate_grad_batches", 2)


# What a run leaves behind


def test_a_run_of_foreign_classes_fills_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*FIT) == 0
    found = {path.name for path in Path("runs/default").iterdir()}
    assert found == {"config.yaml", "checkpoints", "tb", "log", ".lock", "record.json", "report.html"}
    assert {path.name for path in Path("runs/default/checkpoints").iterdir()} == {"last.ckpt"}
    assert "written to" in Path("runs/default/log").read_text()
    assert "written to" in capsys.readouterr().out


def test_the_saved_configuration_holds_what_was_filled_and_repeats_the_run() -> None:
    assert run(*FIT, "--trainer.accelerator", "cpu", "--run_dir", "a b/ü") == 0
    config = saved_config("a b/ü")
    assert config["trainer"]["precision"] == "32-true"
    assert config["trainer"]["use_distributed_sampler"] is True
    # Left open: with the folder in them, a run that is repeated elsewhere would write into this one.
    assert config["trainer"]["default_root_dir"] is config["trainer"]["logger"] is None
    assert (config["run_dir"], config["seed_everything"]) == ("a b/ü", 42)
    before = contents(Path("a b/ü"))
    assert run("fit", "-c", "a b/ü/config.yaml", "--run_dir", "again") == 0
    assert contents(Path("a b/ü")) == before
    assert {path.name for path in Path("again").iterdir()} == {path.name for path in Path("a b/ü").iterdir()}
    first, second = (
        torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("a b/ü", "again")
    )
    assert torch.equal(first["state_dict"]["layer.weight"], second["state_dict"]["layer.weight"])


def saved_log(class_path: str = "lightning.pytorch.loggers.TensorBoardLogger", **more: Any) -> dict[str, Any]:
    """Return `trainer.logger` as earlier versions saved it, for the folder `old`."""
    init_args = {"save_dir": "old", "name": "", "version": "tb", "default_hp_metric": False, **more}
    return {"class_path": class_path, "init_args": init_args}


def test_a_configuration_of_an_earlier_version_which_saved_the_folder_twice_leaves_that_run_alone() -> None:
    assert run(*FIT, "--run_dir", "old") == 0
    config = saved_config("old")
    config["trainer"] |= {"default_root_dir": "old", "logger": saved_log()}
    Path("old/config.yaml").write_text(yaml.safe_dump(config))
    before = contents(Path("old"))
    assert run("fit", "-c", "old/config.yaml", "--run_dir", "again") == 0
    assert contents(Path("old")) == before
    assert {path.name for path in Path("again").iterdir()} == {path.name for path in Path("old").iterdir()}
    assert saved_config("again")["trainer"]["default_root_dir"] is None


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"default_root_dir": "old", "logger": saved_log()}, ["trainer.default_root_dir", "trainer.logger"]),
        ({"logger": saved_log(log_graph=False)}, ["trainer.logger"]),
        ({"default_root_dir": "mine"}, []),
        ({"logger": saved_log("lightning.pytorch.loggers.CSVLogger")}, []),
        ({"logger": saved_log(save_dir="mine")}, []),
        ({"logger": saved_log(prefix="p")}, []),
        ({"logger": True}, []),
        (None, []),
    ],
)
def test_only_what_was_filled_with_the_runs_folder_is_left_open(trainer: Any, expected: list[str]) -> None:
    assert filled_places({"run_dir": "old", "trainer": trainer}) == expected
    assert filled_places({"trainer": trainer}) == []


def test_the_runs_own_files_stay_together_where_the_trainer_is_given_another_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*FIT, "--trainer.default_root_dir", "mine") == 0
    found = {path.name for path in Path("runs/default").iterdir()}
    assert found == {"config.yaml", "checkpoints", "tb", "log", ".lock", "record.json", "report.html"}
    assert not contents(Path("mine"))
    assert saved_config()["trainer"]["default_root_dir"] == "mine"
    assert "report: runs/default/report.html" in capsys.readouterr().out


def test_the_folder_is_named_after_the_first_config_file() -> None:
    Path("lined.yaml").write_text("trainer:\n  max_steps: 1\n")
    Path("other.yaml").write_text("model:\n  lr: 0.2\n")
    assert run("fit", "-c", "lined.yaml", "-c", "other.yaml") == 0
    assert saved_config("runs/lined")["model"]["lr"] == 0.2


def test_flags_beat_yaml_beat_defaults_and_the_users_precision_stands() -> None:
    Path("c.yaml").write_text("model: {lr: 0.2, width: 2}\ntrainer: {max_steps: 1, precision: bf16-mixed}\n")
    cli = run_cli("fit", "-c", "c.yaml", "--model.lr", "0.3")
    assert cli.model.hparams["lr"] == 0.3
    assert cli.trainer.precision == "bf16-mixed"
    assert "set by the user" in cli.header["precision"]


def test_a_validation_leaves_the_configuration_of_the_training_alone() -> None:
    assert run(*FIT) == 0
    before = Path("runs/default/config.yaml").read_text()
    assert run("validate", "--model.lr", "0.7") == 0
    assert Path("runs/default/config.yaml").read_text() == before


def test_without_an_end_a_run_is_one_pass_over_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    cli = run_cli("fit", "--trainer.accumulate_grad_batches", 5)
    assert cli.trainer.global_step == 5
    assert "5 in all, 5 per pass" in capsys.readouterr().out


def test_a_user_may_bring_logger_callbacks_and_progress_bar_of_his_own() -> None:
    callbacks = "--trainer.callbacks+=orpo_lightning.callbacks.ResumeCheckpoint"
    folder = ("--trainer.callbacks.dirpath", "elsewhere", "--trainer.callbacks.every_n_steps", 4)
    cli = run_cli(
        *FIT, callbacks, *folder, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"
    )
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    assert kinds.count(ResumeCheckpoint) == 1
    assert PlainProgress not in kinds
    assert cli.trainer.loggers == []
    assert Path("elsewhere/last.ckpt").is_file()
    assert not Path("runs/default/tb").exists()


def test_checkpointing_can_be_switched_off() -> None:
    assert run(*FIT, "--trainer.enable_checkpointing", "false") == 0
    assert not Path("runs/default/checkpoints").exists()


def test_a_subclass_of_the_cli_keeps_its_own_defaults() -> None:
    cli = run_cli(*FIT, trainer_defaults={"log_every_n_steps": 3, "callbacks": [recorder := Recorder()]})
    assert cli.trainer.log_every_n_steps == 3
    assert recorder in cli.trainer.callbacks


# Validation and saving between optimizer steps


def test_mistrals_interval_validates_every_20_optimizer_steps() -> None:
    trainer = yaml.safe_load((ROOT / "configs" / "mistral.yaml").read_text())["trainer"]
    keys = ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches")
    flags = [word for key in keys for word in (f"--trainer.{key}", trainer[key] or "null")]
    recorder = Recorder()
    run_cli("fit", *flags, "--trainer.max_steps", 45, trainer_defaults={"callbacks": [recorder]})
    assert recorder.validated == [20, 40]


def test_last_is_saved_every_so_many_optimizer_steps_and_at_the_end() -> None:
    recorder = Recorder()
    words = ("fit", "--trainer.max_steps", 8, "--trainer.accumulate_grad_batches", 3, "--save_every", 3)
    run_cli(*words, "--trainer.limit_val_batches", 0, trainer_defaults={"callbacks": [recorder]})
    assert recorder.saved == [3, 6, 8]
    assert torch.load("runs/default/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


def test_a_resumed_run_does_not_save_again_within_the_window_it_starts_with() -> None:
    words = ("--trainer.accumulate_grad_batches", 3, "--save_every", 4, "--trainer.limit_val_batches", 0)
    assert run("fit", "--trainer.max_steps", 4, *words) == 0
    recorder = Recorder()
    run_cli(
        "fit",
        "--trainer.max_steps",
        6,
        *words,
        "--resume",
        "auto",
        trainer_defaults={"callbacks": [recorder]},
    )
    assert recorder.saved == [6]


def test_best_is_the_state_of_the_lowest_validation_loss() -> None:
    words = ("--trainer.max_steps", 24, "--trainer.val_check_interval", 4)
    cli = run_cli("fit", *words, "--model.lr", "0.02")
    best = next(callback for callback in cli.trainer.callbacks if isinstance(callback, BestCheckpoint))
    content = torch.load("runs/default/checkpoints/best.ckpt", weights_only=True)
    assert content["global_step"] == 24
    assert best.best_model_score == cli.trainer.callback_metrics["val/loss"]


def test_a_module_that_logs_no_validation_loss_trains_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "validation_step", lambda self, batch, batch_idx: None)
    assert run("fit", "--trainer.max_epochs", 1) == 0
    assert "no best checkpoint: val/loss is not logged" in capsys.readouterr().out


# Resuming


def test_a_second_run_into_the_same_folder_is_refused_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*FIT) == 0
    before = Path("runs/default/checkpoints/last.ckpt").read_bytes()
    capsys.readouterr()
    assert run(*FIT) == 2
    line = last_error(capsys)
    assert "--resume auto continues it" in line
    assert "--run_dir NEW starts another" in line
    assert Path("runs/default/checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.parametrize("resume", ["auto", "runs/default/checkpoints/last.ckpt"])
def test_a_run_that_ended_goes_on_as_if_it_had_not(resume: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--trainer.accumulate_grad_batches", 2, "--trainer.limit_val_batches", 0)
    assert run("fit", "--trainer.max_steps", 24, *words, "--run_dir", "whole") == 0
    assert run("fit", "--trainer.max_steps", 12, *words) == 0
    capsys.readouterr()
    assert run("fit", "--trainer.max_steps", 24, *words, "--resume", resume) == 0
    assert "weights from    runs/default/checkpoints/last.ckpt" in capsys.readouterr().out
    whole, resumed = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)
        for folder in ("whole", "runs/default")
    )
    assert whole["global_step"] == resumed["global_step"] == 24
    # 12 steps of 2 batches are one pass: the order within a pass is for a data module to resume.
    assert torch.equal(whole["state_dict"]["layer.weight"], resumed["state_dict"]["layer.weight"])


@pytest.mark.parametrize("end", [("max_steps", 5, 20), ("max_steps", 12, 24), ("max_epochs", 1, 2)])
def test_the_end_of_a_run_is_saved_at_its_true_place_in_the_data(end: tuple[str, int, int]) -> None:
    name, first, second = end
    words = ("fit", "--trainer.accumulate_grad_batches", 2, "--trainer.limit_val_batches", 0)
    run_cli(*words, f"--trainer.{name}", first)
    whole = run_cli(*words, f"--trainer.{name}", second, "--run_dir", "whole")
    resumed = run_cli(*words, f"--trainer.{name}", second, "--resume", "auto")
    places = [(cli.trainer.current_epoch, cli.trainer.fit_loop.batch_idx) for cli in (whole, resumed)]
    assert places[0] == places[1]
    assert whole.trainer.global_step == resumed.trainer.global_step


def test_auto_starts_fresh_where_there_is_nothing_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*FIT, "--resume", "auto") == 0
    assert "nothing to resume in runs/default: starting from the base model" in capsys.readouterr().out


def test_a_run_that_has_ended_says_so_when_it_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*FIT) == 0
    capsys.readouterr()
    assert run(*FIT, "--resume", "auto") == 0
    assert "nothing left to train: 6 steps are done (trainer.max_steps 6" in capsys.readouterr().out


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_validate_and_test_measure_the_checkpoint_that_is_named(
    subcommand: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--trainer.max_steps", 24) == 0
    cli = run_cli(subcommand)
    untrained = dict(cli.trainer.callback_metrics)
    cli = run_cli(subcommand, "--resume", "auto")
    trained = dict(cli.trainer.callback_metrics)
    name = {"validate": "val/loss", "test": "test/loss"}[subcommand]
    assert trained[name] < 0.5 * untrained[name]
    assert "the base model, no checkpoint (--resume none)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit", "--resume", "nowhere.ckpt"], "no such checkpoint: nowhere.ckpt"),
        (["test", "--resume", "auto"], "no checkpoint in runs/default/checkpoints"),
        (["validate", "--resume", "auto"], "no checkpoint in runs/default/checkpoints"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_exit_code_four(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 4
    assert expected in last_error(capsys)


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "foreign"])
def test_a_damaged_checkpoint_is_one_line_and_exit_code_four(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("bad.ckpt")
    torch.save({"state_dict": {"layer.weight": torch.zeros(100)}}, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"PK no"}.get(damage, whole))
    if damage == "foreign":
        torch.save({"weights": 1}, path)
    assert run("fit", "--resume", "bad.ckpt") == 4
    assert "bad.ckpt" in last_error(capsys)
    assert not Path("runs").exists()


def test_a_checkpoints_settings_never_override_flags_or_yaml() -> None:
    assert run(*FIT, "--model.lr", "0.2") == 0
    Path("c.yaml").write_text("model: {lr: 0.3}\n")
    words = ("fit", "-c", "c.yaml", "--resume", "runs/default/checkpoints/last.ckpt")
    words += ("--trainer.max_steps", "8")
    assert run_cli(*words, "--run_dir", "yaml").model.hparams["lr"] == 0.3
    flagged = run_cli(*words, "--run_dir", "flag", "--model.lr", "0.4")
    assert flagged.model.hparams["lr"] == 0.4


def test_the_newest_checkpoint_is_last_then_the_one_before_it_then_the_youngest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert runfolder.checkpoints_of(tmp_path) == []
    for age, name in enumerate(("new.ckpt", "old.ckpt", "previous.ckpt", "last.ckpt", ".last.ckpt.77")):
        (folder / name).touch()
        os.utime(folder / name, (1000 - age, 1000 - age))
    names = [path.name for path in runfolder.checkpoints_of(tmp_path)]
    assert names == ["last.ckpt", "previous.ckpt", "new.ckpt", "old.ckpt"]


# Errors of the user


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.widht", "3"], "error: unknown key --model.widht 3: did you mean model.width?"),
        (["--width", "3"], "error: unknown key --width 3: did you mean model.width?"),
        (["--trainer.max_stps=3"], "unknown key --trainer.max_stps=3: did you mean trainer.max_steps?"),
        (["--zzz", "3"], "error: unknown key --zzz 3"),
        (["--model.width", "four"], "error: model.width: expected int, found four"),
        (["--trainer.precision", "16-mixed"], "needs a CUDA GPU"),
        (["--trainer.precision", "bf16-true"], "use bf16-mixed or 32-true"),
        (["--trainer.accumulate_grad_batches", "0"], "expected 1 or more, found 0"),
        (["--trainer.max_steps", "0"], "trainer.max_steps: 0 trains nothing"),
        (["-c", "none.yaml"], "File does not exist"),
        (["--trainer.max_epochs", "1", "--trainer.val_check_interval", "999"], "val_check_interval"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_two(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--trainer.accelerator", "cpu", *words) == 2
    assert expected in last_error(capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  widht: 3\n", "error: unknown key 'model.widht': did you mean model.width?"),
        ("modle:\n  width: 3\n", "error: unknown key 'modle.width': did you mean model.width?"),
        ("model: {width: 2}\ntrainer: {}\nmodel: {lr: 1}\n", "key model stands twice, in lines 1 and 3"),
        ("model:\n  lr: 1\n  lr: 2\n", "c.yaml: key model.lr stands twice, in lines 2 and 3"),
        ("model: [3\n", "c.yaml: not YAML"),
        ("model:\n  width: four\n", "model.width: expected int, found four"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_and_exit_code_two(
    text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_text(text)
    assert run("fit", "-c", "c.yaml") == 2
    assert expected in last_error(capsys)


def test_a_misspelt_key_of_the_shipped_recipe_is_answered_with_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "-c", str(ROOT / "configs/quickstart.yaml"), "--model.lora_rank", "4"]) == 2
    assert last_error(capsys) == "error: unknown key --model.lora_rank 4: did you mean model.lora_r?"


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--model.objective.betta=1", "beta"), ("--model.objective.nll_scop=x", "nll_scope")],
)
def test_keys_of_the_objective_are_known_too(
    flag: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", str(ROOT / "configs/quickstart.yaml"), flag]) == 2
    assert f"did you mean {meant}?" in last_error(capsys)


def test_an_accelerator_that_is_not_there_is_exit_code_five(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*FIT, "--trainer.accelerator", "cuda") == 5
    assert "trainer.accelerator cuda is not available" in last_error(capsys)


def test_a_run_folder_that_is_a_file_is_exit_code_five(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("")
    assert run(*FIT, "--run_dir", "taken") == 5
    assert "taken" in last_error(capsys)


def test_a_fault_is_one_line_on_the_terminal_and_a_traceback_in_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Line, batch: torch.Tensor, batch_idx: int) -> None:
        raise RuntimeError("the layer is gone")

    monkeypatch.setattr(Line, "training_step", broken)
    assert run(*FIT) == 1
    line = last_error(capsys)
    assert line == "error: RuntimeError: the layer is gone (set ORPO_DEBUG=1 for the traceback)"
    assert "Traceback" in Path("runs/default/log").read_text()


def test_orpo_debug_shows_the_traceback_before_the_line_and_keeps_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORPO_DEBUG", "1")
    assert run(*FIT, "--trainer.precision", "bf16-true") == UsageError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: ")


def hub_error(name: str) -> Exception:
    import httpx2
    from huggingface_hub import errors

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.example/x"))
    return getattr(errors, name)("Cannot access model x.\nsecond line", response=response)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("a"), 2, "a"),
        (DataError("a\n  b"), 3, "a b"),
        (CheckpointError("a"), 4, "a"),
        (SurroundingsError("a"), 5, "a"),
        (DivergedError("a"), 6, "a"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 5, "lower data.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "lower data.batch_size"),
        (OSError(errno.ENOSPC, "No space left on device", "x.ckpt"), 5, "the disk is full: x.ckpt"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 5, "permission denied: runs"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 7 vs 5"), 5, "disk full"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 5, "the package x is not installed"),
        (KeyboardInterrupt(), 130, "--resume auto"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (KeyError("x"), 1, "set ORPO_DEBUG=1"),
    ],
    ids=repr,
)
def test_every_family_of_errors_has_its_exit_code_and_its_words(
    error: BaseException, code: int, words: str
) -> None:
    assert explain(error)[0] == code
    assert words in explain(error)[1]
    assert "\n" not in explain(error)[1]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_a_signal_ends_has_the_signals_exit_code(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    if name == "SIGINT":  # ignored where the tests run in the background of a shell
        signal.signal(number, signal.default_int_handler)
    step = Line.training_step

    def interrupted(self: Line, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Line, "training_step", interrupted)
    try:
        assert run(*FIT) == code
    finally:
        signal.signal(number, before)
    words = f"{name}: stopped after step 2, saved in runs/default/checkpoints/last.ckpt: --resume auto"
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [("GatedRepoError", "hf auth login"), ("RepositoryNotFoundError", "not found on the hub")],
)
def test_errors_of_the_hub_say_what_to_do_in_one_line(name: str, words: str) -> None:
    code, line = explain(hub_error(name))
    assert code == 5
    assert words in line
    assert "second line" not in line


def test_a_value_error_is_the_users_where_our_code_raised_it_and_a_fault_elsewhere() -> None:
    with pytest.raises(ValueError, match="warmup") as ours:
        warmup_steps(-1, 10)
    with pytest.raises(ValueError, match="invalid literal") as theirs:
        int("x")
    assert explain(ours.value)[0] == 2
    assert explain(theirs.value)[0] == 1


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        (
            "callbacks",
            "[{class_path: Samples, init_args: {max_new_tokens: 0}}]",
            "Samples: expected every_n_steps",
        ),
        ("logger", "[{class_path: test_cli.Closed}]", "Closed: the service is shut and"),
        ("logger", "{class_path: test_cli.Closed}", "Closed: the service is shut and"),
    ],
)
def test_what_a_named_class_says_when_it_is_made_is_the_line(key: str, given: str, expected: str) -> None:
    given = given.replace("Samples", "orpo_lightning.callbacks.Samples")
    with pytest.raises(ValueError, match="Union subtypes") as error:
        run_cli(*FIT, f"--trainer.{key}", given)
    code, line = explain(error.value)
    assert code == 2
    assert line.startswith(expected)


# Small parts


def test_a_union_of_types_is_listed_in_one_line() -> None:
    message = (
        'Parser key "data.validation":\n  Does not validate against any of the Union subtypes\n'
        "  Subtypes: [<class 'str'>, <class 'float'>, <class 'NoneType'>]\n  Errors:\n"
        "    - Expected a <class 'float'>\n  Given value type: <class 'list'>\n  Given value: [1]"
    )
    assert readable(message) == "data.validation: expected str, float, null, found [1]"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.batchsize", "data.batch_size"),
        ("batch_size", "data.batch_size"),
        ("model.max_length", "data.max_length"),
        ("model.objective.init_args.bta", "model.objective.beta"),
        ("unheard_of", None),
    ],
)
def test_a_suggestion_looks_at_the_whole_key_and_then_at_its_last_part(key: str, meant: str | None) -> None:
    known = ["data.batch_size", "data.max_length", "model.objective.beta", "model.lora_r"]
    expected = f": did you mean {meant}?" if meant else ""
    assert suggestion(f"Option '{key}' is not accepted", known) == expected


def test_keys_of_the_same_name_in_different_sections_or_list_items_are_no_duplicates() -> None:
    text = "a: {x: 1}\nb: {x: 1}\nc:\n- {x: 1}\n- {x: 2}\n"
    assert list(duplicate_keys(yaml.compose(text))) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"tokenizer": None}, ("base", "v1", True)),
        ({"tokenizer": "base"}, ("base", "v1", True)),
        ({"tokenizer": "base", "revision": "v2"}, ("base", "v2", True)),
        ({"tokenizer": "other"}, ("other", None, False)),
    ],
)
def test_the_tokenizer_is_the_base_models_with_its_revision_and_trust(
    data: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    filled = Namespace(**{"tokenizer": None, "revision": None, "trust_remote_code": False, **data})
    model = Namespace(base_model="base", revision="v1", trust_remote_code=True)
    fill_tokenizer(Namespace(model=model, data=filled))
    assert (filled.tokenizer, filled.revision, filled.trust_remote_code) == expected


def test_a_chosen_attention_kernel_that_cannot_run_here_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["-c", str(ROOT / "configs/quickstart.yaml"), "--trainer.accelerator", "cpu"]
    assert main(["fit", *words, "--model.attention", "flash_attention_2"]) == 2
    assert "model.attention flash_attention_2 needs a CUDA GPU, found CPU: use sdpa" in last_error(capsys)


def test_lightnings_own_checkpoint_options_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--help") == 0
    text = capsys.readouterr().out
    assert "--resume" in text
    assert "ckpt_path" not in text
    assert "--weights_only" not in text


def test_header_rows_stand_below_each_other_and_later_ones_replace_earlier() -> None:
    assert aligned({"a": "1", "long": "2"}) == "a     1\nlong  2"
    trainer = SimpleNamespace(is_global_zero=True, precision="32-true", datamodule=None)
    trainer.state = SimpleNamespace(fn="test")
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("orpo_lightning")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    header = RunHeader({"precision": "32-true (CPU)"})
    header.on_test_start(trainer, Line())  # type: ignore[arg-type]
    header.on_test_start(trainer, Line())  # type: ignore[arg-type]
    logger.removeHandler(handler)
    assert records == ["model      Line\nprecision  32-true (CPU)"]


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [(10, 90, 10.0, "0:01:30"), (1, 3600, 2.0, "2:00:00"), (0, 5, 1.0, "?"), (5, float("inf"), 1.0, "?")],
)
def test_the_remaining_time_is_that_of_the_steps_left(
    done: int, left: float, seconds: float, text: str
) -> None:
    assert remaining(done, left, seconds) == text


def test_plain_progress_prints_a_line_per_logged_step_and_per_validation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*FIT, "--trainer.log_every_n_steps", 2, "--trainer.val_check_interval", 8)
    run_cli(*words)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("step", "valid"))]
    lines = [line for line in lines if not line.startswith("steps")]
    assert [line.partition("  ")[0] for line in lines] == [
        "step 2/6",
        "step 4/6",
        "validation at step 4",
        "step 6/6",
    ]
    assert all("loss " in line for line in lines)
    assert all("eta 0:" in line for line in lines if line.startswith("step"))


# The real module and data, from the outside


@pytest.fixture
def quickstart_words(tiny_base: str) -> list[str]:
    folder = ROOT / "configs" / "quickstart"
    words = ["-c", ROOT / "configs/quickstart.yaml", "--model.base_model", tiny_base]
    words += ["--data.train", folder / "train.jsonl", "--data.test", folder / "heldout.jsonl"]
    words += ["--data.validation", "null", "--data.cache_dir", "cache", "--data.batch_size", "2"]
    words += ["--trainer.accumulate_grad_batches", "2", "--trainer.log_every_n_steps", "1"]
    return [str(word) for word in words]


def test_the_header_of_a_real_run_names_model_data_steps_and_reasons(
    quickstart_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *quickstart_words, "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    rows = {label: text.strip() for label, text in rows.items()}
    assert rows["precision"].startswith("32-true (CPU: ")
    assert rows["attention"].startswith("sdpa (")
    assert rows["train"].startswith("3,000 pairs of ")
    assert rows["steps"] == "2 in all, 750 per pass over the data"
    assert rows["pairs per step"] == "4 (batch 2 x 2 accumulated x 1 devices)"
    assert rows["written to"] == "runs/quickstart"
    assert {"model", "parameters", "quantization"} <= rows.keys()
    assert (Path("runs/quickstart/adapter") / "adapter_config.json").is_file()


def test_a_killed_run_resumes_to_the_same_weights(quickstart_words: list[str]) -> None:
    words = ["fit", *quickstart_words, "--trainer.max_steps", "8", "--save_every", "3"]
    assert main([*words, "--run_dir", "whole"]) == 0
    command = [sys.executable, "-u", "-m", "orpo_lightning", *words, "--run_dir", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main([*words, "--run_dir", "killed", "--resume", "auto"]) == 0
    whole, resumed = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True) for folder in ("whole", "killed")
    )
    assert whole["global_step"] == resumed["global_step"] == 8
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_two_processes_write_one_header_one_log_and_one_checkpoint(quickstart_words: list[str]) -> None:
    words = ["fit", *quickstart_words, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir", "two"]
    command = [sys.executable, "-m", "orpo_lightning", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("written to")]) == 1
    assert len([line for line in lines if line.startswith("step 2/2")]) == 1
    assert "8 (batch 2 x 2 accumulated x 2 devices)" in done.stdout
    assert Path("two/log").read_text().count("written to") == 1
    assert torch.load("two/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_subclass_of_the_module_gets_the_adapter_export_and_its_own_keys(
    quickstart_words: list[str],
) -> None:
    class Mine(PreferenceModule):
        def __init__(self, extra: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = extra

    words = ["fit", *quickstart_words, "--model.extra", "3", "--trainer.max_steps", "1"]
    cli = PreferenceCLI(Mine, args=words)
    assert cli.model.extra == 3
    config = saved_config("runs/quickstart")
    assert config["data"]["tokenizer"] == cli.model.hparams["base_model"]
    assert config["trainer"]["use_distributed_sampler"] is False
    assert (Path("runs/quickstart/adapter") / "adapter_model.safetensors").is_file()
    shutil.rmtree("runs")
