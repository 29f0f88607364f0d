"""The runs that detectors are scored on. Nobody tunes on them."""

from __future__ import annotations

from tests.lab.loss_runs.training import Recipe

SCORE: tuple[Recipe, ...] = ()
