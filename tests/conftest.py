"""Fixtures that every test may use."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from clustertools import check as checking
from clustertools import host as hosts
from clustertools.host import Host, RecordedHost
from clustertools.model import Job, Verdict

pytest_plugins = ["tests.lab.no_silent_skips", "tests.lab.nvml"]
HOSTS = Path(__file__).parent / "hosts"
#: Files whose tests start many children, or simulate whole clusters: a third of the time of all fast ones.
LEFT_TO_MAKE_TEST = frozenset(
    {
        "test_bounded", "test_cli_run", "test_hanging_files", "test_isolate", "test_isolate_paths",
        "test_job_looks", "test_local", "test_looking", "test_preflight_fleet", "test_rank_files",
        "test_scheduler_protocol", "test_shipping", "test_ssh", "test_ssh_trouble", "test_tools",
        "test_world",
    }
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a child for each question, or tries hundreds of inputs, is left to `make test`."""
    for item in items:
        asks_nvml = "nvml_library" in getattr(item, "fixturenames", ())
        tries_hundreds = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if asks_nvml or tries_hundreds or item.path.stem in LEFT_TO_MAKE_TEST:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was collected stays to the end: no garbage, so not looked through after every file."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _recordings_are_parsed_once() -> Iterator[None]:
    """Hundreds of tests look at the same recorded hosts, which no test changes."""
    parse = hosts.load_yaml
    once = functools.lru_cache(maxsize=None)(parse)
    hosts.load_yaml = lambda path: (once if HOSTS in path.parents else parse)(path)
    yield
    hosts.load_yaml = parse


@functools.lru_cache(maxsize=1)
def _checks() -> Mapping[str, checking.Check]:
    return checking.discover(site_folders=())


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
        return checking.run(_checks()[name], host, limits=limits, expect=expect, past=past, job=job)

    return run_check
