"""One chat template as a function from messages to text, and what it can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orpo_lightning.errors import UsageError, first_line

Turns = list[dict[str, Any]]

# Variables that templates of thinking models know; False asks for a prompt whose answer has no thoughts.
_SWITCHES = ("enable_thinking", "thinking")
# Names under which a message's thoughts come; templates read the first two.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


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

    def render(self, turns: Turns, tools: Any = None) -> str:
        """Return a whole conversation as text."""
        return self._render(messages=_plain(turns), tools=tools, add_generation_prompt=False)

    def prompt(self, turns: Turns, tools: Any = None, switch: str | None = None) -> str:
        """Return the generation prompt behind some turns, with a switch off."""
        off = {} if switch is None else {switch: False}
        return self._render(messages=_plain(turns), tools=tools, add_generation_prompt=True, **off)


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
    except TemplateSyntaxError as error:
        raise UsageError(
            f"data.chat_template: not a Jinja template: line {error.lineno}: {first_line(error)}"
        ) from error
    constant = {"documents": None, **tokenizer.special_tokens_map}
    return lambda **given: template.render(constant, **given), variables


def _plain(turns: Turns) -> Turns:
    """Return messages as `apply_chat_template` hands them on: without null, thoughts under known names."""
    if all(len(message) == 2 for message in turns):
        return turns
    return [_plain_message(message) for message in turns]


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None}
    thoughts = next((plain[key] for key in _THOUGHTS if key in plain), None)
    return plain if thoughts is None else {"thinking": thoughts, **plain, "reasoning_content": thoughts}
