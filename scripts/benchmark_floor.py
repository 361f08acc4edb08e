"""The floor under a training step: its matrix products alone, with nothing around them.

Counted is what LoRA on a frozen model cannot do without, on the unique tokens of each micro-batch: forward
and activation gradient of every frozen layer, LoRA's thin products and their weight gradients, attention
within each sequence (the half that causality needs), the head on scored tokens and the gradient from there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from orpo_lightning.logps import chunk_rows
from orpo_lightning.vocabulary_blocks import block_columns

_REPEATS = 3
_PEAK_PRODUCTS = 10


class Product(NamedTuple):
    """(m, k) times (k, n), `copies` of them at once, of which a share is needed."""

    m: int
    k: int
    n: int
    copies: int = 1
    needed: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions that are needed."""
        return 2.0 * self.m * self.k * self.n * self.copies * self.needed


class Group(NamedTuple):
    """Products that are timed together, and what they are for."""

    part: str
    products: list[Product]


def frozen_linear(tokens: int, width: int, out: int, *, sends_back: bool) -> list[Product]:
    """Return forward and, where the input needs it, activation gradient of a frozen layer (width → out)."""
    return [Product(tokens, width, out), *([Product(tokens, out, width)] if sends_back else [])]


def lora(tokens: int, width: int, out: int, rank: int, *, sends_back: bool) -> list[Product]:
    """Return LoRA's products beside such a layer: two forward, and three or four back."""
    forward = [Product(tokens, width, rank), Product(tokens, rank, out)]
    weights = [Product(tokens, out, rank), Product(out, tokens, rank), Product(rank, tokens, width)]
    return forward + weights + ([Product(tokens, rank, width)] if sends_back else [])


def attention(queries: int, keys: int, heads: int, size: int) -> list[Product]:
    """Return the products of causal attention of the last tokens among all: two forward, four back."""
    # The last query sees all keys, each one before it one key less.
    needed = (keys - (queries - 1) / 2) / keys
    wide = Product(queries, size, keys, heads, needed)
    narrow = Product(queries, keys, size, heads, needed)
    back = Product(keys, queries, size, heads, needed)
    return [wide, narrow, wide, narrow, back, back]


def head(targets: int, width: int, vocabulary: int, device: str) -> list[Product]:
    """Return the products of the vocabulary projection on the scored tokens, and of its gradient.

    On a CPU in blocks of columns, else of rows, as the head goes.
    """
    rows = targets if device == "cpu" else chunk_rows(vocabulary)
    columns = block_columns(targets) if device == "cpu" else vocabulary
    chunks = [min(rows, targets - start) for start in range(0, targets, rows)]
    blocks = [min(columns, vocabulary - start) for start in range(0, vocabulary, columns)]
    both = ([Product(m, width, n), Product(m, n, width)] for m in chunks for n in blocks)
    return [product for products in both for product in products]


def products_of(
    lengths: Sequence[Sequence[int]], config: Any, rank: int, device: str = "cpu"
) -> Iterator[Group]:
    """Yield the products of one micro-batch.

    Args:
        lengths: tokens of prompt, chosen and rejected of each pair.
        config: of a Llama-shaped model.
        rank: of LoRA on its seven projections.
        device: where they run.
    """
    tokens = sum(map(sum, lengths))
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = config.head_dim or width // heads
    grouped = config.num_key_value_heads * size
    first = [(width, heads * size), (width, grouped), (width, grouped)]
    rest = [(heads * size, width), (width, inner), (width, inner), (inner, width)]
    for layer in range(config.num_hidden_layers):
        # The first layer reads the embedding, which is frozen: nothing goes back there.
        layers = [(*shape, layer > 0) for shape in first] + [(*shape, True) for shape in rest]
        for into, out, sends_back in layers:
            yield Group("layers", frozen_linear(tokens, into, out, sends_back=sends_back))
            if rank:
                yield Group("lora", lora(tokens, into, out, rank, sends_back=sends_back))
        for prompt, chosen, rejected in lengths:
            yield Group("attention", attention(prompt + chosen, prompt + chosen, heads, size))
            yield Group("attention", attention(rejected, prompt + rejected, heads, size))
    # A prompt's first token has no predictor.
    yield Group("head", head(tokens - len(lengths), width, config.vocab_size, device))


