"""Lightning callbacks of a preference run."""

from orpo_lightning.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint
from orpo_lightning.callbacks.export import AdapterExport
from orpo_lightning.callbacks.header import RunHeader
from orpo_lightning.callbacks.memory_report import MemoryReport
from orpo_lightning.callbacks.progress import PlainProgress

__all__ = [
    "AdapterExport",
    "BestCheckpoint",
    "MemoryReport",
    "PlainProgress",
    "ResumeCheckpoint",
    "RunHeader",
]
