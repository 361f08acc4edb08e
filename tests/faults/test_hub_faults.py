"""A hub that refuses, fails, stops and lies, through the whole command line and the real clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_server import GATED_ANONYMOUS, GATED_NOT_ALLOWED, RATE_LIMITED, SERVER_ERROR, Fault, HubServer
from surroundings import PLAIN, QUICKSTART, ROOT, write_pairs

# Nobody needs to wait between tries, and files are small: they come in pieces of 4 kB instead of 10 MB.
# The clients read HF_ENDPOINT when they are imported.
CLIENT = """
import runpy, sys, time
time.sleep = lambda seconds: None
import orpo_lightning.cli, huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CUT, RESET, SHORT = Fault(cut_after=9000), Fault(cut_after=9000, reset=True), Fault(short_by=1000)
STALLS = Fault(seconds=3)
BAD_TOKEN = Fault(401, message="Invalid credentials in Authorization header")
OK = Fault()  # for the request of a file's data sheet (HEAD), which comes before the file's (GET)
WEIGHTS = "model.safetensors"
# Faults that pass, on three bad days: at which file, and what it is asked for until it is there.
PASSING: dict[str, tuple[str, str, list[Fault], str]] = {
    "sheet fails": ("monday", WEIGHTS, [SERVER_ERROR, SERVER_ERROR], "HEAD HEAD HEAD GET"),
    "sheet is rationed": ("monday", "config.json", [RATE_LIMITED, RATE_LIMITED], "HEAD HEAD HEAD GET"),
    "file is rationed": ("monday", "tokenizer.json", [OK, RATE_LIMITED], "HEAD GET GET"),
    "file is cut": ("tuesday", WEIGHTS, [OK, CUT, CUT, CUT], "HEAD GET GET GET GET"),
    "file fails": ("tuesday", "config.json", [OK, SERVER_ERROR, OK], "HEAD GET HEAD GET"),
    "file stalls": ("tuesday", "tokenizer.json", [OK, STALLS], "HEAD GET GET"),
    "connection is reset": ("wednesday", WEIGHTS, [OK, RESET, OK], "HEAD GET HEAD GET"),
    "file is short": ("wednesday", "tokenizer.json", [OK, SHORT, OK], "HEAD GET HEAD GET"),
}
# Faults that stay: what the one line says. All are exit code 5.
STAYING: dict[str, tuple[str, Fault, str]] = {
    "gated": ("config.json", GATED_ANONYMOUS, "access must be granted first: ask for it on its page"),
    "closed": ("config.json", GATED_NOT_ALLOWED, "then run `hf auth login` (or set HF_TOKEN)"),
    "old-token": (
        "config.json",
        BAD_TOKEN,
        "the hub refuses the token: `hf auth login` again, or set HF_TOKEN",
    ),
    "down": ("config.json", SERVER_ERROR, "the hub does not give it now (Server error '500"),
    "rationed": ("config.json", RATE_LIMITED, "the hub does not give it now (Client error '429"),
    "weights-down": (WEIGHTS, SERVER_ERROR, "run again later (files that came whole are kept)"),
    "always-short": (WEIGHTS, SHORT, "(Consistency check failed: file should be of size"),
}


class Visit(NamedTuple):
    """What came of all command lines, and what each repository was asked for."""

    done: dict[str, dict[str, Any]]
    requests: list[str]
    ranges: list[tuple[str, int]]
    """Which file was asked for, and from which byte on."""

    def line(self, name: str) -> str:
        """Return the last line on stderr; before it the hub's client tells of its tries, and nobody else."""
        lines = self.done[name]["err"].splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
        assert "Traceback" not in self.done[name]["err"]
        return lines[-1]

    def verbs(self, name: str, file: str) -> str:
        """Return with which verbs a file of a repository was asked for."""
        asked = (line for line in self.requests if f"/o/{name}/resolve/" in line)
        return " ".join(line.split()[0] for line in asked if line.endswith(f"/{file}"))


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, tiny_base: str) -> Iterator[Visit]:
    """Run every command line against one server, each for a repository of its own."""
    folder = tmp_path_factory.mktemp("hub")
    pickled = folder / "pickled"
    pickled.mkdir()
    for file in Path(tiny_base).iterdir():
        name = "pytorch_model.bin" if file.suffix == ".safetensors" else file.name
        (pickled / name).write_bytes(file.read_bytes())
    days = {day for day, *_ in PASSING.values()}
    names = [*days, *STAYING, "moved"]
    train = write_pairs(folder / "pairs.jsonl")
    cases = {name: _fit(folder, name, f"o/{name}", train) for name in (*names, "pickled", "missing")}
    cases["moved"] += ["--model.revision", "v9"]
    (data := folder / "data").mkdir()
    write_pairs(data / "train.jsonl")
    sets = ["data-failing", "data-gated", "data-missing"]
    cases |= {name: _fit(folder, name, tiny_base, f"o/{name}") for name in sets}
    models = {f"o/{name}": Path(tiny_base) for name in names} | {"o/pickled": pickled}
    with HubServer(models, {f"o/{name}": data for name in sets[:2]}) as server:
        for day, file, faults, _ in PASSING.values():
            server.faults[f"/o/{day}/resolve/*/{file}"] = iter(faults)
        for name, (file, fault, _) in STAYING.items():
            always = _in_turn(fault) if file == WEIGHTS else repeat(fault)
            server.faults[f"/o/{name}/resolve/*/{file}"] = always
        server.faults["/o/data-failing/resolve/*/train.jsonl"] = iter([OK, SERVER_ERROR, OK, SHORT, OK])
        server.faults["/o/data-gated/"] = repeat(GATED_ANONYMOUS)
        yield Visit(_run(cases, folder, server), server.requests, server.ranges)


