"""An Ollama Modelfile: the chat template in Go's language, proved against the Jinja one, and stop tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from orpo_lightning.data.messages import Message
from orpo_lightning.data.prompts import Prompt, PromptEncoder
from orpo_lightning.data.template_calls import ChatTemplate
from orpo_lightning.data.token_rules import leading_ids

_CONTEXT = 8192
PromptOf = Callable[[list[Message]], str]
"""Of turns, the text that training and `generate` put before an answer to them."""


class Parts(NamedTuple):
    """What a chat template writes around the turns of a conversation."""

    before_system: str | None
    """None where it takes no system turn, or leaves it out."""
    before_first_user: str
    user_after_system: str
    user_after_answer: str
    before_answer: str
    """Of the conversation before."""
    after_answer: str
    generation_prompt: str
    """As training ends prompts: without the space, say, that a template writes at the head of an answer."""

    def render(self, turns: Sequence[Message]) -> str:
        """Return a conversation as the Go template of these parts renders it, with the generation prompt."""
        text, last = "", ""
        for turn in turns:
            role = turn["role"]
            if role == "user":
                starts = {"": self.before_first_user, "system": self.user_after_system}
                text += starts.get(last, self.user_after_answer)
            else:
                text += (self.before_system or "") if role == "system" else self.before_answer
            text, last = text + turn["content"], role
        return text + (self.generation_prompt if last == "user" else "")

    def go(self) -> str:
        """Return the template in Go's language; its texts are quoted, which keeps their white space."""
        system = (
            ""
            if self.before_system is None
            else (f'{{{{ else if eq .Role "system" }}}}{_quoted(self.before_system)}{{{{ .Content }}}}')
        )
        return (
            '{{ $last := "" }}{{ range .Messages }}'
            '{{ if eq .Role "user" }}{{ if eq $last "" }}'
            + _quoted(self.before_first_user)
            + '{{ else if eq $last "system" }}'
            + _quoted(self.user_after_system)
            + "{{ else }}"
            + _quoted(self.user_after_answer)
            + "{{ end }}{{ .Content }}"
            + system
            + '{{ else if eq .Role "assistant" }}'
            + _quoted(self.before_answer)
            + "{{ .Content }}{{ end }}"
            + "{{ $last = .Role }}{{ end }}"
            + '{{ if eq $last "user" }}'
            + _quoted(self.generation_prompt)
            + "{{ end }}"
        )


def _quoted(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def parts_of(tokenizer: Any) -> Parts | None:
    """Return what a tokenizer's chat template writes, where it can be said in parts; else None.

    The parts are compared with the template on conversations of one to three turns, with and without a system
    turn. A beginning-of-text that the tokenizer adds by itself is left out: the server adds it too.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    template, prompts = ChatTemplate(tokenizer), PromptEncoder(tokenizer)

    def prompt_of(turns: list[Message]) -> str:
        return prompts.texts(Prompt(turns, "the chat template")).prompt

    try:
        found = _taken_apart(template, prompt_of)
        if found is None or not _same(found, prompt_of):
            return None
    except Exception:  # a template is a program: it may refuse any of these conversations
        return None
    bos = tokenizer.decode(leading_ids(tokenizer))
    if not bos:
        return found
    before_system = found.before_system
    return found._replace(
        before_first_user=found.before_first_user.removeprefix(bos),
        before_system=None if before_system is None else before_system.removeprefix(bos),
    )


def _taken_apart(template: ChatTemplate, prompt_of: PromptOf) -> Parts | None:
    # Words that no template writes by itself; letters alone, as some templates look how a turn begins.
    words = ["Qzuserone", "Qzanswerone", "Qzusertwo", "Qzanswertwo"]
    turns = [{"role": ("user", "assistant")[n % 2], "content": word} for n, word in enumerate(words)]
    pieces = _between(template.render(turns), words)
    if pieces is None:
        return None
    first, before_answer, user_after_answer, again, after = pieces
    prompt = _between(prompt_of(turns[:1]), words[:1])
    system = _around_system(template, [{"role": "system", "content": "Qzsystem"}, *turns[:2]])
    if again != before_answer or prompt is None or system is None:
        return None
    before_system, after_system = system or (None, first)
    return Parts(before_system, first, after_system, user_after_answer, before_answer, after, prompt[1])


def _around_system(template: ChatTemplate, turns: list[Message]) -> Sequence[str] | None:
    """Return what stands before and behind the first turn: nothing where the template takes none of its kind.

    None where it takes one and writes it in another way than as it is, once.
    """
    if template.drops_system:
        return ()
    try:
        text = template.render(turns)
    except Exception:  # many templates say that they know no system turn
        return ()
    pieces = _between(text, [turn["content"] for turn in turns])
    return None if pieces is None else pieces[:2]


def _between(text: str, words: Sequence[str]) -> list[str] | None:
    """Return what stands before, between and behind words, None where one is not there once and in order."""
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found or word in text:
            return None
        pieces.append(before)
    return [*pieces, text]


def _same(parts: Parts, prompt_of: PromptOf) -> bool:
    """Tell whether parts and template write the same up to the answer."""
    texts = ["one", "two words", "a\nline", "the fourth", "5"]
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        if system and parts.before_system is None:
            continue
        for count in (1, 3, 5):
            turns = [
                *system,
                *({"role": ("user", "assistant")[n % 2], "content": texts[n]} for n in range(count)),
            ]
            if parts.render(turns) != prompt_of(turns):
                return False
    return True


def modelfile(
    weights: str, tokenizer: Any, stop_ids: Sequence[int], context: int | None, settings: Any
) -> tuple[str, str]:
    """Return a Modelfile, and in words what is missing in it.

    Args:
        weights: path of a GGUF file or of a folder of safetensors, as Ollama should read it.
        tokenizer: of the model.
        stop_ids: every token that ends an answer.
        context: tokens that the model was made for.
        settings: its generation_config.
    """
    lines, missing = [f"FROM {weights}"], ""
    parts = parts_of(tokenizer)
    if parts is None:
        missing = "its chat template cannot be said in Ollama's language: write TEMPLATE yourself"
        lines.append(f"# {missing}")
    else:
        lines.append(f'TEMPLATE """{parts.go()}"""')
    stops = [tokenizer.convert_ids_to_tokens(token) for token in sorted(stop_ids)]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops if stop]
    lines += [f"PARAMETER num_ctx {min(context, _CONTEXT)}"] if context else []
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = getattr(settings, name, None)
        if value is not None and settings.do_sample:
            lines.append(f"PARAMETER {'repeat_penalty' if name == 'repetition_penalty' else name} {value:g}")
    return "\n".join(lines) + "\n", missing
