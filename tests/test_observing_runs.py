"""What real small runs leave behind while they train: curves, record, pairs, answers, canary, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tiny_models import tiny_model, tiny_tokenizer
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.batching import pad_pairs
from orpo_lightning.callbacks import Canary, Displacement, Samples
from orpo_lightning.cli import main
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import UsageError
from orpo_lightning.metrics import with_padding
from orpo_lightning.observing.answers import greedy, prompt_ids, stop_ids
from orpo_lightning.observing.canary import mean_nll
from orpo_lightning.observing.files import read_lines
from orpo_lightning.observing.plots import layout
from orpo_lightning.scoring import take_apart

STEPS = 6


def write_pairs(file: Path, count: int, kind: str) -> Path:
    """Write pairs of ragged lengths; every third has the longer rejected answer."""
    rows = [
        {
            "prompt": f"{kind} {number}",
            "chosen": " up" * (number % 4 + 1) + str(number),
            "rejected": " down" * (1 + 5 * (number % 3 == 0)),
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def words(base: str, folder: Path, run_dir: str, *more: str) -> list[str]:
    """Return the words of a run of six steps of four pairs, with a validation after every second."""
    settings = {
        "model.base_model": base,
        "model.lora_r": 4,
        "model.optimizer.lr": 0.01,
        "model.warmup": 0,
        "model.gradient_checkpointing": "false",
        "data.train": write_pairs(folder / "train.jsonl", 24, "count"),
        "data.validation": write_pairs(folder / "validation.jsonl", 11, "say"),
        "data.cache_dir": folder / "cache",
        "data.batch_size": 4,
        "data.validation_batch_size": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 2,
        "trainer.log_every_n_steps": 2,
        "run_dir": folder / run_dir,
    }
    return ["fit", *(f"--{key}={value}" for key, value in settings.items()), *more]


@pytest.fixture(scope="module")
def run(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a run with all defaults, and what it printed."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words(tiny_base, folder, "run")) == 0
    return folder / "run", printed.getvalue()


@pytest.fixture(scope="module")
def events(run: tuple[Path, str]) -> EventAccumulator:
    found = EventAccumulator(str(run[0] / "tb"), size_guidance=dict.fromkeys(("tensors", "scalars"), 0))
    found.Reload()
    return found


# Curves


def test_the_curves_file_has_every_value_that_tensorboard_has(
    run: tuple[Path, str], events: EventAccumulator
) -> None:
    of_file: dict[str, dict[int, float]] = {}
    for line in read_lines(run[0] / "curves.jsonl"):
        for name, value in line.items():
            of_file.setdefault(name, {})[line["step"]] = value
    tags = events.Tags()["scalars"]
    assert set(of_file) == {*tags, "step"}
    for tag in tags:
        expected = {event.step: event.value for event in events.Scalars(tag)}
        # TensorBoard keeps 32 bits.
        assert {step: float(np.float32(value)) for step, value in of_file[tag].items()} == expected
    assert sorted(of_file["val/loss"]) == sorted(of_file["train/loss"]) == [2, 4, 6]


def test_the_new_values_are_logged_and_are_what_they_say(run: tuple[Path, str]) -> None:
    last = {name: value for line in read_lines(run[0] / "curves.jsonl") for name, value in line.items()}
    wrong = {f"{stage}/rewards/accuracies_longer_is_wrong" for stage in ("train", "val")}
    assert wrong <= last.keys()
    assert last["train/peak_memory_mb"] > 50
    assert last["train/padding"] == 0  # the layout is the flat one
    assert "train/mfu" not in last
    assert "train/mfu is not logged: no peak is known of CPU" in run[1]
    gap = last["val/logps_change/chosen"] - last["val/logps_change/rejected"]
    assert last["val/logps_change/margins"] == pytest.approx(gap, rel=1e-4)
    assert last["val_ci_low/logps_change/margins"] < gap < last["val_ci_high/logps_change/margins"]


def test_a_test_appends_its_values_at_the_step_of_its_weights(
    run: tuple[Path, str], tiny_base: str, tmp_path: Path
) -> None:
    import shutil

    folder = run[0].parent
    shutil.copytree(run[0], tmp_path / "run")
    shutil.copytree(folder / "cache", tmp_path / "cache")
    record = (tmp_path / "run" / "record.json").read_text()
    more = f"--data.test={folder / 'validation.jsonl'}"
    again = words(tiny_base, tmp_path, "run", more, "--resume=auto")
    assert main(["test", *again[1:]]) == 0
    last = read_lines(tmp_path / "run" / "curves.jsonl")[-1]
    assert last["step"] == STEPS
    assert last["test/loss"] > 0
    assert (tmp_path / "run" / "record.json").read_text() == record


# The record


def test_the_record_tells_what_the_run_was(run: tuple[Path, str]) -> None:
    found = json.loads((run[0] / "record.json").read_text())
    assert (found["how"], found["steps"], found["device"]) == ("completed", STEPS, "CPU")
    assert found["ended"] >= found["started"]
    assert found["seconds"] > 0
    assert found["peak_memory_mb"] > 50
    assert found["versions"].keys() >= {"python", "torch", "lightning", "transformers", "peft"}
    assert found["parameters"]["total"] > found["parameters"]["trained"] > 0
    assert found["data"]["train"] == {"pairs": 24, "left_out": {}}
    assert found["data"]["validation"]["pairs"] == 11
    assert found["header"]["canary"] == "loss of 12 texts (general) at each validation, a forward pass each"
    assert "4 prompts of the validation pairs at each validation" in found["header"]["samples"]
    assert found["canary"]["texts"] == 12
    curves = read_lines(run[0] / "curves.jsonl")
    assert found["canary"]["nll"] == pytest.approx(curves[-1]["val/canary_nll"], rel=1e-5)


def test_a_run_that_fails_says_so_in_its_record_and_a_rerun_begins_a_new_one(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        logging.getLogger("orpo_lightning.test").warning("a warning")
        raise RuntimeError("the training step is broken")

    monkeypatch.setattr(PreferenceModule, "on_before_optimizer_step", broken)
    assert main(words(tiny_base, tmp_path, "run")) == 1
    found = json.loads((tmp_path / "run" / "record.json").read_text())
    assert found["how"] == "failed: the training step is broken"
    assert (found["steps"], found["warnings"]) == (0, ["a warning"])
    monkeypatch.undo()
    switched_off = ("--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    assert main(words(tiny_base, tmp_path, "run", *switched_off)) == 0
    found = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (found["how"], found["steps"], found["warnings"]) == ("completed", 1, [])


# Pairs


def load_module(base: str, run_dir: Path) -> PreferenceModule:
    """Return the module of a run's last checkpoint."""
    module = PreferenceModule(base, lora_r=4, gradient_checkpointing=False)
    module.configure_model()
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(state, strict=False)
    return module.eval()


