"""`export`: what a server needs: Ollama's Modelfile, vLLM's commands, a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orpo_lightning.using.serving import Served
    from orpo_lightning.using.trained import Trained

HELP = """usage: orpo-lightning export MODEL --out DIR [--gguf [TYPE]] [OPTIONS]

Writes DIR/USE.md: the commands that serve a model with vLLM, Ollama and llama.cpp, and what they do not take.
Of an adapter: vLLM's command, or why vLLM would refuse it. Of a merged model also DIR/Modelfile for Ollama,
with the chat template in Ollama's language, proved against the tokenizer's own, and every stop token; with
--gguf DIR/model.gguf, by llama.cpp's own converter. No weights of the base are loaded.

options:
  MODEL                   a run's folder, an adapter's, or a merged model's
  --out DIR               where the files go; must not be there yet
  --gguf [TYPE]           of a merged model: auto (default), f32, f16, bf16 or q8_0
  --converter FILE        convert_hf_to_gguf.py of llama.cpp (default: what is installed under that name)
  --base NAME             instead of the base that the adapter names
  --trust_remote_code     run Python code that comes with the model

examples:
  orpo-lightning export runs/quickstart --out served
  orpo-lightning export runs/quickstart/merged --out served --gguf
"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _export)


def _export(args: list[str]) -> int:
    from orpo_lightning.errors import UsageError
    from orpo_lightning.using.gguf import find_converter
    from orpo_lightning.using.trained import find

    options = _parse(args)
    folder = Path(options.out).expanduser()
    if folder.exists():
        raise UsageError(f"--out: {folder} is there already: name another folder, or remove it")
    trained = find(options.model, base=options.base, trust_remote_code=options.trust_remote_code)
    if options.gguf and trained.adapter is not None:
        raise UsageError(
            f"--gguf: {options.model} is an adapter: merge it first, `orpo-lightning merge {options.model} "
            "--out FOLDER`, and export that folder"
        )
    if options.gguf and not Path(trained.weights).expanduser().is_dir():
        raise UsageError(f"--gguf: expected the folder of a model, {options.model} is none here")
    converter = find_converter(options.converter) if options.gguf else []
    _write(trained, folder, options, converter)
    return 0


def _parse(args: list[str]) -> Any:
    from orpo_lightning.commands.words import Words
    from orpo_lightning.using.gguf import TYPES

    words = Words("export")
    words.add_argument("model", metavar="MODEL")
    words.add_argument("--out", required=True)
    words.add_argument("--gguf", nargs="?", const="auto", default=None, choices=TYPES)
    words.add_argument("--converter", default=None)
    words.add_argument("--base", default=None)
    words.add_argument("--trust_remote_code", action="store_true")
    return words.parse_args(args)


def _write(trained: Trained, folder: Path, options: Any, converter: list[str]) -> None:
    from orpo_lightning.masking import mask_text
    from orpo_lightning.using.gguf import convert
    from orpo_lightning.using.sealed_folder import staged
    from orpo_lightning.using.serving import use_md, vllm_refusals

    with staged(folder, "what is exported", "name a folder on another disk with --out") as staging:
        staging.mkdir(parents=True)
        if options.gguf:
            convert(converter, Path(trained.weights).expanduser(), staging / "model.gguf", options.gguf)
        served, missing = _serve(trained, folder, staging)
        (staging / "USE.md").write_text(use_md(served), encoding="utf-8")
    for reason in vllm_refusals(trained) if trained.adapter else []:
        print(f"{'vLLM':<14}does not load this adapter: {mask_text(reason)}")
    if missing:
        print(f"{'Ollama':<14}{missing}")
    print(f"{'written':<14}{', '.join(str(path) for path in sorted(folder.iterdir()))}")


def _serve(trained: Trained, folder: Path, staging: Path) -> tuple[Served, str]:
    """Write what the servers read; return it with its place in the end, and what is missing."""
    from orpo_lightning import modeling
    from orpo_lightning.using.adapters import check_on
    from orpo_lightning.using.model_limits import context_length_of, named_stop_ids, writable
    from orpo_lightning.using.ollama import modelfile
    from orpo_lightning.using.serving import Served
    from orpo_lightning.using.trained import generation_settings, tokenizer_of

    where: dict[str, Any] = {"revision": trained.revision, "trust_remote_code": trained.trust_remote_code}
    config, tokenizer = modeling.load_config(trained.base, **where), tokenizer_of(trained)
    settings = generation_settings(trained)
    stop_ids = sorted(named_stop_ids(tokenizer, settings, config))
    writable(settings, stop_ids).save_pretrained(staging)
    tokens = [str(tokenizer.convert_ids_to_tokens(token)) for token in stop_ids]
    if trained.adapter is not None:
        check_on(config, trained.adapter, trust_remote_code=trained.trust_remote_code)
    served = Served(trained, folder.absolute(), stop_ids, tokens)
    if trained.adapter is not None:
        return served, ""
    has_gguf, here = (staging / "model.gguf").is_file(), Path(trained.weights).expanduser()
    if not here.is_dir():
        fetch = f"`hf download {trained.weights} --local-dir FOLDER`"
        return served, f"takes weights that lie here, so no Modelfile is written: {fetch}, and export FOLDER"
    weights = "./model.gguf" if has_gguf else str(here.absolute())
    text, missing = modelfile(weights, tokenizer, stop_ids, context_length_of(config), settings)
    (staging / "Modelfile").write_text(text, encoding="utf-8")
    gguf = folder.absolute() / "model.gguf" if has_gguf else None
    return served._replace(modelfile=folder.absolute() / "Modelfile", gguf=gguf), missing
