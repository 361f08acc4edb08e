"""Loading a tokenizer for left-padded training."""

from __future__ import annotations

from typing import Any

from orpo_lightning.base_errors import explain_base, is_about_files
from orpo_lightning.data.templates import read_template
from orpo_lightning.hub_access import with_retries


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

    settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    load = AutoTokenizer.from_pretrained
    try:
        tokenizer = with_retries(lambda: load(name_or_path, padding_side="left", **settings), name_or_path)
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, name_or_path, revision, "data.tokenizer") from error
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if tokenizer.pad_token is None:
        # Padding is told by position, never by id: a token of its own would only resize the embeddings.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
