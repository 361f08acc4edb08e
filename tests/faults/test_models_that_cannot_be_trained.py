"""Rows M01 to M06: what may be wrong with a base model or its tokenizer, and what is said to it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surroundings import Run, write_pairs
from tiny_models import save_tiny_mistral, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHAT = {
    "prompt": [{"role": "user", "content": "Hello?"}],
    "chosen": [{"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "assistant", "content": "Go away."}],
}


class Evil:
    """A pickle that makes a folder where it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def base(run: Run, tmp_path: Path) -> Path:
    """Return a copy of the tiny base model, to be spoilt."""
    return Path(shutil.copytree(run.base, tmp_path / "base"))


def change_config(base: Path, **values: Any) -> None:
    file = base / "config.json"
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# M01: the tokenizer


def test_m01_a_tokenizer_without_pad_token_trains_and_pads_with_its_eos(run: Run, tmp_path: Path) -> None:
    base = save_tiny_mistral(tmp_path / "mistral")
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    rows = [{"prompt": "a" * n, "chosen": " yes" * n, "rejected": " no"} for n in range(1, 9)]
    done = run.fit(model__base_model=base, data__train=write_pairs(tmp_path / "uneven.jsonl", rows))
    assert (done.code, done.err) == (0, "")
    assert AutoTokenizer.from_pretrained("run/adapter").pad_token == "</s>"


def test_m01_a_tokenizer_without_eos_and_template_is_refused_with_what_it_lacks(
    run: Run, tmp_path: Path
) -> None:
    base = save_tiny_mistral(tmp_path / "mistral")
    backend = tiny_tokenizer("mistral").backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>").save_pretrained(
        base
    )
    change_config(base, eos_token_id=None)
    done = run.fit(model__base_model=base)
    assert done.code == 2
    assert "data.tokenizer: it has no EOS token" in done.line


def test_m01_messages_without_a_chat_template_are_refused_with_the_key_to_set(
    run: Run, tmp_path: Path
) -> None:
    base = save_tiny_mistral(tmp_path / "mistral")
    done = run.fit(model__base_model=base, data__train=write_pairs(tmp_path / "chat.jsonl", [CHAT]))
    assert done.code == 2
    assert "chat.jsonl:1 holds messages and the tokenizer has no chat template; set data.chat_" in done.line


# M02: the vocabulary


