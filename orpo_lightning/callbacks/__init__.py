"""Lightning callbacks of a preference run."""

from orpo_lightning.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint
from orpo_lightning.callbacks.divergence_watch import DivergenceWatch
from orpo_lightning.callbacks.export import AdapterExport
from orpo_lightning.callbacks.finite_steps import FiniteSteps
from orpo_lightning.callbacks.header import RunHeader
from orpo_lightning.callbacks.lost_ranks import LostRanks
from orpo_lightning.callbacks.memory_report import MemoryReport
from orpo_lightning.callbacks.progress import PlainProgress
from orpo_lightning.callbacks.stopping import StopAtSignal
from orpo_lightning.callbacks.trial_watch import TrialWatch
from orpo_lightning.callbacks.weights_proof import WeightsProof

__all__ = [
    "AdapterExport",
    "BestCheckpoint",
    "DivergenceWatch",
    "FiniteSteps",
    "LostRanks",
    "MemoryReport",
    "PlainProgress",
    "ResumeCheckpoint",
    "RunHeader",
    "StopAtSignal",
    "TrialWatch",
    "WeightsProof",
]
