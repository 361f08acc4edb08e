"""The words behind a verb without a configuration: called the same everywhere, wrong ones told in a line."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from orpo_lightning.errors import UsageError


class Words(argparse.ArgumentParser):
    """A parser that raises what is wrong instead of a screen of usage; `--help` is the verb's own text.

    Options shared by verbs have one name everywhere: `--out`, `--json`, `--quantization`, `--base`,
    `--batch_size`, `--max_new_tokens`, `--temperature`, `--top_p`, `--seed`, `--accelerator`,
    `--trust_remote_code`.
    """

    def __init__(self, verb: str) -> None:
        """Name the verb."""
        super().__init__(prog=f"orpo-lightning {verb}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError: what was found, and what was probably meant."""
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[1].partition("=")[0], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            raise UsageError(f"unknown option {unknown[1]}: {hint}")
        raise UsageError(f"{message} (see {self.prog} --help)")

    def add_model(self) -> None:
        """Add MODEL and how it is to be loaded."""
        self.add_argument("model", metavar="MODEL")
        self.add_argument("--base", default=None)
        self.add_argument("--quantization", choices=["none", "nf4", "int8"], default=None)
        self.add_argument("--accelerator", default="auto")
        self.add_argument("--trust_remote_code", action="store_true")

    def add_sampling(self) -> None:
        """Add how answers are drawn, in the words of `generation.Sampling`."""
        self.add_argument("--max_new_tokens", type=int, default=256)
        self.add_argument("--temperature", type=float, default=0.0)
        self.add_argument("--top_p", type=float, default=1.0)
        self.add_argument("--seed", type=int, default=0)
