"""`configs/mistral.yaml` itself trains: model and pairs come under their real ids from a hub on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import HubServer, write_ultrafeedback
from peft import PeftModel
from tiny_models import save_tiny_mistral
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent
MODEL, PAIRS = "mistralai/Mistral-7B-v0.1", "HuggingFaceH4/ultrafeedback_binarized"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """Run the shipped recipe for four steps; return its folder, what it printed, what it asked the hub."""
    folder = tmp_path_factory.mktemp("recipe")
    base, pairs = (
        save_tiny_mistral(folder / "base", dtype=torch.bfloat16),
        write_ultrafeedback(folder / "pairs"),
    )
    with HubServer(models={MODEL: base}, datasets={PAIRS: pairs}) as server:
        environment = server.environment(folder / "home")
        environment |= {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        words = ["fit", "--config", str(ROOT / "configs" / "mistral.yaml"), "--trainer.max_steps", "4"]
        done = subprocess.run(
            [sys.executable, "-m", "orpo_lightning", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        requests = list(server.requests)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, done.stdout, requests


def test_the_recipe_fetches_model_and_pairs_by_their_real_ids(finished: tuple[Path, str, list[str]]) -> None:
    _, _, requests = finished
    assert any(MODEL in request and "model.safetensors" in request for request in requests)
    assert any(PAIRS in request and "train_prefs" in request for request in requests)


def test_the_header_says_what_is_trained_and_how(finished: tuple[Path, str, list[str]]) -> None:
    _, printed, _ = finished
    for words in (
        MODEL,
        "nf4",
        "32-true (CPU",
        "48 pairs",
        "8 (batch 2 x 4 accumulated",
        "runs/mistral",
        "'</s>'",
    ):
        assert words in printed, f"{words} not in\n{printed}"
    assert "step 4/4" in printed


def test_the_saved_config_holds_the_resolved_values(finished: tuple[Path, str, list[str]]) -> None:
    folder, _, _ = finished
    config = yaml.safe_load((folder / "runs" / "mistral" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["data"]["tokenizer"] == MODEL
    assert config["model"]["optimizer"]["class_path"] == "bitsandbytes.optim.PagedAdamW8bit"


def test_the_adapter_it_leaves_loads_on_the_base(finished: tuple[Path, str, list[str]]) -> None:
    folder, _, _ = finished
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    ids = torch.tensor([[1, 300, 301, 302]])
    before = base(input_ids=ids).logits.detach().clone()
    adapted = PeftModel.from_pretrained(base, folder / "runs" / "mistral" / "adapter")
    targets = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, _ in adapted.named_parameters()
        if "lora_A" in name
    }
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not torch.equal(adapted(input_ids=ids).logits, before)