def test_m02_a_token_behind_the_end_of_the_vocabulary_is_named_before_a_step_is_taken(
    run: Run, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    tokenizer = tiny_tokenizer("chatml")
    size = len(tokenizer) - 1
    tiny_model("llama", tokenizer=tokenizer, vocab_size=size, eos_token_id=None).save_pretrained(small)
    tokenizer.save_pretrained(small)
    last = len(tokenizer) - 1
    done = run.fit(model__base_model=small)
    assert done.code == 2
    assert (
        f"data.tokenizer: it writes token {last} ('<|im_end|>'), the model's vocabulary has {last}"
        in done.line
    )
    assert "step 1/" not in done.out


@pytest.mark.parametrize("rows", [5, -1])
def test_m02_a_vocabulary_that_was_resized_trains_where_all_tokens_used_have_embeddings(
    run: Run, tmp_path: Path, rows: int
) -> None:
    resized = tmp_path / "resized"
    tokenizer = tiny_tokenizer("chatml")
    if rows < 0:  # a pad token that was added, and the embeddings were not
        tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    size = len(tokenizer) + rows
    tiny_model("llama", tokenizer=tokenizer, vocab_size=size, pad_token_id=None).save_pretrained(resized)
    tokenizer.save_pretrained(resized)
    uneven = [{"prompt": "a" * n, "chosen": " yes" * n, "rejected": " no"} for n in range(1, 9)]
    train = write_pairs(tmp_path / "uneven.jsonl", uneven)
    done = run.fit(model__base_model=resized, data__train=train, data__layout="padded")
    assert (done.code, done.err) == (0, "")


# M03: damaged files


def truncate(base: Path) -> str:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return f"{file} is damaged ({file.stat().st_size:,} bytes: "


def leave_pointer(base: Path) -> str:
    file = base / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return f"{file} is a pointer of git-lfs instead of the weights: run `git lfs pull` there"


def take_tensor(base: Path) -> str:
    weights = load_file(base / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return "lacks 1 weights of its architecture, first model.layers.1.mlp.up_proj.weight"


def cut_config(base: Path) -> str:
    file = base / "config.json"
    file.write_text(file.read_text()[:50])
    return str(base)


def cut_tokenizer(base: Path) -> str:
    file = base / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    return f"data.tokenizer: cannot load '{base}'"


def empty_folder(base: Path) -> str:
    shutil.rmtree(base)
    base.mkdir()
    return str(base)


@pytest.mark.parametrize(
    "damage", [truncate, leave_pointer, take_tensor, cut_config, cut_tokenizer, empty_folder]
)
def test_m03_a_damaged_base_model_is_exit_code_five_and_names_what_is_damaged(
    run: Run, base: Path, damage: Callable[[Path], str]
) -> None:
    words = damage(base)
    done = run.fit(model__base_model=base)
    assert done.code == 5
    assert words in done.line
    assert not Path("run/checkpoints").exists()


# M04: code in disguise


def test_m04_pickled_weights_alone_are_refused_and_not_read(run: Run, base: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (base / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(marker)}, base / "pytorch_model.bin")
    done = run.fit(model__base_model=base)
    assert done.code == 5
    assert "has no model.safetensors; pickled weights (.bin) can run code when they are read" in done.line
    assert not marker.exists()
    torch.load(base / "pytorch_model.bin", weights_only=False)
    assert marker.exists()  # it would have been seen


def test_m04_pickled_weights_beside_others_are_not_read(run: Run, base: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"model.norm.weight": Evil(marker)}, base / "pytorch_model.bin")
    done = run.fit(model__base_model=base)
    assert (done.code, done.err) == (0, "")
    assert not marker.exists()


REMOTE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM
os.mkdir({marker!r})
class RemoteConfig(LlamaConfig):
    model_type = "remote"
class Remote(LlamaForCausalLM):
    config_class = RemoteConfig
"""


@pytest.fixture
def remote(base: Path, tmp_path: Path) -> Path:
    """Return a model that needs Python code of its own, which leaves a folder behind."""
    (base / "remote.py").write_text(REMOTE.format(marker=str(tmp_path / "executed")))
    auto_map = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.Remote"}
    change_config(base, model_type="remote", architectures=["Remote"], auto_map=auto_map)
    return base


def test_m04_code_that_comes_with_a_model_is_not_run_and_the_flag_is_named(
    run: Run, remote: Path, tmp_path: Path
) -> None:
    done = run.fit(model__base_model=remote)
    assert done.code == 2
    assert "needs Python code that comes with it" in done.line
    assert "set model.trust_remote_code true" in done.line
    assert not (tmp_path / "executed").exists()


def test_m04_code_that_is_trusted_is_run_and_the_header_says_so(
    run: Run, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    done = run.fit(model__base_model=remote, model__trust_remote_code="true")
    assert (done.code, done.err) == (0, "")
    assert f"trusted: Python code of {remote} is run" in done.out
    assert (tmp_path / "executed").exists()


def test_m04_a_known_model_is_built_by_its_own_class_whatever_code_comes_with_it(
    run: Run, remote: Path, tmp_path: Path
) -> None:
    change_config(remote, model_type="llama")
    done = run.fit(model__base_model=remote)
    assert (done.code, done.err) == (0, "")
    assert "trusted" not in done.out
    assert not (tmp_path / "executed").exists()


# M05: another kind of model


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassification"),
        ({"model_type": "vit", "architectures": None}, "is a vit"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "is stored quantised already; set model.quantization: none",
        ),
    ],
)
def test_m05_a_model_of_another_kind_is_refused_before_the_data_is_read(
    run: Run, base: Path, config: dict[str, Any], words: str
) -> None:
    change_config(base, **config)
    done = run.fit(model__base_model=base, model__quantization="nf4", data__train="not/there.jsonl")
    assert done.code == 2
    assert words in done.line
    assert not Path("run/checkpoints").exists()


# M06: LoRA's targets


def test_m06_targets_that_match_nothing_are_answered_with_the_names_there_are(run: Run) -> None:
    done = run.fit(model__lora_targets="[c_attn]")
    assert done.code == 2
    assert "model.lora_targets: ['c_attn'] match no layer; this model has down_proj, gate_proj" in done.line
