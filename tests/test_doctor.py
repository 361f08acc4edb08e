"""`doctor`: what it finds here, what it makes of what is wrong, and that it never fails itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import HubServer

from orpo_lightning import __main__ as front
from orpo_lightning.checkup import machine, packages, places
from orpo_lightning.checkup.base import Check, checked
from orpo_lightning.commands import doctor, doctor_fit

ROOT = Path(__file__).parent.parent
TRAINED_WITH = {
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """Run it as a script would; the exit code follows from what it says."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["orpo-lightning"])
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = front.main(["doctor", "--json"])
    patch.undo()
    report = json.loads(out.getvalue())
    assert code == (0 if report["ok"] else 5)
    return report


def found(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(check for check in report["checks"] if check["name"] == name)


def test_it_looks_at_everything_and_says_what_to_do_where_something_is_wrong(told: dict[str, Any]) -> None:
    names = {check["name"] for check in told["checks"]}
    assert {"Python", "system", "memory", "precision", "attention", "flash-attn", "bitsandbytes"} <= names
    assert {"packages", "extras", "disk, here", "disk, hub cache", "hub", "hub token"} <= names
    assert all(check["advice"] for check in told["checks"] if check["status"] != "ok")
    assert {check["status"] for check in told["checks"]} <= {"ok", "warning", "error"}


def test_nf4_is_tried_and_not_only_looked_up(told: dict[str, Any]) -> None:
    check = found(told, "bitsandbytes")
    assert check["status"] == "ok"
    assert "an NF4 layer was quantised and multiplied on" in check["found"]
    error = float(check["found"].rpartition(" ")[2])
    assert 0.02 < error < 0.2, "four bits are not exact, and not noise"


def test_it_says_which_shipped_configurations_fit(told: dict[str, Any]) -> None:
    lines = [check["found"] for check in told["checks"] if check["name"] in ("fits", "does not fit")]
    assert [line.split()[0] for line in lines] == ["quickstart", "smollm2", "qwen", "llama", "mistral"]
    assert found(told, "fits")["found"].startswith("quickstart needs 0.")


def test_the_shapes_it_plans_with_are_those_of_the_shipped_configurations() -> None:
    import yaml
    from transformers import AutoConfig

    from orpo_lightning.planning.known import SHAPES
    from orpo_lightning.planning.shapes import read_model

    files = [ROOT / "configs" / f"{name}.yaml" for name in doctor_fit._NAMES]
    bases = {yaml.safe_load(file.read_text())["model"]["base_model"] for file in files}
    assert bases - {"configs/quickstart/model"} == set(SHAPES) == set(TRAINED_WITH)
    for name, weights in TRAINED_WITH.items():
        assert read_model(AutoConfig.for_model(**SHAPES[name]), "all-linear").weights == weights


def test_what_fails_while_it_is_looked_at_is_one_line_of_the_report() -> None:
    def look() -> Check:
        raise OSError(5, "libcuda is broken\nand more")

    (check,) = checked("GPU", look)
    assert check.status == "error"
    assert "libcuda is broken" in check.found
    assert "\n" not in check.found


def test_no_look_that_fails_hides_another_and_an_error_is_exit_code_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Check:
        raise RuntimeError("no such device")

    monkeypatch.setattr(doctor, "_looks", lambda: [("GPU", broken), ("Python", machine.python)])
    assert front.main(["doctor"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ERROR", "GPU"]
    assert "Python" in lines[2]
    assert lines[-1] == "1 error, 0 warnings"


def test_versions_are_held_against_what_is_needed_and_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2.5", "jinja2>=3.1", 'optuna>=4; extra == "sweep"']
    monkeypatch.setattr(packages.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(packages, "tested_versions", lambda: {"torch": "2.13.0", "jinja2": "3.1.6"})
    versions = {"torch": "2.13.0+cpu", "jinja2": "3.1.6", "optuna": "5.0.0"}
    monkeypatch.setattr(packages, "installed", versions.get)

    def look() -> list[Check]:
        return list(packages.versions())

    assert look()[0] == Check("packages", "ok", "all 2 in the versions they are tested with")
    assert look()[1].found.startswith("sweep; not installed: galore")
    versions["jinja2"] = "3.2"
    assert (look()[0].status, "jinja2 3.2" in look()[0].found) == ("warning", True)
    versions["jinja2"] = "3.0"
    assert (look()[0].status, look()[0].found) == ("error", "needed: jinja2>=3.1 (3.0)")
    del versions["torch"]
    assert "torch>=2.5 (not installed)" in look()[0].found


@pytest.mark.parametrize(("free", "status"), [(5e11, "ok"), (5e9, "warning"), (5e8, "error")])
def test_a_disk_without_room_is_told(
    free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda folder: free)
    assert places.disk("disk", tmp_path / "not" / "there" / "yet").status == status


def test_of_the_hub_the_front_page_alone_is_asked_for_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.environment(tmp_path)["HF_ENDPOINT"])
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        answer, token = places.hub()
        requests = list(server.requests)
    assert (answer.status, requests) == ("ok", ["HEAD /"])
    assert " ms" in answer.found
    assert token.found == "in HF_TOKEN"


def test_a_hub_that_does_not_answer_is_a_warning_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    answer = next(iter(places.hub()))
    assert answer.status == "warning"
    assert "http://127.0.0.1:9 does not answer" in answer.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in next(iter(places.hub())).found


def test_a_gpu_is_told_with_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from orpo_lightning import hardware

    properties = SimpleNamespace(name="NVIDIA T4", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5 * 2**30, 15 * 2**30))
    monkeypatch.setattr(hardware, "detect_device", lambda: hardware.Device("cuda", "NVIDIA T4", (7, 5)))
    gpu, precision, attention = machine.gpus()
    assert gpu.status == "warning", "somebody else holds two thirds of it"
    assert "NVIDIA T4, capability 7.5, 5.0 of 15.0 GiB free" in gpu.found
    assert precision.found.startswith("16-mixed")
    assert attention.found.startswith("sdpa")


def test_the_quick_looks_need_no_torch() -> None:
    code = (
        "import sys; from orpo_lightning.checkup import machine, packages, places; machine.python(); "
        "machine.processor(); list(packages.versions()); list(places.hub()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
