"""All verbs are one tool: one screen of help, one name for one thing, examples that work, completion."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_lightning import __main__ as front
from orpo_lightning.commands import COMMANDS, GROUPS, SUBCOMMANDS
from orpo_lightning.commands.completion import gather
from orpo_lightning.commands.words import Words

ROOT = Path(__file__).parent.parent
HELPS = {name: importlib.import_module(one.function.partition(":")[0]).HELP for name, one in COMMANDS.items()}
OPTION = re.compile(r"^  (--?[\w.-]+)(?: (\[?[A-Za-z|./-]+\]?)( \.\.\.)?)?(?:  |$)", re.MULTILINE)
# One thing has one name: whoever calls it otherwise in a new verb is told here.
INSTEAD = {
    "--output": "--out", "--output_dir": "--out", "--output-dir": "--out", "--outdir": "--out",
    "--report": "--out",
    "--format": "--json", "--batch": "--batch_size", "--max_tokens": "--max_new_tokens",
    "--device": "--accelerator", "--quantize": "--quantization", "--load_in_4bit": "--quantization",
    "--base_model": "--base", "--remote_code": "--trust_remote_code", "--template": "--chat_template",
    "--random_seed": "--seed", "--n": "--samples", "--num_samples": "--samples", "--data": "--pairs",
    "--input": "--prompts", "--judge_url": "--judge", "--num_trials": "--trials",
}  # fmt: skip
# What stands behind an option, where that is the same everywhere.
KINDS = {"DIR": "a place", "FILE": "a place", "FOLDER": "a place", "SOURCE": "pairs"}


def options(verb: str) -> dict[str, str]:
    listed = HELPS[verb].partition("\nexamples:")[0]
    return {name: value for name, value, _ in OPTION.findall(listed)}


def examples(verb: str) -> list[str]:
    lines = HELPS[verb].partition("\nexamples:\n")[2].splitlines()
    return [line.strip() for line in lines if line.startswith("  orpo-lightning ")]


EXAMPLES = [(verb, line) for verb in HELPS for line in examples(verb)]


def test_help_is_one_screen_that_lists_every_verb_once() -> None:
    lines = front.help_text().splitlines()
    assert len(lines) <= 40
    assert [line for line in lines if len(line) > 80] == []
    verbs = [line.split()[0] for line in lines if re.match(r"  [a-z-]+ +\S", line) and "orpo" not in line]
    assert sorted(verbs) == sorted([*SUBCOMMANDS, *COMMANDS])


def test_every_verb_is_in_one_group() -> None:
    grouped = [verb for verbs in GROUPS.values() for verb in verbs]
    assert len(grouped) == len(set(grouped))
    assert {*SUBCOMMANDS, *COMMANDS} <= set(grouped)


def test_no_example_trains_on_pairs_of_ones_own_and_validates_on_those_of_the_configuration() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [*HELPS.values(), *(page.read_text(encoding="utf-8") for page in pages)]
    lines = [line for text in texts for line in text.replace("\\\n", "").splitlines()]
    own = [line for line in lines if "--data.train " in line and "configs/" in line]
    assert len(own) >= 4
    for line in own:
        config = yaml.safe_load((ROOT / re.search(r"configs/\w+\.yaml", line)[0]).read_text(encoding="utf-8"))
        for split in ("validation", "test"):
            assert not isinstance(config["data"].get(split), str) or f"--data.{split} " in line, line


@pytest.mark.parametrize("verb", HELPS)
def test_the_help_of_a_verb_fits_a_terminal_and_has_its_parts_in_order(verb: str) -> None:
    text = HELPS[verb]
    assert [line for line in text.splitlines() if len(line) > 112] == []
    assert len(text.splitlines()) <= 60
    places = [
        text.find(part) for part in (f"usage: orpo-lightning {verb} ", "\nexamples:\n  orpo-lightning ")
    ]
    assert places[0] == 0 < places[1]


@pytest.mark.parametrize("verb", HELPS)
def test_an_option_has_the_name_that_it_has_everywhere(verb: str) -> None:
    for name in options(verb):
        assert name not in INSTEAD, f"{verb}: {name} is called {INSTEAD[name]} elsewhere"
        assert name == "--KEY" or re.fullmatch(r"--[a-z][a-z0-9_]*", name), f"{verb}: {name}"


def test_what_stands_behind_an_option_is_the_same_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for verb in HELPS:
        for name, value in options(verb).items():
            found.setdefault(name, set()).add(KINDS.get(value, value))
    differing = {name: kinds for name, kinds in found.items() if len(kinds) > 1}
    # A file of pairs is a source of them, and to push the base's name is to give it one.
    for name, kinds in {"--pairs": {"a place", "pairs"}, "--base": {"NAME", "HUB_ID", "ID"}}.items():
        if differing.get(name, set()) <= kinds:
            differing.pop(name, None)
    differing.pop("--onto", None)  # its two words are listed one below the other
    assert differing == {}


@pytest.mark.parametrize(
    "verb", ["inspect", "plan", "find-lr", "sweep", "doctor", "report", "evaluate", "merge"]
)
def test_a_verb_that_a_script_would_read_has_json(verb: str) -> None:
    if verb in HELPS:
        assert "--json" in options(verb)


class UnderstoodError(BaseException):
    """The words were parsed."""


@pytest.mark.parametrize(("verb", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_of_a_help_is_understood(
    verb: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = shlex.split(re.split(r" [<>] |  +\(", line)[0])
    assert words[:2] == ["orpo-lightning", verb]
    if "--KEY" in options(verb):
        (tmp_path / "configs").symlink_to(ROOT / "configs")
        monkeypatch.chdir(tmp_path)
        assert front.main([*words[1:], "--print_config"]) == 0
        assert "base_model:" in capsys.readouterr().out
        return
    parse = Words.parse_args

    def parsed(self: Words, *args: Any, **named: Any) -> None:
        parse(self, *args, **named)
        raise UnderstoodError

    monkeypatch.setattr(Words, "parse_args", parsed)
    with pytest.raises(UnderstoodError):
        front.main(words[1:])


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Print the script for each shell."""
    from orpo_lightning.commands import completion

    words, folder = gather(), tmp_path_factory.mktemp("completion")
    made = {}
    for shell in ("bash", "zsh", "fish"):
        made[shell] = folder / f"completion.{shell}"
        made[shell].write_text(getattr(completion, shell)(words))
    return made


