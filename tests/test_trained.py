"""Whatever MODEL is called, it is found, and loaded as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_cache import in_cache
from reference import pair_sums, random_pairs
from test_export import fit
from tiny_models import save_tiny_mistral, tiny_model, tiny_tokenizer

from orpo_lightning.data.templates import read_template
from orpo_lightning.errors import CheckpointError, UsageError
from orpo_lightning.using.trained import Trained, find, load, tokenizer_of, weights_mark

PAIRS = random_pairs(4, 100)


def sums(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([pair_sums(model, pair)["chosen_sum"] for pair in PAIRS])


def as_run(folder: Path, base: str, **settings: Any) -> Any:
    """Train two steps into a folder that looks like a run's; return the module."""
    module = fit(base, folder, steps=2, **settings)
    config = {"model": {**{key: value for key, value in module.hparams.items() if _is_plain(value)}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return module


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, type(None)))


@pytest.fixture(scope="module")
def run(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, as_run(folder, tiny_base)


def test_a_run_is_its_last_adapter_and_either_adapter_can_be_named(
    run: tuple[Path, Any], tiny_base: str
) -> None:
    folder, module = run
    found = find(str(folder))
    assert (found.base, found.adapter, found.run) == (
        tiny_base,
        str(folder / "adapter"),
        folder.resolve(),
    )
    loaded = load(found, accelerator="cpu")
    torch.testing.assert_close(sums(loaded.model), sums(module.model))
    best = find(str(folder / "adapter-best"))
    assert best.adapter == str(folder / "adapter-best")
    assert best.config == found.config


def test_an_adapter_without_its_run_still_knows_what_it_was_trained_on(
    tiny_base: str, tmp_path: Path
) -> None:
    as_run(tmp_path / "run", tiny_base, quantization="nf4")
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    found = find(str(tmp_path / "alone"))
    assert found.quantization == "nf4"
    assert found.reason == "as it was trained"
    assert found.run is None
    with_run = load(find(str(tmp_path / "run")), accelerator="cpu").model
    torch.testing.assert_close(sums(load(found, accelerator="cpu").model), sums(with_run))
    assert find(str(tmp_path / "alone"), quantization="none").reason == "set by the user"


def test_a_whole_model_is_itself(tiny_base: str) -> None:
    found = find(tiny_base)
    assert (found.base, found.adapter, found.weights) == (tiny_base, None, tiny_base)
    loaded = load(found, accelerator="cpu")
    assert sums(loaded.model).isfinite().all()
    assert loaded.tokenizer.padding_side == "left"


def test_of_full_fine_tuning_the_run_is_a_whole_model(tiny_base: str, tmp_path: Path) -> None:
    module = as_run(tmp_path, tiny_base, lora_r=0)
    found = find(str(tmp_path))
    assert found.adapter is None
    torch.testing.assert_close(sums(load(found, accelerator="cpu").model), sums(module.model))


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_variant": "dora"},
        {"lora_variant": "rslora"},
        {"lora_init": "pissa"},
        {"quantization": "nf4", "lora_init": "loftq"},
        {"trainable_tokens": ["<|im_end|>"]},
    ],
    ids=lambda settings: "_".join(map(str, settings.values())),
)
def test_every_kind_of_adapter_gives_the_runs_numbers(
    tiny_base: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    module = as_run(tmp_path, tiny_base, **settings)
    loaded = load(find(str(tmp_path)), accelerator="cpu")
    torch.testing.assert_close(sums(loaded.model), sums(module.model), rtol=1e-4, atol=1e-4)


def test_trained_tokens_of_a_tied_head_are_loaded(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tiny_model("qwen2", tokenizer=tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    module = as_run(tmp_path / "run", str(tmp_path / "base"), trainable_tokens=["<|im_end|>"])
    loaded = load(find(str(tmp_path / "run")), accelerator="cpu")
    torch.testing.assert_close(sums(loaded.model), sums(module.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alone", [False, True], ids=["of a run", "alone"])
def test_a_loftq_adapter_is_refused_on_another_base(tiny_base: str, tmp_path: Path, alone: bool) -> None:
    as_run(tmp_path / "run", tiny_base, quantization="nf4", lora_init="loftq")
    name = tmp_path / "run"
    if alone:
        name = Path(shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone"))
    with pytest.raises(UsageError, match="right on the nf4 base alone, found none"):
        find(str(name), quantization="none")


def test_a_base_by_its_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    save_tiny_mistral(project / "models" / "base")
    monkeypatch.chdir(project)
    as_run(Path("runs/tiny"), "models/base")
    assert find("runs/tiny").base == "models/base"
    monkeypatch.chdir(tmp_path)
    for name in ("project/runs/tiny", "project/runs/tiny/adapter"):
        assert find(name).base == str(project / "models" / "base")
    shutil.copytree(project / "runs" / "tiny" / "adapter", tmp_path / "far" / "adapter")
    # One slash: it might be a repository of the hub, which says by itself that there is none.
    assert find("far/adapter").base == "models/base"


def test_a_base_that_is_gone_is_told_in_a_line(run: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(run[0] / "adapter", tmp_path / "alone")
    file = tmp_path / "alone" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "some/where/base"}))
    with pytest.raises(UsageError, match="its base some/where/base is no folder here: start where"):
        find(str(tmp_path / "alone"))
    assert find(str(tmp_path / "alone"), base="other").base == "other"
    file.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="names no base model; name one with --base"):
        find(str(tmp_path / "alone"))


def test_what_is_none_of_these_is_told_in_a_line(run: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"or of a model \(config.json\), found notes.txt"):
        find(str(tmp_path))
    with pytest.raises(UsageError, match="found a file"):
        find(str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError, match="found no such folder"):
        find(str(tmp_path / "runs" / "nothing"))
    shutil.copytree(run[0], tmp_path / "unfinished", ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(UsageError, match="the run has not ended yet, or saved nothing"):
        find(str(tmp_path / "unfinished"))


def test_a_base_without_the_adapters_tokenizer_has_the_template_of_the_run(
    run: tuple[Path, Any], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run[0], tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"chat_template": "zephyr"}}))
    assert tokenizer_of(find(str(copy))).chat_template != read_template("zephyr")  # it has its own
    (copy / "adapter" / "tokenizer_config.json").unlink()
    assert tokenizer_of(find(str(copy))).chat_template == read_template("zephyr")


def test_new_commits_of_a_repository_are_other_weights(tmp_path: Path, hub_cache: Path) -> None:
    for name, file in (("base", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    trained = Trained("me/adapter", "maker/base", "me/adapter")
    commits = ["a" * 40, "b" * 40]
    marks = []
    for of_base, of_adapter in [(0, 0), (0, 1), (1, 1)]:
        in_cache(hub_cache, "maker/base", tmp_path / "base", commits[of_base])
        in_cache(hub_cache, "me/adapter", tmp_path / "adapter", commits[of_adapter])
        marks.append(weights_mark(trained))
    assert weights_mark(trained) == marks[-1]
    assert weights_mark(trained._replace(revision=commits[0]))[-2:] == [[commits[0]], [commits[1]]]
    assert [mark[-2:] for mark in marks] == [
        [[commits[0]], [commits[0]]],
        [[commits[0]], [commits[1]]],
        [[commits[1]], [commits[1]]],
    ]


def test_an_adapter_of_another_base_is_refused(run: tuple[Path, Any], tmp_path: Path) -> None:

    tiny_model("llama", tokenizer=tiny_tokenizer("chatml"), hidden_size=32).save_pretrained(tmp_path)
    other = find(str(run[0]), base=str(tmp_path))
    with pytest.raises(CheckpointError, match="is not of this base"):
        load(other._replace(base=str(tmp_path)), accelerator="cpu")
    assert isinstance(other, Trained)
