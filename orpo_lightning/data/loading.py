"""What a data module asks of the Trainer it is attached to: its place among the ranks, and the layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from orpo_lightning.batching.base import Layout
from orpo_lightning.batching.costs import LayoutTokens, flat_tokens, padded_tokens
from orpo_lightning.batching.packing import Split
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.sampler import Collate
from orpo_lightning.batching.shared_prefix import lay_flat
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import UsageError
from orpo_lightning.run_settings import SPLIT


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
    rows = _rows_of(_embeddings(trainer))
    # A pad token may have been added behind the end of the model's vocabulary.
    fits = (token for token in known if token is not None and (rows is None or token < rows))
    return partial(pad_pairs, pad_id=next(fits))


def refuse_unknown_tokens(trainer: Any, tokenizer: Any, pairs: PairTable) -> None:
    """Stop where pairs hold a token that the model has no embedding for.

    Raises:
        UsageError: names the token and the size of the vocabulary.
    """
    refuse_tokens_beyond(_embeddings(trainer), tokenizer, pairs)


def refuse_tokens_beyond(embeddings: Any, tokenizer: Any, pairs: PairTable) -> None:
    """Stop where pairs hold a token behind the end of a model's embeddings; None has no end.

    Raises:
        UsageError: names the token and the size of the vocabulary.
    """
    rows, largest = _rows_of(embeddings), pairs.largest_token
    if rows is None or largest < rows:
        return
    text = tokenizer.convert_ids_to_tokens(largest)
    raise UsageError(
        f"data.tokenizer: it writes token {largest} ({text!r}), the model's vocabulary has {rows:,} (0 to "
        f"{rows - 1:,}): set data.tokenizer to that of model.base_model, or take a base whose embeddings "
        "were resized for this one"
    )


def _embeddings(trainer: Any) -> Any:
    """Return the embeddings of the Trainer's model; None for a module that does not say."""
    model = getattr(getattr(trainer, "lightning_module", None), "model", None)
    return getattr(model, "get_input_embeddings", lambda: None)()


def _rows_of(embeddings: Any) -> int | None:
    # Of one whose rows are trained, PEFT would put the weight together anew.
    embeddings = getattr(embeddings, "original_module", embeddings)
    return None if embeddings is None else int(embeddings.weight.shape[0])


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


def refuse_changing_accumulation(trainer: Any) -> None:
    """Stop where steps would come after other numbers of micro-batches than the plan's.

    Raises:
        UsageError: the Trainer has a GradientAccumulationScheduler.
    """
    kinds = {kind.__name__ for one in getattr(trainer, "callbacks", ()) for kind in type(one).__mro__}
    if "GradientAccumulationScheduler" in kinds:
        raise UsageError(
            "trainer.callbacks: GradientAccumulationScheduler changes how many micro-batches a step has, and "
            "this data module plans steps with one number: remove it, and set trainer.accumulate_grad_batches"
        )


def refuse_cut_step(trainer: Any, pairs: int, steps: Mapping[str, int], *, has_budget: bool) -> None:
    """Stop where every pass would end within an optimizer step, whose gradient would be a part of its mean.

    Trials are let through: fast_dev_run, overfit_batches.

    Args:
        trainer: that fits.
        pairs: of a pass over the data.
        steps: batch_size, accumulate and world_size.
        has_budget: whether steps are split by tokens.

    Raises:
        UsageError: names the numbers of micro-batches next to it.
    """
    if trainer is None or trainer.state.fn != "fit" or trainer.fast_dev_run or trainer.overfit_batches:
        return
    batches, limit = _micro_batches(pairs, steps, has_budget=has_budget), trainer.limit_train_batches
    computed = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    accumulate = steps["accumulate"]
    ends_before = 0 <= trainer.max_steps <= computed // accumulate
    if computed == batches or computed % accumulate == 0 or ends_before:
        return
    below = computed // accumulate * accumulate
    near = [str(below)] * (below > 0) + [str(below + accumulate) if below + accumulate < batches else "1.0"]
    raise UsageError(
        f"trainer.limit_train_batches {limit}: {computed:,} micro-batches end within an optimizer step of "
        f"{accumulate} (trainer.accumulate_grad_batches): set it to {' or '.join(near)}"
    )


def _micro_batches(pairs: int, steps: Mapping[str, int], *, has_budget: bool) -> int:
    batch_size, accumulate, world_size = (steps[key] for key in SPLIT)
    split = Split(batch_size, accumulate, world_size, tokens_per_batch=1 if has_budget else None)
    return split.micro_batches(pairs)


def refuse_late_validation(trainer: Any, pairs: int, steps: Mapping[str, int], *, has_budget: bool) -> None:
    """Stop where the first validation would come after the end of a pass, before a model is loaded for it.

    Args:
        trainer: that fits; its own check comes later.
        pairs: of a pass over the data.
        steps: batch_size, accumulate and world_size.
        has_budget: whether steps are split by tokens.

    Raises:
        UsageError: names both numbers.
    """
    if trainer is None or trainer.state.fn != "fit" or trainer.limit_train_batches != 1.0:
        return
    interval, batches = trainer.val_check_interval, _micro_batches(pairs, steps, has_budget=has_budget)
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches:
        raise UsageError(
            f"trainer.val_check_interval: {interval:,} micro-batches, and a pass over the data has "
            f"{batches:,}: lower it, or set trainer.check_val_every_n_epoch null to count on across passes"
        )
