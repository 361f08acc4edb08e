"""Load a base model, quantise it, add LoRA: from names to a policy ready to train."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from orpo_lightning.base_errors import explain_base, is_about_files
from orpo_lightning.errors import SurroundingsError, UsageError, first_line
from orpo_lightning.hardware import Choice
from orpo_lightning.hub_access import with_retries
from orpo_lightning.lean_lora import make_lean

Quantization = Literal["nf4", "int8", "none"]
LoraVariant = Literal["lora", "rslora", "dora"]
LoraInit = Literal["default", "gaussian", "pissa", "loftq"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
SEVEN_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_config(base_model: str, *, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Read a base model's config and refuse what this package cannot train, before its weights are fetched.

    Raises:
        SurroundingsError: there is no such model, or it cannot be reached.
        UsageError: it is not a decoder-only language model.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = with_retries(lambda: AutoConfig.from_pretrained(base_model, **where), base_model)
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, base_model, revision, "model.base_model") from error
    if config.is_encoder_decoder:
        raise UsageError(
            f"model.base_model: expected a decoder-only model, {base_model} is an encoder-decoder"
        )
    if not _is_causal(config):
        kind = ", ".join(config.architectures or [config.model_type])
        raise UsageError(f"model.base_model: expected a causal language model, {base_model} is a {kind}")
    return config


_OTHER_HEADS = ("ForMaskedLM", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification")


def _is_causal(config: PretrainedConfig) -> bool:
    """Tell whether a config is of a model that writes text; one of remote code says so itself."""
    if any(name.endswith(_OTHER_HEADS) for name in config.architectures or ()):
        return False
    is_known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) is not None
    return is_known or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def check_base(
    base_model: str, *, revision: str | None, trust_remote_code: bool, quantization: Quantization
) -> PretrainedConfig:
    """Read a base model's config, and refuse what this package cannot train in the quantisation asked for.

    Raises:
        SurroundingsError: there is no such model, or it cannot be reached.
        UsageError: it is no causal language model, or quantised already.
    """
    config = load_config(base_model, revision=revision, trust_remote_code=trust_remote_code)
    if quantization != "none" and getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            f"model.quantization: {base_model} is stored quantised already; set model.quantization: none"
        )
    return config


def supported_attention(config: PretrainedConfig, choice: Choice) -> Choice:
    """Return `choice`, or eager where the architecture cannot take it (Gemma-2's soft-capped attention)."""
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    flag = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(choice.value)
    if architecture is None or flag is None or getattr(architecture, flag, True):
        return choice
    return Choice("eager", f"{architecture.__name__} does not support {choice.value}")


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def quantization_config(
    kind: Quantization, compute_dtype: torch.dtype, storage: torch.dtype = torch.uint8
) -> BitsAndBytesConfig | None:
    """Return bitsandbytes' settings: NF4 with double quantisation (QLoRA), LLM.int8(), or None.

    Args:
        kind: what to quantise to.
        compute_dtype: of the matrix products.
        storage: what 4-bit values are packed into; the same bytes, whatever it is called.
    """
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_quant_storage=storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if kind == "int8" else None


def load_base(
    base_model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    device: torch.device | None = None,
    storage: torch.dtype = torch.uint8,
) -> PreTrainedModel:
    """Load a causal language model straight onto `device`, every weight of it from its files.

    4-bit values are packed into `storage`.

    Raises:
        SurroundingsError: files are missing or damaged, or lack weights that the architecture has.
        UsageError: the model is quantised already, or is no causal language model.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    check_base(base_model, quantization=quantization, **where)
    settings = {
        **where,
        "quantization_config": quantization_config(quantization, dtype, storage),
        "dtype": dtype,
        "attn_implementation": attention,
        "device_map": {"": device or torch.device("cpu")},
        "use_safetensors": True,  # pickled weights may run code
        "output_loading_info": True,
    }
    # Of a model without safetensors transformers would take what somebody, such as a bot, proposed for it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    load = cast(Any, AutoModelForCausalLM).from_pretrained
    try:
        model, info = with_retries(lambda: load(base_model, **settings), base_model)
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, base_model, revision, "model.base_model") from error
    if missing := sorted(info["missing_keys"]):
        # transformers would train on with random weights in their place and only a warning.
        raise SurroundingsError(
            f"model.base_model: {base_model} lacks {len(missing)} weights of its architecture, "
            f"first {missing[0]}: the download is incomplete or the folder is not this model"
        )
    _keep_four_bit_weights_trainable(model)
    return model


def _keep_four_bit_weights_trainable(model: Any) -> None:
    """Switch off bitsandbytes' inference path on CPUs with AVX512-BF16.

    The first forward in eval mode would repack each weight for good, with its scales rounded to bfloat16,
    and from then on multiply by an operation without a backward pass: after one validation nothing below
    would be trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def disable_dropout(model: nn.Module) -> None:
    """Set the base model's own dropout to 0; called before LoRA is added, whose dropout stays."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def enable_checkpointing(model: PreTrainedModel, *, offload: bool = False) -> None:
    """Recompute activations in the backward pass; non-reentrant, as the other kind needs inputs with grad.

    Args:
        model: of transformers.
        offload: whether what a layer is recomputed from waits in the host's memory.

    Raises:
        UsageError: the architecture recomputes nothing, or this transformers offloads nothing.
    """
    kwargs, more = {"use_reentrant": False}, {"offload": True} if offload else {}
    enable = getattr(model, "activation_checkpointing_enable", None)
    if offload and not knows_offload(model):
        raise UsageError(
            f"model.gradient_checkpointing: offload is not in transformers {transformers.__version__}; "
            "update it, or set true"
        )
    try:
        if enable is not None:
            enable(activation_checkpointing_kwargs=kwargs, **more)
        else:  # transformers < 5.20
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    except ValueError as error:
        raise UsageError(f"model.gradient_checkpointing: {first_line(error)}; set it to false") from error


def knows_offload(model: PreTrainedModel) -> bool:
    """Tell whether this transformers can keep what layers are recomputed from in the host's memory."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    return enable is not None and "offload" in inspect.signature(enable).parameters


def linear_names(model: nn.Module) -> list[str]:
    """Return the distinct last names of the model's linear layers, which LoRA can target."""
    kinds = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")
    found = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ in kinds
    }
    return sorted(found - {"lm_head", "embed_out"})


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] | str,
    variant: LoraVariant,
    init: LoraInit,
    trainable_token_ids: Sequence[int] = (),
    seed: int = 0,
    revision: str | None = None,
) -> PeftModel:
    """Freeze `model` and add LoRA to it; its initial values depend on `seed` alone.

    Whoever loads the saved adapter is told of the base's `revision`, without which it would be main.

    Raises:
        UsageError: no layer has such a name, or this initialisation cannot be had for this base.
    """
    settings: dict[str, Any] = {
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": variant == "rslora",
        "use_dora": variant == "dora",
        "init_lora_weights": init if init in ("gaussian", "pissa") else True,
        "task_type": "CAUSAL_LM",
    }
    if trainable_token_ids:
        settings["trainable_token_indices"] = _token_rows(model, trainable_token_ids)
    # The same numbers on every rank and every device, whatever was drawn before: PEFT draws them on the
    # default device, which is the rank's own while Lightning builds a model, and moves them to the layer's.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device("cpu"):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, LoraConfig(**settings), revision=revision)
        except ValueError as error:
            if "arget module" in str(error):
                names = ", ".join(linear_names(model))
                raise UsageError(
                    f"model.lora_targets: {targets} match no layer; this model has {names}"
                ) from error
            raise UsageError(f"LoRA cannot be added: {first_line(error)}") from error
    make_lean(adapted)
    return adapted


