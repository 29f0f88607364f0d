"""Exit codes, lazy imports and the common options."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from clustertools import cli
from clustertools.cli import COMMANDS, main
from clustertools.cli.frame import Output, common, json_line, wants_color
from clustertools.errors import ConfigError, StoreError
from clustertools.model import Status


@pytest.mark.parametrize("target", [t for t, _ in COMMANDS.values()])
def test_every_command_exists(target):
    module, _, attribute = target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.help


@pytest.fixture
def command(monkeypatch):
    """Put a function in as the command `probe`."""

    def install(function):
        module = type(sys)("probe_command")
        module.probe = click.command("probe")(common(function))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setattr(cli, "COMMANDS", {**COMMANDS, "probe": ("probe_command:probe", "")})
        return main

    return install


@pytest.mark.parametrize(
    ("answer", "code"),
    [(None, 0), (Status.WARNING, 1), (Status.CRITICAL, 2), (Status.UNKNOWN, 3), (Status.SKIPPED, 0), (7, 7)],
)
def test_what_a_command_returns_is_the_exit_code(command, answer, code):
    assert command(lambda out: answer)(["probe"]) == code


def raising(exc: BaseException):
    def function(out: Output) -> None:
        raise exc

    return function


@pytest.mark.parametrize(
    ("exc", "code", "said"),
    [
        (ConfigError("a.yaml:1: wrong", "a.yaml:9: too"), 3, "clustertools: a.yaml:9: too"),
        (StoreError("disk full"), 3, "clustertools: disk full"),
        (click.UsageError("no"), 3, "no"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        # Python's own exit code 1 would be read as WARNING
        (ZeroDivisionError("oops"), 3, "a fault in clustertools itself"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(command, capsys, exc, code, said):
    assert command(raising(exc))(["probe"]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["--nonsense"], ["check", "--nonsense"], ["check", "--stage", "x"]]
)
def test_wrong_usage_is_unknown_to_nagios_not_critical(argv, capsys):
    assert main(argv) == 3
    assert capsys.readouterr().err


def test_a_near_name_is_suggested(capsys):
    main(["chekc"])
    assert "Did you mean 'check'" in capsys.readouterr().err


def test_help_needs_no_subcommand_and_ends_with_examples(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert "Examples:\n" in out
    assert main(["check", "--help"]) == 0
    assert "Examples:\n  " in capsys.readouterr().out


def test_help_imports_no_subcommand():
    program = (
        "import sys; from clustertools.cli import main; main(['--help'])\n"
        "print([m for m in sys.modules if m.startswith('clustertools.cli.')], 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] False"


def test_common_options_reach_the_command(command):
    seen: list[Output] = []
    command(seen.append)(["probe", "--json", "-q", "-vv"])
    command(lambda out: seen.append(out))(["probe", "--json", "-q", "-vv"])
    assert seen[-1] == Output(json=True, color=False, quiet=True, verbose=2)


def test_notes_go_to_stderr_and_quiet_drops_them(capsys):
    Output().note("careful")
    Output(quiet=True).note("hidden")
    Output().detail("hidden")
    Output(verbose=1).detail("shown")
    captured = capsys.readouterr()
    assert captured.err == "clustertools: careful\nclustertools: shown\n"
    assert captured.out == ""


def test_json_lines_are_versioned_and_never_hold_nan():
    line = json.loads(json_line("x", {"a": float("nan"), "b": [float("inf"), 1.5], "s": Status.OK}))
    assert line == {"schema": 1, "kind": "x", "a": None, "b": [None, 1.5], "s": "OK"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "environment", "wanted"),
    [
        (Terminal(), False, {}, True),
        (io.StringIO(), False, {}, False),
        (Terminal(), False, {"NO_COLOR": "1"}, False),
        (Terminal(), False, {"NO_COLOR": ""}, True),
        (io.StringIO(), False, {"FORCE_COLOR": "1"}, True),
        (Terminal(), False, {"TERM": "dumb"}, False),
        (Terminal(), True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_when_to_colour(stream, no_color, environment, wanted):
    assert wants_color(stream, no_color, environment) is wanted


def test_a_reader_that_leaves_is_no_error():
    """`clustertools check --json | head -0`: nothing on stderr, whatever the size of the answer."""
    program = (
        "import sys, click; from clustertools import cli; from clustertools.cli.frame import common\n"
        "m = type(sys)('m'); sys.modules['m'] = m\n"
        "m.c = click.command()(common(lambda out: [out.line('x' * 1000) for _ in range(1000)] and None))\n"
        "cli.COMMANDS = {'c': ('m:c', '')}\n"
        "sys.exit(cli.main(['c']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def test_the_module_runs_as_the_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "clustertools", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("clustertools, version ")


def test_odd_characters_do_not_end_a_command():
    program = (
        "import sys, click; from clustertools import cli; from clustertools.cli.frame import common\n"
        "m = type(sys)('m'); sys.modules['m'] = m\n"
        "m.c = click.command()(common(lambda out: out.line('\\u00b5 \\U0001f525')))\n"
        "cli.COMMANDS = {'c': ('m:c', '')}\n"
        "sys.exit(cli.main(['c']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\U0001f525" in done.stdout
