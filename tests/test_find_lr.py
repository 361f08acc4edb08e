"""`find-lr`: the curve it reads, the ramp it trains, and what it leaves behind: nothing."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest

from orpo_lightning import __main__ as front
from orpo_lightning.callbacks.rate_ramp import RateRamp
from orpo_lightning.commands.find_lr import _report
from orpo_lightning.errors import UsageError
from orpo_lightning.rate_curve import smooth, suggest

ROOT = Path(__file__).parent.parent
STEPS = 100
RATES = [1e-6 * 10 ** (6 * step / (STEPS - 1)) for step in range(STEPS)]


def losses(noise: float = 0.0, *, falls: float = 1.0, diverges: bool = True) -> list[float]:
    """Return a loss that falls fastest at 1e-4, is lowest about 1e-3 and grows beyond 1e-2."""
    draw = random.Random(0)
    found = []
    for rate in RATES:
        place = math.log10(rate)
        loss = 3 - falls / (1 + math.exp(-4 * (place + 4)))
        loss += 100 ** (place + 1.5) if diverges else 0
        found.append(loss + draw.gauss(0, noise))
    return found


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_the_suggestion_is_where_the_loss_falls_fastest_also_under_noise(noise: float) -> None:
    found = suggest(RATES, losses(noise))
    assert found.rate is not None
    assert 3e-5 <= found.rate <= 3e-4
    assert found.reason == "the loss falls fastest there"
    assert found.diverged is not None
    assert 2e-2 <= found.diverged <= 2e-1
    assert found.rate < found.lowest < found.diverged


def test_smoothing_does_not_shift_the_curve() -> None:
    fits = smooth(RATES, losses())
    middle = min(fits, key=lambda fit: abs(fit.loss - 2.5))
    assert 7e-5 <= middle.rate <= 1.4e-4


def test_a_loss_that_falls_by_its_noise_alone_suggests_nothing() -> None:
    found = suggest(RATES, losses(0.1, falls=0.0, diverges=False))
    assert found.rate is None
    assert "more --steps" in found.reason


def test_a_steep_fall_next_to_divergence_is_kept_away_from() -> None:
    curve = [3.0 if rate < 1e-3 else 3 - 2 * math.log10(rate / 1e-3) for rate in RATES]
    wild = next(place for place, rate in enumerate(RATES) if rate > 5e-3)
    curve[wild:] = [50.0] * (STEPS - wild)
    found = suggest(RATES, curve)
    assert found.diverged == RATES[wild]
    assert found.rate == pytest.approx(RATES[wild] / 10)


def test_one_easy_pair_among_noisy_ones_is_no_level_that_others_diverge_from() -> None:
    curve = losses(0.1)
    curve[3] = 0.4
    found = suggest(RATES, curve)
    assert found.diverged is not None
    assert 2e-2 <= found.diverged <= 2e-1


def climbed(curve: list[float]) -> RateRamp:
    """Return a ramp that was told these losses, until it asked to stop."""
    trainer: Any = SimpleNamespace(
        global_step=0,
        callback_metrics={},
        should_stop=False,
        optimizers=[SimpleNamespace(param_groups=[{"initial_lr": 1.0, "lr": 1.0}])],
    )
    ramp, module = RateRamp(1e-6, 1.0, STEPS), lightning.LightningModule()
    ramp.on_train_start(trainer, module)
    for step, loss in enumerate(curve):
        ramp.on_train_batch_start(trainer, module, None, step)
        if trainer.should_stop:
            break
        trainer.callback_metrics["train/loss"] = loss
        trainer.global_step = step + 1
    ramp.on_train_end(trainer, module)
    return ramp


def test_a_ramp_of_noisy_losses_goes_on_until_they_diverge() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        noisy = [max(0.1, dice.gauss(1.5, 0.5)) for _ in RATES]
        noisy[3] = 0.2  # one easy pair
        assert len(climbed(noisy).losses) == STEPS
        wild = noisy[:70] + [10 + loss for loss in noisy[70:]]
        assert 71 <= len(climbed(wild).losses) <= 75


def test_too_few_finite_losses_are_told_with_the_step_and_its_learning_rate() -> None:
    for curve, words in (
        ([2.0] * 4 + [math.nan] * 6, "found 4: that of step 5, at learning rate 1.7e-06, is not finite"),
        ([2.0] * 7, "found 7: training ended after 7 of 100, at learning rate 2.7e-06; take a smaller --low"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            _report(climbed(curve))


def test_a_few_noisy_steps_suggest_nothing_by_chance() -> None:
    rates = [1e-6 * 10 ** (6 * step / 11) for step in range(12)]
    suggested = 0
    for seed in range(400):
        dice = random.Random(seed)
        suggested += suggest(rates, [dice.gauss(2, 0.3) for _ in rates]).rate is not None
    assert suggested <= 12  # three in a hundred


def test_what_is_not_finite_has_diverged() -> None:
    curve = losses(diverges=False)
    curve[80:] = [math.nan] * 20
    assert suggest(RATES, curve).diverged == RATES[80]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[float]], Path, list[str]]:
    """Run it on the quickstart's model, beside a run's folder; return what it says, the folder, its files."""
    folder = tmp_path_factory.mktemp("find")
    run = folder / "runs" / "quickstart" / "checkpoints"
    run.mkdir(parents=True)
    (run / "last.ckpt").write_text("of an earlier run")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "configs").symlink_to(ROOT / "configs")
    words = ["find-lr", "--config", "configs/quickstart.yaml", "--out", "rates", "--steps", "24"]
    words += ["--low", "1e-5", "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2"]
    before = digests()
    try:
        assert front.main([*words, "--model.quantization", "none"]) == 0
    finally:
        patch.undo()
    assert digests() == before, "the base is as it was"
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return json.loads((folder / "rates" / "find-lr.json").read_text()), folder, files


def digests() -> list[str]:
    files = sorted((ROOT / "configs" / "quickstart" / "model").iterdir())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_it_trains_with_a_rising_rate_and_its_loss_rises_in_the_end(
    found: tuple[dict[str, list[float]], Path, list[str]],
) -> None:
    report = found[0]
    rates, seen = report["rates"], [float(loss) for loss in report["losses"]]
    assert len(rates) == len(seen)
    assert 10 <= len(seen) <= 24
    factors = [after / before for before, after in pairwise(rates)]
    assert max(factors) == pytest.approx(min(factors))
    assert rates[0] == pytest.approx(1e-5)
    assert not seen[-1] <= 1.5 * seen[0], "a learning rate near 1 ruins any model"


def test_it_leaves_nothing_but_what_it_was_asked_for(
    found: tuple[dict[str, list[float]], Path, list[str]],
) -> None:
    left = {name for name in found[2] if not name.startswith(("cache/", "configs/"))}
    assert left == {"rates/find-lr.html", "rates/find-lr.json", "runs/quickstart/checkpoints/last.ckpt"}
    assert (found[1] / "runs/quickstart/checkpoints/last.ckpt").read_text() == "of an earlier run"


def test_its_json_is_json_alone_and_a_wrong_range_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = ["find-lr", "--config", "configs/quickstart.yaml", "--model.quantization", "none", "--json"]
    assert front.main([*words, "--steps", "12", "--data.batch_size", "2"]) == 0
    assert {"rates", "losses", "smoothed", "suggestion"} == set(json.loads(capsys.readouterr().out))
    assert front.main([*words, "--low", "1", "--high", "0.1"]) == 2
    assert "expected low below high" in capsys.readouterr().err
