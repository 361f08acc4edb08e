"""`evaluate`: judge what was trained, on held-out pairs, by answers, and on general text."""

from __future__ import annotations

import json
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning import __version__
from orpo_lightning.masking import mask_text

if TYPE_CHECKING:
    from argparse import Namespace

    from orpo_lightning.judging.evaluation import Asked, Said
    from orpo_lightning.judging.pairs import HeldOut
    from orpo_lightning.judging.verdicts import Judge
    from orpo_lightning.using.trained import Trained

HELP = """usage: orpo-lightning evaluate MODEL [--pairs SOURCE ...] [--against OTHER] [--judge JUDGE]

Judges a model on held-out pairs: preference accuracy by source, length and agreement, margins, calibration;
with --judge on answers that it writes, with --canary on general text. Of a run or an adapter, base and
adapter are compared, the base in memory once. Every figure has its 95 % interval. docs/evaluate.md

MODEL is a run's folder, an adapter's, a whole model's, or a hub id.

options:
  --pairs SOURCE ...    pairs to judge on (files, folders, hub ids); left out: the run's data.test, else
                        all of its data.validation
  --max_length N        most tokens of prompt and answer (default: the run's, else 1024)
  --batch_size N        pairs in a batch (default: as in the run's validation)
  --against OTHER       another model, scored on the same pairs after MODEL
  --canary FILE         text (paragraphs) or .jsonl (rows with text), whose perplexity is measured; general:
                        a dozen short texts of ours
  --samples N           show N prompts with the answers of each model
  --judge JUDGE         a reward model (folder or hub id), or the URL of an OpenAI-compatible endpoint
  --judge_model NAME    the model at that endpoint
  --judge_key_env NAME  the environment variable with the key (default: OPENAI_API_KEY, where it is set)
  --judge_prompts N     how many prompts are answered and judged (default: 100)
  --judge_parallel N    questions to the endpoint at a time (default: 4)
  --judge_timeout S     seconds that one of them may take (default: 120)
  --max_new_tokens N    most tokens of an answer (default: 256)
  --out DIR             folder of evaluation.html, evaluation.json, answers.jsonl and verdicts.jsonl
                        (default: RUN/evaluation, and the numbers in RUN/evaluation.json; of another adapter
                        of the run evaluation-NAME for both; of a model without a run ./evaluation/MODEL,
                        and ./evaluation/MODEL.json)
  --json                print evaluation.json, and nothing else
  --base NAME           the adapter's base, instead of the one that it names
  --quantization KIND   of the base: none, nf4, int8 (default: as it was trained)
  --accelerator KIND    cpu, cuda, mps (default: auto)
  --trust_remote_code   run Python code that comes with a model

Answers and verdicts are kept as they come: the same command goes on after a kill.

examples:
  orpo-lightning evaluate runs/quickstart
  orpo-lightning evaluate runs/quickstart --samples 4 --max_new_tokens 40
  orpo-lightning evaluate runs/mistral --judge http://localhost:8000/v1 --judge_model qwen3-32b
  orpo-lightning evaluate runs/mistral --against runs/mistral/merged
  orpo-lightning evaluate owner/model --pairs pairs.jsonl --against owner/other --judge owner/reward-model
"""
_MEMORY = "set --batch_size (1 takes least), lower --max_length, or set --quantization nf4"
_COUNTS = ("max_length", "batch_size", "judge_prompts", "judge_parallel", "max_new_tokens")


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _evaluate, memory=_MEMORY)


def _options(args: list[str]) -> Namespace:
    from orpo_lightning.commands.words import Words
    from orpo_lightning.errors import UsageError

    words = Words("evaluate")
    words.add_model()
    words.add_argument("--pairs", nargs="+", default=None)
    for name in ("against", "canary", "judge", "judge_model", "judge_key_env", "out"):
        words.add_argument(f"--{name}", default=None)
    for name, default in (("max_length", None), ("batch_size", None), ("samples", 0), ("judge_prompts", 100)):
        words.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("judge_parallel", 4), ("max_new_tokens", 256)):
        words.add_argument(f"--{name}", type=int, default=default)
    words.add_argument("--judge_timeout", type=float, default=120.0)
    words.add_argument("--json", action="store_true")
    options = words.parse_args(args)
    for name in _COUNTS:
        found = getattr(options, name)
        if found is not None and found < 1:
            raise UsageError(f"--{name}: expected 1 or more, found {found}")
    return options


def _evaluate(args: list[str]) -> int:
    from orpo_lightning.judging import words

    options = _options(args)
    report, folder = _report(args, options)
    files = _write(folder, _numbers(options, folder), report)
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    print(words.table(report))
    if report["samples"]:
        print(f"\n{words.samples(report)}")
    print(f"\nwritten to {', '.join(map(str, files))}\n{words.last_line(report)}")
    return 0


