"""Memory that stands still: weights, adapters, their gradients, the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

from orpo_lightning.planning.base import Layer, Linear, Model, Optimizer, Training

_FP32 = 4
# NF4: half a byte a weight, one byte a block of 64 (its scale), four a block of 256 scales; two tables.
_BLOCK, _SCALES = 64, 256
_TABLES = _FP32 * (16 + 256 + 1)
# bitsandbytes keeps the state of smaller tensors in fp32.
_SMALLEST_8BIT, _BLOCK_8BIT = 4096, 256
# Bytes of state for each trained weight. Whatever is not here is taken for Adam-like.
_STATES = {
    "AdamW": 8, "Adam": 8, "NAdam": 8, "RAdam": 8, "Adamax": 8, "PagedAdamW": 8, "PagedAdamW32bit": 8,
    "AdamW32bit": 8, "Lion": 4, "PagedLion": 4, "RMSprop": 4, "Adagrad": 4, "Adafactor": 0,
}  # fmt: skip
_EIGHT_BIT = {
    "AdamW8bit": 2,
    "PagedAdamW8bit": 2,
    "Adam8bit": 2,
    "PagedAdam8bit": 2,
    "Lion8bit": 1,
    "PagedLion8bit": 1,
}


def is_known(optimizer: str) -> bool:
    """Tell whether the state of an optimizer of this name is known."""
    return optimizer in {*_STATES, *_EIGHT_BIT, "SGD"} or Optimizer(optimizer).galore


def matrix_bytes(matrix: Linear, training: Training) -> int:
    """Return the bytes that a layer's matrix is kept in."""
    count = matrix.weights
    if training.quantization == "nf4":
        blocks = ceil(count / _BLOCK)
        return ceil(count / 2) + blocks + _FP32 * ceil(blocks / _SCALES) + _TABLES
    if training.quantization == "int8":
        return count + _FP32 * matrix.outputs
    return count * training.weight_bytes


def quantised_bytes(model: Model, training: Training) -> int:
    """Return the bytes of all matrices in the layers, quantised or not, with their constants."""
    return sum(matrix_bytes(matrix, training) for layer in model.layers for matrix in layer.linears)


def unquantised_bytes(model: Model, training: Training) -> int:
    """Return the bytes of embedding, head, norms, biases and fused experts."""
    return (model.weights - model.matrices) * training.weight_bytes


def trained_outside(model: Model, training: Training) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of trained tensors outside the layers, the embedding's last."""
    if training.lora_r:
        if model.adapted_head:
            yield training.lora_r, model.hidden
            yield model.vocabulary, training.lora_r
        if training.trained_rows:
            yield from [(training.trained_rows, model.hidden)] * (2 if model.head_weights else 1)
        return
    yield (model.other_weights,)
    if model.head_weights:
        yield model.vocabulary, model.head_weights // model.vocabulary
    yield model.vocabulary, model.embedding_weights // model.vocabulary


def trained_in(layer: Layer, training: Training) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of a layer's trained tensors; in full fine-tuning its vectors together as one."""
    for matrix in layer.linears:
        if not training.lora_r:
            yield matrix.outputs, matrix.inputs
        elif matrix.adapted:
            yield training.lora_r, matrix.inputs
            yield matrix.outputs, training.lora_r
            if training.dora:
                yield (matrix.outputs,)
    if not training.lora_r:
        yield (layer.other_weights,)
        return
    for adapter in layer.adapters:
        yield adapter.ranks * training.lora_r, adapter.inputs
        yield adapter.outputs, adapter.ranks * training.lora_r


def trained(model: Model, training: Training) -> Iterator[tuple[int, ...]]:
    """Yield the shape of every trained tensor."""
    yield from trained_outside(model, training)
    for layer in model.layers:
        yield from trained_in(layer, training)


def count(shape: tuple[int, ...]) -> int:
    """Return how many numbers a tensor of this shape has."""
    product = 1
    for size in shape:
        product *= size
    return product


def trained_weights(model: Model, training: Training) -> int:
    """Return how many weights are trained."""
    return sum(map(count, trained(model, training)))


