"""What a plan says: for one device in detail, for all GPUs in a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from orpo_lightning import hardware
from orpo_lightning.planning import weights
from orpo_lightning.planning.base import Batch, Model, Training, fullest
from orpo_lightning.planning.checkpointing import Choice, choose_checkpointing
from orpo_lightning.planning.gpus import GIB, Gpu
from orpo_lightning.planning.peak import CONTEXT_BYTES, FRAGMENTATION, Plan, plan
from orpo_lightning.planning.settings import training_of
from orpo_lightning.planning.speed import UTILISATION, tokens_per_second

_NAMES = {
    "weights": "weights of the layers",
    "unquantised": "embedding, head, norms",
    "adapters": "LoRA adapters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "activations": "activations kept",
    "attention": "attention",
    "working": "the layer at work",
    "head": "head, a chunk of logits",
    "casts": "weights cast by autocast",
}


class Subject(NamedTuple):
    """A configuration as far as a plan goes.

    Attributes:
        name: of the base model.
        model: its shape.
        settings: the keywords of `training_of`, precision, attention and device aside.
        precision: as set; None where the device decides.
        attention: as set, or auto.
        eager: why no other attention can be had; empty where it can.
        batch_size: pairs.
        max_length: tokens of the longest sequence.
        max_prompt_length: tokens of the longest prompt; None: as long as a sequence.
        layout: padded or shared_prefix.
        steps: optimizer steps; None where only the data could tell.
        notes: what to say besides.
        automatic: whether no more layers are recomputed than the device asks for.
        tokens_per_batch: of a micro-batch, where it holds as many pairs as they allow.
    """

    name: str
    model: Model
    settings: dict[str, Any]
    precision: str | None
    attention: str
    eager: str
    batch_size: int
    max_length: int
    max_prompt_length: int | None
    layout: str
    steps: int | None
    notes: tuple[str, ...] = ()
    automatic: bool = False
    tokens_per_batch: int | None = None

    def batch(self, pairs: int, prompt: int = 1) -> Batch:
        """Return a batch of so many pairs of max_length tokens, `prompt` of them the prompt."""
        return fullest(self.layout, pairs, self.max_length, prompt=prompt)

    def largest(self, prompt: int = 1) -> Batch:
        """Return the largest batch as configured."""
        pairs, most = self.batch_size, self.batch_size * int(self.settings.get("accumulate", 1))
        return fullest(
            self.layout, pairs, self.max_length, prompt=prompt, budget=self.tokens_per_batch, most=most
        )

    def training(self, device: hardware.Device) -> Training:
        """Return how the model is trained on a device."""
        precision = self.precision or hardware.choose_precision(device).value
        attention = self.attention
        if attention == "auto":
            attention = "eager" if self.eager else hardware.choose_attention(device, precision).value
        return training_of(
            precision=precision,
            attention=attention,
            device=device.kind,
            layers=len(self.model.layers),
            **self.settings,
        )


class Answer(NamedTuple):
    """What a plan says about one device."""

    gpu: Gpu
    precision: str
    training: Training
    plan: Plan
    fits: bool
    largest_batch: int
    checkpointing: Choice
    tokens_per_second: float | None
    hours: float | None


def answer(subject: Subject, gpu: Gpu) -> Answer:
    """Return what a configuration needs of a GPU, and what the GPU can do for it."""
    device = gpu.device()
    batch, as_set = subject.largest(), subject.training(device)
    choice = choose_checkpointing(subject.model, as_set, batch, gpu.bytes)
    training = _as_chosen(as_set, choice) if subject.automatic else as_set
    found = plan(subject.model, training, batch)
    rate = None
    if gpu.teraflops:
        share = UTILISATION[training.quantization]
        rate = tokens_per_second(subject.model, training, batch, gpu.teraflops, share)
    return Answer(
        gpu=gpu,
        precision=subject.precision or hardware.choose_precision(device).value,
        training=training,
        plan=found,
        fits=found.total <= gpu.bytes,
        largest_batch=largest_batch(subject, as_set, gpu.bytes),
        checkpointing=choice,
        tokens_per_second=rate,
        hours=_hours(subject, rate),
    )


def _as_chosen(training: Training, choice: Choice) -> Training:
    return training._replace(recomputed=choice.recomputed, offloaded=choice.offloaded)


def largest_batch(subject: Subject, training: Training, budget: int) -> int:
    """Return the most pairs of max_length that fit in a micro-batch; 0 where not even one does."""

    def fits(pairs: int) -> bool:
        return plan(subject.model, training, subject.batch(pairs)).total <= budget

    low, high = 0, 1
    while fits(high) and high < 2**14:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _hours(subject: Subject, rate: float | None) -> float | None:
    if subject.steps is None or rate is None:
        return None
    pairs = subject.steps * subject.batch_size * int(subject.settings.get("accumulate", 1))
    return subject.batch(pairs).tokens / rate / 3600


def as_json(subject: Subject, answers: list[Answer]) -> dict[str, Any]:
    """Return everything, as numbers."""
    batch = subject.largest()
    return {
        "base_model": subject.name,
        "architecture": subject.model.architecture,
        "parameters": subject.model.weights,
        "layout": subject.layout,
        "pairs": batch.pairs,
        "max_length": subject.max_length,
        "tokens": batch.tokens,
        "trained": weights.trained_weights(subject.model, subject.training(answers[0].gpu.device())),
        "gpus": [_gpu_json(each) for each in answers],
        "notes": list(subject.notes),
    }


def _gpu_json(found: Answer) -> dict[str, Any]:
    return {
        "gpu": found.gpu.name,
        "memory_bytes": found.gpu.bytes,
        "precision": found.precision,
        "attention": found.training.attention,
        "peak_bytes": found.plan.total,
        "moment": found.plan.moment,
        "parts": {
            **found.plan.parts._asdict(),
            "fragmentation": found.plan.fragmentation,
            "context": found.plan.context,
        },
        "fits": found.fits,
        "largest_batch": found.largest_batch,
        "recomputed_layers": found.checkpointing.recomputed,
        "offloaded": found.checkpointing.offloaded,
        "fits_with_recomputation": found.checkpointing.fits,
        "tokens_per_second": found.tokens_per_second,
        "hours": found.hours,
    }


def table(subject: Subject, answers: list[Answer]) -> str:
    """Return a row for every GPU."""
    head = ("GPU", "GiB", "precision", "needs", "fits", "largest batch", "recompute", "tokens/s", "hours")
    rows = [head, *(_row(found) for found in answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(found: Answer) -> tuple[str, ...]:
    return (
        found.gpu.name,
        f"{found.gpu.bytes / GIB:.1f}",
        found.precision,
        f"{found.plan.total / GIB:.1f}",
        "yes" if found.fits else "no",
        f"{found.largest_batch} pairs",
        recomputation(found.checkpointing),
        "–" if found.tokens_per_second is None else f"{found.tokens_per_second:,.0f}",
        "–" if found.hours is None else f"{found.hours:.1f}",
    )


def recomputation(choice: Choice) -> str:
    """Say how many layers must be recomputed."""
    if not choice.fits:
        return "does not fit"
    if choice.offloaded:
        return "all, offload"
    if choice.recomputed in (0, choice.layers):
        return "all layers" if choice.recomputed else "none"
    return f"{choice.recomputed} of {choice.layers}"


def heading(subject: Subject) -> str:
    """Say what is planned."""
    batch = subject.largest()
    model, quantization = subject.model, subject.settings.get("quantization", "none")
    kept = "" if quantization == "none" else f", {quantization}"
    return (
        f"{subject.name} ({model.architecture}, {model.weights:,} weights{kept}), {subject.layout} batches "
        f"of {batch.pairs} pairs of {subject.max_length} tokens: {batch.tokens:,} tokens"
    )


def parts_lines(found: Plan) -> list[str]:
    """Return a line for every part that takes anything, and their sum."""
    rows = [(_NAMES[name], size) for name, size in found.parts._asdict().items()]
    rows += [
        (f"fragmentation ({FRAGMENTATION:.0%} of what comes and goes, assumed)", found.fragmentation),
        ("CUDA context (assumed)", found.context),
        (f"peak, in the {found.moment}", found.total),
    ]
    shown = [(name, size) for name, size in rows if size]
    width = max(len(name) for name, _ in shown)
    return [f"{name:<{width}}  {size / GIB:7.2f} GiB" for name, size in shown]


def detail(subject: Subject, found: Answer) -> str:
    """Return everything about one GPU."""
    verdict = "fits" if found.fits else "does not fit"
    lines = [
        f"{found.gpu.name}, {found.gpu.bytes / GIB:.1f} GiB: {verdict} "
        f"({found.precision}, attention {found.training.attention})",
        *parts_lines(found.plan),
        f"largest batch: {found.largest_batch} pairs of {subject.max_length} tokens "
        f"({subject.batch(found.largest_batch).tokens:,} tokens)"
        if found.largest_batch
        else "not one pair fits",
        f"recompute: {recomputation(found.checkpointing)} ({found.checkpointing.reason})",
    ]
    if subject.layout == "shared_prefix" and subject.max_prompt_length:
        lines.append(_with_long_prompts(subject, found))
    if found.tokens_per_second is not None:
        lines.append(f"speed: {found.tokens_per_second:,.0f} tokens/s{_hours_text(found)}")
    return "\n".join(lines)


def _with_long_prompts(subject: Subject, found: Answer) -> str:
    batch = subject.largest(min(subject.max_prompt_length or 1, subject.max_length - 1))
    shared = plan(subject.model, found.training, batch)
    return (
        f"with prompts of {subject.max_prompt_length} tokens: {shared.total / GIB:.2f} GiB "
        f"({batch.tokens:,} tokens)"
    )


def _hours_text(found: Answer) -> str:
    return "" if found.hours is None else f", {found.hours:.1f} hours if every pair were that long"


def footnotes(subject: Subject, training: Training) -> list[str]:
    """Return what the numbers rest on."""
    share = UTILISATION[training.quantization]
    return [
        f"Speed assumes {share:.0%} of the data sheet's dense half-precision peak; it is no measurement.",
        f"Assumed, not measured: {FRAGMENTATION:.0%} lost to fragmentation, "
        f"{CONTEXT_BYTES / GIB:.2f} GiB for CUDA's context. GiB here is 2**30 bytes.",
        *subject.notes,
    ]
