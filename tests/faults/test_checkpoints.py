"""Checkpoints that are damaged, of another run, cut short or never finished."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Ended, Forks, assert_equal, curves, load, strike

from orpo_lightning.checkpoint_files import read_checkpoint, write_checkpoint
from orpo_lightning.errors import CheckpointError, SurroundingsError
from orpo_lightning.full_disk import check_room
from orpo_lightning.resuming import is_unlogged

Fit = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def saved(fit: Fit, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with last.ckpt (step 4) and previous.ckpt (step 3)."""
    folder = tmp_path_factory.mktemp("saved")
    ended = forks.run(fit("run", "--trainer.max_steps=4"), folder)
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder."""
    return shutil.copytree(saved, tmp_path / "run")


def refused(ended: Ended) -> str:
    """Return the one line with which a checkpoint was refused."""
    assert ended.code == 4, ended.err
    (line,) = ended.err.splitlines()
    return line


def damage(path: Path, how: str) -> None:
    """Damage a file."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "a flipped bit":
        # In the middle of a tensor: torch's own reader takes it.
        tensor = next(iter(read_checkpoint(path)["state_dict"].values())).numpy().tobytes()
        middle = content.index(tensor) + len(tensor) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"x" * 999}[how]
        )


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "garbage", "a flipped bit"])
def test_a_damaged_checkpoint_that_is_named_is_refused_with_the_newest_intact_one(
    how: str, run: Path, fit: Fit, forks: Forks
) -> None:
    damage(run / "checkpoints" / "last.ckpt", how)
    line = refused(forks.run(fit("run", "--resume=run/checkpoints/last.ckpt"), run.parent))
    assert "run/checkpoints/last.ckpt" in line
    assert "run/checkpoints/previous.ckpt" in line
    assert "weights_only" not in line


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "garbage", "a flipped bit"])
def test_auto_walks_back_to_the_newest_intact_checkpoint_and_says_so(
    how: str, run: Path, saved: Path, fit: Fit, forks: Forks
) -> None:
    damage(run / "checkpoints" / "last.ckpt", how)
    ended = forks.run(fit("run", "--trainer.max_steps=4", "--resume=auto"), run.parent)
    assert ended.code == 0, ended.err
    assert "weights from    run/checkpoints/previous.ckpt" in ended.out
    assert how == "missing" or "warning: checkpoint run/checkpoints/last.ckpt is damaged" in ended.out
    assert_equal(load(saved)["state_dict"], load(run)["state_dict"], "weights")


def test_auto_stops_where_no_checkpoint_is_intact(run: Path, fit: Fit, forks: Forks) -> None:
    for path in (run / "checkpoints").iterdir():
        damage(path, "truncated")
    line = refused(forks.run(fit("run", "--resume=auto"), run.parent))
    assert "none of the checkpoints in run/checkpoints is intact" in line


def test_a_checkpoint_without_digest_is_refused(run: Path, fit: Fit, forks: Forks) -> None:
    torch.save(load(run), run / "stock.ckpt")
    content = torch.load(run / "stock.ckpt", weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "digest"}, run / "stock.ckpt")
    assert "holds no digest" in refused(forks.run(fit("run", "--resume=run/stock.ckpt"), run.parent))


