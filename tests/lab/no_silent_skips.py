"""pytest plugin: under CI=true a skipped test is a failure, and what was not tested is said plainly.

A machine that lacks a component names it in CLUSTERTOOLS_MAY_SKIP, a list of words separated by commas: a
skip whose reason holds one of them (in any case) passes and is listed at the end as not tested.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TypeVar

import pytest

ALLOWED = "CLUSTERTOOLS_MAY_SKIP"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    long = report.longrepr
    text = long[2] if isinstance(long, tuple) else str(long)
    return text.removeprefix("Skipped: ")


def allowed_word(reason: str) -> str:
    """The word of the allow-list that excuses this skip; empty when none does."""
    words = (word.strip() for word in os.environ.get(ALLOWED, "").split(","))
    return next((word for word in words if word and word.lower() in reason.lower()), "")


def _judge(report: Report) -> Report:
    strict = os.environ.get("CI", "").lower() in ("1", "true")
    if strict and report.skipped and not hasattr(report, "wasxfail"):
        reason = _reason(report)
        if not allowed_word(reason):
            report.outcome = "failed"
            report.longrepr = (
                f"skipped, which is a failure under CI=true: {reason}\n"
                f"Install what is missing, or name it in {ALLOWED} if this machine cannot have it."
            )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judge((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judge((yield))


def _untested(reports: list[pytest.TestReport]) -> Iterator[str]:
    reasons: dict[str, int] = {}
    for report in reports:
        reasons[_reason(report)] = reasons.get(_reason(report), 0) + 1
    for reason, count in sorted(reasons.items()):
        yield f"NOT TESTED on this machine ({count}): {reason}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _untested(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)