def _token_rows(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]]:
    """Name the layers whose rows are trained: the embedding, and the head where it is separate."""
    names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = cast(Any, embedding).weight.shape[0]
    if max(ids) >= rows:
        raise UsageError(
            f"model.trainable_tokens: token {max(ids)} is behind the end of the model's vocabulary "
            f"({rows:,} tokens): the tokenizer is not this model's"
        )
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    if head in layers and getattr(head, "bias", None) is not None:
        raise UsageError(
            f"model.trainable_tokens: the head of {type(model).__name__} has a bias, which PEFT leaves out "
            "where it trains single rows; train without, or all weights (model.lora_r 0)"
        )
    return {names[id(layer)]: list(ids) for layer in layers}


def unlearnable_stop_tokens(model: Any, stop_ids: Sequence[int]) -> list[int]:
    """Return the stop tokens that the base may not know and the training cannot teach.

    No config names them as the base's end, and neither the head nor their own rows are trained: LoRA alone
    leaves the scores of a token it never learned where they are.
    """
    causal = causal_model(model)
    if any(parameter.requires_grad for parameter in causal.get_output_embeddings().parameters()):
        return []
    known: set[int] = set()
    for config in (causal.config, causal.generation_config):
        value = getattr(config, "eos_token_id", None)
        known |= set(value if isinstance(value, list) else [value]) - {None}
    return [token for token in stop_ids if token not in known]


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return (all, trainable) parameters; a 4-bit weight counts as the parameters it stands for."""
    total = trainable = 0
    # Of a weight that is shared out over processes, its layer holds the state.
    layers: list[Any] = [module for module in model.modules() if getattr(module, "quant_state", None)]
    states = {id(layer.weight): layer.quant_state for layer in layers}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None) or states.get(id(parameter))
        count = parameter.numel() if state is None else state.shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable
