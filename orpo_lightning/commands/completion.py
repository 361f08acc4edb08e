"""`completion`: a script for the shell that completes verbs, options, keys of `fit`, values and files."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from orpo_lightning.commands import COMMANDS, SUBCOMMANDS

HELP = """usage: orpo-lightning completion {bash,zsh,fish}

Prints a script that completes verbs, options, the keys of `fit` with their values, and files. It is made
once, so that the shell never waits: make it again after an update. Bash and fish find theirs in the folders
below; for zsh write `source ~/.orpo-lightning.zsh` into ~/.zshrc, after compinit.

examples:
  orpo-lightning completion bash > ~/.local/share/bash-completion/completions/orpo-lightning
  orpo-lightning completion zsh > ~/.orpo-lightning.zsh
  orpo-lightning completion fish > ~/.config/fish/completions/orpo-lightning.fish
"""
PROGRAM = "orpo-lightning"
_OPTION = re.compile(r"^  (--[\w-]+)(?: (?:or )?(\S+))?(?:  |$)", re.MULTILINE)
_KEYS = "--KEY"
_FUNCTION = """_orpo_lightning() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}"
    local words="" keys="{keys}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$cur"))
        return
    fi
    case "$prev" in
{values}
    esac
    case "$verb" in
        completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$cur")); return ;;
    esac
    case "$cur" in -*) ;; *) return ;; esac  # nothing: the shell completes files
    case "$verb" in
{options}
    esac
    COMPREPLY=($(compgen -W "$words --help" -- "$cur"))
}}
complete -o default -F _orpo_lightning {program}
"""


class Words(NamedTuple):
    """What can be completed."""

    verbs: Mapping[str, str]
    """Each with what it does."""
    options: Mapping[str, list[str]]
    """Of each verb its own."""
    takes_keys: set[str]
    """Verbs that take the keys of `fit` too."""
    keys: list[str]
    values: Mapping[str, list[str]]
    """Of options and keys with few of them."""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    if {"-h", "--help"} & set(args):
        print(HELP, end="")
        return 0
    from orpo_lightning.commands.guard import guarded

    return guarded(lambda: _completion(args), quiet=True)


def _completion(args: list[str]) -> int:
    from orpo_lightning.commands.words import Words as Parser

    parser = Parser("completion")
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    shell = parser.parse_args(args).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](gather()), end="")
    return 0


def gather() -> Words:
    """Return what can be completed: of verbs what their help names, of keys what the parser knows."""
    verbs = SUBCOMMANDS | {name: command.line for name, command in COMMANDS.items()}
    helps = {name: _help(command.function) for name, command in COMMANDS.items()}
    options = {name: [word for word, _ in _OPTION.findall(text)] for name, text in helps.items()}
    takes_keys = {*SUBCOMMANDS, *(name for name, own in options.items() if _KEYS in own)}
    own = {name: [word for word in words if word != _KEYS] for name, words in options.items()}
    keys = _keys()
    values = {f"--{key}": words for key, words in keys.items() if words}
    for text in helps.values():
        values |= {word: value.split("|") for word, value in _OPTION.findall(text) if "|" in value}
    return Words(
        verbs, {**{name: [] for name in SUBCOMMANDS}, **own}, takes_keys, [f"--{key}" for key in keys], values
    )


def _help(function: str) -> str:
    text: str = importlib.import_module(function.partition(":")[0]).HELP
    return text.partition("\nexamples:")[0]


def _keys() -> dict[str, list[str]]:
    """Return the keys of `fit`, each with its values where they are few."""
    from orpo_lightning.cli_parser import known_keys
    from orpo_lightning.commands.config_cli import ConfigCLI

    parser: Any = ConfigCLI("completion", ["--model.base_model=any"]).parser
    actions = {action.dest: action for action in parser._actions}
    return {key: _values(actions.get(key)) for key in known_keys(parser)}


def _values(action: Any) -> list[str]:
    if action is None:
        return []
    if action.choices:
        return [str(choice) for choice in action.choices]
    return list(dict.fromkeys(_of_type(getattr(action, "_typehint", None))))


def _of_type(kind: Any) -> list[str]:
    """Return the words that a type allows; nothing where there are endless many besides."""
    from types import UnionType
    from typing import Literal, Union, get_args, get_origin

    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if get_origin(kind) in (Union, UnionType):
        return [word for part in get_args(kind) for word in _of_type(part)]
    return []


def bash(words: Words) -> str:
    """Return the script for bash."""
    return f"# Made by `{PROGRAM} completion bash`\n{_function(words)}"


def zsh(words: Words) -> str:
    """Return the script for zsh, which runs that of bash."""
    load = "autoload -Uz bashcompinit && bashcompinit"
    return f"# Made by `{PROGRAM} completion zsh`: source it in ~/.zshrc\n{load}\n{_function(words)}"


def _function(words: Words) -> str:
    values = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join(of)}" -- "$cur")); return ;;'
        for name, of in words.values.items()
    )
    return _FUNCTION.format(
        keys=" ".join(words.keys),
        verbs=" ".join(words.verbs),
        values=values,
        options="\n".join(_case(name, own, name in words.takes_keys) for name, own in words.options.items()),
        program=PROGRAM,
    )


def _case(verb: str, own: Iterable[str], takes_keys: bool) -> str:
    words = " ".join([*own, *(["$keys"] if takes_keys else [])])
    return f'        {verb}) words="{words}" ;;'


def fish(words: Words) -> str:
    """Return the script for fish."""
    lines = [f"# Made by `{PROGRAM} completion fish`"]
    begin = f"complete -c {PROGRAM}"
    lines += [
        f"{begin} -n __fish_use_subcommand -f -a {verb} -d {shlex.quote(line)}"
        for verb, line in words.verbs.items()
    ]
    lines.append(f"{begin} -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'")
    lines += [
        _fish_line(f"{begin} -n '__fish_seen_subcommand_from {verb}'", option, words.values)
        for verb, own in words.options.items()
        for option in own
    ]
    with_keys = f"{begin} -n '__fish_seen_subcommand_from {' '.join(sorted(words.takes_keys))}'"
    lines += [_fish_line(with_keys, key, words.values) for key in words.keys]
    return "\n".join(lines) + "\n"


def _fish_line(begin: str, option: str, values: Mapping[str, list[str]]) -> str:
    takes = f"-x -a {shlex.quote(' '.join(values[option]))}" if option in values else "-r"
    return f"{begin} -l {option.removeprefix('--')} {takes}"
