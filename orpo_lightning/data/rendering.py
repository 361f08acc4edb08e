"""From records to text: messages through the chat template, plain text as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from orpo_lightning.data.control_tokens import ControlTokens
from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.template_calls import ChatTemplate, Turns
from orpo_lightning.errors import UsageError, UserError, first_line


class Texts(NamedTuple):
    """What of a record is encoded: the text before the answers, and the text each adds to it."""

    prompt: str
    chosen: str
    rejected: str
    is_rendered: bool
    """By a chat template, which writes every special token itself."""
    has_control_tokens: bool = False
    """In a message: marked in all three texts, see `ControlTokens`."""


class Renderer:
    """Renders records with a tokenizer's chat template.

    The prompt is what inference would begin with: the template's generation prompt. Templates of models that
    think before they answer write more, or less, in front of an answer without thoughts; then the prompt is
    what stands before such answers, if the template can be asked for it or it only leaves a thought unopened.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Render nothing yet."""
        self.notes: list[str] = []
        """What the user should know of how prompts were made, a sentence each, once."""
        self._tokenizer = tokenizer
        self._controls = ControlTokens(tokenizer)
        self._templates: dict[bool, ChatTemplate] = {}

    def render(self, records: Iterable[PreferenceRecord]) -> list[Texts | LeftOut]:
        """Return the texts of each record, or why it cannot be rendered.

        Raises:
            UsageError: there are messages and no template, or it is none.
        """
        return [self._render(record) for record in records]

    def _render(self, record: PreferenceRecord) -> Texts | LeftOut:
        prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
        if isinstance(prompt, str):
            assert isinstance(chosen, str)
            assert isinstance(rejected, str)
            return Texts(prompt, chosen, rejected, is_rendered=False)
        assert not isinstance(chosen, str)
        assert not isinstance(rejected, str)
        template, tools = self._template(record), record.tools
        if template.drops_system and prompt[0]["role"] == "system":
            self._note(
                "the chat template leaves system turns out; set data.chat_template to one that has them"
            )
        marked = any(map(self._controls.are_in, (prompt, chosen, rejected, tools)))
        if marked:
            prompt, chosen, rejected, tools = map(self._controls.marked, (prompt, chosen, rejected, tools))
        try:
            texts = self._texts(template, prompt, (chosen, rejected), tools)
        except UserError:
            raise
        except Exception as error:  # a template is a program: it raises what it likes
            reason = f"the chat template cannot render this row: {first_line(error)}"
        else:
            if isinstance(texts, Texts):
                return texts._replace(has_control_tokens=marked)
            reason = (
                f"the chat template does not render the {texts} conversation as going on "
                "from its own generation prompt; set data.chat_template to one that does"
            )
        content = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
        return broken(record.where, f"{record.where}: {reason}", content)._replace(rows=record.rows)

    def _template(self, record: PreferenceRecord) -> ChatTemplate:
        with_tools = record.tools is not None
        if with_tools not in self._templates:
            if not getattr(self._tokenizer, "chat_template", None):
                raise UsageError(
                    f"{record.where} holds messages and the tokenizer has no chat template; "
                    "set data.chat_template to a name such as chatml, a template or a .jinja file"
                )
            template = ChatTemplate(self._tokenizer, record.tools)
            if template.writes_date:
                self._note("the chat template writes the day's date into prompts: they differ day by day")
            self._templates[with_tools] = template
        return self._templates[with_tools]

    def _texts(
        self, template: ChatTemplate, turns: Turns, answers: tuple[Turns, Turns], tools: Any
    ) -> Texts | str:
        """Return the texts, or which answer's conversation does not go on from the generation prompt."""
        chosen, rejected = (template.render(turns + answer, tools) for answer in answers)
        prompt = template.prompt(turns, tools, template.thinking_switch)
        both = (chosen, rejected)
        # Without a switch there is one generation prompt; with one, the answers show which it should be.
        if not template.switches:
            fits = all(text.startswith(prompt) for text in both)
        else:
            fits = all(_follows(prompt, text, answer) for text, answer in zip(both, answers, strict=True))
        if not fits:
            found = self._search(template, turns, both, tools)
            if found is None:
                default = template.prompt(turns, tools)
                return "rejected" if chosen.startswith(default) else "chosen"
            prompt = found
        return Texts(prompt, chosen[len(prompt) :], rejected[len(prompt) :], is_rendered=True)

    def _search(
        self, template: ChatTemplate, turns: Turns, conversations: tuple[str, str], tools: Any
    ) -> str | None:
        """Return the prompt that both conversations go on from, at best what stands before answers."""
        head = template.before_answer(turns, tools)
        default = template.prompt(turns, tools)
        switched = {template.prompt(turns, tools, switch): switch for switch in template.switches}
        exact = [prompt for prompt in (default, *switched) if prompt == head]
        opened = default[len(head) :] if head is not None and default.startswith(head) else ""
        unopened = [head] if head is not None and _opens_thought(opened) else []
        for prompt in (*exact, default, *switched, *unopened):
            if all(text.startswith(prompt) for text in conversations):
                break
        else:
            return None
        if prompt in exact:
            template.thinking_switch = None if prompt == default else switched[prompt]
        if prompt != default and prompt in switched:
            self._note(
                "the chat template writes an empty thought before answers without one: prompts end as with "
                f"{switched[prompt]}=False, set it at inference too"
            )
        elif prompt != default:
            self._note(
                f"the chat template's generation prompt opens a thought ({opened!r}) that the answers do not "
                "have: prompts end before it"
            )
        return prompt

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _follows(prompt: str, text: str, answer: Turns) -> bool:
    """Return whether nothing but the prompt stands before the answer's content."""
    content = answer[0].get("content") or ""
    stripped = content.strip()
    return bool(stripped) and text.startswith(prompt) and text.startswith((content, stripped), len(prompt))


def _opens_thought(text: str) -> bool:
    return any(word in text.lower() for word in ("think", "thought", "reason"))
