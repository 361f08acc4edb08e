"""A chat template is a program that comes with a model: one that never ends is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from orpo_lightning.errors import UsageError

SECONDS = 10.0
"""How long one rendering may take; a long conversation takes a few milliseconds."""
_SHORT = 100
_FILTER = "orpo_lightning_time_limit"


class TimeLimit:
    """Looks at the clock whenever a loop or macro of a template begins, and now and then in a long loop.

    What it cannot stop is a single operation that takes for ever, such as a text of a billion letters.
    """

    def __init__(self) -> None:
        """Start without a rendering."""
        self._end = float("inf")

    def begin(self) -> None:
        """Let the time of a rendering begin."""
        self._end = time.monotonic() + SECONDS

    def watched(self, source: str, environment: Any) -> Any:
        """Return a compiled template whose loops and macros look at the clock.

        Args:
            source: the template.
            environment: of jinja2; it is left as it is.
        """
        from jinja2 import nodes, pass_context
        from jinja2.visitor import NodeTransformer

        def filtered(node: Any, line: int) -> Any:
            return nodes.Filter(node, _FILTER, [], [], None, None, lineno=line)

        class Watched(NodeTransformer):
            def visit_For(self, node: Any) -> Any:  # noqa: N802 - jinja2's names
                node = self.generic_visit(node)
                node.iter = filtered(node.iter, node.lineno)
                return node

            def visit_Macro(self, node: Any) -> Any:  # noqa: N802
                node = self.generic_visit(node)
                nothing = filtered(nodes.Const("", lineno=node.lineno), node.lineno)
                node.body.insert(0, nodes.Output([nothing], lineno=node.lineno))
                return node

        own = environment.overlay()
        # A filter, as no template can take its name; with the context, as what is constant is computed ahead.
        own.filters = {**environment.filters, _FILTER: pass_context(lambda _, value: self.look(value))}
        template = Watched().visit(own.parse(source))
        template.set_environment(own)
        return own.from_string(template)

    def look(self, value: Any) -> Any:
        """Return what a loop goes through, or a macro's nothing, after a look at the clock."""
        self._stop_if_over()
        # A short list's turns end by themselves, and a loop in each of them looks at the clock anew.
        is_short = isinstance(value, (list, tuple, dict, str)) and len(value) <= _SHORT
        return value if is_short else self._each(value)

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number % _SHORT == 0:
                self._stop_if_over()
            yield item

    def _stop_if_over(self) -> None:
        if time.monotonic() > self._end:
            raise UsageError(
                f"data.chat_template: a row was not rendered within {SECONDS:g} s, the template seems not "
                "to end; set data.chat_template to another"
            )
