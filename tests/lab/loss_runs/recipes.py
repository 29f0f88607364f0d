"""All runs: what is trained, how it is logged, and what goes wrong in it."""

from __future__ import annotations

from tests.lab.loss_runs.recipes_score import SCORE
from tests.lab.loss_runs.recipes_tune import TUNE
from tests.lab.loss_runs.training import Recipe

RECIPES: tuple[Recipe, ...] = (*TUNE, *SCORE)
