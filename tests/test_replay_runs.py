"""Every recorded run: what must come out does, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clustertools.replay import replay

RUNS = sorted(path.parent for path in (Path(__file__).parent / "runs").glob("*/run.yaml"))


def modes(folder: Path) -> list[str | None]:
    """The modes that a recording has expectations for; None: its own."""
    expect = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8")).get("expect")
    return list(expect) if isinstance(expect, dict) else [None]


CASES = [pytest.param(f, mode, id=f"{f.name}-{mode or 'own'}") for f in RUNS for mode in modes(f)]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "mode"), CASES)
def test_what_must_come_out_does(folder: Path, mode: str | None):
    told = replay(folder, mode=mode)
    assert told.expected, "a recorded run says what must come out"
    assert told.problems == ()
    assert told.what
    assert told.passes > 1
