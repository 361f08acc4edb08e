"""Floating-point operations of a training step, and the time they take at a stated share of a GPU's peak."""

from __future__ import annotations

from typing import NamedTuple

from orpo_lightning.planning.base import Batch, Layer, Model, Training

# Shares of the data sheet's peak that a well-fed step reaches: aims of this package, not measurements.
UTILISATION = {"nf4": 0.4, "int8": 0.3, "none": 0.5}


class Work(NamedTuple):
    """Floating-point operations of one micro-batch, forward and backward."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.layers + self.attention + self.head


def work(model: Model, training: Training, batch: Batch) -> Work:
    """Return the operations of a micro-batch.

    A weight costs two operations a token forward and two for the gradient of its input; its own gradient two
    more, where it is trained; what is recomputed runs forward once more. The head runs over scored tokens
    only: product and row Jacobian, each once. Attention: half of each square, since it is causal; two
    products forward, five backward.
    """
    passes = 4 if training.lora_r else 6
    layers = attention = 0.0
    for number, layer in enumerate(model.layers):
        again = 1 if number < training.recomputed else 0
        layers += (passes + 2 * again) * _active_weights(layer) * batch.tokens
        layers += (6 + 2 * again) * _adapters(layer, training) * batch.tokens
        seen = min(batch.width, layer.window or batch.width)
        attention += (7 + 2 * again) * layer.query_width * seen * batch.rows * batch.width
    head_passes = 4 if training.lora_r and not training.trained_rows else 8
    head = head_passes * model.vocabulary * model.hidden * batch.targets
    return Work(layers, attention, float(head))


def _active_weights(layer: Layer) -> int:
    """Return the weights that work on a token: of many experts those that it is sent to."""
    matrices = sum(matrix.weights for matrix in layer.linears)
    if layer.experts == 1:
        return matrices
    hidden = layer.linears[0].inputs
    return matrices + layer.experts * (3 if layer.gated else 2) * hidden * layer.mlp_width


def _adapters(layer: Layer, training: Training) -> int:
    return sum(training.lora_r * (m.inputs + m.outputs) for m in layer.linears if m.adapted)


def tokens_per_second(
    model: Model, training: Training, batch: Batch, teraflops: float, utilisation: float
) -> float:
    """Return how many tokens, padding included, a GPU of that peak trains on in a second."""
    return batch.tokens * teraflops * 1e12 * utilisation / work(model, training, batch).total