def test_the_pairs_are_scored_as_each_is_by_itself(run: tuple[Path, str], tiny_base: str) -> None:
    found = np.load(run[0] / "pairs.npz")
    assert int(found["step"]) == STEPS
    data = PreferenceDataModule(
        test=str(run[0].parent / "validation.jsonl"),
        tokenizer=tiny_base,
        cache_dir=str(run[0].parent / "cache"),
    )
    data.setup("test")
    table = data.test_dataset
    assert isinstance(table, PairTable)
    assert found["keys"].tolist() == table.keys.tolist()
    lengths = np.stack([found[f"tokens_{part}"] for part in ("prompt", "chosen", "rejected")], axis=1)
    assert lengths.tolist() == table.lengths.tolist()
    assert [str(found["sources"][source]) for source in found["source"]] == [table.name] * 11
    module = load_module(tiny_base, run[0])
    with torch.no_grad():
        now = [module(pad_pairs([pair], 0)).answer_means() for pair in table]
        with module.model.disable_adapter():
            base = [module(pad_pairs([pair], 0)).answer_means() for pair in table]
    for prefix, values in (("", now), ("base_", base)):
        for side, name in enumerate(("chosen", "rejected")):
            expected = [pair[side].item() for pair in values]
            assert found[prefix + name].tolist() == pytest.approx(expected, rel=1e-4)
    assert not np.allclose(found["chosen"], found["base_chosen"], rtol=1e-2)


# TensorBoard