class Bench:
    """Runs products on operands that lie ready.

    Args:
        largest: numbers that the largest left operand, right operand and result need.
        weights: numbers of all weights together: right operands come from memory as weights do, in turn.
        dtype: of all operands.
        device: where they lie.
    """

    def __init__(self, largest: Sequence[int], weights: int, dtype: torch.dtype, device: str) -> None:
        """Fill the operands."""
        sizes = (largest[0], max(largest[1], weights), largest[2])
        # In their own dtype at once: of a model's weights a copy in fp32 would not fit every card.
        self._pools = [torch.empty(size, device=device, dtype=dtype).normal_() for size in sizes]
        self._cursor = 0
        self._on_gpu = device == "cuda"

    def seconds(self, group: Group) -> float:
        """Return how long a group takes, the products in a causal half at their share."""
        self._wait()
        start = time.perf_counter()
        for product in group.products:
            self._run(product)
        self._wait()
        return (time.perf_counter() - start) * group.products[0].needed

    def _run(self, product: Product) -> None:
        m, k, n, copies, _ = product
        left, right, result = self._pools
        count = copies * k * n
        if self._cursor + count > right.numel():
            self._cursor = 0
        a = left[: copies * m * k].view(copies, m, k)
        b = right[self._cursor : self._cursor + count].view(copies, k, n)
        c = result[: copies * m * n].view(copies, m, n)
        self._cursor += count
        if copies == 1:
            torch.mm(a[0], b[0], out=c[0])
        else:
            torch.bmm(a, b, out=c)

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _together(groups: Iterator[Group]) -> list[Group]:
    """Join groups that are timed alike: a clock read after every product would be a part of the time."""
    found: dict[tuple[str, float], list[Product]] = {}
    for part, products in groups:
        found.setdefault((part, products[0].needed), []).extend(products)
    return [Group(part, products) for (part, _), products in found.items()]


def peak_flops(dtype: torch.dtype, device: str, size: int) -> dict[str, float]:
    """Return operations per second in products of large square matrices: what the machine can do at most."""
    product = Product(size, size, size)
    bench = Bench([size * size] * 3, 0, dtype, device)
    group = Group("peak", [product] * _PEAK_PRODUCTS)
    bench.seconds(group)
    seconds = min(bench.seconds(group) for _ in range(_REPEATS))
    return {"seconds": seconds, "flops_per_second": _PEAK_PRODUCTS * product.flops / seconds}


def measure(
    micro_batches: Sequence[Sequence[Sequence[int]]], config: Any, rank: int, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Return seconds and operations of these micro-batches' products, together and by part.

    The middle one of three passes.
    """
    by_batch = [_together(products_of(lengths, config, rank, device)) for lengths in micro_batches]
    groups = [group for batch in by_batch for group in batch]
    products = [product for group in groups for product in group.products]
    largest = [
        max(p.copies * p.m * p.k for p in products),
        max(p.copies * p.k * p.n for p in products),
        max(p.copies * p.m * p.n for p in products),
    ]
    frozen = products_of(micro_batches[0], config, 0)
    layers = sum(group.products[0].k * group.products[0].n for group in frozen if group.part == "layers")
    weights = layers + config.hidden_size * config.vocab_size
    bench = Bench(largest, weights, dtype, device)
    for group in by_batch[0]:
        bench.seconds(group)  # warm-up
    passes = []
    for _ in range(_REPEATS):
        parts: dict[str, float] = {}
        for group in groups:
            parts[group.part] = parts.get(group.part, 0.0) + bench.seconds(group)
        passes.append(parts)
    middle = statistics.median_low(sum(parts.values()) for parts in passes)
    parts = next(parts for parts in passes if sum(parts.values()) == middle)
    return {"seconds": middle, "flops": sum(product.flops for product in products), "parts": parts}