def _in_turn(fault: Fault) -> Iterator[Fault]:
    """Answer data sheets, and fail at the files they are of."""
    while True:
        yield OK
        yield fault


def _fit(folder: Path, name: str, base: str, train: str | Path) -> list[str]:
    values = {**PLAIN, "model.base_model": base, "data.train": train, "trainer.max_steps": 1}
    values |= {"data.cache_dir": folder / "cache" / name, "run_dir": folder / "runs" / name}
    words = [str(word) for key, value in values.items() for word in (f"--{key}", value)]
    return ["fit", "-c", str(QUICKSTART), *words]


def _run(cases: dict[str, list[str]], folder: Path, server: HubServer) -> dict[str, dict[str, Any]]:
    script = Path(__file__).parent.parent / "data_faults" / "command_lines.py"
    files = [folder / "cases.json", folder / "results.json"]
    files[0].write_text(json.dumps(cases))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= server.environment(folder / "home") | {"PYTHONPATH": str(ROOT), "ORPO_DEBUG": "0"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    code = CLIENT.replace("sys.argv[0]", repr(str(script)))
    words = [sys.executable, "-c", code, *map(str, files)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(files[1].read_text()))


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_gone_through_and_trained_after(visit: Visit, name: str) -> None:
    day, file, _, verbs = PASSING[name]
    assert visit.done[day]["code"] == 0, visit.done[day]["err"]
    assert "step 1/1" in visit.done[day]["out"]
    assert visit.verbs(day, file).startswith(verbs)


def test_what_was_cut_is_gone_on_with_where_it_stopped(visit: Visit) -> None:
    ranges = [offset for file, offset in visit.ranges if file.endswith(f"/{WEIGHTS}") and "/tuesday/" in file]
    assert ranges == [0, 8192, 16384, 24576]  # whole pieces of the 9,000 bytes that came each time


@pytest.mark.parametrize("name", STAYING)
def test_a_fault_that_stays_is_exit_code_five_and_one_line_with_what_to_do(visit: Visit, name: str) -> None:
    assert visit.done[name]["code"] == 5, visit.done[name]
    assert f"model.base_model: o/{name}: " in visit.line(name)
    assert STAYING[name][2] in visit.line(name)


@pytest.mark.parametrize("name", ["gated", "closed", "old-token"])
def test_what_is_refused_is_not_asked_for_again_and_again(visit: Visit, name: str) -> None:
    assert visit.verbs(name, "config.json") == "HEAD"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "there is no folder 'o/missing' here and no such model on the hub"),
        ("moved", "there is no revision 'v9' of it on the hub"),
        ("pickled", "has no model.safetensors; pickled weights (.bin) can run code"),
    ],
)
def test_what_the_hub_does_not_have_is_exit_code_five(visit: Visit, name: str, words: str) -> None:
    assert visit.done[name]["code"] == 5
    assert words in visit.line(name)


def test_pickled_weights_are_not_even_downloaded_nor_converted_by_a_bot(visit: Visit) -> None:
    asked = [line for line in visit.requests if "o/pickled" in line]
    assert asked
    assert not [line for line in asked if re.search("pytorch_model|refs|commits|discussions", line)]


def test_a_data_set_is_asked_for_again_where_its_download_fails(visit: Visit) -> None:
    assert visit.done["data-failing"]["code"] == 0, visit.done["data-failing"]["err"]
    assert "16 pairs of o/data-failing" in visit.done["data-failing"]["out"]
    assert visit.verbs("data-failing", "train.jsonl").count("GET") == 3


def test_a_data_set_that_is_gated_or_not_there_is_one_line(visit: Visit) -> None:
    assert visit.done["data-gated"]["code"] == 5
    assert "o/data-gated: access must be granted first" in visit.line("data-gated")
    assert visit.done["data-missing"]["code"] == 3
    assert "o/data-missing: there is no such file or folder here, and no such data set" in visit.line(
        "data-missing"
    )
