"""Builders of tiny random models and tokenizers, so that tests need no download.

The models are the real `transformers` classes of each family, small enough for a CPU and shaped to catch
mistakes: every family-specific twist of the forward pass (a bias on the head, soft-capped or scaled logits,
a sliding window, a router loss) is set strongly enough that code which forgets it gives other numbers.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_families import FAMILIES, PADDED_ONLY
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# 64 and 128 are whole NF4 blocks; two key/value heads for four query heads exercise grouped attention.
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Ten times the usual 0.02, which would leave all logits near zero and hide most mistakes.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def tiny_model(
    family: str, *, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Build a random fp32 causal language model of one family, in eval mode and without dropout.

    `.double()` works for tests that compare gradients, but not for left-padded rows with eager attention: it
    computes the softmax in fp32, where fp64's mask value overflows and padding turns everything into NaN.
    That leaves out Gemma 2, which has no other attention.

    Args:
        family: A key of `FAMILIES` or `PADDED_ONLY`.
        tokenizer: Gives the vocabulary size and the ids of the special tokens; without it the vocabulary has
            128 tokens with bos 1, eos 2 and no pad.
        seed: The same seed gives the same weights; the global random state is left as it was.
        **overrides: Configuration values, in `transformers`' common names (`num_hidden_layers=1`,
            `sliding_window=None`, `attn_implementation="eager"`, ...).
    """
    settings = _SIZES | (FAMILIES | PADDED_ONLY)[family] | _token_ids(tokenizer) | overrides
    if family in ("gpt2", "gpt_bigcode"):
        settings = _gpt2_names(settings)
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _perturb_vectors(model)
    return model.eval()


def _token_ids(tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def _gpt2_names(settings: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's configuration takes the old names only, and has no grouped attention."""
    names = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    return {names.get(key, key): value for key, value in settings.items() if key != "num_key_value_heads"}


@torch.no_grad()
def _perturb_vectors(model: PreTrainedModel) -> None:
    """Move biases off zero and norm weights off one, where they would change nothing when forgotten."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


# A handful of merges, so that texts are not one token per character and joining two texts can change the
# tokens at the seam. `_` stands for the space mark of the tokenizer.
_MERGES = (
    "t h", "th e", "_ the", "i n", "in g", "a n", "an d", "_ and", "o n", "i s", "_ is", "_ a", "r e", "e r",
    "o r", "l l", "o u", "_ y", "_y ou", "_ t", "_t o", "e n", "s t", "_ w", "_ s", "_ c",
)  # fmt: skip

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer that knows any text.

    Args:
        kind: `"chatml"`: byte-level, ChatML template, ends a turn with `<|im_end|>` (its eos), pads with
            `<|endoftext|>`, adds nothing by itself (the Qwen shape). `"mistral"`: SentencePiece-like with
            byte fallback, puts `<s>` in front, eos `</s>`, no pad token and no chat template.
    """
    builders = {"chatml": _chatml_tokenizer, "mistral": _mistral_tokenizer}
    return builders[kind]()


def _chatml_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(_bpe(alphabet, space="Ġ"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _mistral_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    tokens = specials + byte_tokens + characters
    backend = Tokenizer(_bpe(tokens, space="▁", unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _bpe(tokens: list[str], space: str, **options: Any) -> models.BPE:
    merges = [tuple(merge.replace("_", space).split(" ")) for merge in _MERGES]
    pieces = dict.fromkeys([*tokens, *("".join(merge) for merge in merges)])
    return models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, **options)


def save_tiny_mistral(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> Path:
    """Write a complete model folder that can stand in for `mistralai/Mistral-7B-v0.1`.

    Like the original it has a long context, a sliding window far beyond any test, q/k/v/o/gate/up/down
    projections without biases, an untied head, and a tokenizer with neither pad token nor chat template.

    Args:
        folder: Where to write; created when missing.
        dtype: Of the stored weights, which is also the one they load in by default. The original has bf16.
        seed: As in `tiny_model`.
        **overrides: As in `tiny_model`.
    """
    tokenizer = tiny_tokenizer("mistral")
    original = {"max_position_embeddings": 32768, "sliding_window": 4096}
    model = tiny_model("mistral", tokenizer=tokenizer, seed=seed, **(original | overrides))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
