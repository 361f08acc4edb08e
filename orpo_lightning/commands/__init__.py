"""What the command line can do besides training: a verb, a function, imported when it is asked for.

To add one: a file here with `main(args: list[str]) -> int`, which answers `--help` itself and returns the
exit code, and a line in `COMMANDS`.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple


class Command(NamedTuple):
    """One verb of the command line."""

    line: str
    """What it does, in a line of the top-level `--help`."""
    function: str
    """Where its function is, as `module:name`."""

    def run(self, args: list[str]) -> int:
        """Import the function, call it with the words behind the verb, and return its exit code."""
        module, _, name = self.function.partition(":")
        code: int = getattr(importlib.import_module(module), name)(args)
        return code


COMMANDS = {
    "inspect": Command(
        "look at the data before training: what is in it, what is wrong with it",
        "orpo_lightning.commands.inspect:main",
    ),
    "evaluate": Command(
        "judge a model on held-out pairs, by its answers, on general text",
        "orpo_lightning.commands.evaluate:main",
    ),
    "plan": Command(
        "memory and time of a configuration, for every GPU, from config.json alone",
        "orpo_lightning.commands.plan:main",
    ),
    "generate": Command(
        "answer a file of prompts: JSONL in and out, batched, goes on after a kill",
        "orpo_lightning.commands.generate:main",
    ),
    "chat": Command(
        "talk to a model in the terminal, with its base beside it if you like",
        "orpo_lightning.commands.chat:main",
    ),
    "merge": Command(
        "the adapter into its base: one model, with proof that nothing else changed",
        "orpo_lightning.commands.merge:main",
    ),
    "export": Command(
        "how to serve it: Ollama, vLLM, and GGUF for llama.cpp",
        "orpo_lightning.commands.export:main",
    ),
    "push": Command(
        "send an adapter or a merged model to the hub, with its model card",
        "orpo_lightning.commands.push:main",
    ),
    "report": Command(
        "the page of a finished run, or of several side by side",
        "orpo_lightning.commands.report:main",
    ),
}
