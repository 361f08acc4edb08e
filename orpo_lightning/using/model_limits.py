"""Where an answer ends: the tokens that end it, and the length a model was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

from orpo_lightning.data.prompts import PromptEncoder


def context_length_of(config: Any) -> int | None:
    """Return how many tokens a model was made for, as its config says; None where it does not."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def named_stop_ids(
    tokenizer: Any, settings: Any, config: Any, prompts: PromptEncoder | None = None
) -> set[int]:
    """Return every token that ends an answer.

    Args:
        tokenizer: names one, and so does its chat template.
        settings: the model's generation_config, which may name several.
        config: the model's config.
        prompts: of the tokenizer, where it is at hand.
    """
    named = [tokenizer.eos_token_id, (prompts or PromptEncoder(tokenizer)).end_of_turn()]
    for names in (settings, config, config.get_text_config()):
        value = getattr(names, "eos_token_id", None)
        named += value if isinstance(value, list) else [value]
    return {int(token) for token in named if token is not None}


def writable(settings: GenerationConfig, stop_ids: Sequence[int]) -> GenerationConfig:
    """Return a model's settings with every token that ends an answer, as transformers agrees to write them.

    It reads a temperature beside `do_sample: false`, and refuses to write it.
    """
    if stop_ids:
        settings.eos_token_id = sorted(stop_ids)
    if settings.do_sample is not True and (settings.temperature or settings.top_p or settings.top_k):
        settings.do_sample = True
    return settings
