"""The moments of a training step at which memory is fullest, and the plan: the fullest of them, by part.

Three kinds of moment can be the peak: the head's (all layers' activations are kept, a chunk of logits is
worked on, gradients of the step before still live), that of one layer's backward pass (the layers below it
are kept, those above have their gradients), and the optimizer's step (no activations, all gradients).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from orpo_lightning.logps import chunk_rows
from orpo_lightning.planning import activations, weights
from orpo_lightning.planning.base import Batch, Model, Training
from orpo_lightning.vocabulary_blocks import block_columns

_FP32 = 4
# Tensors as large as a chunk of logits, all fp32. Of a frozen head: logits and softmax. Where autograd finds
# the way: logits, less their log-sum-exp, the exponential of that, and its product with the gradient.
_LOGITS_OF_FROZEN, _LOGITS = 2, 4
# What a fragmented allocator loses, of what comes and goes in a step: assumed, stated as a line of its own.
FRAGMENTATION = 0.05
# CUDA's context with the kernels that are loaded, and cuBLAS's workspace: no tensors, but on the card.
CONTEXT_BYTES = 450 * 2**20


class Parts(NamedTuple):
    """Bytes at one moment, by what they are for."""

    weights: int
    """Matrices of the layers, with their quantisation constants."""
    unquantised: int
    """Embedding, head, norms, biases."""
    adapters: int
    optimizer: int
    gradients: int
    activations: int
    """Kept by layers until their backward pass."""
    attention: int
    """Kept by attention among them, and its masks."""
    working: int
    """Of the layer, or the optimizer, at work: for the moment."""
    head: int
    """Last norm, scored states, their row Jacobians, a chunk of logits."""
    casts: int
    """Copies of weights in autocast's dtype."""

    @property
    def tensors(self) -> int:
        """All of them: what torch counts as allocated."""
        return sum(self)


class Plan(NamedTuple):
    """The peak of a training step."""

    moment: str
    """When it is reached."""
    parts: Parts
    fragmentation: int
    context: int

    @property
    def total(self) -> int:
        """What the device must have."""
        return self.parts.tensors + self.fragmentation + self.context


def plan(model: Model, training: Training, batch: Batch) -> Plan:
    """Return the fullest moment of a training step once the optimizer has its state."""
    moment, parts = max(moments(model, training, batch), key=lambda found: found[1].tensors)
    if training.device != "cuda":
        return Plan(moment, parts, fragmentation=0, context=0)
    standing = parts.weights + parts.unquantised + parts.adapters + parts.optimizer
    return Plan(moment, parts, int(FRAGMENTATION * (parts.tensors - standing)), CONTEXT_BYTES)


def moments(model: Model, training: Training, batch: Batch) -> Iterator[tuple[str, Parts]]:
    """Yield every moment that can be the peak, with what lives then."""
    gradients = weights.gradient_bytes(model, training)
    standing = Parts(
        weights=weights.quantised_bytes(model, training),
        unquantised=weights.unquantised_bytes(model, training),
        adapters=weights.adapter_bytes(model, training),
        optimizer=weights.optimizer_bytes(model, training),
        gradients=gradients,
        activations=0,
        attention=0,
        working=0,
        head=0,
        casts=0,
    )
    yield "optimizer step", standing._replace(working=weights.update_bytes(model, training))
    below = standing._replace(
        head=_states_at_head(model, training, batch),
        attention=_shared_by_layers(model, training, batch),
        working=_merged_rows(model, training),
    )
    layers, gradients_before = len(model.layers), weights.gradients_before(model, training)
    for number in range(layers):
        above = gradients_before[number]
        own = _at_work(below, model, training, batch, number)
        yield f"backward of layer {number + 1} of {layers}", own._replace(gradients=above, head=0)
        if training.optimizer.layerwise:
            kept = own._replace(gradients=above, head=0, working=below.working)
            yield f"update of layer {number + 1} of {layers}", _updated(kept, model, training, number)
        below = _keep(below, model, training, batch, number)
    yield from _at_head(below, model, training, batch)


