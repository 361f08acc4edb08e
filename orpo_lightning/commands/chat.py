"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_lightning.using.conversation import Conversation

HELP = """usage: orpo-lightning chat MODEL [OPTIONS]

Talks to a model in the terminal: answers appear as they are written, and what was said before is kept, as
far as the model's context goes. Messages go through the chat template as in training. Ctrl-C stops an answer,
Ctrl-D ends.

in the conversation:
  /reset         forget what was said
  /system TEXT   say this to the model before everything else; without TEXT, nothing
  /compare       answers of the base beside those of the adapter, on or off
  /save FILE     append the conversation to a file, as a row of JSON lines
  /help          these lines
  /quit          end

options:
  MODEL                   a run's folder, an adapter's, a model's, or a hub id
  --max_new_tokens N      most tokens of an answer (default 256)
  --temperature T         0 takes the likeliest token each time (default)
  --top_p P               draw from the likeliest tokens that have this share (default 1)
  --seed N                of what is drawn (default 0)
  --chat_template NAME    instead of the tokenizer's: chatml, llama-3, ..., or a .jinja file
  --base NAME             instead of the base that the adapter names
  --quantization KIND     none, nf4, int8 (default: as the adapter was trained)
  --accelerator KIND      auto, gpu, cpu
  --trust_remote_code     run Python code that comes with the model

examples:
  orpo-lightning chat runs/quickstart
  orpo-lightning chat runs/quickstart/adapter-best --temperature 0.7 --top_p 0.9
"""
_MEMORY = "lower --max_new_tokens, or set --quantization nf4"


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _chat, memory=_MEMORY)


def _chat(args: list[str]) -> int:
    from orpo_lightning.commands.words import Words
    from orpo_lightning.using.generation import Sampling
    from orpo_lightning.using.trained import find

    words = Words("chat")
    words.add_model()
    words.add_sampling()
    words.add_argument("--chat_template", default=None)
    options = words.parse_args(args)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed).check()
    trained = find(
        options.model,
        base=options.base,
        quantization=options.quantization,
        trust_remote_code=options.trust_remote_code,
    )
    conversation = _begin(trained, options, sampling)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _talk(conversation)
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _begin(trained: Any, options: Any, sampling: Any) -> Conversation:
    from orpo_lightning.data.templates import TEMPLATES, read_template
    from orpo_lightning.errors import UsageError
    from orpo_lightning.masking import mask_text
    from orpo_lightning.using.conversation import Conversation
    from orpo_lightning.using.generation import Answerer
    from orpo_lightning.using.trained import load

    loaded = load(trained, accelerator=options.accelerator)
    if options.chat_template is not None:
        loaded.tokenizer.chat_template = read_template(options.chat_template)
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise UsageError(
            f"{options.model}: its tokenizer has no chat template; name one with --chat_template: "
            f"{', '.join(TEMPLATES)}, or a .jinja file"
        )
    for label, text in loaded.rows.items():
        print(f"{label:<14}{mask_text(text)}")
    print("/help says what else there is; Ctrl-C stops an answer, Ctrl-D ends\n")
    answerer = Answerer(loaded.model, loaded.tokenizer)
    has_adapter = trained.adapter is not None
    return Conversation(loaded.model, answerer, sampling, _write, has_adapter=has_adapter)


def _talk(conversation: Conversation) -> None:
    """Read lines and answer them, until the user ends it."""
    with suppress(ImportError):  # the line can be edited where Python was built so
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)")
            continue
        try:
            if not conversation.say(line):
                return
        except KeyboardInterrupt:  # between two answers
            print(" (stopped)")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