def test_tensorboard_gets_histograms_of_base_and_now_answers_and_the_page_of_plots(
    run: tuple[Path, str], events: EventAccumulator
) -> None:
    tags = events.Tags()
    names = {f"{kind}/{when}" for kind in ("margins", "log_odds_ratios") for when in ("base", "now")}
    assert set(tags["histograms"]) == names
    pairs = np.load(run[0] / "pairs.npz")
    last = events.Histograms("margins/now")[-1]
    margins = pairs["chosen"] - pairs["rejected"]
    assert last.step == STEPS
    assert last.histogram_value.num == 11
    assert last.histogram_value.sum == pytest.approx(margins.sum(), rel=1e-4)
    odds = {side: np.log(np.exp(pairs[side]) / (1 - np.exp(pairs[side]))) for side in ("chosen", "rejected")}
    ratios = events.Histograms("log_odds_ratios/now")[-1].histogram_value
    assert ratios.sum == pytest.approx((odds["chosen"] - odds["rejected"]).sum(), rel=1e-4)
    texts = events.Tensors("samples/text_summary")
    assert [text.step for text in texts] == [2, 4, 6]
    (config,) = events.Tensors("custom_scalars__config__")
    page = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    assert [category.title for category in page.category] == [*layout()]
    titles = {chart.title for category in page.category for chart in category.chart}
    assert "accuracy where the longer answer is wrong" in titles
    assert "share of the peak (MFU)" not in titles  # of a CPU
    bands = [
        chart.margin.series[0]
        for category in page.category
        for chart in category.chart
        if chart.margin.series
    ]
    scalars = set(tags["scalars"])
    for band in bands:  # every band of the page has its three curves
        assert {band.value, band.lower, band.upper} <= scalars


def test_without_tensorboard_the_rest_is_there_and_one_line_says_what_is_not(
    tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = (
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path / 'csv'}",
    )
    assert main(words(tiny_base, tmp_path, "run", *logger)) == 0
    printed = capsys.readouterr().out
    assert printed.count("these are TensorBoard's, and trainer.logger has no TensorBoardLogger") == 1
    table = next((tmp_path / "csv").rglob("metrics.csv")).read_text().splitlines()
    names, rows = table[0].split(","), [line.split(",") for line in table[1:]]
    of_csv = {int(row[names.index("step")]): row[names.index("val/loss")] for row in rows}
    of_file = {
        line["step"]: line["val/loss"]
        for line in read_lines(tmp_path / "run" / "curves.jsonl")
        if "val/loss" in line
    }
    assert {step: float(value) for step, value in of_csv.items() if value} == of_file
    for name in ("pairs.npz", "samples.jsonl", "record.json"):
        assert (tmp_path / "run" / name).is_file()


