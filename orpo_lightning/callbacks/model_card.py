"""The README.md beside saved weights."""

from __future__ import annotations

from typing import Any

import lightning

from orpo_lightning.metrics import interval_words
from orpo_lightning.modeling import causal_model
from orpo_lightning.using.cards import Card, code, versions


def model_card(trainer: lightning.Trainer, module: Any) -> str:
    """Return a model card in the hub's form: how the weights were made, last figures, how to load them.

    Names of models, of metrics and what a module says of itself are text in it, whatever stands in them.
    """
    return Card(
        base=module.hparams["base_model"],
        revision=module.hparams["revision"],
        is_adapter=causal_model(module.model) is not module.model,
        intro=[
            f"Trained {trainer.global_step} optimizer steps with {code(repr(module.objective))} by "
            "orpo-lightning",
            "(odds ratio preference optimisation, [arXiv 2403.07691](https://arxiv.org/abs/2403.07691)).",
        ],
        tables=[
            ("setting", "value", module.describe()),
            ("figure", "value", _figures(trainer)),
            ("package", "version", versions()),
        ],
    ).render()


def _figures(trainer: lightning.Trainer) -> list[tuple[str, str]]:
    metrics = trainer.callback_metrics
    values = {name: value for name, value in metrics.items() if "/" in name and "_ci_" not in name}
    words = {name: f"{float(value):.4g}{interval_words(metrics, name)}" for name, value in values.items()}
    return sorted(words.items())