def test_of_a_thousand_flipped_bits_none_is_accepted_with_changed_values(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    small = ["--model.lora_targets=[q_proj]", "--model.lora_r=2", "--trainer.max_steps=2"]
    assert forks.run(fit("run", *small), tmp_path).code == 0
    whole, damaged = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "damaged.ckpt"
    wanted, content = read_checkpoint(whole), whole.read_bytes()
    draw, accepted = random.Random(0), 0
    for _ in range(1000):
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            found = read_checkpoint(damaged)
        except CheckpointError:
            continue
        accepted += 1  # in the padding between two tensors
        assert_equal(wanted, found, f"byte {place}, bit {bit}")
    assert accepted < 500


def test_of_fifty_processes_killed_while_saving_each_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    draw = random.Random(0)
    for count in range(50):
        child = os.fork()
        if child == 0:
            for number in range(100 * count, 100 * count + 100):
                write_checkpoint({"state_dict": {"w": torch.full((40_000,), float(number))}}, path, previous)
            os._exit(0)
        time.sleep(draw.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = [read_checkpoint(one)["state_dict"]["w"] for one in (path, previous) if one.exists()]
        assert there or count == 0
        for weights in there:
            assert weights.unique().numel() == 1
    write_checkpoint({"state_dict": {}}, path, previous)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.lora_r=8"], "model.lora_r 4 became 8"),
        (["--model.lora_targets=[q_proj,v_proj]"], "model.lora_targets"),
        (["--model.lora_alpha=32"], "model.lora_alpha 16 became 32"),
        (["--model.quantization=nf4"], "model.quantization none became nf4"),
        (["--model.lora_variant=rslora"], "model.lora_variant lora became rslora"),
        (
            ["--data.batch_size=4"],
            "batch_size 2 became 4, so 4 pairs in a step became 8; --data.changed_steps",
        ),
        (["--trainer.accumulate_grad_batches=3"], "accumulate 2 became 3"),
        (["--data.max_length=30", "--data.overlong=truncate"], "--data.changed_data accept"),
        (["--data.seed=7"], "seed 42 became 7"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    words: list[str], expected: str, run: Path, fit: Fit, forks: Forks
) -> None:
    assert expected in refused(forks.run(fit("run", "--resume=auto", *words), run.parent))


def test_every_difference_is_listed(run: Path, pairs: Path, fit: Fit, forks: Forks) -> None:
    words = ["--model.lora_r=8", "--trainer.accumulate_grad_batches=4", f"--data.train={pairs}/other.jsonl"]
    line = refused(forks.run(fit("run", "--resume=auto", *words), run.parent))
    assert "model.lora_r 4 became 8" in line
    assert "accumulate 2 became 4" in line
    assert f"{pairs}/other.jsonl: the training data differs from the checkpoint's" in line
    assert "--run_dir NEW" in line


def test_another_base_model_is_refused(run: Path, fit: Fit, forks: Forks) -> None:
    line = refused(forks.run(fit("run", "--resume=auto", "--model.base_model=owner/other"), run.parent))
    assert "became owner/other" in line


def test_a_checkpoint_that_lacks_adapters_is_refused(run: Path, fit: Fit, forks: Forks) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    content["state_dict"].pop(next(iter(content["state_dict"])))
    write_checkpoint(content, path)
    assert "is of another model or adapter" in refused(forks.run(fit("run", "--resume=auto"), run.parent))


def test_a_checkpoint_that_stands_within_a_step_is_refused(run: Path, fit: Fit, forks: Forks) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    assert content["PreferenceDataModule"]["seen"] == 8
    content["PreferenceDataModule"]["seen"] = 7
    write_checkpoint(content, path)
    for words in ([], ["--data.changed_data=accept", "--data.changed_steps=accept"]):
        line = refused(forks.run(fit("run", "--resume=auto", *words), run.parent))
        assert (
            "within an optimizer step, 7 micro-batches into a pass over the data where 2 make a step" in line
        )
        assert "name another of the run's checkpoints with --resume" in line


@pytest.mark.parametrize("kind", ["SGD", "NAdam"])
def test_a_checkpoint_of_another_optimizer_is_refused(kind: str, run: Path, fit: Fit, forks: Forks) -> None:
    other = [f"--model.optimizer=torch.optim.{kind}", "--model.optimizer.lr=0.01"]
    line = refused(forks.run(fit("run", "--resume=auto", *other), run.parent))
    assert "model.optimizer torch.optim.adamw.AdamW became torch.optim." in line


def test_an_optimizer_that_keeps_the_same_state_goes_on_and_is_told(
    run: Path, fit: Fit, forks: Forks
) -> None:
    other = ["--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=0.01", "--trainer.max_steps=5"]
    ended = forks.run(fit("run", "--resume=auto", *other), run.parent)
    assert ended.code == 0, ended.err
    assert "model.optimizer torch.optim.adamw.AdamW became torch.optim.adam.Adam" in ended.out
    assert load(run)["global_step"] == 5


def test_a_checkpoint_that_does_not_name_its_optimizer_goes_on(run: Path, fit: Fit, forks: Forks) -> None:
    """As those of earlier versions."""
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    for key in ("optimizer", "trainer"):
        del content["orpo_lightning"][key]
    write_checkpoint(content, path)
    ended = forks.run(fit("run", "--resume=auto", "--trainer.max_steps=5"), run.parent)
    assert ended.code == 0, ended.err
    assert load(run)["global_step"] == 5


def test_what_the_command_line_says_of_the_trainer_is_told(run: Path, fit: Fit, forks: Forks) -> None:
    # With dtype auto the precision would decide the type of the base, which is part of the model.
    words = ["--trainer.max_steps=5", "--trainer.gradient_clip_val=0.5", "--trainer.precision=bf16-mixed"]
    words.append("--model.dtype=float32")
    ended = forks.run(fit("run", "--resume=auto", *words), run.parent)
    assert ended.code == 0, ended.err
    told = (
        "dtype auto became float32",
        "gradient_clip_val None became 0.5",
        "max_steps 4 became 5",
        "precision 32-true became bf16-mixed",
    )
    assert f"changed since the checkpoint: {', '.join(told)}\n" in ended.out


def test_what_the_command_line_says_of_the_optimizer_wins_and_is_told(
    run: Path, fit: Fit, forks: Forks
) -> None:
    words = ["--model.optimizer.lr=0.002", "--model.optimizer.weight_decay=0.5", "--model.lora_dropout=0.2"]
    ended = forks.run(fit("run", "--resume=auto", "--trainer.max_steps=5", *words), run.parent)
    assert ended.code == 0, ended.err
    assert "changed since the checkpoint: lora_dropout 0.1 became 0.2" in ended.out
    assert "lr 0.01 became 0.002" in ended.out
    groups = load(run)["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {0.002}
    assert groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("split", [(1, 4), (4, 1)])
def test_another_split_of_the_same_steps_goes_on_when_that_is_accepted(
    split: tuple[int, int], fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """Without dropout the numbers are those of the whole run, to rounding."""
    calm = ["--model.lora_dropout=0", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    assert forks.run(fit("whole", *calm), tmp_path).code == 0
    assert forks.run(fit("run", *calm, *strike("on_train_batch_start", 3, "SIGTERM")), tmp_path).code == 143
    words = [
        f"--data.batch_size={split[0]}",
        f"--trainer.accumulate_grad_batches={split[1]}",
        "--resume=auto",
    ]
    assert "--data.changed_steps accept" in refused(forks.run(fit("run", *calm, *words), tmp_path))
    ended = forks.run(fit("run", *calm, *words, "--data.changed_steps=accept"), tmp_path)
    assert ended.code == 0, ended.err
    first, second = load(tmp_path / "whole"), load(tmp_path / "run")
    assert first["global_step"] == second["global_step"] == 9
    for name, weight in first["state_dict"].items():
        assert torch.allclose(weight, second["state_dict"][name], rtol=1e-4, atol=1e-5), name


def test_a_step_that_was_still_to_be_logged_is_logged_by_more_processes_than_took_it(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    calm = ["--model.lora_dropout=0", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    calm.append("--trainer.max_steps=6")
    assert forks.run(fit("whole", *calm), tmp_path).code == 0
    assert forks.run(fit("run", *calm, *strike("on_train_batch_start", 3, "SIGTERM")), tmp_path).code == 143
    assert is_unlogged(load(tmp_path / "run"))
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1"]
    words = fit("run", *calm, *two, "--data.changed_steps=accept", "--resume=auto")
    ended = forks.run_ranks(words, tmp_path, 2)
    assert [one.code for one in ended] == [0, 0], ended
    whole, found = (curves(tmp_path / name) for name in ("whole", "run"))
    for name in ("train/loss", "train/rewards/margins", "train/length/chosen", "train/grad_norm"):
        assert found[name] == pytest.approx(whole[name], rel=1e-4), name


def test_a_run_that_ended_is_exported_again_when_it_is_resumed(run: Path, fit: Fit, forks: Forks) -> None:
    shutil.rmtree(run / "adapter")
    ended = forks.run(fit("run", "--trainer.max_steps=4", "--resume=auto"), run.parent)
    assert ended.code == 0, ended.err
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_an_export_carries_the_digests_of_its_files(saved: Path) -> None:
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=saved / "adapter", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert named == {path.name for path in (saved / "adapter").iterdir()} - {"SHA256SUMS"}


def test_an_export_that_a_kill_cut_short_is_brought_back(run: Path, fit: Fit, forks: Forks) -> None:
    (run / "adapter-best").rename(run / ".adapter-best.old")
    ended = forks.run(fit("run", "--trainer.max_steps=4", "--resume=auto"), run.parent)
    assert ended.code == 0, ended.err
    assert (run / "adapter-best" / "adapter_model.safetensors").is_file()
    assert not (run / ".adapter-best.old").exists()


def test_a_second_run_in_the_folder_of_one_under_way_is_refused(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    first = forks.start(fit("run", "--trainer.max_steps=400"), tmp_path)
    first.wait_for("step 2/400")
    second = forks.run(fit("run", "--resume=auto"), tmp_path)
    first.send(signal.SIGTERM)
    assert first.wait().code == 143
    assert second.code == 2
    assert f"run is in use by process {first.pid} on " in second.err
    assert forks.run(fit("run", "--resume=auto", "--trainer.max_steps=1"), tmp_path).code == 0


def test_a_disk_without_room_for_the_checkpoints_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SurroundingsError, match=r"need 2\.0 MB, free are 1\.0 MB; make room, or set "):
        check_room(tmp_path / "not" / "there", 2 * 10**6)
    check_room(tmp_path, 10**5)


def test_an_interrupted_save_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(content: Any, stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    write_checkpoint({"state_dict": {"w": torch.zeros(1)}}, tmp_path / "last.ckpt")
    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({"state_dict": {"w": torch.ones(1)}}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["w"].item() == 0


def test_checkpoints_in_an_object_store_carry_a_digest_too() -> None:
    import fsspec

    from orpo_lightning.checkpoint_io import IntactCheckpointIO

    io, path = IntactCheckpointIO(), "memory://runs/last.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.arange(4.0)}}, path)
    assert torch.equal(io.load_checkpoint(path)["state_dict"]["w"], torch.arange(4.0))
    store = fsspec.filesystem("memory")
    with store.open(path, "rb") as stream:
        content = torch.load(stream, weights_only=True)
    content["state_dict"]["w"][0] = 1
    with store.open(path, "wb") as stream:
        torch.save(content, stream)
    with pytest.raises(CheckpointError, match="its digest differs"):
        io.load_checkpoint(path)


def test_best_and_last_are_files_of_their_own(saved: Path) -> None:
    names = sorted(path.name for path in (saved / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert {path.stat().st_mode & 0o777 for path in (saved / "checkpoints").iterdir()} == {0o644}
    assert [load(saved, name)["global_step"] for name in ("previous.ckpt", "last.ckpt")] == [3, 4]


def test_a_resumed_run_may_begin_from_the_best(run: Path, fit: Fit, forks: Forks) -> None:
    ended = forks.run(fit("run", "--resume=run/checkpoints/best.ckpt", "--trainer.max_steps=5"), run.parent)
    assert ended.code == 0, ended.err
