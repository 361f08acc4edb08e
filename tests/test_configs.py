"""Every shipped YAML file parses, and the recipe is the recipe."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_lightning.cli import main

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
OVERRIDES = ("dora", "paper", "long")
DEVICES = ("ddp", "fsdp2", "deepspeed")
WHOLE = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OVERRIDES + DEVICES)
COMBINATIONS = [[name] for name in WHOLE] + [["mistral", name] for name in OVERRIDES + DEVICES]


def resolved(names: list[str]) -> dict[str, Any]:
    """Return what `fit --print_config` prints for config files that are laid over each other."""
    words = [word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["fit", *words, "--print_config"]) == 0
    return yaml.safe_load(printed.getvalue())


@pytest.fixture(scope="module")
def mistral() -> dict[str, Any]:
    return resolved(["mistral"])


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_config_parses_and_validates_between_optimizer_steps(names: list[str]) -> None:
    config = resolved(names)
    trainer = config["trainer"]
    assert config["model"]["base_model"]
    if isinstance(trainer["val_check_interval"], int):
        # Within a window of accumulated micro-batches the checkpoint of a validation could not be resumed.
        assert trainer["check_val_every_n_epoch"] is None
        assert trainer["val_check_interval"] % trainer["accumulate_grad_batches"] == 0


def test_mistral_has_the_models_values_of_the_recipe(mistral: dict[str, Any]) -> None:
    expected = {
        "base_model": "mistralai/Mistral-7B-v0.1",
        "quantization": "nf4",
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "lora_variant": "lora",
        "gradient_checkpointing": True,
        "schedule": "linear",
        "warmup": 0.1,
    }
    assert {key: mistral["model"][key] for key in expected} == expected
    assert mistral["model"]["objective"] == {
        "class_path": "orpo_lightning.ORPO",
        "init_args": {"beta": 0.1, "nll_scope": "sequence", "nll_reduction": "token"},
    }
    optimizer = mistral["model"]["optimizer"]
    assert optimizer["class_path"] == "bitsandbytes.optim.PagedAdamW8bit"
    assert optimizer["init_args"].items() >= {"lr": 8e-6, "betas": [0.9, 0.999], "weight_decay": 0.0}.items()


def test_mistral_has_the_datas_values_of_the_recipe(mistral: dict[str, Any]) -> None:
    expected = {
        "train": "HuggingFaceH4/ultrafeedback_binarized:train_prefs",
        "validation": "HuggingFaceH4/ultrafeedback_binarized:test_prefs",
        "validation_size": 256,
        "max_length": 1024,
        "max_prompt_length": 512,
        "overlong": "truncate",
        "batch_size": 2,
    }
    assert {key: mistral["data"][key] for key in expected} == expected


def test_mistral_trains_100_steps_of_8_pairs_and_validates_every_20(mistral: dict[str, Any]) -> None:
    trainer = mistral["trainer"]
    assert trainer["max_steps"] == 100
    assert trainer["accumulate_grad_batches"] == 4
    assert trainer["val_check_interval"] == 20 * trainer["accumulate_grad_batches"]
    assert trainer["gradient_clip_val"] == 1.0
    assert trainer["precision"] is None


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("dora", "model", {"lora_variant": "dora"}),
        ("paper", "model", {"schedule": "cosine", "warmup": 0.1}),
        ("paper", "data", {"max_length": 2048, "max_prompt_length": 1024, "overlong": "drop"}),
        ("paper", "trainer", {"max_steps": -1, "max_epochs": 10}),
        ("long", "trainer", {"max_steps": 2000, "accumulate_grad_batches": 32}),
    ],
)
def test_an_override_changes_what_it_names_and_keeps_the_base(
    name: str, section: str, expected: dict[str, Any]
) -> None:
    config = resolved(["mistral", name])
    assert {key: config[section][key] for key in expected} == expected
    assert config["model"]["base_model"] == "mistralai/Mistral-7B-v0.1"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 8e-6
    assert config["run_dir"] == f"runs/mistral-{name}"


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_an_override_of_devices_keeps_the_optimizers_settings_and_the_runs_folder(
    family: str, name: str
) -> None:
    alone, config = resolved([family]), resolved([family, name])
    assert config["trainer"]["strategy"] == {"deepspeed": "deepspeed_stage_2"}.get(name, name)
    kept = alone if name == "ddp" else {"model": {"optimizer": {"class_path": "torch.optim.AdamW"}}}
    assert config["model"]["optimizer"]["class_path"] == kept["model"]["optimizer"]["class_path"]
    for key in ("lr", "weight_decay"):
        expected = alone["model"]["optimizer"]["init_args"][key]
        assert config["model"]["optimizer"]["init_args"][key] == expected
    assert config["run_dir"] == alone["run_dir"]
    assert config["data"] == alone["data"]


def test_long_runs_are_64_pairs_a_step() -> None:
    config = resolved(["mistral", "long"])
    assert config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"] == 64


def test_the_papers_lambda_and_normalisation_are_set() -> None:
    objective = resolved(["mistral", "paper"])["model"]["objective"]["init_args"]
    assert (objective["beta"], objective["nll_reduction"]) == (0.1, "sequence")


def test_the_quickstart_stays_on_one_cpu_whatever_else_there_is() -> None:
    trainer = resolved(["quickstart"])["trainer"]
    assert (trainer["accelerator"], trainer["devices"]) == ("cpu", 1)
    script = (ROOT / "scripts" / "quickstart").read_text()
    (after_training,) = re.findall(r"-m orpo_lightning evaluate .*", script)
    assert "--accelerator cpu" in after_training


def test_the_quickstart_takes_as_long_as_the_readme_says() -> None:
    texts = [(ROOT / "README.md").read_text(), (CONFIGS / "quickstart.yaml").read_text()]
    said = [re.findall(r"about (\w+) minutes", text.replace("\n", " ")) for text in texts]
    assert said[0] == said[1] != []


def test_the_readme_names_every_config() -> None:
    listed = (ROOT / "README.md").read_text().partition("\n`configs/`: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == {*WHOLE, *OVERRIDES, *DEVICES}


def test_smollm2_steps_are_16_pairs_at_lambda_one() -> None:
    config = resolved(["smollm2"])
    assert config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"] == 16
    assert (config["data"]["validation"], config["data"]["validation_size"]) == (0.25, None)
    assert config["model"]["objective"]["init_args"]["beta"] == 1.0


MESSAGES = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Sure?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("name", "prompt", "with_system"),
    [
        (
            "mistral",
            "<s>[INST] 1+1? [/INST] 2</s>[INST] Sure? [/INST]",
            "<s>[INST] Be brief.\n\n1+1? [/INST]",
        ),
        (
            "llama",
            "<s>User: 1+1?\n\nAssistant: 2</s>\n\nUser: Sure?\n\nAssistant:",
            "<s>System: Be brief.\n\nUser: 1+1?\n\nAssistant:",
        ),
    ],
)
def test_a_base_without_a_chat_template_gets_one_of_tokens_it_knows(
    name: str, prompt: str, with_system: str
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["chat_template"]

    def render(messages: list[dict[str, str]], generation: bool) -> str:
        rendered, _ = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=generation,
            bos_token="<s>",
            eos_token="</s>",
        )
        return rendered[0]

    assert render(MESSAGES, generation=True) == prompt
    assert render(SYSTEM + MESSAGES[:1], generation=True) == with_system
    # An answer follows its prompt without a change to what stands before it, and ends with the stop token.
    answered = render([*MESSAGES, {"role": "assistant", "content": "Yes"}], generation=False)
    assert answered == prompt + " Yes</s>"


def test_the_commands_in_the_configs_comments_name_files_that_are_there() -> None:
    named = set()
    for path in CONFIGS.glob("*.yaml"):
        head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        named |= {word for word in head.split() if word.startswith("configs/")}
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
