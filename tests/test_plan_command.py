"""`orpo-lightning plan` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

from orpo_lightning import __main__ as front

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "configs" / "mistral.yaml")
MODEL = "mistralai/Mistral-7B-v0.1"
# What is known of the model, as its config.json has it.
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    (folder / "config.json").write_text(json.dumps(MISTRAL_7B))
    return folder


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert front.main(["plan", *words]) == 0
    return capsys.readouterr().out


def plan_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(plan(capsys, *words, "--json"))


def test_the_recipe_needs_less_than_eight_gigabytes_and_config_json_alone(
    mistral: Path, tmp_path: Path
) -> None:
    with HubServer(models={MODEL: mistral}) as server:
        environment = server.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "orpo_lightning", "plan", "--config", RECIPE, "--json"],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        requests = list(server.requests)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["parameters"], report["trained"]) == (7_241_732_096, 41_943_040)
    assert (report["pairs"], report["max_length"], report["tokens"]) == (2, 1024, 2 * (1 + 2 * 1023))
    for gpu in report["gpus"]:
        assert gpu["peak_bytes"] <= 8e9
        assert gpu["fits"]
        assert gpu["peak_bytes"] == sum(gpu["parts"].values())
    files = {request.rpartition("/")[2] for request in requests if "/resolve/" in request}
    assert files == {"config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # no run folder


def test_one_gpu_in_detail_names_every_part_and_what_is_assumed(
    mistral: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = plan(capsys, "--config", RECIPE, "--model.base_model", str(mistral), "--gpu", "T4")
    for words in (
        "T4, 15.0 GiB: fits (16-mixed, attention sdpa)",
        "weights of the layers",
        "LoRA adapters",
        "optimizer state",
        "fragmentation (5% of what comes and goes, assumed)",
        "peak, in the backward of layer 32 of 32",
        "pairs of 1024 tokens",
        "of 32 (",
        "hours if every pair were that long",
        "Speed assumes 40%",
    ):
        assert words in out


def test_without_a_gpu_there_is_a_row_for_each(mistral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = plan(capsys, "--config", RECIPE, "--model.base_model", str(mistral)).splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert names.index("T4") < names.index("H100") < names.index("B200")


def test_more_tokens_need_more_and_keys_of_fit_are_heard(
    mistral: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", RECIPE, "--model.base_model", str(mistral), "--memory", "24"]
    (usual,) = plan_json(capsys, *words)["gpus"]
    (longer,) = plan_json(capsys, *words, "--data.max_length", "2048")["gpus"]
    (kept,) = plan_json(capsys, *words, "--model.gradient_checkpointing", "false")["gpus"]
    assert usual["peak_bytes"] < longer["peak_bytes"] < kept["peak_bytes"]
    assert usual["largest_batch"] > longer["largest_batch"] > 0
    assert usual["fits"]
    assert not kept["fits"]
    assert 0 < kept["recomputed_layers"] < 32
    assert usual["tokens_per_second"] is None


def test_a_budget_of_tokens_is_the_batch_that_is_planned(
    mistral: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", RECIPE, "--model.base_model", str(mistral), "--gpu", "T4"]
    report = plan_json(capsys, *words, "--data.tokens_per_batch", "5000")
    assert (report["pairs"], report["tokens"]) == (2, 5000)


def test_auto_is_planned_as_the_layout_that_the_architecture_allows(
    mistral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", RECIPE, "--gpu", "T4"]
    report = plan_json(capsys, *words, "--model.base_model", str(mistral))
    assert report["layout"] == "shared_prefix"
    assert any("padded where its test batch differs" in note for note in report["notes"])
    bloom = {"model_type": "bloom", "vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps(bloom))
    targets = ["--model.lora_targets", "all-linear"]
    report = plan_json(capsys, *words, "--model.base_model", str(tmp_path), *targets)
    assert report["layout"] == "padded"
    assert any("ALiBi" in note for note in report["notes"])


def test_full_fine_tuning_by_default_settings_is_planned_too(
    mistral: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.base_model", str(mistral), "--model.lora_r", "0", "--gpu", "H100"]
    (found,) = plan_json(capsys, *words)["gpus"]
    assert found["parts"]["optimizer"] == 8 * 7_241_732_096
    assert not found["fits"]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--gpu", "abacus"], 2, "error: --gpu abacus: expected one of T4,"),
        (["--gpu", "T4", "--memory", "8"], 2, "error: --gpu and --memory: expected one of them"),
        (["--memory", "-1"], 2, "error: --memory: expected GB above 0, found -1"),
        (["--model.base_model", "./nowhere"], 5, "error: model.base_model: cannot load './nowhere'"),
        (["--model.lora_rr", "3"], 2, "did you mean model.lora_r?"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], code: int, line: str, mistral: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front.main(["plan", "--config", RECIPE, "--model.base_model", str(mistral), *words]) == code
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert line in err[0]


def test_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, "--help").startswith("usage: orpo-lightning plan --config")
    assert os.environ.get("PL_GLOBAL_SEED") is None
