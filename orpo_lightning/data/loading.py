"""What a data module asks of the Trainer it is attached to: its place among the ranks, and the layout."""

from __future__ import annotations

from functools import partial
from typing import Any

from orpo_lightning.batching.base import Layout
from orpo_lightning.batching.costs import LayoutTokens, flat_tokens, padded_tokens
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.sampler import Collate
from orpo_lightning.batching.shared_prefix import lay_flat
from orpo_lightning.errors import UsageError


def choose_collate(layout: Layout, trainer: Any, tokenizer: Any) -> Collate:
    """Return what lays pairs out, as the module that will score them wants it.

    Raises:
        UsageError: shared prefixes were asked for, and the module has no way to them.
    """
    choose = getattr(getattr(trainer, "lightning_module", None), "choose_layout", None)
    if choose is None and layout == "shared_prefix":
        raise UsageError(
            "data.layout: shared_prefix needs a module with choose_layout, as PreferenceModule; use padded"
        )
    if choose is not None and choose(layout).value == "shared_prefix":
        return lay_flat
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return partial(pad_pairs, pad_id=next(token for token in known if token is not None))


def tokens_of(collate: Collate) -> LayoutTokens:
    """Return how the layout of these batches counts their tokens."""
    return flat_tokens if collate is lay_flat else padded_tokens


def rank_of(trainer: Any) -> int:
    """Return the number of this process."""
    return 0 if trainer is None else trainer.global_rank


def world_size_of(trainer: Any) -> int:
    """Return how many processes train together."""
    return 1 if trainer is None else trainer.world_size


def require_own_sampler(trainer: Any) -> None:
    """Stop before Lightning replaces the plan, after which ranks would no longer agree on their steps."""
    if world_size_of(trainer) > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UsageError(
            "trainer.use_distributed_sampler must be false: this data module shares out the pairs itself"
        )
