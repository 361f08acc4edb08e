"""What autograd keeps of a decoder layer, tensor by tensor, and what the layer needs for a moment.

A frozen matrix keeps nothing of its input: the gradient of the input needs the weight alone. So what is kept
of a layer with LoRA, for each token (H hidden, Q queries, K keys, I MLP; c bytes of a matrix product's
number), is what these operations need in the backward pass:

    norm             its input in fp32 (4H), and one number: the root of the mean square
    LoRA's A         its input: what went into the projection (cH or cI). Where the input is cast or dropped
                     out, each adapted projection has a copy of its own; and the mask of the dropout. The lean
                     path (lean_lora.py) multiplies in autocast's dtype; PEFT's own, which DoRA takes, goes by
                     way of fp32
    LoRA's B         its input (c r); under autocast both of LoRA's matrices in its dtype
    attention        queries, keys, values after the rotation, and its output (c(2Q + 2K)), the log-sum-exp
                     (4 for each head), the mask as numbers where there is one. With a mask, keys and values
                     are repeated for every query head first (4Q instead of 2Q + 2K)
    activation       its input (cI)
    gate             both factors (2cI)

Residual additions, rotations (their sines are shared by all layers), scalings and views keep nothing. In fp32
the norm's input is the stream between layers itself, and a projection's input without dropout is kept once.
"""

from __future__ import annotations

from typing import NamedTuple

from orpo_lightning.planning.base import Batch, Layer, Linear, Place, Training
from orpo_lightning.shared_attention.choice import SHORT

_FP32 = 4
# How many tensors as wide as the MLP an activation keeps; written out in Python, it keeps each step.
_KEPT_BY_ACTIVATION = {"relu": 0, "gelu_new": 4, "gelu_fast": 4, "quick_gelu": 2}


class Kept(NamedTuple):
    """Bytes that a layer keeps from its forward to its backward pass."""

    norms: int
    inputs: int
    """Of projections, and of LoRA's second matrices."""
    attention: int
    mlp: int
    weights: int = 0
    """Copies of weights in autocast's dtype."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class _Reading(NamedTuple):
    """How the projections of one place keep what they read."""

    copies: int
    """Tensors as wide as the input."""
    item: int
    """Bytes of each number in them."""
    mask: int
    """Bytes a number of dropout's masks, all copies together."""
    cast: bool
    """Whether PEFT makes an fp32 copy on the way."""


def kept(layer: Layer, training: Training, batch: Batch, *, first: bool = False) -> Kept:
    """Return what one layer keeps.

    Args:
        layer: its shape.
        training: how it is trained.
        batch: what runs through it.
        first: whether nothing below it is trained: then its first norm keeps nothing, nor does dropout behind
            it.
    """
    first = first and bool(training.lora_r)
    norms = sum(layer.norms) - (layer.norms[0] if first and layer.norms else 0)
    return Kept(
        norms=batch.tokens * (norm_bytes(training) * norms + _FP32 * len(layer.norms)),
        inputs=batch.tokens * _kept_inputs(layer, training, first),
        attention=attention_kept(layer, training, batch),
        mlp=batch.tokens * layer.experts * _kept_in_mlp(layer, training),
        weights=_cast_weights(layer, training),
    )


def norm_bytes(training: Training) -> int:
    """Return what a norm keeps of each number: its input in fp32, and its result before a trained scale."""
    return _FP32 + (training.weight_bytes if not training.lora_r else 0)


def _kept_inputs(layer: Layer, training: Training, first: bool) -> int:
    """Return the bytes a token of projections' inputs."""
    total = 0
    for place in ("attention_in", "attention_out", "mlp_in", "mlp_out"):
        matrices = _wanting(layer, training, place)
        if not matrices:
            continue
        width = matrices[0].inputs
        how = _reading(len(matrices), training, place)
        # A fused kernel keeps its output anyway; the products of eager attention do not.
        shared = place == "attention_out" and how.copies == 0 and training.attention != "eager"
        copies = how.copies or (0 if shared else 1)
        mask = 0 if first and place == "attention_in" else how.mask
        total += width * (copies * how.item + mask)
    if training.quantization == "int8":
        # Beside the copies that LoRA has; attention's output is kept by attention.
        own = kept_by_int8(layer, training) - training.compute_bytes * layer.query_width
        total += own if _copies_everything(training) else 0
    adapted = [matrix for matrix in layer.linears if matrix.adapted and training.lora_r]
    total += len(adapted) * training.lora_r * training.adapter_bytes
    if training.dora:  # the product of the base and LoRA's own: each is scaled by a trained magnitude
        total += sum(2 * matrix.outputs * training.compute_bytes for matrix in adapted)
    return total


