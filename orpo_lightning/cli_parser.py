"""A parser whose complaints are one line with a suggestion, instead of a screen of usage."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from orpo_lightning.cli_errors import debugging, one_line
from orpo_lightning.cli_fill import filled_places
from orpo_lightning.masking import mask_text

_UNKNOWN_KEY = re.compile(r"[Oo]ption '([^']+)'|unrecognized arguments: --([^\s=]+)")
_UNION = re.compile(r"\n.*?Subtypes: \[(?P<types>.*?)\]\n.*Given value: (?P<value>.*)", re.DOTALL)
_NOT_IMPORTED = re.compile(r".*Importing '([^']+)' is not allowed.*", re.DOTALL)
_SUBCOMMAND_PREFIX = re.compile(r"\b(?:fit|validate|test)\.(?=\w+\.\w)")


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser with readable errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what was probably meant, and exit with 2."""
        if debugging() and ex is not None:
            traceback.print_exception(ex)
        line = mask_text(f"error: {readable(message)}{suggestion(message, known_keys(self))}")
        self.exit(2, line + "\n")


class UniqueKeysConfigFile(ActionConfigFile):
    """`--config` that refuses a key written twice: YAML keeps the last one without a word.

    What is only the run's folder written again, in a config.yaml of an earlier version, is left open.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file, then parse it."""
        places: list[str] = []
        try:
            with open(values, encoding="utf-8") as file:
                text = file.read()
            problems = list(duplicate_keys(yaml.compose(text, Loader=yaml.SafeLoader)))
            content = None if problems else yaml.safe_load(text)
            places = filled_places(content) if isinstance(content, dict) else []
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            problems = [f"not YAML: {error.problem or error.context} in line {line}"]
        except (OSError, ValueError):
            problems = []  # no such file, or not text: jsonargparse has the right words for that
        if problems:
            parser.error(f"{values}: {problems[0]}")
        super().__call__(parser, cfg, values, option_string)
        for key in places:
            cfg[key] = None


def duplicate_keys(node: yaml.Node | None, parent: str = "") -> Iterable[str]:
    """Yield a sentence for every mapping key of a YAML document that is written twice."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from duplicate_keys(item, parent)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{parent}{key.value}", key.start_mark.line + 1
        if name in lines:
            yield f"key {name} stands twice, in lines {lines[name]} and {line}"
        lines[name] = line
        yield from duplicate_keys(value, f"{name}.")


def readable(message: str) -> str:
    """Bring a parser's message to one line, without the parser's inner words."""
    if denied := _NOT_IMPORTED.match(message):
        return (
            f"{denied[1]} is not imported: a configuration must not name what runs commands or files, and "
            "with --safe-config nothing but what is on its list (docs/security.md)"
        )
    union = _UNION.search(message)
    if union:
        message = f"{message[: union.start()]} expected {union['types']}, found {union['value']}"
    message = re.sub(r'Parser key "([^"]+)"', r"\1", message)
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("NoneType", "null")
    message = re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", message)
    message = re.sub(r"[Ee]xpected an? (.+?)\. Got value: ", r"expected \1, found ", message)
    message = re.sub(r"^Subcommand '\w+' does not accept option '([^']+)'", r"unknown key '\1'", message)
    message = re.sub(r"^Option '([^']+)' is not accepted", r"unknown key '\1'", message)
    message = message.replace("unrecognized arguments:", "unknown key")
    return one_line(_SUBCOMMAND_PREFIX.sub("", message))


def suggestion(message: str, known: Sequence[str]) -> str:
    """Return `: did you mean KEY?` for a message about an unknown key, else nothing."""
    found = _UNKNOWN_KEY.search(message)
    if not found:
        return ""
    key = (found[1] or found[2]).replace(".init_args.", ".").rstrip("+")
    # The whole key first; then its last part alone, for a key given without or below the wrong section.
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75) if "." in key else []
    if not close:
        leaf = key.rsplit(".", 1)[-1]
        leaves = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
        close = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]
    return f": did you mean {close[0]}?" if close else ""


def known_keys(parser: Any) -> list[str]:
    """Return every key that a parser and its subcommands know, those of default objects included."""
    parsers = [parser]
    if parser._subcommands_action is not None:
        parsers += list(parser._subcommands_action._name_parser_map.values())
    keys: dict[str, None] = {}
    for each in parsers:
        keys |= dict.fromkeys(action.dest for action in each._actions)
        defaults = each.get_defaults(skip_validation=True)
        keys |= dict.fromkeys(key.replace(".init_args.", ".") for key in defaults.keys())  # noqa: SIM118 - a Namespace
    hidden = ("help", "subcommand")
    return [key for key in keys if key not in hidden and not key.endswith(("class_path", "init_args"))]
