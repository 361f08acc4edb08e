"""Losses over preference pairs."""

from orpo_lightning.objectives.base import Mean, Objective, ObjectiveOutput, Term
from orpo_lightning.objectives.orpo import ORPO

__all__ = ["ORPO", "Mean", "Objective", "ObjectiveOutput", "Term"]
