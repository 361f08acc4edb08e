"""The page of runs as text, the numbers behind it, and the verb that writes it."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from orpo_lightning.__main__ import main
from orpo_lightning.commands.report import HELP
from orpo_lightning.commands.words import Words
from orpo_lightning.observing.comparison import comparison
from orpo_lightning.observing.defaults import defaults
from orpo_lightning.observing.run_files import flat, read_run, values
from orpo_lightning.observing.summary import changed, margins, summary
from orpo_lightning.pages.lines import LOOKS
from orpo_lightning.pages.report_page import figures, headline, latest, report_page
from orpo_lightning.pages.usage import usage
from tests.readme import COMMANDS
from tests.run_folder import Row, config, curves, pairs, record, samples, write_run
from tests.test_pages import PAYLOADS, Page, with_strings

FILES = ("curves", "pairs", "config", "record", "samples", "adapter")


def page_of(*folders: Path, **defaults: Any) -> Page:
    runs = [read_run(folder) for folder in folders]
    compared = comparison(runs) if len(runs) > 1 else None
    return Page(report_page(runs, [summary(run, defaults) for run in runs], compared))


def test_the_page_says_what_happened_first_and_has_every_part(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "good"))
    text = page.text
    places = [
        text.index(words)
        for words in (
            "Preferences are learned.",
            "Held-out accuracy 0.490 → 0.820",
            "Log-probability of a token",
        )
    ]
    assert places == sorted(places)
    for words in (
        *("Under the base model", "An answer after step 100.", "step 12: loss 9.1, usual is 3"),
        *("identical answers: 12; pair longer than max_length: 3", "Pairs a second", "model.quantization"),
        *(
            "PeftModel.from_pretrained(base",
            "vllm serve example/tiny-7b --enable-lora",
            "2026-11-25 10:00:00",
        ),
    ):
        assert words in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {str(link).removeprefix("#") for link in links} <= {*ids, "main"}


@pytest.mark.parametrize("count", [1, 5])
def test_any_of_the_files_may_be_missing(tmp_path: Path, count: int) -> None:
    for number, missing in enumerate(itertools.combinations(FILES, count)):
        folder = write_run(tmp_path / str(number), **dict.fromkeys(missing))
        if count == 5 and "adapter" not in missing:
            continue  # a folder of weights alone is no run
        text = page_of(folder).text
        assert "None" not in text
        assert "Undefined" not in text
        assert ("At the end:" in text) == ("curves" not in missing)


def test_files_that_a_kill_cut_short_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "killed")
    for name in ("curves.jsonl", "samples.jsonl", "pairs.npz", "record.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - 20])
    text = page_of(folder).text
    assert "pairs.npz cannot be read" in text
    assert "At the end:" in text


def test_an_older_runs_curves_come_from_its_event_files_and_the_page_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old", **dict.fromkeys(("curves", "pairs", "record", "samples")))
    writer = SummaryWriter(str(folder / "tb"))
    for row in curves():
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, row["step"])
    writer.close()
    page = page_of(folder)
    assert "the curves are those of TensorBoard's event files" in page.text
    assert "Preferences are learned." in page.text
    loss = values(read_run(folder), "val/loss")
    assert [one.step for one in loss] == [25, 50, 75, 100]
    assert loss[-1].low == pytest.approx(1.3)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_whatever_stands_in_a_run_is_text_on_its_page(tmp_path: Path, payload: str) -> None:
    def planted(text: str) -> str:
        return f"{text}{payload}"

    clean = page_of(write_run(tmp_path / "clean"))
    answers = [
        {key: planted(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in samples()
    ]
    facts = with_strings(record(), planted)
    facts["data"]["train"]["left_out"] = {planted("reason"): 3}
    name = planted("run").replace("/", "")
    settings = config(base_model=planted("base"), lora_targets=[planted("q_proj")])
    page = page_of(
        write_run(tmp_path / name, samples=answers, record=facts, config=settings, adapter=True),
        write_run(tmp_path / "other"),
    )
    assert payload in page.text
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"nav", "h4"}
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_secrets_of_a_configuration_are_masked_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "good")
    assert "hf_0123456789abcdef0123" in (folder / "config.yaml").read_text()
    html = report_page([read_run(folder)], [summary(read_run(folder), {})])
    assert "0123456789abcdef" not in html


def test_settings_that_are_not_the_defaults_come_with_these() -> None:
    defaults = {"model.lora_r": 16, "model.optimizer.init_args.lr": 5e-5, "save_every": 50}
    found = changed(config(lora_r=64, dropout=None), defaults)
    assert found["model.lora_r"] == {"value": 64, "default": 16}
    assert found["model.optimizer.init_args.lr"] == {"value": 1e-3, "default": 5e-5}
    assert found["model.base_model"] == {"value": "example/tiny-7b"}
    assert {"save_every", "run_dir", "model.dropout"} & found.keys() == set()


def test_of_a_configuration_only_what_it_sets_itself_differs_from_the_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    assert main(["fit", "--config", str(file), "--print_config"]) == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    set_here = flat(yaml.safe_load(file.read_text(encoding="utf-8")))
    found = changed(whole, defaults())
    assert len(flat(whole)) > 100
    # The configuration sets some keys to what they are anyway.
    assert found.keys() <= set_here.keys()
    assert found["model.optimizer.init_args.lr"] == {"value": 1e-3, "default": 5e-5}
    assert found["model.quantization"] == {"value": "nf4", "default": "none"}
    assert len(found) >= 15


def test_histograms_of_margins_hold_every_pair_over_the_same_bars() -> None:
    content = pairs()
    content["chosen"][0] = 30.0  # far out: it must not squeeze the rest into one bar
    content["base_chosen"][1] = np.nan
    found = margins(content)
    assert found is not None
    assert sum(found["counts"]["now"]) == 200
    assert sum(found["counts"]["base"]) == 199
    assert len(found["edges"]) < 60
    assert 0.0 in found["edges"]
    assert max(found["counts"]["now"]) < 60
    assert margins(None) is None


@pytest.mark.parametrize(
    ("kinds", "how", "expected"),
    [
        (["learning"], "completed", ("passed", "Preferences are learned.")),
        (["displacement", "learning"], "completed", ("remarks", "Preferences are learned, and both answers")),
        (["reversed labels"], "completed", ("failed", "Training pairs and held-out pairs")),
        (["learning"], "stopped", ("remarks", "The run was stopped at step 7.")),
        (["learning"], "failed: no space", ("failed", "The run failed.")),
        (["diverging"], "failed: no finite gradient", ("failed", "The run diverged.")),
        ([], None, ("remarks", "Too little was logged")),
    ],
)
def test_the_headline_is_the_worst_that_is_known(
    kinds: list[str], how: str | None, expected: tuple[str, str]
) -> None:
    found = headline({"findings": [{"kind": kind} for kind in kinds], "how": how, "steps": 7})
    assert found[0] == expected[0]
    assert found[1].startswith(expected[1])


def test_the_use_of_an_adapter_is_told_with_the_runs_own_names(tmp_path: Path) -> None:
    def lines(**changes: Any) -> str:
        folder = write_run(tmp_path / "my run", config=config(**changes))
        return json.dumps(usage(read_run(folder)), ensure_ascii=False)

    usual = lines(lora_r=24)
    assert "--max-lora-rank 32" in usual
    assert f"orpo-lightning chat '{tmp_path}/my run'" in usual
    assert "--revision v1" in lines(revision="v1")
    assert 'revision=\\"v1\\")' in lines(revision="v1")
    assert "merge first" in lines(lora_variant="dora")
    assert "AutoModelForCausalLM.from_pretrained(" in lines(lora_r=0)
    assert "PeftModel" not in lines(lora_r=0)
    assert usage(read_run(write_run(tmp_path / "none", config=None))) == {}


def test_the_commands_that_the_page_names_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    understood: list[str] = []

    def parse(self: Words, *args: Any, **named: Any) -> None:
        words(self, *args, **named)
        understood.append(self.prog)
        raise SystemExit(0)

    words = Words.parse_args
    monkeypatch.setattr(Words, "parse_args", parse)
    named = usage(read_run(write_run(tmp_path / "my run")))["commands"]
    lines = [line for _, line in named if line.startswith("orpo-lightning ")]
    assert [main(shlex.split(line)[1:]) for line in lines] == [0] * len(lines)
    assert understood == [f"orpo-lightning {verb}" for verb in ("chat", "generate", "evaluate", "merge")]


def test_figures_are_of_the_pairs_that_the_verdict_is_of(tmp_path: Path) -> None:
    whole = {"step": 100, "val_full/loss": 1.77, "val_full/rewards/accuracies": 0.811}
    earlier = {**whole, "step": 50}
    for name, more, expected in (("all", whole, "0.811"), ("sample", earlier, "0.93")):
        run = read_run(write_run(tmp_path / name, curves=[*curves(), more]))
        shown = dict(figures(summary(run, {}), run))
        assert shown["accuracy, held out"] == expected
        assert shown["loss, held out"] == ("1.77" if name == "all" else "1.4")


def test_answers_to_other_prompts_of_before_a_resume_are_no_earlier_answers_of_these() -> None:
    before = [{**row, "prompt": f"old {row['prompt']}"} for row in samples()[:3]]
    before.append({**before[0], "index": 3, "prompt": "a fourth"})
    shown = latest([*before, *samples()[3:], *({**row, "step": 150} for row in samples()[3:])])
    assert [one["prompt"] for one in shown] == [row["prompt"] for row in samples()[:3]]
    assert [[step for step, _ in one["earlier"]] for one in shown] == [[100]] * 3
    assert {one["step"] for one in shown} == {150}
    assert latest([]) == []


# Several runs


def two(tmp_path: Path, **second: Any) -> tuple[Path, Path]:
    return write_run(tmp_path / "one"), write_run(tmp_path / "two", **second)


def test_runs_are_compared_pair_by_pair_on_the_pairs_they_share(tmp_path: Path) -> None:
    # The second run saw the pairs in another order, and half of them are others.
    other = pairs(moved=(0.3, -0.8), seed=0)
    order = np.random.default_rng(0).permutation(200)
    other = {
        name: value[order] if np.ndim(value) and len(value) == 200 else value for name, value in other.items()
    }
    kept = slice(0, 100)
    other = {
        name: value[kept] if np.ndim(value) and len(value) == 200 else value for name, value in other.items()
    }
    one, second = two(tmp_path, pairs=other)
    (found,) = comparison([read_run(one), read_run(second)])["paired"]
    assert (found["pairs"], found["prompts"]) == (100, 100)
    first = pairs()
    at = [first["keys"].tolist().index(key) for key in other["keys"].tolist()]
    here = (first["chosen"] - first["rejected"])[at]
    there = other["chosen"] - other["rejected"]
    margin = found["measures"]["margin"]
    assert margin["difference"] == pytest.approx(float((there - here).mean()), abs=1e-5)
    assert margin["low"] < margin["difference"] < margin["high"]
    # Paired: far narrower than either margin is known.
    assert margin["high"] - margin["low"] < 0.2 * there.std() / 10 * 4
    accuracy = found["measures"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(float((there > 0).mean() - (here > 0).mean()))
    assert "two is better" in found["sentence"]


def test_runs_that_share_no_pairs_are_said_to(tmp_path: Path) -> None:
    for second in (pairs(first=10_000), None):
        found = comparison([read_run(folder) for folder in two(tmp_path, pairs=second)])["paired"][0]
        assert found["sentence"] == "two and one share no held-out pairs: nothing to compare pair by pair."
        assert found["pairs"] == 0


def test_a_difference_that_may_be_chance_is_said_to_be_none(tmp_path: Path) -> None:
    alike = pairs(moved=(0.1, -0.4), noise=0.1)
    alike["chosen"] += np.float32(1e-4)
    found = comparison([read_run(folder) for folder in two(tmp_path, pairs=alike)])["paired"][0]
    assert "no difference that these pairs could show" in found["sentence"]
    assert "the margin of two is wider" in found["sentence"]


def test_the_page_of_several_runs_sets_them_side_by_side(tmp_path: Path) -> None:
    changes = config(lora_r=64)
    page = page_of(*two(tmp_path, config=changes, curves=curves(seed=1)))
    assert "2 runs, each against one" in page.text
    assert "model.lora_r1664" in page.text
    assert "model.quantization" not in page.text.split("Settings that differ")[1].split("Curves")[0]
    tabs = [attributes for tag, attributes in page.elements if str(attributes.get("id")).endswith("-tab")]
    assert [tab["href"] for tab in tabs] == ["#run0", "#run1"]


def test_more_runs_than_lines_can_be_told_apart_are_drawn_in_part_and_said_to_be(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run-{number}") for number in range(LOOKS + 1)]
    page = page_of(*folders)
    assert f"Only the first {LOOKS} runs are drawn." in page.text
    assert "run-0 and 6 more runs" in page.text


# The verb


def test_the_page_of_one_run_goes_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "good")
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("good: learning: held-out accuracy")
    assert printed[-1] == f"report: {folder / 'report.html'}"
    assert "Preferences are learned." in unescape((folder / "report.html").read_text(encoding="utf-8"))


def test_out_takes_another_file_and_json_writes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(folder) for folder in two(tmp_path)]
    assert main(["report", *folders, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in numbers["runs"]] == ["one", "two"]
    assert numbers["runs"][0]["final"]["val/loss"]["high"] == pytest.approx(1.5)
    assert numbers["comparison"]["paired"][0]["pairs"] == 200
    assert list(tmp_path.rglob("*.html")) == []
    assert main(["report", *folders]) == 0
    assert Path("comparison.html").is_file()
    assert main(["report", folders[0], "--out", "deep/page.html"]) == 0
    assert Path("deep/page.html").is_file()


def test_the_examples_of_help_and_readme_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "mistral", "mistral-dora"):
        write_run(Path("runs") / name)
    examples = [line.strip() for line in HELP.partition("examples:\n")[2].splitlines()]
    of_readme = [line for line in COMMANDS if line.startswith("python -m orpo_lightning report ")]
    assert (len(examples), len(of_readme)) == (2, 1)
    for words in map(shlex.split, [*examples, *of_readme]):
        assert main(words[words.index("report") :]) == 0
    assert Path("runs/quickstart/report.html").is_file()
    assert "each against mistral" in Path("compare.html").read_text(encoding="utf-8")


def test_numbers_that_are_not_finite_are_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [*curves(), {"step": 105, "train/loss": "NaN", "train/grad_norm": "Infinity"}]
    assert main(["report", str(write_run(tmp_path / "bad", curves=rows)), "--json"]) == 0
    final = json.loads(capsys.readouterr().out)["runs"][0]["final"]
    assert final["train/loss"] == {"step": 105, "value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (lambda folder: [], "the following arguments are required: RUN"),
        (lambda folder: [str(folder)], "expected the folder of a run (config.yaml, curves.jsonl"),
        (lambda folder: [str(folder / "none")], "found no such folder"),
        (lambda folder: [str(folder), "--ouy", "x"], "unknown option --ouy: did you mean --out?"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, words: Callable[[Path], list[str]], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert len(printed.splitlines()) == 1
