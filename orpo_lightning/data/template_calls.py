"""One chat template as a function from messages to text, and what it can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orpo_lightning.data.template_limit import TimeLimit
from orpo_lightning.errors import UsageError, UserError, first_line

Turns = list[dict[str, Any]]

# Variables that templates of thinking models know; False asks for a prompt whose answer has no thoughts.
_SWITCHES = ("enable_thinking", "thinking")
# Names under which a message's thoughts come; templates read the first two.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
SENTINEL = "OrpoSentinel"
"""Stands for a turn where the question is what the template writes around it."""


class ChatTemplate:
    """A tokenizer's chat template.

    It renders as `apply_chat_template` does, which prepares anew at every call: half of its time.
    """

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        """Compile the template: the one for tools where a tokenizer has several and there are tools.

        Raises:
            UsageError: it is no template.
        """
        self.thinking_switch: str | None = None
        """The switch that must be off for the prompts of rows like those rendered before."""
        source = tokenizer.get_chat_template(tools=tools)
        self._render, variables = _compiled(tokenizer, source)
        self.switches = tuple(name for name in _SWITCHES if name in variables)
        self.writes_date = "strftime_now" in variables
        self.drops_system = self._drops_system()
        """It renders conversations with a system turn as if that were not there."""
        self._appended = "" if "add_generation_prompt" in variables else self._always_appended()

    def render(self, turns: Turns, tools: Any = None) -> str:
        """Return a whole conversation as text."""
        text = self._render(messages=_plain(turns), tools=tools, add_generation_prompt=False)
        return text.removesuffix(self._appended) if self._appended else text

    def prompt(self, turns: Turns, tools: Any = None, switch: str | None = None) -> str:
        """Return the generation prompt behind some turns, with a switch off."""
        off = {} if switch is None else {switch: False}
        return self._render(messages=_plain(turns), tools=tools, add_generation_prompt=True, **off)

    def before_answer(self, turns: Turns, tools: Any = None) -> str | None:
        """Return what stands before an answer without thoughts; None if that cannot be told."""
        text = self._attempt([*turns, _turn("assistant", SENTINEL)], tools)
        before, found, _ = text.rpartition(SENTINEL)
        return before if found else None

    def _drops_system(self) -> bool:
        with_system = self._attempt([_turn("system", SENTINEL), _turn("user", "a")])
        return bool(with_system) and SENTINEL not in with_system

    def _always_appended(self) -> str:
        """Return what stands behind an answer at the end of a conversation, but not behind an earlier one.

        Templates that do not ask whether a generation prompt is wanted may write one behind everything.
        """
        turns = [_turn("user", "a"), _turn("assistant", SENTINEL)]
        last = self._attempt(turns).rpartition(SENTINEL)[2]
        earlier = self._attempt([*turns, _turn("user", "b"), _turn("assistant", "c")]).rpartition(SENTINEL)[2]
        alike = next((i for i, (a, b) in enumerate(zip(last, earlier, strict=False)) if a != b), len(last))
        return last[alike:] if earlier else ""

    def _attempt(self, turns: Turns, tools: Any = None) -> str:
        """Render turns that the template need not accept: what it says of them is said of no row."""
        try:
            return self._render(messages=turns, tools=tools, add_generation_prompt=False)
        except UserError:
            raise
        except Exception:
            return ""


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _compiled(tokenizer: Any, source: str) -> tuple[Callable[..., str], set[str]]:
    """Return a template as a function of its variables, and their names."""
    from jinja2 import TemplateSyntaxError, meta
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import chat_template_utils

    is_common = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    if not is_common or not hasattr(chat_template_utils, "_compile_jinja_template"):

        def render(messages: Turns, **variables: Any) -> str:
            return tokenizer.apply_chat_template(messages, tokenize=False, **variables)

        return render, {name for name in (*_SWITCHES, "strftime_now") if name in source}
    try:
        template = chat_template_utils._compile_jinja_template(source)
        variables = meta.find_undeclared_variables(template.environment.parse(source))
        limit = TimeLimit()
        template = limit.watched(source, template.environment)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"data.chat_template: not a Jinja template: line {error.lineno}: {first_line(error)}"
        ) from error
    # Copied at every rendering: a plain dictionary at once, the chain of two that it is key by key.
    template.globals = dict(template.globals)
    constant = {"documents": None, **tokenizer.special_tokens_map}

    def render_in_time(**given: Any) -> str:
        limit.begin()
        return template.render(constant, **given)

    return render_in_time, variables


def _plain(turns: Turns) -> Turns:
    """Return messages as `apply_chat_template` hands them on: without null, thoughts under known names."""
    if all(len(message) == 2 for message in turns):
        return turns
    return [_plain_message(message) for message in turns]


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None}
    thoughts = next((plain[key] for key in _THOUGHTS if key in plain), None)
    return plain if thoughts is None else {"thinking": thoughts, **plain, "reasoning_content": thoughts}
