"""What every command shares: the common options, colour, notes on stderr, one JSON object a line.

    @click.command(epilog=examples("clustertools status -w 5"))
    @common
    def status(out: Output) -> Status: ...

A command returns None, a Status or an exit code.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import click

from clustertools.model import Status
from clustertools.render.json_lines import SCHEMA, json_line

__all__ = ["SCHEMA", "Duration", "Output", "common", "examples", "exit_code", "json_line", "wants_color"]


class Duration(click.ParamType[float]):
    """`90s`, `5m`, `1h30m`: the same durations as in the config. Zero only where `zero` says so."""

    name = "duration"

    def __init__(self, *, zero: bool = True) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            from clustertools.config_units import parse_duration  # with decimal: no look needs it

            seconds = parse_duration(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)
        if not seconds and not self._zero:
            self.fail("must be more than nothing", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Output:
    """How one command talks: results on stdout, notes on stderr."""

    json: bool = False
    color: bool = False
    quiet: bool = False
    verbose: int = 0

    def line(self, text: str = "", *, flush: bool = False) -> None:
        """A line of the answer, for a person."""
        print(text, flush=flush)

    def record(self, kind: str, data: Mapping[str, Any] | Any, *, flush: bool = False) -> None:
        """One answer as a line of JSON: {"schema": 1, "kind": kind, ...}."""
        print(json_line(kind, data), flush=flush)

    def note(self, text: str) -> None:
        """A remark that is not the answer; `-q` leaves it out."""
        if not self.quiet:
            print(f"clustertools: {text}", file=sys.stderr)

    def detail(self, text: str) -> None:
        """A remark that only `-v` shows."""
        if self.verbose and not self.quiet:
            print(f"clustertools: {text}", file=sys.stderr)


def wants_color(stream: TextIO, no_color: bool = False, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour `stream`: `--no-color`, then NO_COLOR and FORCE_COLOR when set and not empty
    (no-color.org, force-color.org), then TERM=dumb, then whether it is a terminal."""
    if no_color or environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return environment.get("TERM") != "dumb" and stream.isatty()


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`, `--no-color`, `-q` and `-v`; the command gets them as `out`, an Output."""

    @click.option("--json", "json_", is_flag=True, help="One JSON object a line on stdout.")
    @click.option("--no-color", is_flag=True, help="No colour, whatever the terminal says.")
    @click.option("-q", "--quiet", is_flag=True, help="No notes on stderr.")
    @click.option("-v", "--verbose", count=True, help="More about how the answer came about.")
    @functools.wraps(function)
    def with_output(
        *args: Any, json_: bool, no_color: bool, quiet: bool, verbose: int, **options: Any
    ) -> Any:
        out = Output(json_, wants_color(sys.stdout, no_color) and not json_, quiet, verbose)
        return function(*args, out=out, **options)

    return with_output


def examples(*lines: str) -> str:
    """The end of a command's help: command lines as they are, not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def exit_code(status: Status) -> int:
    """0 fine, 1 warning, 2 critical, 3 unknown."""
    return status.exit_code