def test_what_is_switched_off_in_yaml_leaves_nothing(
    tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "off.yaml"
    file.write_text(
        "trainer:\n"
        "  logger: false\n"
        "  callbacks:\n"
        "  - class_path: orpo_lightning.callbacks.Samples\n"
        "    init_args: {prompts: 0}\n"
        "  - class_path: orpo_lightning.callbacks.Canary\n"
        "    init_args: {file: null}\n"
    )
    assert main(words(tiny_base, tmp_path, "run", f"--config={file}")) == 0
    printed = capsys.readouterr().out
    assert "none (callback Samples: prompts 0)" in printed
    assert "TensorBoardLogger" not in printed
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert not found & {"curves.jsonl", "samples.jsonl", "tb"}
    assert json.loads((tmp_path / "run" / "record.json").read_text())["canary"] is None


# Answers


def test_answers_stand_beside_those_of_the_base_and_of_the_time_before(run: tuple[Path, str]) -> None:
    rows = read_lines(run[0] / "samples.jsonl")
    assert [(row["step"], row["index"]) for row in rows] == [(s, i) for s in (2, 4, 6) for i in range(4)]
    for first, second in zip(rows, rows[4:], strict=False):
        assert (second["prompt"], second["base"]) == (first["prompt"], first["base"])
        assert second["before"] == first["now"]
    assert all(row["before"] == row["base"] for row in rows[:4])
    assert len({row["prompt"] for row in rows}) == 4
    assert any(row["now"] != row["base"] for row in rows)


def test_the_answer_of_each_prompt_is_what_the_likeliest_tokens_alone_would_be(
    run: tuple[Path, str], tiny_base: str
) -> None:
    """One token at a time, without cache and padding, by hand."""
    module, tokenizer = load_module(tiny_base, run[0]), tiny_tokenizer("chatml")
    rows = [row for row in read_lines(run[0] / "samples.jsonl") if row["step"] == STEPS]
    stops = stop_ids(module.model, tokenizer, [])
    assert tokenizer.eos_token_id in stops
    for row in rows:
        ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer: list[int] = []
        with torch.no_grad():
            while len(answer) < 64 and (not answer or answer[-1] not in stops):
                answer.append(
                    int(module.model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
                )
        said = tokenizer.decode([token for token in answer if token not in stops], skip_special_tokens=True)
        assert row["now"] == said.strip()


def test_an_answer_ends_before_its_stop_token_and_sampling_settings_of_the_model_have_no_say(
    tiny_base: str,
) -> None:
    module = PreferenceModule(tiny_base, lora_r=4, quantization="nf4", gradient_checkpointing=True)
    module.configure_model()
    model = module.model.eval()
    causal = model.get_base_model()
    causal.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3)
    given = causal.generation_config
    prompts = [[5, 6, 7, 8, 9], [11]]
    whole = greedy(model, prompts, stops=[], max_new_tokens=12)
    assert [len(answer) for answer in whole] == [12, 12]
    assert whole == greedy(model, prompts, stops=[], max_new_tokens=12)
    for prompt, answer in zip(prompts, whole, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(dim=1).tolist() == answer
    stop = whole[0][4]
    cut = greedy(model, prompts, stops=[stop], max_new_tokens=12)
    assert cut[0] == whole[0][: whole[0].index(stop)]
    assert causal.generation_config is given


# Of every kind one: sliding windows, soft-capping, absolute positions, routers, ALiBi, recurrent layers.
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt2", "mixtral", "bloom", "mamba", "bamba"])
def test_every_kind_of_architecture_answers_as_it_would_without_cache_and_padding(family: str) -> None:
    model = tiny_model(family)
    prompts = [[5, 6, 7, 8, 9], [11, 12]]
    answers = greedy(model, prompts, stops=[], max_new_tokens=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]


def test_a_model_that_gives_no_answers_ends_the_samples_and_not_the_run(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("orpo_lightning.callbacks.samples.greedy", broken)
    trainer, _ = fit(tiny_base, tmp_path, Samples(every_n_steps=1))
    assert trainer.global_step == 4
    assert caplog.text.count("no samples from here on, the model gives no answers: sizes do not match") == 1


def test_a_prompt_of_the_users_own_goes_through_the_chat_template() -> None:
    tokenizer = tiny_tokenizer("chatml")
    (ids,) = prompt_ids(["hi"], tokenizer)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (told,) = prompt_ids(["<|im_end|>"], tokenizer)  # what a user writes ends no turn
    assert told.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    plain = tiny_tokenizer("mistral")
    (ids,) = prompt_ids(["hi"], plain)
    assert plain.convert_ids_to_tokens(ids) == ["<s>", *plain.tokenize("hi")]


class Words(PreferenceDataModule):
    """A few pairs."""

    def load_rows(self, split: str) -> list[dict[str, str]]:
        """Return the pairs of a split."""
        first, count = {"train": (0, 24), "validation": (100, 9)}.get(split, (0, 0))
        return [
            {"prompt": f"count {i}", "chosen": " up" * (i % 4 + 1), "rejected": " down" * (i % 3 + 1)}
            for i in range(first, first + count)
        ]


def fit(
    base: str, folder: Path, *callbacks: lightning.Callback, path: str | None = None, **settings: Any
) -> Any:
    """Train four steps in a validated run; return the trainer and the module."""
    of_trainer = {key: settings.pop(key) for key in ("max_steps",) if key in settings}
    defaults: dict[str, Any] = {
        "lora_r": 4,
        "lora_dropout": 0.1,
        "gradient_checkpointing": False,
        "warmup": 0,
    }
    module = PreferenceModule(
        base, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2), **(defaults | settings)
    )
    data = Words(tokenizer=base, batch_size=2, max_length=64, cache_dir=str(folder / "cache"))
    trainer = make_trainer(
        **{"max_steps": 4, "val_check_interval": 4, "accumulate_grad_batches": 2, **of_trainer},
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        default_root_dir=str(folder),
    )
    lightning.seed_everything(3)
    trainer.fit(module, datamodule=data, ckpt_path=path)
    return trainer, module


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"quantization": "nf4"}], ids=str)
def test_answers_and_canary_in_the_middle_of_training_change_no_bit_of_it(
    settings: dict[str, Any], tiny_base: str, tmp_path: Path
) -> None:
    plain, module = fit(tiny_base, tmp_path / "a", **settings)
    expected = {name: p.clone() for name, p in module.named_parameters() if p.requires_grad}
    state = torch.get_rng_state()
    samples = Samples(every_n_steps=1, max_new_tokens=8)
    looked, module = fit(tiny_base, tmp_path / "b", samples, Canary(), **settings)
    assert len(read_lines(tmp_path / "b" / "samples.jsonl")) == 4 * 4
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight, expected[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in plain.callback_metrics.items():
        if "per_second" not in name:
            assert torch.equal(value, looked.callback_metrics[name]), name


def test_where_all_weights_are_trained_the_base_is_asked_before_the_first_step(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orpo_lightning")
    samples, canary = Samples(prompts=["hello", "good bye"], max_new_tokens=8), Canary()
    trainer, _module = fit(tiny_base, tmp_path, samples, canary, Displacement(), lora_r=0)
    untrained = PreferenceModule(tiny_base, lora_r=0, gradient_checkpointing=False)
    untrained.configure_model()
    rows = prompt_ids(["hello", "good bye"], tiny_tokenizer("chatml"))
    tokenizer = trainer.datamodule.processor
    stops = stop_ids(untrained.model, tokenizer, (trainer.datamodule.train_dataset,))
    expected = greedy(untrained.model.eval(), rows, stops=stops, max_new_tokens=8)
    found = read_lines(tmp_path / "samples.jsonl")
    assert [row["base"] for row in found[:2]] == [tokenizer.decode(ids).strip() for ids in expected]
    assert found[0]["prompt"] == "hello"
    nll = mean_nll(take_apart(untrained.model), canary._rows, torch.device("cpu"))
    assert canary.base == pytest.approx(nll, rel=1e-5)
    assert trainer.callback_metrics["val/canary_nll_change"].abs() > 1e-3
    assert caplog.text.count("all weights are trained, and the base's are gone with the first step") == 1


def test_a_number_that_is_none_of_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="Samples: expected every_n_steps and max_new_tokens of 1 or more"):
        Samples(every_n_steps=0)


# The canary


def test_the_canarys_loss_is_the_models_own(tiny_base: str, tmp_path: Path) -> None:
    canary = Canary()
    trainer, module = fit(tiny_base, tmp_path, canary)
    total, count = 0.0, 0
    for row in canary._rows:
        with torch.no_grad():
            logps = module.model.eval()(input_ids=torch.tensor([row])).logits[0].log_softmax(1)
        targets = torch.tensor(row[1:])
        total, count = total - logps[:-1].gather(1, targets[:, None]).sum().item(), count + len(targets)
    assert count > 500
    metrics = trainer.callback_metrics
    assert metrics["val/canary_nll"].item() == pytest.approx(total / count, rel=1e-5)
    assert canary.base is not None
    change = metrics["val/canary_nll_change"].item()
    assert change == pytest.approx(total / count - canary.base, abs=1e-4)


def test_a_canary_that_falls_silent_is_warned_of_once_until_it_sings_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    canary = Canary()
    for now in (2.05, 2.2, 2.3, 2.0, math.nan, 2.4):
        canary._watch(7, now, base=2.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("step 7: general text has a loss of 2.2, 2 under the base (perplexity x 1.22)")
    again = Canary()
    again.load_state_dict(canary.state_dict())
    again._watch(8, 2.5, base=2.0)
    assert len(caplog.records) == 2


# Displacement and padding


def test_the_console_says_after_each_validation_what_became_of_both_kinds_of_answers(
    run: tuple[Path, str],
) -> None:
    said = [line for line in run[1].splitlines() if "since the base:" in line]
    assert len(said) == 3
    last = read_lines(run[0] / "curves.jsonl")[-1]
    assert said[-1].startswith(f"chosen {last['val/logps_change/chosen']:+.3g} [")


def test_padding_is_the_share_of_tokens_that_belong_to_no_text(tiny_base: str) -> None:
    from orpo_lightning.batching import TokenizedPair
    from orpo_lightning.batching.shared_prefix import lay_flat
    from orpo_lightning.objectives import ObjectiveOutput

    pairs = [TokenizedPair([1, 2, 3], [4, 5], [6]), TokenizedPair([1], [2], [3, 4, 5, 6, 7])]
    empty = ObjectiveOutput({}, {})
    padded = with_padding(empty, pad_pairs(pairs, 0)).metrics["padding"]
    assert (padded.sum.item(), padded.count.item()) == (24 - (5 + 4 + 2 + 6), 24)
    assert with_padding(empty, lay_flat(pairs)).metrics["padding"].sum.item() == 0
    torch.set_default_dtype(torch.bfloat16)  # as within a forward pass in bf16-true
    try:
        assert with_padding(empty, pad_pairs(pairs * 87, 0)).metrics["padding"].count.item() == 2088
    finally:
        torch.set_default_dtype(torch.float32)