def _at_head(parts: Parts, model: Model, training: Training, batch: Batch) -> Iterator[tuple[str, Parts]]:
    """Yield the head's moments, when all layers are kept.

    A frozen head's row Jacobians are worked out in the forward pass, while gradients of the step before still
    live: Lightning drops them in front of the backward pass. On a CPU in fp32 they come by blocks of the
    vocabulary. A trained head's chunks are recomputed in the backward pass, each with its own copy of the
    head in autocast's dtype: Lightning has autocast remember none.
    """
    frozen = training.lora_r and not training.trained_rows and not model.adapted_head
    single = training.weight_bytes == training.compute_bytes == _FP32 and not training.autocast
    if frozen and training.device == "cpu" and single and not model.softcap:
        # The block, its share of the Jacobian, and the sum of these.
        columns = min(block_columns(batch.targets), model.vocabulary)
        numbers = batch.targets * (columns + 2 * model.hidden)
        yield "head", parts._replace(head=parts.head + _FP32 * numbers)
        return
    rows = min(chunk_rows(model.vocabulary), batch.targets)
    logits = rows * model.vocabulary * _FP32
    states = parts.head
    as_given = logits * training.compute_bytes // _FP32 if training.compute_bytes < _FP32 else 0
    if frozen:
        jacobian = batch.targets * model.hidden * training.weight_bytes
        gradient = rows * model.hidden * training.weight_bytes
        chunk = (_LOGITS_OF_FROZEN + model.softcap) * logits + as_given + gradient
        yield "head", parts._replace(head=states + jacobian + chunk)
        return
    copy = weights.cast_bytes([(model.vocabulary, model.hidden)], training) if not training.lora_r else 0
    yield "head", parts._replace(head=states + logits + as_given, casts=parts.casts + copy)
    # The gradient of a chunk, beside the sum over the chunks before it where there are any.
    own = (1 + (rows < batch.targets)) * model.vocabulary * model.hidden * training.compute_bytes
    gradients = weights.gradient_bytes(model, training) if training.accumulated else 0
    if training.optimizer.layerwise and model.head_weights:
        update = weights.galore_update_bytes((model.vocabulary, model.hidden), model, training)
        yield "update of the head", parts._replace(head=states, working=parts.working + update)
    yield (
        "backward of the head",
        parts._replace(head=states + own + (_LOGITS + model.softcap) * logits, gradients=gradients),
    )


def _updated(parts: Parts, model: Model, training: Training, number: int) -> Parts:
    """Add the update of a layer's largest weight, when what the layer keeps is still there."""
    shapes = weights.trained_in(model.layers[number], training)
    largest = max((weights.galore_update_bytes(shape, model, training) for shape in shapes), default=0)
    return parts._replace(working=parts.working + largest)


def _keep(parts: Parts, model: Model, training: Training, batch: Batch, number: int) -> Parts:
    """Add what a layer keeps from its forward pass on."""
    layer = model.layers[number]
    if number < training.recomputed:
        held = 0 if training.offloaded else batch.tokens * model.hidden * training.weight_bytes
        if training.quantization == "int8":
            held += batch.tokens * activations.kept_by_int8(layer, training)
        return parts._replace(activations=parts.activations + held)
    kept = _add(parts, activations.kept(layer, training, batch, first=number == 0))
    return kept._replace(casts=kept.casts + weights.cast_bytes(weights.trained_in(layer, training), training))


def _at_work(parts: Parts, model: Model, training: Training, batch: Batch, number: int) -> Parts:
    """Add what a layer has in its backward pass: what it keeps, its input, and what a moment needs."""
    layer = model.layers[number]
    recomputed = number < training.recomputed
    found = _add(parts, activations.kept(layer, training, batch, first=number == 0 and not recomputed))
    extra = 0
    if recomputed and training.weight_bytes < _FP32:  # else its first norm keeps that very tensor
        extra = batch.tokens * model.hidden * training.weight_bytes
    if recomputed and training.quantization == "int8":
        extra += batch.tokens * activations.kept_by_int8(layer, training)
    return found._replace(
        activations=found.activations + extra,
        casts=found.casts + weights.cast_bytes(weights.trained_in(layer, training), training),
        working=found.working + activations.working(layer, training, batch, recomputed=recomputed),
    )


def _add(parts: Parts, kept: activations.Kept) -> Parts:
    return parts._replace(
        activations=parts.activations + kept.norms + kept.inputs + kept.mlp,
        attention=parts.attention + kept.attention,
        casts=parts.casts + kept.weights,
    )


def _shared_by_layers(model: Model, training: Training, batch: Batch) -> int:
    """Return the bytes of masks and of the rotation's sines and cosines, which all layers share."""
    windows = {layer.window for layer in model.layers if activations.is_masked(layer, batch)}
    item = 1 if training.attention == "sdpa" else training.weight_bytes
    masks = len(windows) * batch.rows * batch.width**2 * item
    if batch.flat or training.attention == "flash_attention_2":
        masks = 0
    return masks + 2 * batch.tokens * model.layers[0].head_dim * training.weight_bytes


def _states_at_head(model: Model, training: Training, batch: Batch) -> int:
    """Return the bytes of the last norm's input in fp32, its output, and the scored states picked from it."""
    stream, norm = training.weight_bytes, activations.norm_bytes(training)
    return model.hidden * (batch.tokens * (norm + stream) + batch.targets * stream)


def _merged_rows(model: Model, training: Training) -> int:
    """Return the bytes of the embedding with its trained rows put in: a copy made in each forward pass."""
    return model.embedding_weights * training.weight_bytes if training.trained_rows else 0
