"""Chat templates by name: what `data.chat_template` may be, beside a template itself or its file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from orpo_lightning.errors import UsageError, first_line

_FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = ("chatml", "gemma", "llama-2", "llama-3", "mistral", "plain", "zephyr")
"""Names of the templates that come with this package; each is a file of that name."""


def read_template(template: str) -> str:
    """Return a chat template, given its name, itself, or the path of its file.

    A name comes before a file that is called like it. Case and the marks between words do not matter.

    Raises:
        UsageError: it is none of these, or the file cannot be read.
    """
    if "{%" in template or "{{" in template:
        return template
    names = {_plain(name): name for name in TEMPLATES}
    if _plain(template) in names:
        return (_FOLDER / f"{names[_plain(template)]}.jinja").read_text(encoding="utf-8")
    path = Path(template).expanduser()
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8-sig")  # a byte order mark would stand in every prompt
    except (OSError, ValueError) as error:
        raise UsageError(f"data.chat_template: cannot read {template!r}: {first_line(error)}") from error
    close = difflib.get_close_matches(_plain(template), names, n=1)
    hint = f"; did you mean {names[close[0]]!r}?" if close else ""
    raise UsageError(
        f"data.chat_template: expected a name ({', '.join(TEMPLATES)}), a template or a .jinja file, "
        f"found {template!r}{hint}"
    )


def _plain(name: str) -> str:
    """Return a name as it is compared: Llama_3 is llama-3, a path is nobody's name."""
    return name if "/" in name or "." in name else re.sub(r"[\s_-]", "", name).lower()