def _report(args: list[str], options: Namespace) -> tuple[dict[str, Any], Path]:
    """Return the content of evaluation.json, and the folder for it."""
    from orpo_lightning.judging.evaluation import AGAINST, ask, figures, samples, together
    from orpo_lightning.judging.kept import Kept
    from orpo_lightning.judging.pairs import held_out

    models = _models(options)
    weights = _digests(models[0])
    endpoint = _endpoint(options)
    held = held_out(models[0], options.pairs, options.max_length)
    if options.batch_size is not None:
        held.data.validation_batch_size = options.batch_size
    asked, folder = _asked(options, held), _folder(options, models[0])
    kept = Kept(folder / "answers.jsonl")
    said = ask(models[0], asked, kept, accelerator=options.accelerator)
    for other in models[1:]:
        said = together(said, ask(other, asked, kept, accelerator=options.accelerator, name=AGAINST))
    verdict = None if options.judge is None else _judged(options, endpoint, said, asked, folder)
    report = {
        "package": __version__,
        "created": datetime.now().isoformat(timespec="seconds"),
        "command": mask_text(f"evaluate {shlex.join(args)}"),
        "names": {"model": options.model, AGAINST: options.against},
        "weights": weights,
        "data": {"origin": held.origin, "name": held.pairs.name, "left_out": _left_out(held)},
        "settings": said.rows,
        **figures(said, asked),
        "judge": verdict,
        "samples": samples(said, asked.questions, options.samples),
    }
    return report, folder


def _models(options: Namespace) -> list[Trained]:
    """Return the model and the one to compare with, before anything of either is read."""
    from orpo_lightning.errors import UsageError
    from orpo_lightning.using.trained import find

    trust = {"trust_remote_code": options.trust_remote_code}
    first = find(options.model, base=options.base, quantization=options.quantization, **trust)
    if options.against is None:
        if options.judge is not None and first.adapter is None:
            raise UsageError("--judge: a whole model alone has no opponent: name one, --against")
        return [first]
    return [first, find(options.against, **trust)]


def _digests(trained: Trained) -> dict[str, str] | None:
    """Return the digests of a run's weights: its model card takes figures of the same ones alone."""
    from orpo_lightning.using.sealed_folder import digests_of_weights

    return None if trained.run is None else digests_of_weights(Path(trained.weights))


def _asked(options: Namespace, held: HeldOut) -> Asked:
    from orpo_lightning.judging.evaluation import Asked
    from orpo_lightning.judging.pairs import questions
    from orpo_lightning.observing.canary import read_texts, token_rows
    from orpo_lightning.using.generation import Sampling

    # Of four prompts in a row one is answered differently, or training has hardly changed anything.
    count = max(options.judge_prompts if options.judge else 0, 4 * options.samples)
    texts = token_rows(read_texts(options.canary), held.data.processor) if options.canary else ()
    sampling = Sampling(options.max_new_tokens).check()
    return Asked(held, questions(held, count) if count else (), sampling, texts)


def _endpoint(options: Namespace) -> Judge | None:
    """Return the judge where it is an endpoint, that it is there having been seen."""
    from orpo_lightning.errors import UsageError

    if options.judge is None or not options.judge.startswith(("http://", "https://")):
        return None
    if options.judge_model is None:
        raise UsageError("--judge_model: name the model that is to judge at the endpoint")
    if options.judge_key_env is not None and not os.environ.get(options.judge_key_env):
        raise UsageError(f"--judge_key_env: the environment variable {options.judge_key_env} is not set")
    from orpo_lightning.judging.endpoint import Endpoint
    from orpo_lightning.judging.exchange import Exchange

    key = os.environ.get(options.judge_key_env or "OPENAI_API_KEY") or None
    exchange = Exchange(options.judge, key, timeout=options.judge_timeout)
    exchange.probe()
    return Endpoint(exchange, options.judge_model, parallel=options.judge_parallel)


def _judged(
    options: Namespace, endpoint: Judge | None, said: Said, asked: Asked, folder: Path
) -> dict[str, Any]:
    from orpo_lightning.judging.evaluation import judged_pair
    from orpo_lightning.judging.kept import Kept
    from orpo_lightning.judging.reward import RewardModel
    from orpo_lightning.judging.verdicts import judged

    judge = endpoint or RewardModel(
        options.judge, accelerator=options.accelerator, trust_remote_code=options.trust_remote_code
    )
    pair = judged_pair(list(said.answers))
    assert pair is not None
    turns = [question.turns for question in asked.questions]
    return judged(judge, turns, said.answers, pair, Kept(folder / "verdicts.jsonl"))


def _left_out(held: HeldOut) -> dict[str, int]:
    report = held.data.preparation.report(held.split, held.pairs)
    return {reason: dropped.rows for reason, dropped in report.dropped.items()}


def _folder(options: Namespace, trained: Trained) -> Path:
    from orpo_lightning.using.model_files import evaluation_of

    if options.out:
        return Path(options.out).expanduser()
    if trained.run is None:
        return Path("evaluation") / Path(trained.name).name
    return trained.run / evaluation_of(trained.weights)


def _numbers(options: Namespace, folder: Path) -> Path:
    """Return where the numbers go: of a run beside its other files, where its model card looks for them."""
    return folder / "evaluation.json" if options.out else folder.with_name(f"{folder.name}.json")


def _write(folder: Path, numbers: Path, report: dict[str, Any]) -> list[Path]:
    """Write page and numbers; return the files."""
    from orpo_lightning.pages.evaluate_page import evaluate_page
    from orpo_lightning.pages.files import write_text

    page = folder / "evaluation.html"
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(numbers, text + "\n")
    write_text(page, evaluate_page(report))
    return [page, numbers]
