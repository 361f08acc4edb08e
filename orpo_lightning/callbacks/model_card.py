"""The README.md beside saved weights."""

from __future__ import annotations

import html
import importlib.metadata
import json
import re
from typing import Any

import lightning
import yaml

from orpo_lightning.masking import mask_text
from orpo_lightning.metrics import interval_words
from orpo_lightning.modeling import causal_model

_PACKAGES = ("orpo-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")


def model_card(trainer: lightning.Trainer, module: Any) -> str:
    """Return a model card in the hub's form: how the weights were made, last figures, how to load them.

    Names of models, of metrics and what a module says of itself are text in it, whatever stands in them.
    """
    base = mask_text(module.hparams["base_model"])
    adapter = causal_model(module.model) is not module.model
    return "\n".join(
        [
            "---",
            yaml.safe_dump({"base_model": base}, allow_unicode=True, width=10_000).rstrip(),
            f"library_name: {'peft' if adapter else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [orpo, preference-optimization, orpo-lightning]",
            "---",
            "",
            f"# ORPO {'adapter for' if adapter else 'fine-tune of'} {_text(base)}",
            "",
            f"Trained {trainer.global_step} optimizer steps with {_code(repr(module.objective))} by "
            "orpo-lightning",
            "(odds ratio preference optimisation, [arXiv 2403.07691](https://arxiv.org/abs/2403.07691)).",
            "",
            *_table("setting", "value", module.describe()),
            *_table("figure", "value", _figures(trainer)),
            *_table("package", "version", _versions()),
            "```python",
            *_loading(base, adapter),
            "```",
            "",
        ]
    )


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {left} | {right} |", "|---|---|", *(f"| {_text(a)} | {_text(b)} |" for a, b in rows), ""]


def _text(value: str) -> str:
    """Return a value as plain text of a line or cell: without HTML, links, code or lines of its own."""
    text = html.escape(" ".join(mask_text(str(value)).split()), quote=False)
    return re.sub(r"([\\`|\[\]*])", r"\\\1", text)


def _code(value: str) -> str:
    """Return a value in backticks; those of its own would end them."""
    return f"`{' '.join(mask_text(value).split()).replace('`', chr(39))}`"


def _figures(trainer: lightning.Trainer) -> list[tuple[str, str]]:
    metrics = trainer.callback_metrics
    values = {name: value for name, value in metrics.items() if "/" in name and "_ci_" not in name}
    words = {name: f"{float(value):.4g}{interval_words(metrics, name)}" for name, value in values.items()}
    return sorted(words.items())


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:  # used from a source tree, or bitsandbytes not needed
            continue
    return found


def _loading(base: str, adapter: bool) -> list[str]:
    if not adapter:
        return [
            "from transformers import AutoModelForCausalLM",
            "",
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
        'model = PeftModel.from_pretrained(base, "FOLDER")',
    ]
