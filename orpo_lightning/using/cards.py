"""The README.md beside weights, in the hub's form: metadata, how they were made, figures, loading."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from orpo_lightning.masking import mask_text
from orpo_lightning.versions import versions_of

_PACKAGES = ("orpo-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")
Rows = Sequence[tuple[str, str]]


class Card(NamedTuple):
    """What a card says; its texts may hold anything and are text in it."""

    base: str
    is_adapter: bool
    intro: Sequence[str]
    """Lines in markdown."""
    tables: Sequence[tuple[str, str, Rows]]
    """Each with the names of its two columns."""
    metadata: Mapping[str, Any] = {}
    """Of the hub, besides base, library, task and tags."""
    revision: str | None = None
    """Of the base."""

    def render(self) -> str:
        """Return the card."""
        base = mask_text(self.base)
        kind = "adapter for" if self.is_adapter else "fine-tune of"
        library = "peft" if self.is_adapter else "transformers"
        metadata = {
            "base_model": base,
            "base_model_relation": "adapter" if self.is_adapter else "finetune",
            "library_name": library,
            "pipeline_tag": "text-generation",
            "tags": ["orpo", "preference-optimization", "orpo-lightning"],
            **self.metadata,
        }
        tables = [line for left, right, rows in self.tables for line in table(left, right, rows)]
        lines = [
            f"# ORPO {kind} {text(base)}",
            "",
            *self.intro,
            "",
            *tables,
            "```python",
            *_loading(base, self.revision, self.is_adapter),
            "```",
            "",
        ]
        return with_metadata(metadata, "\n".join(lines))


def with_metadata(metadata: Mapping[str, Any], body: str) -> str:
    """Return a card of metadata and text."""
    front = yaml.safe_dump(dict(metadata), allow_unicode=True, sort_keys=False, width=10_000).rstrip()
    return f"---\n{front}\n---\n\n{body}"


def parted(card: str) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card and its text."""
    match = re.match(r"---\n(.*?)\n---\n\s*", card, re.DOTALL)
    if match is None:
        return {}, card
    return yaml.safe_load(match[1]) or {}, card[match.end() :]


def table(left: str, right: str, rows: Rows) -> list[str]:
    """Return the lines of a table in markdown, with an empty line behind it."""
    return [f"| {left} | {right} |", "|---|---|", *(f"| {text(a)} | {text(b)} |" for a, b in rows), ""]


def text(value: str) -> str:
    """Return a value as plain text of a line or cell: without HTML, links, code or lines of its own."""
    plain = html.escape(" ".join(mask_text(str(value)).split()), quote=False)
    return re.sub(r"([\\`|\[\]*])", r"\\\1", plain)


def code(value: str) -> str:
    """Return a value in backticks; those of its own would end them."""
    return f"`{' '.join(mask_text(value).split()).replace('`', chr(39))}`"


def versions() -> list[tuple[str, str]]:
    """Return the packages that count, with their versions here."""
    return list(versions_of(_PACKAGES).items())


def base_words(base: str, revision: str | None) -> str:
    """Return the arguments of `from_pretrained` for a base, as Python is written."""
    return json.dumps(base) + (f", revision={json.dumps(revision)}" if revision else "")


def _loading(base: str, revision: str | None, is_adapter: bool) -> list[str]:
    if not is_adapter:
        return [
            "from transformers import AutoModelForCausalLM",
            "",
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base_words(base, revision)})",
        'model = PeftModel.from_pretrained(base, "FOLDER")',
    ]
