"""`push`: an adapter or a merged model to the hub, with its card."""

from __future__ import annotations

from typing import Any

HELP = """usage: orpo-lightning push MODEL REPO_ID [--private] [--dry_run] [OPTIONS]

Sends an adapter or a merged model to a repository of the Hugging Face Hub, in one commit: the files that
SHA256SUMS names, each compared with its digest before, and a model card with settings, figures and their
intervals, versions, data, and the licences of base and data where they are known. A repository that is not
there is made; of one that is, files of the same name are replaced, and the commit before can be gone back to.
Nothing is sent anywhere without REPO_ID; --dry_run shows files and card and sends nothing. The token is that
of `hf auth login`, or HF_TOKEN.

options:
  MODEL                   a run's folder, an adapter's, or a merged model's
  REPO_ID                 OWNER/NAME
  --private               for a repository that is made: visible to its owner alone
  --dry_run               show files and card, send nothing
  --base HUB_ID           name this base in the adapter, in place of a folder here
  --trust_remote_code     run Python code that comes with the model

examples:
  orpo-lightning push runs/quickstart somebody/quickstart-orpo --private --dry_run --base somebody/tiny-base
  orpo-lightning push merged somebody/quickstart-orpo-merged --private
"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _push)


def _push(args: list[str]) -> int:
    from orpo_lightning.masking import mask_text
    from orpo_lightning.using.pushing import pack, send
    from orpo_lightning.using.trained import find

    options = _parse(args)
    trained = find(options.model, trust_remote_code=options.trust_remote_code)
    parcel = pack(trained, options.base)
    for name, size in parcel.sizes():
        print(f"{size:>15,} bytes  {name}")
    if parcel.note:
        print(mask_text(parcel.note))
    if options.dry_run:
        print(f"\n{mask_text(parcel.card)}\nnothing was sent: --dry_run")
        return 0
    what = "adapter" if trained.adapter else "model"
    address = send(
        parcel, options.repo_id, private=options.private, message=f"Upload {what} with orpo-lightning"
    )
    print(f"sent to {address}")
    return 0


def _parse(args: list[str]) -> Any:
    from orpo_lightning.commands.words import Words
    from orpo_lightning.errors import UsageError

    words = Words("push")
    words.add_argument("model", metavar="MODEL")
    words.add_argument("repo_id", metavar="REPO_ID")
    words.add_argument("--private", action="store_true")
    words.add_argument("--dry_run", action="store_true")
    words.add_argument("--base", default=None)
    words.add_argument("--trust_remote_code", action="store_true")
    options = words.parse_args(args)
    if options.repo_id.count("/") != 1 or not all(options.repo_id.split("/")):
        raise UsageError(f"REPO_ID: expected OWNER/NAME, found {options.repo_id!r}")
    return options
