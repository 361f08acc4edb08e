"""USE.md: the commands that serve a model, each with what it does not take."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from orpo_lightning.using.cards import base_words
from orpo_lightning.using.model_files import adapter_config, file_of
from orpo_lightning.using.trained import Trained
from orpo_lightning.using.vllm_rules import largest_rank, max_lora_rank, refusals, warnings


class Served(NamedTuple):
    """What is to be served, and where what it needs was written."""

    trained: Trained
    folder: Path
    """Of USE.md."""
    stop_ids: Sequence[int]
    stop_tokens: Sequence[str]
    modelfile: Path | None = None
    gguf: Path | None = None


def vllm_refusals(trained: Trained) -> list[str]:
    """Return why vLLM will not load an adapter; nothing where it will.

    Raises:
        SurroundingsError: the hub cannot be reached.
    """
    adapter = str(trained.adapter)
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
    else:
        files = [file for file in [file_of(adapter, "adapter_model.safetensors")] if file is not None]
    weights: list[str] = []
    for file in files:
        with safe_open(file, "pt") as tensors:
            weights += tensors.keys()
    return refusals(_config(trained), weights, trained.lora_init)


def use_md(served: Served) -> str:
    """Return USE.md."""
    trained = served.trained
    parts = [
        f"# How to use {Path(trained.name).name}",
        "",
        f"Answers end with {' or '.join(f'`{token}`' for token in served.stop_tokens)}.",
        "",
        *(_adapter(served) if trained.adapter else _model(served)),
        *_ollama(served),
    ]
    return "\n".join(parts) + "\n"


def _adapter(served: Served) -> list[str]:
    trained = served.trained
    merged = f"{shlex.quote(str(Path(served.folder).with_name('merged')))}"
    lines = [
        "## transformers",
        "",
        "```python",
        # Not by transformers alone: of DoRA its own loader gets other numbers.
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base_words(trained.base, trained.revision)})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(str(trained.adapter))})",
        "```",
        "",
        "## vLLM: the adapter on its base",
        "",
    ]
    refused = vllm_refusals(trained)
    if refused:
        lines += [
            f"vLLM does not load this adapter: {'; '.join(refused)}. Merge it, and serve the merged model."
        ]
    else:
        lines += ["```", vllm_command(served), "```"]
        lines += [line for words in warnings(_config(trained)) for line in ("", f"Mind: {words}.")]
        if trained.quantization != "none":
            lines += [
                "",
                f"The adapter was trained on {trained.quantization} weights; vLLM adds it to the full ones.",
            ]
    return [
        *lines,
        "",
        "## A model without adapter: vLLM, Ollama, llama.cpp",
        "",
        "```",
        f"orpo-lightning merge {shlex.quote(trained.name)} --out {merged}",
        f"orpo-lightning export {merged} --out {shlex.quote(str(served.folder))}-merged --gguf",
        "```",
        "",
    ]


def vllm_command(served: Served) -> str:
    """Return the command that serves the adapter on its base."""
    trained, folder = served.trained, Path(str(served.trained.adapter))
    config: Mapping[str, Any] = _config(trained)
    words = ["vllm", "serve", trained.base, "--enable-lora"]
    words += ["--lora-modules", f"orpo={folder}", "--max-lora-rank", str(max_lora_rank(largest_rank(config)))]
    words += ["--revision", trained.revision] if trained.revision else []
    words += ["--generation-config", str(served.folder)]
    template = folder / "chat_template.jinja"
    words += ["--chat-template", str(template)] if template.is_file() else []
    words += ["--trust-remote-code"] if trained.trust_remote_code else []
    return shlex.join(words)


def _config(trained: Trained) -> dict[str, Any]:
    found = adapter_config(str(trained.adapter))
    assert found is not None
    return found


def _model(served: Served) -> list[str]:
    trained = served.trained
    words = ["vllm", "serve", trained.weights]
    words += ["--trust-remote-code"] if trained.trust_remote_code else []
    return [
        "## transformers",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(trained.weights)})",
        "```",
        "",
        "## vLLM",
        "",
        "```",
        shlex.join(words),
        "```",
        "",
    ]


def _ollama(served: Served) -> list[str]:
    if served.modelfile is None:
        return []
    name = Path(served.trained.name).name.lower()
    lines = [
        "## Ollama",
        "",
        "```",
        f"ollama create {shlex.quote(name)} -f {shlex.quote(str(served.modelfile))}",
    ]
    lines += [f"ollama run {shlex.quote(name)}", "```", ""]
    if served.gguf is not None:
        lines += [
            "## llama.cpp",
            "",
            "```",
            f"llama-cli -m {shlex.quote(str(served.gguf))} -cnv --jinja",
            "```",
            "",
        ]
    return lines
