"""Fixtures that every test may use."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clustertools import check as checking
from clustertools.host import Host, RecordedHost
from clustertools.model import Job, Verdict

pytest_plugins = ["tests.lab.no_silent_skips", "tests.lab.nvml"]
HOSTS = Path(__file__).parent / "hosts"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a child for each question, or tries hundreds of inputs, is left to `make test`."""
    for item in items:
        asks_nvml = "nvml_library" in getattr(item, "fixturenames", ())
        if asks_nvml or getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end_of_a_file() -> Iterator[None]:
    """A command that runs in the tests' own process leaves its stores to the garbage collector."""
    yield
    gc.collect()


@pytest.fixture
def run() -> Callable[..., Verdict]:
    """`run("gpu_ecc", host="h100-dbe-gpu3")`: one check on a folder of tests/hosts, or on any Host."""

    def run_check(
        name: str,
        host: str | Path | Host,
        *,
        limits: Any = None,
        expect: Mapping[str, Any] | None = None,
        past: Mapping[str, Any] | None = None,
        job: Job | None = None,
    ) -> Verdict:
        if isinstance(host, str):
            host = HOSTS / host
        if isinstance(host, Path):
            host = RecordedHost(host)
        found = checking.discover(site_folders=())
        return checking.run(found[name], host, limits=limits, expect=expect, past=past, job=job)

    return run_check
