"""Which layout a model's batches have: shared prefixes where proved equal to padding, else padding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orpo_lightning.batching.base import Layout, PairBatch, TokenizedPair
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.shared_prefix import lay_flat
from orpo_lightning.errors import UsageError, first_line
from orpo_lightning.hardware import Choice
from orpo_lightning.scoring import Scorer, score_targets
from orpo_lightning.sharding import gradients
from orpo_lightning.shared_attention import interface

log = logging.getLogger(__name__)

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention", "mlp", "moe", "dense", "sparse"}
_KNOWN_UNFIT = {
    "bloom": "ALiBi adds to its scores by the distance in the row",
    "mpt": "ALiBi adds to its scores by the distance in the row",
    "rwkv": "its layers are recurrent",
    "xlstm": "its layers are recurrent",
}
# What a model or a kernel says when it is called with something it cannot do.
_FAILURES = (
    *(AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
# Prompt, chosen, rejected: ragged, and the second prompt a single token.
_CHECKED_LENGTHS = ((9, 7, 5), (1, 6, 8), (5, 2, 4))
_CHECKED_WINDOW = 4


def choose_layout(wanted: Layout, scorer: Scorer) -> Choice:
    """Return "shared_prefix" or "padded", and prepare the scorer's model for the first where it is that.

    Args:
        wanted: "auto" takes shared prefixes where they are proved to give the same numbers.
        scorer: of the model, on its device and in the precision it will be used in.

    Raises:
        UsageError: shared_prefix was asked for, and this model does not allow it.
    """
    if wanted == "padded":
        return Choice("padded", "set by the user")
    reason = unfit(scorer.model) or _prepare(scorer)
    if reason is None:
        kernels = ", ".join(f"{name}: {why}" for name, why in interface.used.items())
        return Choice("shared_prefix", f"equal to padded on a test batch; attention by {kernels}")
    if wanted == "shared_prefix":
        raise UsageError(f"data.layout shared_prefix cannot be used with this model: {reason}; use padded")
    return Choice("padded", f"no shared prefixes: {reason}")


def unfit(model: Any) -> str | None:
    """Return why tokens of a transformers model meet elsewhere than in its attention function, or None."""
    config = model.config.get_text_config()
    if config.model_type in _KNOWN_UNFIT:
        return f"{config.model_type}: {_KNOWN_UNFIT[config.model_type]}"
    if getattr(config, "alibi", False):
        return f"{config.model_type}: {_KNOWN_UNFIT['bloom']}"
    layers = next(
        (types for name in ("layer_types", "layers_block_type") if (types := getattr(config, name, None))), ()
    )
    if strange := sorted(set(layers) - _KNOWN_LAYERS):
        return f"{config.model_type}: layers of type {', '.join(strange)} are more than plain attention"
    if any(getattr(config, name, None) is not None for name in ("index_topk", "index_topk_blocks")):
        return f"{config.model_type}: its attention looks up an index of tokens"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            return f"{config.model_type}: {name} is a convolution over neighbouring tokens"
    if not model._can_set_attn_implementation():
        return f"{config.model_type}: its attention does not go through transformers' attention interface"
    return None


def _prepare(scorer: Scorer) -> str | None:
    """Install attention over shared prefixes and prove it; return why not, everything being as before.

    A kernel may be at fault rather than the model, and some could be tested on few machines. So the backends
    of this one are tried in turn, best first.
    """
    interface.install(scorer.model)
    before, failed = interface.excluded(), dict[str, str]()
    while True:
        interface.used.clear()
        reason = self_check(scorer)
        suspects = interface.used.keys() - {"rows"}
        if reason is None or not suspects:
            break
        failed |= dict.fromkeys(suspects, reason)
        interface.exclude(before | failed.keys())
    if reason is not None:
        interface.exclude(before)
        interface.uninstall(scorer.model)
        return reason
    for backend, why in failed.items():
        log.warning("attention over shared prefixes does without %s: %s", backend, why)
    return None


def self_check(scorer: Scorer) -> str | None:
    """Return None where a small random batch has equal log-probabilities and gradients in both layouts.

    Where there is a sliding window, a second run shrinks it: else no batch so small would reach its end.
    """
    device = next(scorer.model.parameters()).device
    try:
        # A Trainer that validates asks in inference mode, whose tensors could not be used here.
        with _eval_mode(scorer.model), torch.inference_mode(False), torch.enable_grad():
            pairs = _random_pairs(scorer)
            flat = lay_flat(pairs)
            # So few tokens would not get the kernel that those of real pairs get.
            flat.model_inputs[interface.KEYWORD].derived["short"] = False
            batches = [_to(device, batch) for batch in (pad_pairs(pairs, pad_id=0), flat)]
            if difference := _compare(scorer, batches):
                return difference
            with _small_windows(scorer.model) as found:
                difference = _compare(scorer, batches) if found else None
    except _FAILURES as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None if difference is None else f"with a window of {_CHECKED_WINDOW} tokens, {difference}"


def _compare(scorer: Scorer, batches: list[PairBatch]) -> str | None:
    (wanted, wanted_grads), (found, found_grads) = (_values(scorer, batch) for batch in batches)
    # Counted on the host: of CUDA's bincount a deterministic run is told that it is not.
    wanted, found, sequences = (one.cpu() for one in (wanted, found, batches[0].target_sequences))
    counts = torch.bincount(sequences)
    # A mean over each sequence: under half precision a single token may be routed to another expert.
    gaps = torch.bincount(sequences, (found - wanted).abs()) / counts
    # What a model says is how far it is from giving every token of the vocabulary the same chance.
    uniform = torch.tensor(scorer.model.config.get_text_config().vocab_size).log()
    scale = (wanted + uniform).abs().mean()
    tolerance, gap = _tolerance(scorer.model), (gaps.max() / scale).item()
    if not gap <= tolerance:
        return f"log-probabilities differ from the padded layout's by {100 * gap:.3g} %"
    largest = max((grad.abs().max().item() for grad in wanted_grads), default=0.0)
    pairs = zip(found_grads, wanted_grads, strict=True)
    gap = max(((one - other).abs().max().item() for one, other in pairs), default=0.0)
    if not gap <= 2 * tolerance * largest:
        return f"gradients differ from the padded layout's by {100 * gap / largest:.3g} %"
    return None


def _values(scorer: Scorer, batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
    """Return (N,) log-probabilities and the gradients of two small weights near the input."""
    logps = score_targets(scorer, batch)[0]
    trained = (p for p in scorer.model.parameters() if p.requires_grad and p.numel() <= 2**22)
    weights = [parameter for parameter, _ in zip(trained, range(2), strict=False)]
    if not weights or not logps.requires_grad:
        return logps.detach(), []
    coefficients = torch.linspace(-1, 1, len(logps), device=logps.device, dtype=logps.dtype)
    grads = gradients((coefficients * logps).sum(), weights, scorer.model)
    return logps.detach(), [grad for grad in grads if grad is not None]


def _tolerance(model: Any) -> float:
    device = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    if getattr(model, "is_loaded_in_8bit", False) or dtype.itemsize < 4:
        return 0.05
    return 1e-3 if dtype == torch.float32 else 1e-6


def _random_pairs(scorer: Scorer) -> list[TokenizedPair]:
    vocabulary = scorer.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return [
        TokenizedPair(*(torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths))
        for lengths in _CHECKED_LENGTHS
    ]


def _to(device: torch.device, batch: PairBatch) -> PairBatch:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, dict):
            return {key: move(one) for key, one in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(move, value))
        return value

    return move(batch)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and what else differs in training, and each module back to what it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _small_windows(model: nn.Module) -> Iterator[bool]:
    """Shrink the sliding windows of masks (configs) and attention calls (modules); tell if there are any."""
    configs = [config for module in model.modules() if (config := getattr(module, "config", None))]
    holders = {id(one): one for one in [*model.modules(), *configs]}.values()
    windows = [(one, vars(one)["sliding_window"]) for one in holders if vars(one).get("sliding_window")]
    try:
        for holder, _ in windows:
            holder.sliding_window = _CHECKED_WINDOW
        yield bool(windows)
    finally:
        for holder, window in windows:
            holder.sliding_window = window