def cast_bytes(shapes: Iterable[tuple[int, ...]], training: Training) -> int:
    """Return the bytes of autocast's copies of trained tensors; there are none without autocast."""
    return training.compute_bytes * sum(map(count, shapes)) if training.autocast else 0


def gradient_bytes(model: Model, training: Training) -> int:
    """Return the bytes of the trained weights' gradients: they have the weights' own dtype, fp32."""
    return 0 if training.optimizer.layerwise else _FP32 * trained_weights(model, training)


def gradients_before(model: Model, training: Training) -> list[int]:
    """Return the bytes of gradients when each layer's backward pass begins, and last when the head's does."""
    layers = len(model.layers)
    if training.optimizer.layerwise:
        # A head that is the embedding has its gradient first, and is updated last.
        both = not training.lora_r and not model.head_weights
        return [_FP32 * model.embedding_weights * both] * (layers + 1)
    if training.accumulated:
        return [gradient_bytes(model, training)] * (layers + 1)
    outside = list(trained_outside(model, training))
    if not training.lora_r and model.head_weights:
        outside.pop()  # the embedding's own comes last; one that is the head as well has its gradient first
    found = [_FP32 * sum(map(count, outside))] * 2
    for layer in reversed(model.layers[1:]):
        found.append(found[-1] + _FP32 * sum(map(count, trained_in(layer, training))))
    return found[::-1]


def adapter_bytes(model: Model, training: Training) -> int:
    """Return the bytes of LoRA's own weights; in full fine-tuning there are none beside the model's."""
    return _FP32 * trained_weights(model, training) if training.lora_r else 0


def optimizer_bytes(model: Model, training: Training) -> int:
    """Return the bytes of the optimizer's state from its first step on."""
    return sum(_state_bytes(shape, training, model) for shape in trained(model, training))


def _state_bytes(shape: tuple[int, ...], training: Training, model: Model) -> int:
    numbers, optimizer = count(shape), training.optimizer
    if optimizer.name == "SGD":
        return _FP32 * numbers * optimizer.momentum
    if optimizer.name in _EIGHT_BIT:
        states = _EIGHT_BIT[optimizer.name]
        if numbers < _SMALLEST_8BIT:
            return _FP32 * states * numbers
        return states * (numbers + _FP32 * ceil(numbers / _BLOCK_8BIT))
    if optimizer.galore and len(shape) == 2 and shape[0] != model.vocabulary:
        return _FP32 * min(optimizer.rank, *shape) * (2 * max(shape) + min(shape))
    return _STATES.get(optimizer.name, 8) * numbers


def update_bytes(model: Model, training: Training) -> int:
    """Return what the optimizer takes for the moment of its step.

    Fused Adam and AdamW, which `schedules.fuse` takes but under a scaler, need nothing, nor do the 8-bit
    kernels. Others update all tensors at once on CUDA and hold the root of every second moment while they do;
    elsewhere they go tensor by tensor.
    """
    shapes, name = list(trained(model, training)), training.optimizer.name
    is_fused = name in ("Adam", "AdamW") and not training.scales_loss
    if name in _EIGHT_BIT or name == "SGD" or is_fused:
        return 0
    if training.optimizer.galore:
        return max(galore_update_bytes(shape, model, training) for shape in shapes)
    if training.device == "cuda":
        return _FP32 * sum(map(count, shapes))
    return _FP32 * 2 * max(map(count, shapes), default=0)


def galore_update_bytes(shape: tuple[int, ...], model: Model, training: Training) -> int:
    """Return what GaLore takes to update one weight, with its gradient where that is freed at once.

    A matrix's gradient is decomposed: a copy of it, left and right vectors. Of others the root of the second
    moment, and the update.
    """
    numbers = count(shape)
    decomposed = len(shape) == 2 and shape[0] != model.vocabulary
    moment = 2 * numbers + min(shape) ** 2 if decomposed else 2 * numbers
    return _FP32 * (moment + numbers * training.optimizer.layerwise)
