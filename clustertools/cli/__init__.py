"""The command `clustertools`: which subcommands there are, where they live, and what an exit code means.

Nothing of a subcommand is imported before it is used: a Slurm prolog pays for every import. To add one, put
one line into COMMANDS.

Exit codes: 0 fine, 1 warning, 2 critical, 3 unknown, wrong usage, wrong config or a fault of our own;
130 after Ctrl-C. Click's own 2 for wrong usage would read as CRITICAL to Nagios.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from clustertools import __version__
from clustertools.errors import ClustertoolsError
from clustertools.model import Status

#: name -> ("module:attribute", one line for `--help`). The order is that of `--help`.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "check": ("clustertools.cli.check:check", "Look at this machine once."),
    "preflight": (
        "clustertools.cli.preflight:preflight",
        "Test nodes before a launch; launch on the good.",
    ),
    "node-health": ("clustertools.cli.node_health:node_health", "What slurmd calls: look, drain, resume."),
    "run": ("clustertools.cli.run:run", "Supervise one command on this machine, without a scheduler."),
    "watch": ("clustertools.cli.watch:watch", "Watch the cluster: one pass, or for ever."),
    "status": ("clustertools.cli.oncall:status", "What is wrong now."),
    "show": ("clustertools.cli.oncall:show", "Everything known about one incident."),
    "timeline": ("clustertools.cli.oncall:timeline", "What happened to a job or node, in order."),
    "ack": ("clustertools.cli.oncall:ack", "Say that you have seen an incident."),
    "resolve": ("clustertools.cli.judge:resolve", "Say that an incident is over."),
    "silence": ("clustertools.cli.oncall:silence", "Be told nothing of an incident for a while."),
    "pause": ("clustertools.cli.oncall:pause", "Go on observing, stop acting."),
    "resume": ("clustertools.cli.oncall:resume", "Act again after a pause."),
    "approve": ("clustertools.cli.oncall:approve", "Let a planned action happen."),
    "restart": ("clustertools.cli.oncall:restart", "Restart a run from its last good checkpoint."),
    "checkpoints": ("clustertools.cli.oncall:checkpoints", "Which checkpoints are whole."),
    "stacks": ("clustertools.cli.oncall:stacks", "Where the ranks of a job are stuck."),
    "goodput": ("clustertools.cli.goodput:goodput", "What share of a run's time was training that counts."),
    "metrics": ("clustertools.cli.metrics:metrics", "What the curves of a run did: loss, grad norm, pace."),
    "plan": ("clustertools.cli.plan:plan", "How often a job should save, and what that gains."),
    "explain": ("clustertools.cli.dev:explain", "What a code or an Xid means and what to do about it."),
    "checks": ("clustertools.cli.dev:checks", "The checks there are."),
    "read": ("clustertools.cli.read:read", "What another tool printed, as JSON."),
    "facts": ("clustertools.cli.facts:facts", "What this node is: versions, firmware, settings."),
    "drift": ("clustertools.cli.facts:drift", "Which nodes differ from the others, fact by fact."),
    "on": ("clustertools.cli.fleet:on", "Run one command on many nodes."),
    "record": ("clustertools.cli.record:record", "Record this machine's answers as a test case."),
    "replay": ("clustertools.cli.replay:replay", "Drive the watchdog through a recorded run."),
    "new-check": ("clustertools.cli.new_check:new_check", "Write the files of a new check."),
    "setup": ("clustertools.cli.setup:setup", "Print files for systemd, Slurm, cron and sudo."),
    "config": ("clustertools.cli.config:group", "Check, show and describe the configuration."),
}

INTERRUPTED = 130
#: 128 + SIGPIPE, as a shell would say it: the reader went away, so nobody knows our answer.
READER_LEFT = 141


class ReaderLeft(Exception):
    """Nobody reads our output any more; click would end the process with 1, which says WARNING."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called, and lists them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise ReaderLeft from exc

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


EXAMPLES = """\b
Examples:
  clustertools check                          every check for a watched node
  clustertools check gpu_ecc --format nagios  one check, as a monitoring plugin
  clustertools status                         what is wrong in the cluster
  clustertools explain "xid 79"               what it means, what to do

\b
Exit codes: 0 fine, 1 warning, 2 critical, 3 unknown or wrong usage.
"""


@click.group(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clustertools")
def cli() -> None:
    """Keeps GPU training clusters training: checks say what is wrong, playbooks what to do about it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code. Shell completion ends with SystemExit."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a kernel line may hold anything; a terminal that cannot show it must not end the pass
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(cli.main(args=argv, prog_name="clustertools", standalone_mode=False))
        sys.stdout.flush()
        return code
    except click.ClickException as exc:
        exc.show()
        return Status.UNKNOWN.exit_code
    except ClustertoolsError as exc:
        for line in str(exc).splitlines() or [type(exc).__name__]:
            print(f"clustertools: {line}", file=sys.stderr)
        return Status.UNKNOWN.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, ReaderLeft):
        _swallow_output()
        return READER_LEFT
    except Exception as exc:  # noqa: BLE001 - Python's own exit code 1 would be read as WARNING
        import traceback

        traceback.print_exc()
        print(f"clustertools: a fault in clustertools itself: {type(exc).__name__}: {exc}", file=sys.stderr)
        return Status.UNKNOWN.exit_code


def _exit_code(value: Any) -> int:
    """A command returns nothing, a Status or an exit code."""
    if isinstance(value, Status):
        return value.exit_code
    return int(value or 0)


def _open_streams() -> None:
    """Whoever starts us may close the standard streams; then the next file that is opened would be one.

    A message on "standard error" must not end up in our own state.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _swallow_output() -> None:
    # the interpreter flushes once more at its end, and would complain about the closed pipe
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
    finally:
        os.close(nowhere)
