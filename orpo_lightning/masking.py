"""Secrets are left out of everything a run writes: configuration, log, curves, checkpoints, cards."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_NAME = r"(?:token|secret|password|passwd|api_?key|access_?key|private_?key|credentials?)"
_SECRET = re.compile(rf"(?:^|_){_NAME}(?:$|_)")
# These are tokens of a text.
_OF_TEXT = re.compile(r"(?:^|_)(?:bos|cls|eos|image|mask|pad|sep|special|stop|unk)_token")
_WORD = rf"[\w.-]*?(?<![A-Za-z]){_NAME}(?![A-Za-z])[\w-]*"
_IN_TEXT = (
    # user:password@ of a URL, or a token in the same place.
    (re.compile(r"(?<=://)[^\s/?#@]+(?=@)"), MASK),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}\b"), f"hf_{MASK}"),
    (re.compile(rf"(?i)(--{_WORD}(?:\s+|=))(?!-)\S+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(\b{_WORD}=)[^\s,;)]+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)([\"']{_WORD}[\"']\s*:\s*[\"'])[^\"']+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(\b{_WORD}: expected .*?, found )\S+"), rf"\1{MASK}"),
)


def is_secret(name: str) -> bool:
    """Tell whether a key's name says that its value is a secret: hub_token, api-key, apiKey, password."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).replace("-", "_").rpartition(".")[2].lower()
    return bool(_SECRET.search(plain)) and not _OF_TEXT.search(plain)


def mask(value: Any, name: str = "") -> Any:
    """Return a copy of nested settings in which the texts that are secrets are masked.

    Args:
        value: mappings, namespaces, lists, texts; anything else is returned as it is.
        name: the key it stands under.
    """
    if isinstance(value, str):
        return MASK if value and is_secret(name) else mask_text(value)
    masked: Any
    if isinstance(value, argparse.Namespace):  # jsonargparse's is one
        masked = copy.copy(value)
        for key, item in vars(value).items():
            setattr(masked, key, mask(item, key))
    elif isinstance(value, Mapping):
        masked = copy.copy(value)
        for key, item in value.items():
            masked[key] = mask(item, key)
    elif type(value) in (list, tuple):
        masked = type(value)(mask(item, name) for item in value)
    else:
        return value
    return masked


def mask_text(text: str) -> str:
    """Return a text without the passwords of its URLs, hub tokens, and values behind a secret's name."""
    if "://" not in text and not _MAY_HOLD.search(text):
        return text
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


_MAY_HOLD = re.compile(rf"(?i){_NAME}|hf_")
