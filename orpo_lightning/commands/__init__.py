"""What the command line can do besides training: a verb, a function, imported when it is asked for.

To add one: a file here with `main(args: list[str]) -> int`, which answers `--help` itself and returns the
exit code, an entry in `COMMANDS` and its name in a group of `GROUPS`.
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


SUBCOMMANDS = {
    "fit": "train a policy on preference pairs",
    "validate": "measure the validation pairs",
    "test": "measure the held-out test pairs",
}
"""Verbs of LightningCLI."""
COMMANDS = {
    "doctor": Command(
        "what this machine can do, and which configuration fits it",
        "orpo_lightning.commands.doctor:main",
    ),
    "inspect": Command(
        "what is in the data, and what is wrong with it",
        "orpo_lightning.commands.inspect:main",
    ),
    "plan": Command(
        "memory and time of a configuration, for every GPU",
        "orpo_lightning.commands.plan:main",
    ),
    "find-lr": Command(
        "a learning rate to begin with, from a few steps with a rising one",
        "orpo_lightning.commands.find_lr:main",
    ),
    "sweep": Command(
        "many runs with other values of some keys, and which is best",
        "orpo_lightning.commands.sweep:main",
    ),
    "report": Command(
        "the page of a finished run, or of several side by side",
        "orpo_lightning.commands.report:main",
    ),
    "evaluate": Command(
        "judge a model on held-out pairs, by its answers, on general text",
        "orpo_lightning.commands.evaluate:main",
    ),
    "chat": Command(
        "talk to a model in the terminal, with its base beside it",
        "orpo_lightning.commands.chat:main",
    ),
    "generate": Command(
        "answer a file of prompts, in batches; goes on after a kill",
        "orpo_lightning.commands.generate:main",
    ),
    "merge": Command(
        "the adapter into its base, with proof that nothing else changed",
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
    "completion": Command(
        "a script for the shell that completes verbs, keys and files",
        "orpo_lightning.commands.completion:main",
    ),
}

GROUPS = {
    "before training": ("doctor", "inspect", "plan"),
    "choose settings": ("find-lr", "sweep"),
    "train": ("fit", "validate", "test"),
    "look, judge, use": ("report", "evaluate", "chat", "generate", "merge", "export", "push"),
    "shell": ("completion",),
}
"""In which order the top-level `--help` lists the verbs."""
