"""The unmodified download code of the real clients works against the test hub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import GATED_NOT_ALLOWED, SERVER_ERROR, Fault, HubServer, write_ultrafeedback
from tiny_models import save_tiny_mistral, tiny_model, tiny_tokenizer

MODEL, DATA, GATED = "mistralai/Mistral-7B-v0.1", "HuggingFaceH4/ultrafeedback_binarized", "some/gated-model"
TEXT = "Sort the numbers: 3, 1 — and 2\n"
CONFIG_URL = f"/{MODEL}/resolve/main/config.json"

# One process for all, because importing the clients takes most of the time.
CLIENT = """
import json, sys
from pathlib import Path
import torch
from datasets import load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

model_id, data_id, gated_id, text, out = sys.argv[1:]

def name_of_error(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error).__name__

torch.save(AutoModelForCausalLM.from_pretrained(model_id).state_dict(), Path(out, "weights.pt"))
rows = {split: load_dataset(data_id, split=split) for split in ("train_prefs", "test_prefs")}
report = {
    "model_type": AutoConfig.from_pretrained(model_id).model_type,
    "token_ids": AutoTokenizer.from_pretrained(model_id)(text).input_ids,
    "listed_files": HfApi().list_repo_files(model_id),
    "snapshot_files": [path.name for path in Path(snapshot_download(model_id)).iterdir()],
    "card": Path(hf_hub_download(data_id, "README.md", repo_type="dataset")).read_text(),
    "columns": {name: str(kind) for name, kind in rows["train_prefs"].features.items()},
    "train_prefs": rows["train_prefs"].to_list(),
    "test_prefs": rows["test_prefs"].to_list(),
    "streamed_row": next(iter(load_dataset(data_id, split="test_prefs", streaming=True))),
    "errors": {
        "unknown model": name_of_error(HfApi().model_info, "nobody/nothing"),
        "file of unknown model": name_of_error(hf_hub_download, "nobody/nothing", "config.json"),
        "unknown data set": name_of_error(load_dataset, "nobody/nothing"),
        "unknown file": name_of_error(hf_hub_download, model_id, "missing.json"),
        "unknown revision": name_of_error(hf_hub_download, model_id, "config.json", revision="v9"),
        "gated model": name_of_error(hf_hub_download, gated_id, "config.json"),
    },
}
Path(out, "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a data set to serve."""
    folder = tmp_path_factory.mktemp("hub")
    save_tiny_mistral(folder / "model")
    write_ultrafeedback(folder / "data")
    return folder


@pytest.fixture(scope="module")
def visit(folder: Path) -> dict[str, Any]:
    """What real clients were served, and what they asked for."""
    models = {MODEL: folder / "model", GATED: folder / "model"}
    with HubServer(models, {DATA: folder / "data"}) as server:
        server.faults[f"/{GATED}/"] = repeat(GATED_NOT_ALLOWED)
        # Nothing happens to the HEAD request that comes first; the download after it is cut.
        server.faults["model.safetensors"] = iter([Fault(), Fault(cut_after=99)])
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, MODEL, DATA, GATED, TEXT, str(folder)],
            env=server.environment(folder / "home"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report | {"weights": torch.load(folder / "weights.pt"), "requests": server.requests}


@pytest.fixture
def server(folder: Path) -> Iterator[HubServer]:
    with HubServer({MODEL: folder / "model"}) as server:
        yield server


def test_a_model_loads_by_its_real_id_with_the_weights_that_were_saved(visit: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer("mistral")
    saved = tiny_model("mistral", tokenizer=tokenizer).state_dict()
    assert visit["model_type"] == "mistral"
    assert visit["weights"].keys() == saved.keys()
    assert all(torch.equal(visit["weights"][name], saved[name]) for name in saved)


def test_a_tokenizer_loads_by_its_real_id_and_gives_the_same_tokens(visit: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer("mistral")
    assert visit["token_ids"] == tokenizer(TEXT).input_ids
    assert visit["token_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(visit["token_ids"], skip_special_tokens=True) == TEXT


def test_listing_and_snapshot_show_every_file(visit: dict[str, Any], folder: Path) -> None:
    files = sorted(path.name for path in (folder / "model").iterdir())
    assert sorted(visit["listed_files"]) == sorted(visit["snapshot_files"]) == files


def test_a_dataset_loads_by_its_real_id_with_all_rows_in_ultrafeedbacks_columns(
    visit: dict[str, Any],
) -> None:
    train, test = visit["train_prefs"], visit["test_prefs"]
    messages = "List({'content': Value('string'), 'role': Value('string')})"
    assert visit["columns"] == {
        "prompt": "Value('string')",
        "prompt_id": "Value('string')",
        "chosen": messages,
        "rejected": messages,
        "messages": messages,
        "score_chosen": "Value('float64')",
        "score_rejected": "Value('float64')",
    }
    assert (len(train), len(test)) == (48, 24)
    assert len({row["prompt"] for row in train + test}) == 72
    assert visit["streamed_row"] == test[0]
    assert visit["card"].startswith("---\nconfigs:")
    for row in train + test:
        assert row["chosen"][0] == row["rejected"][0] == {"content": row["prompt"], "role": "user"}
        assert row["chosen"][1]["role"] == row["rejected"][1]["role"] == "assistant"
        assert row["chosen"][1]["content"] != row["rejected"][1]["content"]
        assert row["messages"] == row["chosen"]
        assert row["score_chosen"] > row["score_rejected"]


def test_clients_raise_the_proper_error_for_what_is_not_there(visit: dict[str, Any]) -> None:
    assert visit["errors"] == {
        "unknown model": "RepositoryNotFoundError",
        "file of unknown model": "RepositoryNotFoundError",
        "unknown data set": "DatasetNotFoundError",
        "unknown file": "RemoteEntryNotFoundError",
        "unknown revision": "RevisionNotFoundError",
        "gated model": "GatedRepoError",
    }


def test_a_download_that_was_cut_is_asked_for_again(visit: dict[str, Any]) -> None:
    asked = [line for line in visit["requests"] if line.endswith("model.safetensors")]
    assert [line.split()[0] for line in asked] == ["HEAD", "GET", "GET"]


def test_faults_come_in_turn_and_then_the_file_is_served(server: HubServer) -> None:
    server.faults["config.json"] = iter([SERVER_ERROR, GATED_NOT_ALLOWED])
    assert [server.answer("GET", CONFIG_URL).status for _ in range(3)] == [500, 403, 200]
    assert server.requests == [f"GET {CONFIG_URL}"] * 3


def test_a_changed_file_is_a_new_commit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    server = HubServer({MODEL: tmp_path})
    before = server.answer("HEAD", CONFIG_URL).headers
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    after = server.answer("HEAD", CONFIG_URL).headers
    assert before["X-Repo-Commit"] != after["X-Repo-Commit"]
    assert before["ETag"] != after["ETag"]


def test_the_environment_of_a_subprocess_keeps_nothing_of_the_callers_hub(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "https_proxy"):
        monkeypatch.setenv(name, "1")
    environment = server.environment(tmp_path)
    hub_names = {name for name in environment if name.startswith("HF_") or "proxy" in name}
    assert hub_names == {"HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_TELEMETRY"}
    assert environment["HF_ENDPOINT"] == server.endpoint
    assert "HUGGING_FACE_HUB_TOKEN" not in environment


def test_the_pairs_depend_on_the_seed_only(tmp_path: Path) -> None:
    folders = [
        write_ultrafeedback(tmp_path / str(i), train=4, test=2, seed=seed) for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (
        (path / "data/train_prefs-00000-of-00001.parquet").read_bytes() for path in folders
    )
    assert first == again != other