def kept_by_int8(layer: Layer, training: Training) -> int:
    """Return the bytes a token that LLM.int8() keeps where checkpointing cannot free them: its inputs."""
    widths = {matrix.place: matrix.inputs for matrix in layer.linears}
    return training.compute_bytes * sum(widths.values())


def _copies_everything(training: Training) -> bool:
    return training.dropout or _reading(1, training, "mlp_in").cast


def _wanting(layer: Layer, training: Training, place: Place) -> list[Linear]:
    """Return the matrices of a place whose input the backward pass needs."""
    return [m for m in layer.linears if m.place == place and (m.adapted or not training.lora_r)]


def _reading(count: int, training: Training, place: Place) -> _Reading:
    # A norm gives what the stream between layers has, attention and MLP what matrix products give.
    given = training.weight_bytes if place.endswith("_in") else training.compute_bytes
    if not training.lora_r:
        return _Reading(
            count if given != training.compute_bytes else 0, training.compute_bytes, 0, cast=False
        )
    quantised_on_gpu = training.quantization != "none" and training.device == "cuda" and training.autocast
    cast = not training.lean and given < _FP32 and not quantised_on_gpu
    read = _FP32 if cast else given
    separate = cast or training.dropout or read != training.adapter_bytes
    # torch's dropout keeps a mask of booleans on CUDA, elsewhere of numbers like its input's.
    mask = count * (1 if training.device == "cuda" else read) if training.dropout else 0
    return _Reading(count if separate else 0, training.adapter_bytes, mask, cast)


def attention_kept(layer: Layer, training: Training, batch: Batch) -> int:
    """Return the bytes that attention keeps: queries, keys, values, output, and its statistics."""
    item, query, key = training.compute_bytes, layer.query_width, layer.key_width
    statistics = _FP32 * layer.heads * batch.rows * batch.width
    if batch.flat:
        # Keys and values are gathered by sequence, the prompt's twice; on a CPU they stay where they are, but
        # for short pairs, which attend as padded rows with their queries.
        rows = batch.rows * batch.width
        if training.device == "cpu" and batch.tokens < SHORT * batch.pairs:
            return rows * (item * (2 * query + 2 * key) + _FP32 * layer.heads)
        sequences = rows if training.device == "cuda" else batch.tokens
        statistics = _FP32 * layer.heads * batch.tokens
        return item * (2 * query * batch.tokens + 2 * key * sequences) + statistics
    masked = is_masked(layer, batch)
    if training.attention == "flash_attention_2":
        # With padding the rows are packed first, and the output is unpacked: a second copy of it.
        return batch.tokens * item * (2 * query + 2 * key + (query if masked else 0)) + statistics
    squares = batch.rows * batch.width**2
    if training.attention == "eager":
        # The softmax's result in fp32 and, where that is another one, its cast; what bends the scores.
        weights = layer.heads * squares * (_FP32 + (item if item < _FP32 else 0) + item * layer.softcap)
        return batch.tokens * item * 3 * query + weights
    if masked:
        return batch.tokens * item * 4 * query + squares * item + statistics
    return batch.tokens * item * (2 * query + 2 * key) + statistics


def is_masked(layer: Layer, batch: Batch) -> bool:
    """Tell whether attention of this layer is given a mask: for padding, or for a window that is exceeded."""
    return batch.masked or (layer.window is not None and batch.width >= layer.window)


def _kept_in_mlp(layer: Layer, training: Training) -> int:
    activation = _KEPT_BY_ACTIVATION.get(layer.activation, 1)
    return training.compute_bytes * layer.mlp_width * (activation + (2 if layer.gated else 0))


def _cast_weights(layer: Layer, training: Training) -> int:
    """Return the bytes of frozen fp32 weights that autocast casts for each product, and autograd keeps."""
    casts = training.autocast and training.lora_r and training.quantization == "none"
    if not casts or training.weight_bytes == training.compute_bytes:
        return 0
    return training.compute_bytes * sum(matrix.weights for matrix in layer.linears)


