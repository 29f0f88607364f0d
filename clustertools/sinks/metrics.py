"""Prometheus by way of node_exporter: the latest verdicts in a file, after every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clustertools.errors import DeliveryFailed, Unobservable
from clustertools.model import Verdict
from clustertools.sinks.standing import Standing


class MetricsSink:
    """Has `write(path, verdicts)` (`render.prometheus.write_textfile`) replace the file at `path`."""

    def __init__(
        self, path: str, write: Callable[[str, Sequence[Verdict]], None], *, name: str = "metrics"
    ) -> None:
        self.name = name
        self._path = path
        self._write = write

    def keep_up(self, standing: Standing, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the file. Raises DeliveryFailed; the old file is then still whole."""
        try:
            self._write(self._path, standing.verdicts())
        except Unobservable as exc:
            raise DeliveryFailed(str(exc)) from exc
        return memory
