"""Lightning callbacks of a preference run."""

from orpo_lightning.callbacks.canary import Canary
from orpo_lightning.callbacks.checkpoints import BestCheckpoint, ResumeCheckpoint
from orpo_lightning.callbacks.displacement import Displacement
from orpo_lightning.callbacks.divergence_watch import DivergenceWatch
from orpo_lightning.callbacks.export import AdapterExport
from orpo_lightning.callbacks.finite_steps import FiniteSteps
from orpo_lightning.callbacks.header import RunHeader
from orpo_lightning.callbacks.lost_ranks import LostRanks
from orpo_lightning.callbacks.memory_report import MemoryReport
from orpo_lightning.callbacks.meters import Meters
from orpo_lightning.callbacks.plot_layout import PlotLayout
from orpo_lightning.callbacks.progress import PlainProgress
from orpo_lightning.callbacks.record_keeper import RecordKeeper
from orpo_lightning.callbacks.run_report import RunReport
from orpo_lightning.callbacks.samples import Samples
from orpo_lightning.callbacks.stopping import StopAtSignal
from orpo_lightning.callbacks.trial_watch import TrialWatch
from orpo_lightning.callbacks.validated_pairs import ValidatedPairs
from orpo_lightning.callbacks.verdict import Verdict
from orpo_lightning.callbacks.weights_proof import WeightsProof

__all__ = [
    "AdapterExport",
    "BestCheckpoint",
    "Canary",
    "Displacement",
    "DivergenceWatch",
    "FiniteSteps",
    "LostRanks",
    "MemoryReport",
    "Meters",
    "PlainProgress",
    "PlotLayout",
    "RecordKeeper",
    "ResumeCheckpoint",
    "RunHeader",
    "RunReport",
    "Samples",
    "StopAtSignal",
    "TrialWatch",
    "ValidatedPairs",
    "Verdict",
    "WeightsProof",
]
