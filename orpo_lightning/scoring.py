"""How a model's log-probabilities are had: backbone and head apart or, where that fails, full logits."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from orpo_lightning.batching.base import PairBatch
from orpo_lightning.batching.shared_prefix import KEYWORD, SharedPrefix
from orpo_lightning.head import Head
from orpo_lightning.logps import PairLogps, chunk_rows, pair_logps, rows_logps, target_logps
from orpo_lightning.modeling import causal_model
from orpo_lightning.sharding import run_whole
from orpo_lightning.shared_attention.interface import attending_by


class Scorer(NamedTuple):
    """A model taken apart into what makes hidden states and what makes logits of them."""

    model: Any
    """The whole causal language model, called only where `head` is None."""
    backbone: nn.Module | None = None
    head: Head | None = None
    why_full_logits: str | None = None
    """The reason, where the model cannot be taken apart."""


def take_apart(model: nn.Module) -> Scorer:
    """Find backbone and head and prove on eight tokens that together they are the model; else say why not."""
    causal = causal_model(model)
    try:
        backbone, projection = causal.get_decoder(), causal.get_output_embeddings()
    except (AttributeError, NotImplementedError) as error:
        return Scorer(causal, why_full_logits=f"{type(causal).__name__} does not name its parts ({error})")
    if projection is None or backbone is causal:
        return Scorer(causal, why_full_logits=f"{type(causal).__name__} does not name its backbone and head")
    scorer = Scorer(causal, backbone, Head(projection, *_behind_projection(causal)))
    difference = _self_check(scorer)
    if difference is None:
        return scorer
    reason = f"{type(causal).__name__}'s logits are not its head's output ({difference})"
    return Scorer(causal, why_full_logits=reason)


def _behind_projection(causal: Any) -> tuple[float, float | None]:
    """Return the scale and the soft-cap of the logits that some architectures have."""
    config = causal.config
    # Cohere multiplies, Granite divides; Gemma-2 and -3 bend.
    scale = float(getattr(causal, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


@torch.no_grad()
def _self_check(scorer: Scorer) -> str | None:
    """Return None where backbone and head give the model's own log-probabilities, else what was found."""
    backbone, head = scorer.backbone, scorer.head
    assert backbone is not None
    assert head is not None
    modes = [(module, module.training) for module in scorer.model.modules()]
    parameter = next(scorer.model.parameters())
    ids = torch.arange(1, 9, device=parameter.device)[None] % scorer.model.config.get_text_config().vocab_size
    scorer.model.eval()
    try:
        logits = scorer.model(input_ids=ids, use_cache=False).logits[0]
        whole, whole_dtype = logits.float().log_softmax(1), logits.dtype
        parts = run_whole(
            scorer.model, lambda: head(backbone(input_ids=ids, use_cache=False).last_hidden_state[0])
        )
        gap = (whole - parts.float().log_softmax(1)).abs().max().item()
    except (AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for module, mode in modes:
            module.training = mode
    # The same operations on the same numbers: what is left is the order of rounding.
    return (
        None
        if gap <= (1e-3 if whole_dtype == torch.float32 else 0.05)
        else f"log-probabilities differ by {gap:.3g}"
    )


def score(scorer: Scorer, batch: PairBatch) -> PairLogps:
    """Return the log-probabilities of a batch's pairs under the scorer's model."""
    logps, router_loss = score_targets(scorer, batch)
    return pair_logps(logps, batch, router_loss)


def score_targets(scorer: Scorer, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
    """Return log p of each of the batch's targets, (N,), and a mixture of experts' router loss.

    The router loss is that of whole sequences, so a pair's prompt counts twice, in whichever layout.
    """
    if scorer.backbone is None:
        return _score_targets(scorer, batch)
    return run_whole(scorer.model, lambda: _score_targets(scorer, batch))


def _score_targets(scorer: Scorer, batch: PairBatch) -> tuple[Tensor, Tensor | None]:
    inputs = {**batch.model_inputs, "use_cache": False}
    plan: SharedPrefix | None = inputs.pop(KEYWORD, None)
    if plan is not None:
        # Without a mask transformers looks for packed sequences in the positions, which waits for the GPU.
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    routed = bool(getattr(scorer.model.config, "output_router_logits", False))
    if routed:
        inputs["output_router_logits"] = True
    with nullcontext() if plan is None else attending_by(plan):
        output = (scorer.model if scorer.backbone is None else scorer.backbone)(**inputs)
    if scorer.backbone is None or scorer.head is None:
        logits = output.logits.flatten(0, 1).index_select(0, batch.target_positions)
        logps = rows_logps(logits, batch.target_ids, nn.Identity())
    else:
        logps = target_logps(
            output.last_hidden_state.flatten(0, 1).index_select(0, batch.target_positions),
            batch.target_ids,
            scorer.head,
            rows=chunk_rows(scorer.model.config.get_text_config().vocab_size),
        )
    if not routed:
        return logps, None
    return logps, load_balancing_loss(scorer.model, output, batch.model_inputs.get("attention_mask"), plan)


def load_balancing_loss(
    model: Any, output: Any, attention_mask: Tensor | None, plan: SharedPrefix | None = None
) -> Tensor | None:
    """Return the architecture's own router loss, (), from its own module, of all tokens of all sequences.

    Padding is left out by the mask; a flat row's prompts are counted once for each of their sequences.
    """
    # The class itself may be one that FSDP2 made.
    modules = [sys.modules[kind.__module__] for kind in type(model).__mro__]
    found = (getattr(module, "load_balancing_loss_func", None) for module in modules)
    function = next(filter(None, found), None)
    routed = getattr(output, "router_logits", None)
    if function is None or routed is None:
        return getattr(output, "aux_loss", None)
    if plan is not None:
        routed = tuple(layer.index_select(0, plan.keys.to(layer.device)) for layer in routed)
    config: PretrainedConfig = model.config
    experts = next(
        value
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
        if (value := getattr(model, name, None) or getattr(config, name, None)) is not None
    )
    return function(routed, experts, config.num_experts_per_tok, attention_mask)


def router_loss_weight(model: nn.Module) -> float:
    """Return the weight the architecture's config gives its router loss."""
    return float(getattr(model.config, "router_aux_loss_coef", 0.0))