CASES = [
    (["sw"], {"sweep"}),
    (["in"], {"inspect"}),
    (["sweep", "--sea"], {"--search"}),
    (["fit", "--model.quant"], {"--model.quantization"}),
    (["fit", "--model.quantization", "n"], {"nf4", "none"}),
    (["sweep", "--goal", ""], {"min", "max"}),
    (["plan", "--data.batch"], {"--data.batch_size"}),
    (["completion", "z"], {"zsh"}),
    (["chat", "--data.batch"], set()),
]


@pytest.mark.parametrize(("words", "wanted"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_bash_completes(words: list[str], wanted: set[str], scripts: dict[str, Path]) -> None:
    line = " ".join(map(shlex.quote, ["orpo-lightning", *words]))
    code = (
        f"source {scripts['bash']}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        '_orpo_lightning; printf "%s\\n" "${COMPREPLY[@]}"; complete -p orpo-lightning'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    *found, registered = done.stdout.split("\n")[:-1]
    assert set(filter(None, found)) == wanted
    assert "-F _orpo_lightning" in registered
    assert "-o default" in registered, "and files"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("words", "wanted"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_fish_completes(words: list[str], wanted: set[str], scripts: dict[str, Path]) -> None:
    line = " ".join(["orpo-lightning", *words])
    code = f"source {scripts['fish']}; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "-N", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert {entry.split("\t")[0] for entry in done.stdout.splitlines()} == wanted


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(scripts: dict[str, Path]) -> None:
    code = (
        f"autoload -Uz compinit && compinit -u -D; source {scripts['zsh']}; "
        "print -r -- ${_comps[orpo-lightning]}"
    )
    done = subprocess.run(["zsh", "-f", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "_orpo_lightning" in done.stdout


def test_a_wrong_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_the_script_is_printed_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orpo_lightning", "completion", "bash"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("# Made by `orpo-lightning completion bash`\n_orpo_lightning() {")
