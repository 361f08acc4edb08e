"""Out of memory: what was asked for, what the plan says to it, and three changes that would fit."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from orpo_lightning.planning.base import Batch, Model, Optimizer, Training, fullest
from orpo_lightning.planning.checkpointing import can_offload
from orpo_lightning.planning.gpus import GIB
from orpo_lightning.planning.peak import plan
from orpo_lightning.planning.token_budget import largest_budget

_EIGHT_BIT = "bitsandbytes.optim.PagedAdamW8bit"
_MOST = 3
_SHORTEST = 64
# What the plan may be wrong by, or others may hold, where it says that the step should have fitted.
_LESS = 0.9


class TokensPerBatch(NamedTuple):
    """The budget of tokens that steps are split by, in place of `data.batch_size`.

    Attributes:
        budget: `data.tokens_per_batch`; of auto, what it came to.
        batch_size: `data.batch_size`: with it a step has batch_size x accumulate pairs, a micro-batch any.
        longest: tokens of the longest sequence there is.
    """

    budget: int
    batch_size: int
    longest: int


class Facts(NamedTuple):
    """What is known when memory has run out.

    Attributes:
        model: its shape.
        training: how it is trained.
        batch: the one that was worked on.
        accumulate: micro-batches to an optimizer step.
        device: its name.
        budget: its memory in bytes.
        doing: what went on, such as "a training step".
        tokens_per_batch: None where `data.batch_size` says how large a micro-batch is.
    """

    model: Model
    training: Training
    batch: Batch
    accumulate: int
    device: str
    budget: int
    doing: str = "a training step"
    tokens_per_batch: TokensPerBatch | None = None

    @property
    def layout(self) -> str:
        """How the batch is laid out."""
        return "shared_prefix" if self.batch.flat else "padded"


class Change(NamedTuple):
    """Other values of some keys, and what a step takes with them."""

    flags: str
    training: Training
    batch: Batch
    kinds: tuple[str, ...] = ()
    """Which of `_FLAGS` were changed."""


def lines(facts: Facts) -> list[str]:
    """Return what to tell the user, the first line for those who read no further."""
    batch, planned = facts.batch, plan(facts.model, facts.training, facts.batch)
    parts = sorted(planned.parts._asdict().items(), key=lambda part: -part[1])
    largest = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts[:4] if size)
    first = (
        f"out of memory in {facts.doing}: {batch.pairs} pairs, {batch.tokens:,} tokens, on {facts.device} "
        f"({facts.budget / GIB:.1f} GiB)"
    )
    says = f"planned: {planned.total / GIB:.2f} GiB at the peak, in the {planned.moment} ({largest})"
    if planned.total <= facts.budget:
        says += "; that is less than there is: does another process hold memory?"
    fitting = changes(facts, min(facts.budget, int(_LESS * planned.total)))
    if not fitting:
        return [first, says, "no change of one or two keys fits: take a smaller model, or a larger device"]
    return [first, says, "any of these would fit:", *(f"  {_told(facts, change)}" for change in fitting)]


def _told(facts: Facts, change: Change) -> str:
    return f"{change.flags}  ({plan(facts.model, change.training, change.batch).total / GIB:.2f} GiB)"


def changes(facts: Facts, budget: int) -> list[Change]:
    """Return up to three changes with which a step fits, those first that leave the numbers as they are."""
    found: list[Change] = []
    for size in (1, 2, 3):
        for kinds in combinations(_FLAGS, size):
            if any({*kinds} >= {*one.kinds} for one in found):
                continue  # a part of it fits already
            change = _apply(facts, kinds, budget)
            if change is not None and plan(facts.model, change.training, change.batch).total <= budget:
                found.append(change)
            if len(found) == _MOST:
                return found
    return found


_FLAGS = {
    "recompute": "--model.gradient_checkpointing",
    "batch": "--data.batch_size",
    "quantise": "--model.quantization",
    "lora": "--model.lora_r",
    "optimizer": "--model.optimizer",
    "length": "--data.max_length",
}
_BUDGET = "--data.tokens_per_batch"


def _apply(facts: Facts, kinds: tuple[str, ...], budget: int) -> Change | None:
    """Return the change of these kinds together; None where one of them changes nothing."""
    change = Change("", facts.training, facts.batch)
    for kind in kinds:
        after = _changed(kind, facts, change, budget)
        if after is None:
            return None
        change = after._replace(flags=f"{change.flags} {after.flags}".strip())
    return change._replace(kinds=kinds)


def _changed(kind: str, facts: Facts, now: Change, budget: int) -> Change | None:
    training, layers = now.training, len(facts.model.layers)
    if kind == "recompute" and training.recomputed < layers:
        return Change(f"{_FLAGS[kind]} true", training._replace(recomputed=layers), now.batch)
    if kind == "recompute" and can_offload(training.device) and not training.offloaded:
        return Change(f"{_FLAGS[kind]} offload", training._replace(offloaded=True), now.batch)
    given = facts.tokens_per_batch
    if kind == "batch":
        return _fewer_tokens(facts, given, now, budget) if given else _smaller_batch(facts, now, budget)
    if kind == "quantise" and training.quantization != "nf4" and training.lora_r:
        return Change(f"{_FLAGS[kind]} nf4", training._replace(quantization="nf4"), now.batch)
    if kind == "lora" and not training.lora_r:
        adapted = training._replace(
            lora_r=16, dropout=True, weight_bytes=training.compute_bytes, optimizer=Optimizer("AdamW")
        )
        return Change(f"{_FLAGS[kind]} 16", adapted, now.batch)
    if kind == "optimizer" and training.optimizer.name in ("AdamW", "Adam"):
        eight = training._replace(optimizer=Optimizer(_EIGHT_BIT.rpartition(".")[2]))
        return Change(f"{_FLAGS[kind]} {_EIGHT_BIT}", eight, now.batch)
    if kind == "length":
        return _shorter_pairs(facts, given, now, budget) if given else _shorter(facts, now, budget)
    return None


def _smaller_batch(facts: Facts, now: Change, budget: int) -> Change | None:
    """Take a divisor of the batch's pairs, the largest that fits: the optimizer step stays the same."""
    pairs = now.batch.pairs
    divisors = [size for size in range(pairs - 1, 0, -1) if pairs % size == 0]
    for size in divisors:
        batch = _scaled(now.batch, size / pairs)._replace(pairs=size, rows=now.batch.rows * size // pairs)
        accumulate = facts.accumulate * pairs // size
        training = now.training._replace(accumulated=accumulate > 1)
        if size == 1 or plan(facts.model, training, batch).total <= budget:
            return Change(
                f"{_FLAGS['batch']} {size} --trainer.accumulate_grad_batches {accumulate}", training, batch
            )
    return None


def _shorter(facts: Facts, now: Change, budget: int) -> Change | None:
    """Halve the length until the step fits."""
    width = now.batch.width
    while width // 2 >= _SHORTEST:
        width //= 2
        batch = _scaled(now.batch, width / now.batch.width)._replace(width=width)
        if plan(facts.model, now.training, batch).total <= budget:
            return Change(f"{_FLAGS['length']} {width}", now.training, batch)
    return None


def _fewer_tokens(facts: Facts, given: TokensPerBatch, now: Change, memory: int) -> Change | None:
    """Take the largest budget of tokens that fits, at least a pair of the longest: a step keeps its pairs."""
    pairs, layout = given.batch_size * facts.accumulate, facts.layout
    training = now.training._replace(accumulated=pairs > 1)
    tokens, _ = largest_budget(
        facts.model, training, layout, longest=given.longest, most=pairs, memory=memory
    )
    if tokens >= given.budget:
        return None
    flags = f"{_BUDGET} {tokens}"
    # Micro-batches that hold batch_size of the longest pairs are never more than accumulate allows.
    if tokens < given.batch_size * fullest(layout, 1, given.longest).tokens:
        flags += f" {_FLAGS['batch']} 1 --trainer.accumulate_grad_batches {pairs}"
    return Change(flags, training, fullest(layout, 1, given.longest, budget=tokens, most=pairs))


def _shorter_pairs(facts: Facts, given: TokensPerBatch, now: Change, memory: int) -> Change | None:
    """Halve the length until one of the longest pairs fits; shorter ones alone would fill the same budget."""

    def fits(longest: int) -> bool:
        return plan(facts.model, now.training, fullest(facts.layout, 1, longest)).total <= memory

    if _BUDGET in now.flags or fits(given.longest):  # then a smaller budget is all it takes
        return None
    width = given.longest
    while width // 2 >= _SHORTEST:
        width //= 2
        if fits(width):
            pairs, flag = given.batch_size * facts.accumulate, f"{_FLAGS['length']} {width}"
            fewer = _fewer_tokens(facts, given._replace(longest=width), now, memory)
            if fewer is not None:
                return fewer._replace(flags=f"{flag} {fewer.flags}")
            full = fullest(facts.layout, 1, width, budget=given.budget, most=pairs)
            return Change(flag, now.training, full)
    return None


def _scaled(batch: Batch, factor: float) -> Batch:
    return batch._replace(tokens=round(batch.tokens * factor), targets=round(batch.targets * factor))
