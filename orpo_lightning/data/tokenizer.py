"""Loading a tokenizer for left-padded training."""

from __future__ import annotations

from typing import Any

from orpo_lightning.data.templates import read_template
from orpo_lightning.errors import SurroundingsError, first_line


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> Any:
    """Load a tokenizer, set up for left-padded training.

    Args:
        name_or_path: hub id or folder.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the tokenizer.
        chat_template: a name of ours, a template, or the path of a .jinja file; replaces its own.

    Raises:
        SurroundingsError: there is no such tokenizer, or it cannot be reached.
        UsageError: `chat_template` is neither name, template nor file.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise SurroundingsError(f"data.tokenizer: cannot load {name_or_path!r}: {reason}") from error
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if tokenizer.pad_token is None:
        # Padding is told by position, never by id: a token of its own would only resize the embeddings.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
