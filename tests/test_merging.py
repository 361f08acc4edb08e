"""A merged model is the adapted one: the same log-probabilities, in plain transformers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import pair_sums, random_pairs
from test_trained import as_run, sums
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from orpo_lightning.__main__ import main
from orpo_lightning.errors import CheckpointError, UsageError
from orpo_lightning.modeling import add_lora, load_base
from orpo_lightning.using import merge_proof
from orpo_lightning.using.merge_proof import Difference, answer_logps, check
from orpo_lightning.using.merging import choose_onto, load_adapted, merge, save
from orpo_lightning.using.proof_pairs import proof_pairs
from orpo_lightning.using.trained import Trained, find, load, tokenizer_of

CPU = torch.device("cpu")
PAIRS = random_pairs(6, 100)


def base_of(family: str, folder: Path, **overrides: Any) -> str:
    tokenizer = tiny_tokenizer("chatml")
    tiny_model(family, tokenizer=tokenizer, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def adapter_of(base: str, folder: Path, **settings: Any) -> Trained:
    """Save a random adapter of our own making on a base."""
    given = {
        "r": 4,
        "alpha": 8,
        "dropout": 0.0,
        "targets": "all-linear",
        "variant": "lora",
        "init": "default",
    }
    model = add_lora(load_base(base), **(given | settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return find(str(folder))


def merged_in_plain_transformers(trained: Trained, folder: Path) -> Any:
    model = merge(load_adapted(trained, "full", torch.float32, CPU), torch.float32)
    save(model, folder, max_shard_size="5GB", stop_ids={2})
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return loaded


def assert_same(model: Any, other: Any) -> None:
    torch.testing.assert_close(sums(model), sums(other), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # of linear layers, and of transposed ones
def test_every_variant_is_merged_to_the_same_numbers(family: str, variant: Any, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    trained = adapter_of(base, tmp_path / "adapter", variant=variant)
    before = load(trained, accelerator="cpu").model
    assert (sums(before) - sums(load_base(base))).abs().max() > 0.1
    assert_same(merged_in_plain_transformers(trained, tmp_path / "merged"), before)


# Experts whose weights are one tensor each: of the layers by name, and of all that are linear.
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "gate_proj", "up_proj", "down_proj"]], ids=str)
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_are_merged_to_the_same_numbers(family: str, targets: Any, tmp_path: Path) -> None:
    trained = adapter_of(base_of(family, tmp_path / "base"), tmp_path / "adapter", targets=targets)
    before = load(trained, accelerator="cpu").model
    assert_same(merged_in_plain_transformers(trained, tmp_path / "merged"), before)


@pytest.mark.parametrize("family", ["llama", "qwen2"], ids=["a head of its own", "a tied head"])
def test_trained_tokens_are_merged_into_embedding_and_head(family: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    trained = adapter_of(base, tmp_path / "adapter", trainable_token_ids=[2, 40])
    before = load(trained, accelerator="cpu").model
    merged = merged_in_plain_transformers(trained, tmp_path / "merged")
    assert_same(merged, before)
    rows = [(model.get_input_embeddings().weight[2]).norm() for model in (merged, load_base(base))]
    assert abs(rows[0] - rows[1]) > 0.01


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_one_side_of_a_tied_head_leaves_the_other_as_it_was(target: str, tmp_path: Path) -> None:
    base = base_of("qwen2", tmp_path / "base")
    model = get_peft_model(load_base(base), LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    trained = find(str(tmp_path / "adapter"))
    merged = merged_in_plain_transformers(trained, tmp_path / "merged")
    assert_same(merged, load(trained, accelerator="cpu").model)
    assert merged.config.tie_word_embeddings is False


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: str) -> Path:
    """Runs on the tiny base, by what was special about them."""
    folder = tmp_path_factory.mktemp("runs")
    as_run(folder / "nf4", tiny_base, quantization="nf4")
    as_run(folder / "pissa", tiny_base, lora_init="pissa")
    as_run(folder / "loftq", tiny_base, quantization="nf4", lora_init="loftq")
    return folder


def test_a_pissa_adapter_is_merged_to_the_runs_numbers(runs: Path, tmp_path: Path) -> None:
    trained = find(str(runs / "pissa"))
    before = load(trained, accelerator="cpu").model
    assert_same(merged_in_plain_transformers(trained, tmp_path / "merged"), before)


@pytest.mark.parametrize("name", ["nf4", "loftq"])
def test_onto_dequantised_weights_the_numbers_are_those_of_the_trained_model(
    runs: Path, tmp_path: Path, name: str
) -> None:
    trained = find(str(runs / name))
    before = load(trained, accelerator="cpu").model
    merged = merge(load_adapted(trained, "dequantized", torch.float32, CPU), torch.float32)
    assert getattr(merged.config, "quantization_config", None) is None
    save(merged, tmp_path / "merged", max_shard_size="5GB", stop_ids=set())
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), before)
    onto_full = merge(load_adapted(trained, "full", torch.float32, CPU), torch.float32)
    assert (sums(onto_full) - sums(before)).abs().max() > 1e-2


def test_which_weights_it_is_merged_onto_and_why() -> None:
    adapter = Trained("run", "base", "adapter", quantization="nf4")
    assert choose_onto(adapter, None).value == "full"
    assert "--onto dequantized takes those" in choose_onto(adapter, None).reason
    assert choose_onto(adapter, "dequantized").value == "dequantized"
    assert choose_onto(adapter._replace(lora_init="loftq"), None).value == "dequantized"
    assert (
        choose_onto(adapter._replace(quantization="none"), None, stored_quantized=True).value == "dequantized"
    )
    with pytest.raises(UsageError, match="--onto full: a LoftQ adapter makes up for the error of nf4"):
        choose_onto(adapter._replace(lora_init="loftq"), "full")
    with pytest.raises(UsageError, match="is for nf4, the adapter was trained on int8 weights"):
        choose_onto(adapter._replace(quantization="int8"), "dequantized")
    with pytest.raises(UsageError, match="is a whole model already"):
        choose_onto(Trained("model", "model"), None)


def test_the_proof_sees_a_changed_weight(tiny_base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = answer_logps(model, PAIRS)
    by_hand = [pair_sums(model, pair) for pair in PAIRS]
    means = [
        (one[f"{side}_sum"] / len(getattr(pair, side))).item()
        for one, pair in zip(by_hand, PAIRS, strict=True)
        for side in ("chosen", "rejected")
    ]
    assert before == pytest.approx(means, abs=1e-4)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
    difference = Difference.of(before, answer_logps(model, PAIRS))
    with pytest.raises(
        CheckpointError, match=r"is not the adapted one.* allowed are 0.001 in float32.*kept as aside"
    ):
        check(difference, "float32", Path("aside"))
    assert Difference.of([0.0, math.nan], [0.0, math.nan]).max == math.inf


def test_a_folder_that_lacks_a_weight_is_no_proof(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.up" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    asked, answered = tmp_path / "pairs.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(PAIRS))
    monkeypatch.setattr("sys.argv", ["-c", str(tmp_path), str(asked), str(answered), "cpu", "0"])
    merge_proof.main()
    assert json.loads(answered.read_text())["wrong"].startswith("missing_keys model.layers.1.mlp.up_proj")


def test_the_pairs_of_the_proof_are_read_with_the_models_tokenizer_wherever_its_base_is(
    runs: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "adapter"
    file.write_text('{"prompt": "the thing", "chosen": "it is", "rejected": "it was"}\n')
    shutil.copytree(runs / "pissa" / "adapter", folder, ignore=shutil.ignore_patterns("tokenizer*"))
    alone = find(str(folder))
    tokenizer = tokenizer_of(alone)
    named = proof_pairs(alone, tokenizer, file=str(file), count=8)
    assert (len(named.pairs), named.source) == (1, str(file))
    of_run = alone._replace(config={"data": {"test": str(file), "tokenizer": "/gone/with/base"}})
    found = proof_pairs(of_run, tokenizer, file=None, count=8)
    assert (found.pairs, found.source) == (named.pairs, "test pairs of the run")


@pytest.fixture(scope="module")
def merged(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Merge the NF4 run as a user does; return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("out") / "merged"
    words = [str(runs / "nf4"), "--out", str(folder), "--dtype", "float32", "--max_shard_size", "100KB"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["merge", *words]) == 0
    return folder, printed.getvalue()


def test_the_command_states_the_proof_and_the_difference_from_nf4(merged: tuple[Path, str]) -> None:
    folder, printed = merged
    facts = json.loads((folder / "merge.json").read_text())
    assert facts["difference"]["max"] < 1e-5
    assert facts["pairs"] == 12
    assert 1e-3 < facts["difference_from_trained_weights"]["max"] < 1
    assert "onto          full (better than the nf4 weights it was trained on" in printed
    assert "built-in texts (the run's pairs cannot be read" not in printed
    assert "built-in texts (no run is at hand" in printed  # this run's configuration names no data
    assert "nats a token before and after, in plain transformers (allowed 0.001)" in printed
    assert "trained on    nf4: the merged model differs from the model there by max" in printed


def test_the_merged_folder_is_whole_sharded_and_has_tokenizer_and_stop_tokens(
    merged: tuple[Path, str],
) -> None:
    folder, _ = merged
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "README.md", "SHA256SUMS", "merge.json", "model.safetensors.index.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop in GenerationConfig.from_pretrained(folder).eos_token_id
    assert "base_model_relation: finetune" in (folder / "README.md").read_text()
    assert not list(folder.parent.glob(".*"))


def test_a_folder_that_is_there_is_never_overwritten(
    merged: tuple[Path, str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(runs / "nf4"), "--out", str(merged[0])]) == 2
    assert "is there already: name another folder" in capsys.readouterr().err


def test_a_merge_that_is_wrong_ends_with_an_error_and_its_folder_aside(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orpo_lightning.using import merging

    def off(adapted: Any, dtype: torch.dtype) -> Any:
        model = merge(adapted, dtype)
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
        return model

    monkeypatch.setattr(merging, "merge", off)
    assert main(["merge", str(runs / "pissa"), "--out", str(tmp_path / "m")]) == 4
    assert "the merged model is not the adapted one" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "m.failed" / "merge.json").is_file()


def test_memory_is_given_back_before_the_base_is_loaded_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orpo_lightning.using import merging, trained

    done: list[str] = []
    models: list[Any] = []

    def known(load_model: Any, model_of: Any) -> Any:
        def loaded(*words: Any, **settings: Any) -> Any:
            found = load_model(*words, **settings)
            models.append(weakref.ref(model_of(found).get_input_embeddings()))
            done.append("loaded")
            return found

        return loaded

    def given_back() -> None:
        assert all(model() is None for model in models)
        done.append("given back")

    proof = merge_proof.answer_logps_of_folder
    monkeypatch.setattr(trained, "load", known(trained.load, lambda found: found.model))
    monkeypatch.setattr(merging, "load_adapted", known(merging.load_adapted, lambda found: found))
    monkeypatch.setattr(torch.cuda, "empty_cache", given_back)
    monkeypatch.setattr(
        merge_proof, "answer_logps_of_folder", lambda *words: (done.append("proof"), proof(*words))[1]
    )
    words = [str(runs / "nf4"), "--out", str(tmp_path / "m"), "--dtype", "float32", "--accelerator", "cpu"]
    assert main(["merge", *words]) == 0
    assert done == ["loaded", "given back", "loaded", "given back", "proof"]


@pytest.mark.parametrize(
    "last",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "MemoryError",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you",
    ],
    ids=["GPU", "Python", "CPU"],
)
def test_a_proof_without_memory_is_told_with_what_to_do(
    runs: Path,
    tmp_path: Path,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.CompletedProcess([], 1, stderr=f"Traceback (most recent call last):\n{last}\n")
    monkeypatch.setattr(merge_proof.subprocess, "run", lambda *words, **settings: done)
    words = [str(runs / "pissa"), "--out", str(tmp_path / "m"), "--accelerator", "cpu"]
    assert main(["merge", *words]) == 5
    assert "out of memory: --accelerator cpu merges in the memory of the machine" in capsys.readouterr().err


def test_settings_of_generation_that_transformers_would_not_write_are_written(
    tiny_base: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.generation_config = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=False, eos_token_id=2)
    save(model, tmp_path, max_shard_size="5GB", stop_ids={2, 3})
    written = GenerationConfig.from_pretrained(tmp_path)
    assert (written.do_sample, written.temperature, written.eos_token_id) == (True, 0.6, [2, 3])
