"""What a run's page says about the use of its weights: code and commands with the run's own names in them."""

from __future__ import annotations

import json
import shlex
from typing import Any

from orpo_lightning.observing.run_files import RunFiles
from orpo_lightning.run_settings import settings_of
from orpo_lightning.using.cards import base_words
from orpo_lightning.using.vllm_rules import max_lora_rank


def usage(run: RunFiles) -> dict[str, Any]:
    """Return how to use the weights: `code`, `commands` with their purposes, and `remarks`.

    Nothing where no weights were saved, or the base model is not known.
    """
    model = settings_of(run.config, "model")
    base = model.get("base_model")
    if "adapter" not in run.weights or not base:
        return {}
    folder = str(run.folder / "adapter")
    whole = model.get("lora_r") == 0
    return {
        "code": _code(base_words(str(base), model.get("revision")), folder, whole),
        "commands": _commands(str(run.folder)) + _serving(str(base), folder, run.name, model, whole),
        "remarks": _remarks(run, model),
    }


def _code(base: str, folder: str, whole: bool) -> str:
    if whole:
        return (
            "from transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(folder)})"
        )
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(folder)})"
    )


def _commands(folder: str) -> list[tuple[str, str]]:
    name = shlex.quote(folder)
    return [
        ("talk to it", f"orpo-lightning chat {name}"),
        (
            "answer a file of prompts",
            f"orpo-lightning generate {name} --prompts prompts.jsonl --out answers.jsonl",
        ),
        ("judge it against its base", f"orpo-lightning evaluate {name}"),
        ("put the adapter into the base", f"orpo-lightning merge {name} --out merged"),
    ]


def _serving(base: str, folder: str, name: str, model: dict[str, Any], whole: bool) -> list[tuple[str, str]]:
    if whole:
        return [("serve it", f"vllm serve {shlex.quote(folder)}")]
    if _is_special(model):
        return [("serve it", "vllm serve merged")]
    rank = max_lora_rank(int(model.get("lora_r") or 16))
    modules = shlex.quote(f"{name}={folder}")
    line = f"vllm serve {shlex.quote(base)} --enable-lora --lora-modules {modules} --max-lora-rank {rank}"
    revision = model.get("revision")
    return [("serve it", line + (f" --revision {shlex.quote(revision)}" if revision else ""))]


def _is_special(model: dict[str, Any]) -> bool:
    """Tell whether an adapter is more than LoRA, or larger, than vLLM takes."""
    is_more = model.get("lora_variant") == "dora" or bool(model.get("trainable_tokens"))
    return is_more or max_lora_rank(int(model.get("lora_r") or 16)) is None


def _remarks(run: RunFiles, model: dict[str, Any]) -> list[str]:
    found = []
    if "adapter-best" in run.weights:
        found.append("adapter/ has the last weights, adapter-best/ those of the lowest held-out loss.")
    if model.get("quantization") in ("nf4", "int8"):
        found.append(
            f"It was trained on the base in {model['quantization']}: on the unquantised base its "
            "log-probabilities are close to those of the run, not equal."
        )
    if _is_special(model):
        found.append("vLLM takes plain LoRA alone: merge first, and serve the merged model.")
    return found
