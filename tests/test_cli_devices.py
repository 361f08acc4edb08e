"""What the command line makes of several devices before anything is loaded or started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml

from orpo_lightning import PreferenceCLI
from orpo_lightning.cli import main
from orpo_lightning.cli_errors import explain
from orpo_lightning.strategies import TIMEOUT
from orpo_lightning.torchrun import meet_anew, started

ROOT = Path(__file__).parent.parent
TWO = ("--trainer.devices=2", "--trainer.accelerator=cpu")


class Line(lightning.LightningModule):
    """A module of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


class Points(lightning.LightningDataModule):
    """Somebody else's data."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orpo-lightning"])
    monkeypatch.delenv("ORPO_DEBUG", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # nothing is to be started from here
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *args, **kwargs: None)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ((), "DDPStrategy"),
        (("--trainer.strategy=ddp",), "DDPStrategy"),
        (("--trainer.strategy=fsdp2",), "FSDP2Strategy"),
    ],
)
def test_several_devices_get_a_strategy_with_its_reason_that_the_saved_configuration_repeats(
    words: tuple[str, ...], kind: str
) -> None:
    cli = PreferenceCLI(Line, Points, args=["fit", *TWO, *words])
    assert type(cli.trainer.strategy).__name__ == kind
    assert cli.trainer.strategy._timeout == TIMEOUT
    assert cli.header["strategy"].startswith(f"{kind} (")
    assert "keeps the others waiting for 10 minutes ends the run" in cli.header["strategy"]
    strategy = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["fit"]["trainer"]["strategy"]
    assert strategy["init_args"]["timeout"] == "0:10:00"
    Path("again.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    again = PreferenceCLI(Line, Points, args=["fit", "-c", "again.yaml", *TWO])
    assert type(again.trainer.strategy).__name__ == kind
    assert again.trainer.strategy._timeout == TIMEOUT


def test_one_device_has_no_strategy_of_several() -> None:
    cli = PreferenceCLI(Line, Points, args=["fit", "--trainer.accelerator=cpu"])
    assert type(cli.trainer.strategy).__name__ == "SingleDeviceStrategy"
    assert "strategy" not in cli.header


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trainer.strategy=fsdp"], "use fsdp2"),
        (["--trainer.strategy=dp"], "use ddp"),
        (["-c", "configs/deepspeed.yaml"], "needs the package deepspeed, not installed here"),
        (
            ["-c", "configs/fsdp2.yaml", "--model.optimizer=bitsandbytes.optim.AdamW8bit"],
            "bitsandbytes.optim.AdamW8bit cannot: use torch.optim.AdamW",
        ),
        (["-c", "configs/fsdp2.yaml", "--model.quantization=int8"], "nf4 or none"),
        (
            ["--model.optimizer=orpo_lightning.galore.LayerwiseGaLoreAdamW", "--model.lora_r=0"],
            "use orpo_lightning.galore.GaLoreAdamW with ddp",
        ),
        (["--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"], "use fsdp2"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_the_model_is_looked_for(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    # Of a model that is not there: it would be exit 5 if anybody asked for it.
    given = ["fit", "-c", str(ROOT / "configs/mistral.yaml"), *words, *TWO, "--model.base_model=nowhere"]
    assert main(given) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
    assert not Path("runs").exists()


def test_torchrun_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started() == {}
    counts = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3", "WORLD_SIZE": "6"}
    for name, value in {**counts, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert started() == {"devices": 2, "num_nodes": 3}
    cli = PreferenceCLI(Line, Points, args=["fit", "--trainer.accelerator=cpu"])
    assert (cli.trainer.num_devices, cli.trainer.num_nodes) == (2, 3)
    assert cli.trainer.world_size == 6
    assert main(["fit", "--trainer.devices=4"], Line, Points) == 2


def test_the_first_start_meets_where_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    meet_anew(TIMEOUT)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes"),
        torch.distributed.DistStoreError(
            "Timed out after 601 seconds waiting for clients. 1/2 clients joined."
        ),
        torch.distributed.DistBackendError("NCCL error"),
    ],
)
def test_a_broken_connection_is_the_surroundings_fault_and_its_note_says_whose(error: Any) -> None:
    code, line = explain(error)
    assert code == 5
    assert "--resume auto goes on" in line
    error.add_note("rank 1 was killed")
    assert explain(error) == (5, "rank 1 was killed")
