"""What the training benchmark trains on: pairs of chosen lengths, a tokenizer and a model of chosen size.

Speed depends on lengths and sizes alone: the words are drawn at random, a token each, and so are the weights.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

MIXES = {"ultrafeedback": (200, 250, 220), "long_prompt": (600, 120, 100), "short": (120, 60, 50)}
"""Mean tokens of prompt, chosen and rejected."""
_SPREAD = 0.5  # of the logarithm of a length
_SHORTEST = 4
_PAD, _STOP = "<pad>", "</s>"
_MISTRAL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


class Lengths(NamedTuple):
    """Tokens of one pair, stop tokens included."""

    prompt: int
    chosen: int
    rejected: int


def draw_lengths(means: tuple[float, float, float], count: int, seed: int) -> list[Lengths]:
    """Return so many log-normal lengths around the means, each part drawn by itself."""
    draw = random.Random(seed)

    def length(mean: float) -> int:
        drawn = draw.lognormvariate(math.log(mean) - _SPREAD**2 / 2, _SPREAD)
        return max(_SHORTEST, round(drawn))

    return [Lengths(*map(length, means)) for _ in range(count)]


def read_lengths(file: Path, tokenizer: str, count: int) -> list[Lengths]:
    """Return the lengths of a file's pairs, repeated until there are so many.

    Args:
        file: JSON lines; prompt, chosen and rejected of each are token counts, texts or messages.
        tokenizer: folder of the one that counts the tokens of texts.
        count: how many.

    Raises:
        SystemExit: a line is something else.
    """
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        missing = [name for name in Lengths._fields if not row.get(name)]
        if missing:
            raise SystemExit(f"{file}:{number}: expected prompt, chosen, rejected; {missing[0]} is missing")
        found.append([row[name] for name in Lengths._fields])
    if not found:
        raise SystemExit(f"{file}: expected a pair in each line, found none")
    if not all(isinstance(value, int) for row in found for value in row):
        found = _count_tokens(found, tokenizer)
    lengths = [Lengths(*(max(_SHORTEST, value) for value in row)) for row in found]
    return [lengths[number % len(lengths)] for number in range(count)]


def _count_tokens(rows: list[list[Any]], folder: str) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def text(value: Any) -> str:
        return value if isinstance(value, str) else "\n".join(message["content"] for message in value)

    return [
        [len(tokenizer(text(value), add_special_tokens=False)["input_ids"]) for value in row] for row in rows
    ]


def write_pairs(file: Path, lengths: list[Lengths], vocabulary: int, seed: int) -> None:
    """Write preference pairs of these lengths as text for `write_tokenizer`'s tokenizer."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(count))

    with file.open("w", encoding="utf-8") as output:
        for prompt, chosen, rejected in lengths:
            # The answers' last token is the stop token, which every side adds by itself.
            row = {"prompt": words(prompt), "chosen": " " + words(chosen - 1)}
            row["rejected"] = " " + words(rejected - 1)
            output.write(json.dumps(row) + "\n")


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer for which every word w2 … is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {_PAD: 0, _STOP: 1} | {f"w{number}": number for number in range(2, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=_PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=_PAD, eos_token=_STOP).save_pretrained(folder)


def sizes_of(model: str) -> dict[str, int]:
    """Return the configuration values of LAYERSxHIDDEN, or of `mistral-7b`.

    Raises:
        SystemExit: it is neither.
    """
    if model == "mistral-7b":
        return _MISTRAL
    layers, by, hidden = model.partition("x")
    if not (
        by and layers.isdigit() and hidden.isdigit() and int(layers) and int(hidden) and not int(hidden) % 32
    ):
        raise SystemExit(f"--model: expected LAYERSxHIDDEN such as 6x384, or mistral-7b, found {model}")
    width = int(hidden)
    heads = max(1, width // 64)
    return {
        "hidden_size": width,
        "intermediate_size": 64 * max(1, round(width * 8 / 3 / 64)),  # Llama's
        "num_hidden_layers": int(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def write_model(
    folder: Path, sizes: dict[str, int], vocabulary: int, dtype: str, device: str, seed: int
) -> None:
    """Write a Llama-shaped model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **sizes,
    )
    torch.manual_seed(seed)
    # Made where it is fast: seven billion random numbers take minutes on a CPU.
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
