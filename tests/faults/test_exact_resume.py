"""A run that was killed and goes on ends bit for bit where the undisturbed one does, its curves included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Forks, assert_same_end, load, strike

Fit = Callable[..., list[Any]]

SETTINGS = {
    "LoRA with dropout": [],
    "two data workers": ["--data.num_workers=2"],
    "gradient checkpointing in bf16": [
        "--model.gradient_checkpointing=true",
        "--trainer.precision=bf16-mixed",
    ],
    "NF4": ["--model.quantization=nf4"],
    "8-bit AdamW": ["--model.optimizer=bitsandbytes.optim.AdamW8bit", "--model.optimizer.lr=0.01"],
    "GaLore": [
        *(
            "--model.lora_r=0",
            "--model.optimizer=orpo_lightning.galore.GaLoreAdamW",
            "--model.optimizer.lr=0.001",
        ),
        *("--model.optimizer.rank=4", "--model.optimizer.update_proj_gap=3"),
    ],
    "DoRA in padded rows": ["--model.lora_variant=dora", "--data.layout=padded"],
    "a budget of tokens": [
        "--data.batch_size=1",
        "--trainer.accumulate_grad_batches=4",
        "--data.tokens_per_batch=60",
    ],
    "validations due within a step": [
        "--data.batch_size=1",
        "--trainer.accumulate_grad_batches=4",
        "--trainer.val_check_interval=5",
    ],
    "no accumulation": ["--trainer.accumulate_grad_batches=1", "--data.batch_size=4"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_ends_like_the_whole_one(name: str, fit: Fit, forks: Forks, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    ended = forks.run(fit("whole", *settings), tmp_path)
    assert ended.code == 0, ended.err
    layout = "padded" if "padded" in name else "shared_prefix"
    assert f"layout          {layout} (" in ended.out
    # In the first epoch, after the first micro-batch of a step; and in the second.
    for step, hook in ((3, "on_after_backward"), (8, "on_train_batch_start")):
        resume = [] if step == 3 else ["--resume=auto"]
        ended = forks.run(fit("killed", *settings, *resume, *strike(hook, step, "SIGKILL")), tmp_path)
        assert ended.code == -9, ended.err
    ended = forks.run(fit("killed", *settings, "--resume=auto"), tmp_path)
    assert ended.code == 0, ended.err
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_mixed_sources_go_on_in_their_mixture(fit: Fit, forks: Forks, pairs: Path, tmp_path: Path) -> None:
    sources = f'[{{path: "{pairs}/train.jsonl", weight: 2}}, {{path: "{pairs}/other.jsonl", weight: 1}}]'
    settings = [f"--data.train={sources}", "--trainer.max_steps=14"]
    assert forks.run(fit("whole", *settings), tmp_path).code == 0
    killed = forks.run(fit("killed", *settings, *strike("on_train_batch_start", 11, "SIGKILL")), tmp_path)
    assert killed.code == -9, killed.err
    assert forks.run(fit("killed", *settings, "--resume=auto"), tmp_path).code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("save_every", [2, 5])
def test_steps_that_were_logged_but_not_saved_stand_in_the_curves_once(
    save_every: int, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """At the end of the seventh step the fourth or sixth is saved; what was logged since is logged again."""
    settings = [f"--save_every={save_every}", "--trainer.log_every_n_steps=1"]
    assert forks.run(fit("whole", *settings), tmp_path).code == 0
    assert (
        forks.run(fit("killed", *settings, *strike("on_train_batch_start", 7, "SIGKILL")), tmp_path).code
        == -9
    )
    assert load(tmp_path / "killed")["global_step"] == 7 - 7 % save_every
    assert forks.run(fit("killed", *settings, "--resume=auto"), tmp_path).code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_run_may_be_killed_again_and_again(whole: Path, fit: Fit, forks: Forks, tmp_path: Path) -> None:
    for step in (1, 2, 2, 5, 7):
        resume = [] if step == 1 else ["--resume=auto"]
        ended = forks.run(fit("killed", *resume, *strike("on_train_batch_start", step, "SIGKILL")), tmp_path)
        assert ended.code == -9, ended.err
    assert forks.run(fit("killed", "--resume=auto"), tmp_path).code == 0
    assert_same_end(whole, tmp_path / "killed")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_be_killed_behind_one_pass_and_again_behind_another(
    workers: int, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """A pass is seven steps; Lightning would count each pass that begins so one too few."""
    settings = ["--trainer.max_steps=18", f"--data.num_workers={workers}"]
    assert forks.run(fit("whole", *settings), tmp_path).code == 0
    for passes in (1, 2):
        struck = strike("on_train_batch_start", 7 * passes, "SIGKILL")
        assert forks.run(fit("killed", *settings, "--resume=auto", *struck), tmp_path).code == -9
        saved = load(tmp_path / "killed")
        assert (saved["global_step"], saved["epoch"]) == (7 * passes, passes - 1)
        assert saved["PreferenceDataModule"]["epoch"] == passes
        counts = saved["loops"]["fit_loop"]["epoch_progress"]["total"]
        assert counts == {
            "ready": passes,
            "started": passes,
            "processed": passes - 1,
            "completed": passes - 1,
        }
    assert forks.run(fit("killed", *settings, "--resume=auto"), tmp_path).code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_validation_that_was_killed_is_done_again(
    whole: Path, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    struck = strike("on_validation_batch_start", 4, "SIGKILL")
    assert forks.run(fit("killed", *struck), tmp_path).code == -9
    assert load(tmp_path / "killed")["global_step"] == 3
    assert forks.run(fit("killed", "--resume=auto"), tmp_path).code == 0
    assert_same_end(whole, tmp_path / "killed")


@pytest.mark.parametrize(
    ("hook", "step", "do", "code"),
    [
        ("on_train_batch_start", 7, "SIGKILL", -9),
        ("on_validation_batch_start", 7, "SIGKILL", -9),
        ("on_validation_batch_start", 7, "SIGTERM", 143),
        ("on_before_optimizer_step", 6, "SIGTERM", 143),
    ],
)
def test_a_run_goes_on_behind_a_validation_that_was_due_within_the_short_last_step_of_a_pass(
    hook: str, step: int, do: str, code: int, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """A pass has 26 micro-batches, four to a step: the 25th is the first of the seventh step, of two."""
    settings = SETTINGS["validations due within a step"]
    assert forks.run(fit("whole", *settings), tmp_path).code == 0
    assert forks.run(fit("killed", *settings, *strike(hook, step, do)), tmp_path).code == code
    assert forks.run(fit("killed", *settings, "--resume=auto"), tmp_path).code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_the_best_of_a_validation_that_was_due_within_a_step_goes_on_to_the_same_end(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """The ninth micro-batch is the first of the fifth step; the next validation is due with the 18th."""
    settings = ["--trainer.val_check_interval=9", "--save_every=50"]
    assert forks.run(fit("whole", *settings), tmp_path).code == 0
    killed = forks.run(fit("killed", *settings, *strike("on_train_batch_start", 5, "SIGKILL")), tmp_path)
    assert killed.code == -9, killed.err
    ended = forks.run(fit("killed", *settings, "--resume=killed/checkpoints/best.ckpt"), tmp_path)
    assert ended.code == 0, ended.err
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_has_ended_keeps_the_values_of_its_last_step_when_it_is_begun_again(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    settings = ["--trainer.max_steps=8"]  # every second step is logged
    for name in ("whole", "again"):
        assert forks.run(fit(name, *settings), tmp_path).code == 0
    ended = forks.run(fit("again", *settings, "--resume=auto"), tmp_path)
    assert ended.code == 0, ended.err
    assert "nothing left to train: 8 steps are done" in ended.out
    assert_same_end(tmp_path / "whole", tmp_path / "again")


def test_a_run_that_has_ended_goes_on_when_it_may_take_more_steps(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """The schedule is constant, else it would have been another one from the beginning."""
    constant = ["--model.schedule=constant", "--model.warmup=2"]
    assert forks.run(fit("whole", *constant), tmp_path).code == 0
    for steps in (3, 7, 9):  # within an epoch, at its end, to the end
        words = fit("parts", *constant, "--resume=auto", f"--trainer.max_steps={steps}")
        assert forks.run(words, tmp_path).code == 0
    first, second = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert first["global_step"] == second["global_step"] == 9
    for name, weight in first["state_dict"].items():
        assert weight.equal(second["state_dict"][name]), name
