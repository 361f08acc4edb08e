"""Lightning's seam for checkpoint files, filled with files that cannot be half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from orpo_lightning.checkpoint_files import DIGEST, digest_of, read_checkpoint, verify, write_checkpoint
from orpo_lightning.masking import mask
from orpo_lightning.runfolder import LAST, PREVIOUS

_SETTINGS = ("hyper_parameters", "datamodule_hyper_parameters")


class IntactCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole, with a digest, and reads none that differs from its own.

    `last.ckpt` is kept as `previous.ckpt` when a new one takes its place. Paths of object stores (s3://,
    gs://) go through fsspec as in Lightning, with a digest too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file, whole or not at all, without the secrets among the settings.

        Raises:
            SurroundingsError: the disk is full.
        """
        checkpoint = {**checkpoint, **{key: mask(checkpoint[key]) for key in _SETTINGS if key in checkpoint}}
        if _is_remote(path):
            super().save_checkpoint({**checkpoint, DIGEST: digest_of(checkpoint)}, path, storage_options)
            return
        file = Path(path)
        write_checkpoint(checkpoint, file, file.with_name(PREVIOUS) if file.name == LAST else None)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a file; its pickled code is never run, whatever `weights_only` says.

        Raises:
            CheckpointError: it is missing, damaged or holds no digest.
        """
        if not _is_remote(path):
            return read_checkpoint(Path(path))
        content = super().load_checkpoint(path, weights_only=True)
        verify(content, path)
        return content


def _is_remote(path: Any) -> bool:
    return "://" in str(path)
