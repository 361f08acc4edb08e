"""`push` through the real client to a hub on this machine: what is sent, refused, and tried again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Fault
from test_trained import as_run
from tiny_models import save_tiny_mistral
from writable_hub import WritableHub

from orpo_lightning.commands.merge import main as merge
from orpo_lightning.commands.push import main
from orpo_lightning.using.cards import parted
from orpo_lightning.using.pushing import pack
from orpo_lightning.using.sealed_folder import check_seal, digest_of_file, staged
from orpo_lightning.using.trained import find

ROOT = Path(__file__).parent.parent
BASE, REPO = "maker/tiny-base", "me/tiny-orpo"
# One process for all of it: the libraries take most of the time.
PUSHES = """
import json, os, sys
from orpo_lightning.__main__ import main
import orpo_lightning.hub_access as access
access._WAITS = (0.05,)
for line in sys.stdin:
    token, words = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    print("BEGIN", flush=True)
    code = main(words)
    print(f"END {code}", flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is on the hub, and whose data were of a file and of the hub."""
    folder = tmp_path_factory.mktemp("push")
    save_tiny_mistral(folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nA base.\n")
    as_run(folder / "run", str(folder / "base"))
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    config["data"] = {"train": [{"path": "maker/pairs:train_prefs"}, str(folder / "own.jsonl")]}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run" / "evaluation.json").write_text(json.dumps(evaluation(folder / "run" / "adapter", 0.7)))
    return folder


def evaluation(adapter: Path, accuracy: float, origin: str = "") -> dict[str, Any]:
    """Return what `evaluate` writes of an adapter, as far as a card says it."""
    digests = {file.name: digest_of_file(file) for file in adapter.glob("*.safetensors")}
    values = {"mean": accuracy, "low": round(accuracy - 0.1, 1), "high": round(accuracy + 0.1, 1)}
    origin = origin or f"data.test of {adapter.parent}"
    return {
        "weights": digests,
        "data": {"origin": origin, "name": f"{adapter.parent}/own.jsonl + maker/pairs:test_prefs"},
        "pairs": 40,
        "prompts": 20,
        "models": {"adapter": {"accuracy": values}},
    }


@pytest.fixture(scope="module")
def hub(run: Path) -> Iterator[WritableHub]:
    data = run / "pairs"
    data.mkdir()
    (data / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\nPairs.\n")
    folders: dict[str, Any] = {"models": {BASE: run / "base"}, "datasets": {"maker/pairs": data}}
    with WritableHub(run / "hub", {"mine": ("me",), "theirs": ("they",)}, **folders) as server:
        yield server


class Client:
    """Runs commands of ours in one process that knows no other hub."""

    def __init__(self, hub: WritableHub, folder: Path) -> None:
        environment = hub.environment(folder / "home") | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUSHES],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, token: str, *words: str) -> tuple[int, str]:
        """Return exit code and output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([token, words]) + "\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith("END "):
                text = "".join(lines)
                return int(line.removeprefix("END ")), text.partition("BEGIN\n")[2]
            lines.append(line)
        raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def client(hub: WritableHub, run: Path) -> Iterator[Client]:
    client = Client(hub, run)
    yield client
    client.process.stdin.close()  # type: ignore[union-attr]
    client.process.wait(30)


def test_an_adapter_is_sent_whole_and_loads_from_the_hub_by_its_name(
    hub: WritableHub, client: Client, run: Path
) -> None:
    code, printed = client("mine", "push", str(run / "run"), REPO, "--private", "--base", BASE)
    assert code == 0, printed
    assert f"sent to {hub.endpoint}/{REPO}/commit/" in printed
    assert hub.created == [{"name": "tiny-orpo", "organization": "me", "visibility": "private"}]
    assert len(hub.commits) == 1
    sent = hub.storage / REPO
    names = {path.name for path in (run / "run" / "adapter").iterdir()}
    assert {path.name for path in sent.iterdir()} == names == set(hub.commits[0]["paths"])
    check_seal(sent)  # the manifest is that of what was sent
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (sent / name).read_bytes() == (run / "run" / "adapter" / name).read_bytes()
    assert json.loads((sent / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    # Whoever has its name alone can use it: base, tokenizer and quantisation are found.
    prompts = run / "prompts.jsonl"
    prompts.write_text('{"prompt": "the thing"}\n')
    words = ("--prompts", str(prompts), "--out", str(run / "answers.jsonl"), "--max_new_tokens", "3")
    code, printed = client("mine", "generate", REPO, *words, "--accelerator", "cpu")
    assert code == 0, printed
    assert f"{BASE} with {REPO}" in printed
    assert "answer" in json.loads((run / "answers.jsonl").read_text())


def test_the_card_names_data_licences_figures_and_no_folder_of_this_machine(
    hub: WritableHub, run: Path
) -> None:
    metadata, text = parted((hub.storage / REPO / "README.md").read_text())
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["maker/pairs"]
    assert (metadata["base_model"], metadata["base_model_relation"]) == (BASE, "adapter")
    assert f"| base: {BASE} | apache-2.0 |" in text
    assert "| data: maker/pairs:train\\_prefs | cc-by-4.0 |".replace("\\_", "_") in text
    assert "| data: own.jsonl | not known |" in text
    assert "## Held-out pairs\n\n| figure | value |\n|---|---|\n| pairs from | data.test of the run |" in text
    assert "| adapter: accuracy | 0.7 (95 % 0.6 to 0.8) |" in text
    assert "val/rewards/accuracies" in text
    assert "| transformers |" in text
    everything = "".join(
        path.read_text(errors="replace") for path in (hub.storage / REPO).glob("*.[jm][sd]*")
    )
    assert str(run) not in everything


def test_a_repository_that_is_there_gets_a_commit_on_top(hub: WritableHub, client: Client, run: Path) -> None:
    (hub.storage / REPO / "notes.txt").write_text("theirs")
    before = len(hub.commits)
    code, printed = client("mine", "push", str(run / "run" / "adapter-best"), REPO, "--base", BASE)
    assert code == 0, printed
    assert len(hub.commits) == before + 1
    assert len(hub.created) == 1
    assert (hub.storage / REPO / "notes.txt").read_text() == "theirs"


@pytest.mark.parametrize(
    ("token", "repository", "line"),
    [
        ("", REPO, "error: no token for the hub: run `hf auth login`, or set HF_TOKEN"),
        (
            "wrong",
            "me/other",
            "error: me/other: the hub refuses the token: `hf auth login` again, or set HF_TOKEN",
        ),
        (
            "theirs",
            "me/other",
            "error: me/other: the token may not write there: it needs the right to write to what me owns",
        ),
    ],
    ids=["no token", "401", "403"],
)
def test_who_may_not_write_is_told_so_in_a_line(
    hub: WritableHub, client: Client, run: Path, token: str, repository: str, line: str
) -> None:
    before = len(hub.commits)
    code, printed = client(token, "push", str(run / "run"), repository, "--base", BASE)
    assert code == 5
    assert printed.splitlines()[-1] == line
    assert len(hub.commits) == before


@pytest.mark.parametrize(
    "request_line", ["PUT /lfs/", "POST /api/models/me/cut*/commit", "POST */preupload/"]
)
def test_a_connection_that_is_cut_is_made_again(
    hub: WritableHub, client: Client, run: Path, request_line: str
) -> None:
    repository = f"me/cut{len(hub.created)}"
    hub.faults[request_line] = iter([Fault(cut_after=0, reset=True)])
    shutil.rmtree(hub.storage / "lfs", ignore_errors=True)
    code, printed = client("mine", "push", str(run / "run"), repository, "--base", BASE)
    hub.faults.clear()
    assert code == 0, printed
    check_seal(hub.storage / repository)


def test_a_hub_that_fails_for_good_is_told_in_a_line(hub: WritableHub, client: Client, run: Path) -> None:
    hub.faults["/commit/"] = repeat(Fault(status=503))
    code, printed = client("mine", "push", str(run / "run"), "me/broken", "--base", BASE)
    hub.faults.clear()
    assert code == 5
    assert printed.splitlines()[-1].startswith("error: me/broken: the hub does not take it now (")
    assert not list((hub.storage / "me" / "broken").iterdir())


def test_a_dry_run_shows_files_and_card_and_asks_the_hub_for_licences_alone(
    hub: WritableHub, client: Client, run: Path
) -> None:
    before = list(hub.requests)
    code, printed = client("", "push", str(run / "run"), "me/nothing", "--base", BASE, "--dry_run")
    assert code == 0
    assert "bytes  adapter_model.safetensors" in printed
    assert "## Made of" in printed
    assert printed.endswith("nothing was sent: --dry_run\n")
    assert all(line.startswith("GET ") for line in hub.requests[len(before) :])


def test_without_an_explicit_repository_nothing_is_sent(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run / "run")]) == 2
    assert "the following arguments are required: REPO_ID" in capsys.readouterr().err
    assert main([str(run / "run"), "me"]) == 2
    assert "REPO_ID: expected OWNER/NAME, found 'me'" in capsys.readouterr().err
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main([str(run / "run"), REPO, "--base", BASE]) == 5
    assert "HF_HUB_OFFLINE is set: nothing can be sent" in capsys.readouterr().err


def test_a_base_that_is_a_folder_here_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "run"), REPO]) == 2
    assert (
        "is a folder here, which says nothing to anybody else: name the base's hub id"
        in capsys.readouterr().err
    )


