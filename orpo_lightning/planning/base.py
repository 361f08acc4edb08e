"""What a memory plan is made from, as plain facts: a model's shape, how it is trained, a batch."""

from __future__ import annotations

from typing import Literal, NamedTuple

Place = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]


class Linear(NamedTuple):
    """A matrix of a layer."""

    inputs: int
    outputs: int
    place: Place
    adapted: bool
    """Whether LoRA is added to it."""

    @property
    def weights(self) -> int:
        """How many weights it has, bias aside."""
        return self.inputs * self.outputs


class Adapter(NamedTuple):
    """LoRA on weights that are no linear layer: fused experts, a router."""

    inputs: int
    outputs: int
    ranks: int
    """Times LoRA's rank: once for each expert, more where an expert's matrices are fused."""
    weights: int
    """How many it is added to, all experts together."""


class Layer(NamedTuple):
    """One decoder layer."""

    linears: tuple[Linear, ...]
    other_weights: int
    """Norms, biases, fused experts: whatever is no matrix of a linear layer, and is not quantised."""
    norms: tuple[int, ...]
    """How many numbers a token has in the input of each norm."""
    heads: int
    key_heads: int
    head_dim: int
    mlp_width: int
    """Numbers of a token inside the MLP, of one expert where there are several."""
    gated: bool
    """Whether two of the MLP's branches are multiplied."""
    activation: str = "silu"
    experts: int = 1
    """How many experts work on each token."""
    window: int | None = None
    """A token sees this many, its own included."""
    softcap: bool = False
    """Whether attention scores are bent."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA beside that of `linears`."""

    @property
    def query_width(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers of a token's keys, or values."""
        return self.key_heads * self.head_dim


class Model(NamedTuple):
    """A causal language model by its shapes."""

    architecture: str
    vocabulary: int
    hidden: int
    layers: tuple[Layer, ...]
    embedding_weights: int
    head_weights: int
    """0 where the head is the embedding."""
    other_weights: int
    """Outside the layers: the last norm, positions."""
    adapted_head: bool = False
    softcap: bool = False
    """Whether logits are bent."""
    unfit: str = ""
    """Why prompts cannot be shared; empty where nothing that shows without a run speaks against it."""

    @property
    def weights(self) -> int:
        """All weights, each counted once."""
        layers = sum(sum(m.weights for m in layer.linears) + layer.other_weights for layer in self.layers)
        return layers + self.embedding_weights + self.head_weights + self.other_weights

    @property
    def matrices(self) -> int:
        """The weights of the layers' linear layers: what is quantised."""
        return sum(matrix.weights for layer in self.layers for matrix in layer.linears)


class Optimizer(NamedTuple):
    """An optimizer as far as memory goes."""

    name: str
    """Its class, without the module."""
    rank: int = 0
    """GaLore's."""
    momentum: bool = True
    """Whether SGD keeps one."""

    @property
    def galore(self) -> bool:
        """Whether matrices have low-rank moments."""
        return self.name in ("GaLoreAdamW", "LayerwiseGaLoreAdamW")

    @property
    def layerwise(self) -> bool:
        """Whether each gradient is freed as soon as it is used."""
        return self.name == "LayerwiseGaLoreAdamW"


class Training(NamedTuple):
    """How a model is trained, as far as memory goes.

    Attributes:
        quantization: nf4, int8 or none.
        weight_bytes: of each weight that is not quantised, and of each number between layers.
        compute_bytes: of each number that a matrix product gives.
        autocast: whether matrix products are cast to fewer bytes than trained weights have.
        lora_r: rank; 0 trains all weights.
        dropout: whether LoRA has any.
        optimizer: what updates the weights.
        recomputed: how many layers, from the first on, are recomputed in the backward pass.
        offloaded: whether what they are recomputed from waits in the host's memory.
        accumulated: whether gradients of earlier micro-batches are kept while a batch is worked on.
        dora: whether magnitudes are trained too.
        trained_rows: tokens whose rows of embedding and head are trained.
        attention: sdpa, flash_attention_2 or eager.
        device: cuda, mps or cpu: some kernels keep other things on a CPU.
        scales_loss: whether a scaler multiplies the loss (16-mixed).
    """

    quantization: str
    weight_bytes: int
    compute_bytes: int
    autocast: bool
    lora_r: int
    dropout: bool
    optimizer: Optimizer
    recomputed: int = 0
    accumulated: bool = True
    dora: bool = False
    trained_rows: int = 0
    attention: str = "sdpa"
    device: str = "cuda"
    offloaded: bool = False
    scales_loss: bool = False

    @property
    def lean(self) -> bool:
        """Whether LoRA takes the lean path: not for DoRA, nor where its input has another dtype than it."""
        return bool(self.lora_r) and not self.dora and (self.autocast or self.weight_bytes == 4)

    @property
    def adapter_bytes(self) -> int:
        """Of each number in LoRA's products."""
        return self.compute_bytes if self.autocast else 4


class Batch(NamedTuple):
    """A micro-batch of pairs, laid out.

    Attributes:
        pairs: how many.
        tokens: that run through the layers, padding included.
        targets: tokens whose log-probability is wanted.
        rows: sequences in attention.
        width: tokens of the longest of them.
        masked: whether attention is given a mask.
        flat: whether prompts stand once in one row (shared_prefix).
    """

    pairs: int
    tokens: int
    targets: int
    rows: int
    width: int
    masked: bool
    flat: bool = False


def padded(pairs: int, prompt: int, chosen: int, rejected: int, *, masked: bool = True) -> Batch:
    """Return pairs of these lengths as rows of one width, chosen and rejected."""
    width = prompt + max(chosen, rejected)
    targets = pairs * (max(prompt - 1, 0) + chosen + rejected - (2 if prompt == 0 else 0))
    return Batch(pairs, 2 * pairs * width, targets, 2 * pairs, width, masked)


def shared_prefix(pairs: int, prompt: int, chosen: int, rejected: int) -> Batch:
    """Return pairs of these lengths in one row without padding, each prompt once."""
    targets = padded(pairs, prompt, chosen, rejected).targets
    tokens = pairs * (prompt + chosen + rejected)
    width = prompt + max(chosen, rejected)
    return Batch(pairs, tokens, targets, 2 * pairs, width, masked=False, flat=True)


def fullest(
    layout: str, pairs: int, max_length: int, *, prompt: int = 1, budget: int | None = None, most: int = 1
) -> Batch:
    """Return the largest micro-batch there can be: all sequences of max_length, `prompt` of it the prompt.

    Args:
        layout: padded or shared_prefix.
        pairs: in a micro-batch.
        max_length: tokens of a sequence.
        prompt: tokens of each prompt.
        budget: tokens of a micro-batch, which then holds as many pairs as they allow; `pairs` does not count.
        most: pairs of a step on a device, beyond which no budget goes.
    """
    lay, answer = shared_prefix if layout == "shared_prefix" else padded, max_length - prompt
    if budget is None:
        return lay(pairs, prompt, answer, answer)
    one = lay(1, prompt, answer, answer).tokens
    batch = lay(max(min(budget // one, most), 1), prompt, answer, answer)
    # Shorter pairs can fill what is left of the budget.
    room = min(max(budget, one), most * one) - batch.tokens
    return batch._replace(tokens=batch.tokens + room, targets=batch.targets + room)
