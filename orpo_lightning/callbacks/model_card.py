"""The README.md beside saved weights."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import lightning

from orpo_lightning.metrics import interval_words
from orpo_lightning.modeling import causal_model

_PACKAGES = ("orpo-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")


def model_card(trainer: lightning.Trainer, module: Any) -> str:
    """Return a model card in the hub's form: how the weights were made, last figures, how to load them."""
    base = module.hparams["base_model"]
    adapter = causal_model(module.model) is not module.model
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            f"library_name: {'peft' if adapter else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [orpo, preference-optimization, orpo-lightning]",
            "---",
            "",
            f"# ORPO {'adapter for' if adapter else 'fine-tune of'} {base}",
            "",
            f"Trained {trainer.global_step} optimizer steps with `{module.objective!r}` by orpo-lightning",
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
    return [f"| {left} | {right} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]


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
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "FOLDER")',
    ]