def test_the_card_of_the_best_adapter_has_its_own_figures(run: Path) -> None:
    best, own = find(str(run / "run" / "adapter-best")), run / "run" / "evaluation-adapter-best.json"
    assert "accuracy" not in pack(best, BASE).card.partition("## Made of")[2]
    own.write_text(json.dumps(evaluation(run / "run" / "adapter-best", 0.8)))
    assert "| adapter: accuracy | 0.8 (95 % 0.7 to 0.9) |" in pack(best, BASE).card
    assert "| adapter: accuracy | 0.7 (95 % 0.6 to 0.8) |" in pack(find(str(run / "run")), BASE).card


@pytest.mark.parametrize(
    "weights", [{"adapter_model.safetensors": "0" * 64}, None], ids=["other", "not said"]
)
def test_figures_of_other_weights_are_left_out_of_the_card_and_that_is_said(
    run: Path, tmp_path: Path, weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run / "run", tmp_path / "run"))
    file = copy / "evaluation.json"
    file.write_text(json.dumps(evaluation(copy / "adapter", 0.7) | {"weights": weights}))
    assert main([str(copy), REPO, "--base", BASE, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "0.7 (95 %" not in printed
    line = f"{file} does not say that it is of these weights: its figures are left out of the card; "
    assert f"{line}`orpo-lightning evaluate {copy}` writes it anew" in printed.splitlines()


def test_pairs_that_were_named_for_the_evaluation_are_not_called_held_out(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run / "run", tmp_path / "run"))
    own = evaluation(copy / "adapter", 0.7, "--pairs")
    (copy / "evaluation.json").write_text(json.dumps(own))
    card = pack(find(str(copy)), BASE).card
    assert "Held-out pairs" not in card
    assert "## Evaluation\n\n| figure | value |\n" in card
    assert "| pairs from | own.jsonl + maker/pairs:test_prefs |" in card
    assert "| adapter: accuracy | 0.7 (95 % 0.6 to 0.8) |" in card


def test_the_card_of_a_merged_model_names_the_data_of_its_adapter(run: Path, tmp_path: Path) -> None:
    assert merge([str(run / "run"), "--out", str(tmp_path / "merged"), "--accelerator", "cpu"]) == 0
    metadata, text = parted(pack(find(str(tmp_path / "merged")), BASE).card)
    assert metadata["datasets"] == ["maker/pairs"]
    assert "| data: maker/pairs:train_prefs | not known |" in text
    assert "| data: own.jsonl | not known |" in text


@pytest.mark.parametrize("fault", ["changed", "missing", "unsealed"])
def test_files_that_are_not_what_was_written_are_not_sent(
    run: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / "run" / "adapter", folder)
    weights = folder / "adapter_model.safetensors"
    if fault == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    elif fault == "missing":
        weights.unlink()
    else:
        (folder / "SHA256SUMS").unlink()
    assert main([str(folder), REPO, "--base", BASE, "--dry_run"]) == 4
    words = {"changed": "is not what was written", "missing": "is missing", "unsealed": "has no SHA256SUMS"}
    assert words[fault] in capsys.readouterr().err


@pytest.mark.parametrize(("base", "revision"), [("maker/other", None), (BASE, "v1")])
def test_a_revision_goes_with_the_base_that_it_is_of(
    run: Path, tmp_path: Path, base: str, revision: str | None
) -> None:
    folder = tmp_path / "adapter"
    with staged(folder, "the adapter", "make room") as staging:
        shutil.copytree(run / "run" / "adapter", staging, ignore=shutil.ignore_patterns("SHA256SUMS"))
        file = staging / "adapter_config.json"
        named = {"base_model_name_or_path": BASE, "revision": "v1"}
        file.write_text(json.dumps(json.loads(file.read_text()) | named))
        (staging / "README.md").write_text(f'from_pretrained("{BASE}", revision="v1")')
    parcel = pack(find(str(folder)), base)
    sent: Any = parcel.files["adapter_config.json"]
    assert json.loads(sent)["revision"] == revision
    words = f'"{base}", revision="v1"' if revision else f'"{base}"'
    assert f"from_pretrained({words})" in parcel.card


def test_a_file_in_a_folder_keeps_its_path(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with staged(folder, "the adapter", "make room") as staging:
        shutil.copytree(run / "run" / "adapter", staging, ignore=shutil.ignore_patterns("SHA256SUMS"))
        for name in ("one", "two"):
            (staging / name).mkdir()
            (staging / name / "tool_use.jinja").write_text(name)
    files = pack(find(str(folder)), BASE).files
    assert files["one/tool_use.jinja"] == folder / "one" / "tool_use.jinja"
    assert files["two/tool_use.jinja"] == folder / "two" / "tool_use.jinja"
    assert b"  two/tool_use.jinja\n" in files["SHA256SUMS"]


def test_of_a_run_the_last_adapter_is_packed(run: Path) -> None:
    files = pack(find(str(run / "run")), BASE).files
    assert files["adapter_model.safetensors"] == run / "run" / "adapter" / "adapter_model.safetensors"
