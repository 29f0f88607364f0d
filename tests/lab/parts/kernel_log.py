"""What outlives a reboot: nothing, on a node that did not panic."""

from __future__ import annotations

from collections.abc import Sequence

from clustertools.checks.host_panic import PLACES

from tests.lab.parts import Shape


def globs(shape: Shape) -> dict[str, Sequence[str]]:
    return dict.fromkeys(PLACES, ())


def absent(shape: Shape) -> list[str]:
    return ["/sys/fs/pstore/."]