def working(layer: Layer, training: Training, batch: Batch, *, recomputed: bool = False) -> int:
    """Return the bytes beside `kept` at the fullest moment of a layer's recomputation or backward pass.

    That moment is at the MLP's way out, where tensors are widest, or among the whole matrices of attention
    weights where a kernel has them.

    Args:
        layer: its shape.
        training: how it is trained.
        batch: what runs through it.
        recomputed: whether its forward pass runs again, with gradients at hand already.
    """
    stream = batch.tokens * _hidden(layer) * (training.weight_bytes + training.compute_bytes)
    forward = _mlp_forward(layer, training, batch) + stream * (2 if recomputed else 1)
    backward = _mlp_backward(layer, training, batch) + stream
    return max(forward, backward, _attention_backward(layer, training, batch) + stream)


def _mlp_forward(layer: Layer, training: Training, batch: Batch) -> int:
    """Return the bytes of the MLP's product, and of the fp32 copies that LoRA makes on the way to its own."""
    wide, out = _wide(layer, batch), _wanting(layer, training, "mlp_out")
    if not out:
        return training.compute_bytes * wide
    how = _reading(len(out), training, "mlp_out")
    copies = _FP32 * how.cast * (2 if training.dropout else 1)
    dora = _dora_forward(layer, training, batch) if training.dora else 0
    return dora + wide * (training.compute_bytes * (how.copies > 0) + copies)


def _dora_forward(layer: Layer, training: Training, batch: Batch) -> int:
    """Return the bytes of DoRA's weight norm, and of the results that it scales.

    The whole update is had by way of an identity matrix, then come two sums as large.
    """
    out = next(matrix for matrix in layer.linears if matrix.place == "mlp_out")
    written_out = out.weights if training.quantization != "none" else 0
    dense = _FP32 * (max(out.inputs**2 + out.weights, 3 * out.weights) + written_out)
    return dense + 3 * training.compute_bytes * batch.tokens * out.outputs


def _mlp_backward(layer: Layer, training: Training, batch: Batch) -> int:
    """Return the bytes of gradients where the MLP leads out, less what is free by then.

    Either three tensors as wide as the MLP: the product's gradient by way of LoRA, that by way of the base,
    and their sum; then that of the product and of both factors, when what LoRA kept of the product is free.
    Or, where LoRA's input was cast, fp32 gradients on the way back. Or a matrix that is written out.
    """
    wide, item, matrix = _wide(layer, batch), training.compute_bytes, _buffer(layer, training)
    out = _wanting(layer, training, "mlp_out")
    if not out or not training.lora_r:
        less = item if out else 0
        return max(wide * ((3 if layer.gated else 2) * item - less), wide * (item - less) + matrix)
    how = _reading(len(out), training, "mlp_out")
    by_lora = 0
    if how.cast:
        by_lora = 2 * _FP32 - how.item if training.dropout else _FP32
    free = how.item + how.mask
    return max(wide * how.item, wide * by_lora, wide * (3 * item - free), wide * (2 * item - free) + matrix)


def _wide(layer: Layer, batch: Batch) -> int:
    return batch.tokens * layer.experts * layer.mlp_width


def _attention_backward(layer: Layer, training: Training, batch: Batch) -> int:
    """Return the bytes of gradients of whole attention matrices, less what the MLP kept, free by then."""
    if training.attention != "eager":
        return 0
    weights = layer.heads * batch.rows * batch.width**2
    return weights * (2 * _FP32 + training.compute_bytes) - batch.tokens * _kept_in_mlp(layer, training)


def _hidden(layer: Layer) -> int:
    return next((m.inputs for m in layer.linears if m.place == "attention_in"), 0)


def _buffer(layer: Layer, training: Training) -> int:
    """Return the bytes of the largest matrix written out for a moment, where it is not kept that way."""
    largest = max((matrix.weights for matrix in layer.linears), default=0)
    if training.quantization != "none":
        return training.compute_bytes * largest
    if not training.lora_r:
        return (_FP32 + (training.compute_bytes if training.autocast else 0)) * largest
    return 0
