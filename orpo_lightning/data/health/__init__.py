"""What is in the data before it is trained on: counted over all pairs at once, judged by stated limits."""

from orpo_lightning.data.health.epoch import EpochPlan
from orpo_lightning.data.health.facts import gather
from orpo_lightning.data.health.report import examine
from orpo_lightning.data.health.split import Rules, SplitFacts
from orpo_lightning.data.health.words import brief, summary

__all__ = ["EpochPlan", "Rules", "SplitFacts", "brief", "examine", "gather", "summary"]
