"""The frame of every page: templates filled with escaped text; style and script inside, nothing outside."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from orpo_lightning.observing.run_files import flat
from orpo_lightning.pages import charts, dots, lines, tokens, words


def render(template: str, **values: Any) -> str:
    """Return a page as one HTML file.

    Args:
        template: a file of this folder that extends `frame.html.jinja`.
        values: what it shows; all text among it is escaped.
    """
    return words.writable(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    """Return the templates, with the words and charts they use; what a report lacks counts as empty."""
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (
        *(words.number, words.percent, words.amount, words.setting, words.counted, words.visible),
        *(
            charts.bins,
            charts.histogram,
            charts.odd_bars,
            charts.meter,
            charts.place,
            charts.stack,
            tokens.blocks,
        ),
        *(lines.drawable, lines.lines, lines.key, lines.table, lines.figure, flat),
        dots.dots,
    )
    shared = {function.__name__: function for function in functions}
    environment.filters.update(shared)
    environment.globals.update(shared, Cut=charts.Cut, KINDS=tokens.KINDS)
    style, script = (_file(name) for name in ("page.css", "page.js"))
    # The browser is told to run this script and no other, and to fetch nothing: should a text of a report
    # ever get past the escaping, it still does nothing.
    environment.globals.update(
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script)
    )
    return environment


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
