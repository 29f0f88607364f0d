"""`clustertools on`: one command on many nodes, and what they answered in few lines."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.fleet import Answer, Fate
from clustertools.model import Status

#: More often makes a terminal flicker, and takes time from the nodes.
PROGRESS_SECONDS = 0.25


@click.command(
    epilog=examples(
        "clustertools on -w gpu[001-128] -- uptime",
        "clustertools on -w @rack7 --timeout 5m -- nvidia-smi -L",
        "clustertools on -w @file:nodes.txt -- sh -c 'df -h / | tail -1'",
        "squeue -h -j 4812 -o %N | clustertools on -w - -- cat /proc/loadavg",
    )
)
@click.option(
    "-w", "--nodes", "node_set", required=True, metavar="NODES", help="gpu[1-9], @group, @file:PATH, -"
)
@click.option(
    "--transport", "via", type=click.Choice(["ssh", "srun", "local"]), default="ssh", help="How to get there."
)
@click.option(
    "--timeout", type=Duration(zero=False), default=60.0, help="For the command, once connected (60s)."
)
@click.option(
    "--connect-timeout", type=Duration(zero=False), help="Until it is logged in (10s, or ssh_config)."
)
@click.option(
    "-F", "ssh_config", type=click.Path(path_type=Path), help="Instead of ~/.ssh/config, as for ssh."
)
@click.option("--job", "job_id", default="", metavar="ID", help="For srun: the job whose nodes they are.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@common
def on(
    node_set: str, via: str, timeout: float, connect_timeout: float | None, ssh_config: Path | None,
    job_id: str, command: tuple[str, ...], out: Output,
) -> Status:  # fmt: skip
    """Run COMMAND on many nodes, and show each distinct answer once.

    The words of COMMAND arrive as they are, without a shell; for a pipe write `sh -c '...'`.

    Exits 0 when it succeeded on every node, 1 when it failed on some, 3 when some node could not be asked or
    did not end in time.
    """
    from clustertools.fleet.nodesets import expand
    from clustertools.fleet.transports import open_transport

    # a process of seconds, a tenth of which the collector would spend on going through all connections
    gc.set_threshold(200_000)
    nodes = expand(node_set)
    began = time.monotonic()
    with open_transport(
        via,
        ssh_config=ssh_config,
        connect_timeout_seconds=connect_timeout,
        job_id=job_id,
        nodes=nodes if via == "local" else (),
    ) as transport:
        asked = transport.run(nodes, command, timeout_seconds=timeout)
        answers = list(_watched(asked, len(nodes), timeout, out))
        elapsed = time.monotonic() - began
        _tell(answers, elapsed, out)
    if any(answer.completed is None for answer in answers):
        return Status.UNKNOWN
    failed = any(answer.completed and answer.completed.returncode for answer in answers)
    return Status.WARNING if failed else Status.OK


def _tell(answers: list[Answer], elapsed_seconds: float, out: Output) -> None:
    from clustertools.fleet.folded import group, lines, summary

    if out.json:
        for answer in answers:
            out.record("answer", _record(answer))
        return
    groups = group(answers)
    for line in lines(groups):
        out.line(line)
    sys.stdout.flush()
    out.note(summary(groups, elapsed_seconds))


def _record(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"node": answer.node, "fate": answer.fate.value}
    if answer.completed is not None:
        done = answer.completed
        found |= {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        found["truncated"] = done.truncated
    else:
        found |= {"reason": answer.reason, "said": answer.said}
    return {**found, "elapsed_seconds": round(answer.elapsed_seconds, 4)}


def _watched(answers: Iterator[Answer], total: int, timeout: float, out: Output) -> Iterator[Answer]:
    """The same answers; meanwhile a line on standard error says how far it is, when that is a terminal."""
    if out.quiet or out.json or not sys.stderr.isatty():
        yield from answers
        return
    from clustertools.fleet.folded import progress

    counts = [0, 0]
    began, over = time.monotonic(), threading.Event()

    def show() -> None:
        while not over.wait(PROGRESS_SECONDS):
            text = progress(counts[0], counts[1], total, time.monotonic() - began, timeout)
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        for answer in answers:
            counts[0] += 1
            counts[1] += answer.fate is not Fate.COMPLETED or bool(
                answer.completed and answer.completed.returncode
            )
            yield answer
    finally:
        over.set()
        shower.join()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
