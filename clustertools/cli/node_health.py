"""`clustertools node-health`, which slurmd calls on each node: look, say, and in mode act drain this node.

Slurm gives a health check no PATH, no SLURM_CONF and 60 s, and reads nothing from its exit code. A prolog's
exit code drains the node and holds the job, so it is 2 only where the site's config allows just that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustertools import check as checking
from clustertools import node_health as health
from clustertools.cli import node_memory
from clustertools.cli.check import Orders, look, orders_for
from clustertools.cli.frame import Output, common, examples
from clustertools.cli.site import is_configured
from clustertools.errors import Unobservable
from clustertools.host import Host, LocalHost, RecordedHost
from clustertools.model import Status, Verdict, worst
from clustertools.node_health import Decision, Memory, Rules
from clustertools.render import formats
from clustertools.render.json_lines import json_line
from clustertools.render.prometheus import write_textfile
from clustertools.schedulers.slurm_nodes import SlurmNodes

if TYPE_CHECKING:
    from clustertools.config import Config

#: stage -> (all together, of which for asking Slurm), in seconds. Slurm kills a health check after 60 s.
BUDGETS = {"watch": (45.0, 15.0), "prolog": (20.0, 8.0), "epilog": (20.0, 8.0)}
MEMORY_NAME = "node-health.json"
LOCK_SECONDS = 3.0
#: The same sentence is not logged again within this time.
REPEAT_SECONDS = 3600.0


@click.command(
    epilog=examples(
        "clustertools node-health                        what a health check would see and do",
        "clustertools node-health --stage prolog --act   as bin/ct-prolog calls it",
    )
)
@click.option("--stage", type=click.Choice(sorted(BUDGETS)), default="watch", show_default=True)
@click.option("--act", is_flag=True, help="Do what the config's policy.mode allows; else only say it.")
@click.option("--host", "recording", type=click.Path(path_type=Path), metavar="DIR",
              help="Look at a recorded host; config is then read only with --config.")  # fmt: skip
@click.option("--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
              help="A config file, besides those in /etc/clustertools.")  # fmt: skip
@click.option("--timeout", "seconds", type=float, metavar="SECONDS", help="All together [45; prolog 20].")
@common
def node_health(
    stage: str,
    act: bool,
    recording: Path | None,
    config_path: Path | None,
    seconds: float | None,
    out: Output,
) -> int:
    """Look at this node as slurmd does, and drain it or take that drain back where the config allows it.

    Drains only for CRITICAL findings whose playbook drains, never touches a note of anybody else, and resumes
    only what it drained itself. Exits 2 when a prolog must refuse the job, else 0.
    """
    end = time.monotonic() + (seconds or BUDGETS[stage][0])
    reserve = min(BUDGETS[stage][1], (seconds or 1000.0) / 3)
    host: Host = RecordedHost(recording) if recording else LocalHost()
    orders = orders_for(host, config_path, job_checks=False)
    config = _config(recording, config_path)
    folder = _folder(out)
    memory = _recall(folder, node_memory.NAME, node_memory.load, out)
    chosen = [c for c in checking.select((), stage, orders.checks) if c.name not in orders.disabled]
    verdicts = list(look(chosen, host, orders, memory, end - time.monotonic() - reserve))
    node = os.environ.get("SLURMD_NODENAME") or LocalHost().name
    if config and config.node_health.slurm_conf:
        os.environ.setdefault("SLURM_CONF", config.node_health.slurm_conf)
    slurm = SlurmNodes(checking.Deadlined(LocalHost(), max(1.0, end - time.monotonic())))
    with _alone(folder) as is_alone:
        if is_alone:
            if folder and stage == "watch":
                kept = {**memory, **{v.check: dict(v.memory) for v in verdicts if v.memory}}
                _keep(functools.partial(node_memory.save, folder / node_memory.NAME, kept), out)
            before = _recall(folder, MEMORY_NAME, _load, out) or Memory()
            rules = dataclasses.replace(_rules(config, orders, node, act), is_watch=stage == "watch")
            decision = health.decide(before, verdicts, _playbooks, rules, time.time(), node, slurm)
            decision = _log(decision, verdicts, stage, time.time())
            if folder:
                data = health.memory_to_data(decision.memory)
                _keep(functools.partial(node_memory.replace, folder / MEMORY_NAME, data), out)
        else:
            decision = Decision(Memory(), ("another look is deciding about this node; left to that one",))
    refuse = decision.refuse and stage == "prolog"
    if folder:
        told = _told(stage, node, verdicts, decision, refuse, time.time())
        _keep(functools.partial(node_memory.replace, folder / f"verdict-{stage}.json", told, 0o644), out)
    if config and config.node_health.textfile and stage == "watch":
        _keep(functools.partial(write_textfile, config.node_health.textfile, verdicts), out)
    if out.json:
        for verdict in verdicts:
            print(json_line("verdict", verdict))
        out.record("node-health", {"said": list(decision.sentences), "refuse": refuse})
    else:
        out.line(formats.text(verdicts, color=out.color, quiet=True, verbose=out.verbose))
        for sentence in decision.sentences:
            out.line(sentence)
    return Status.CRITICAL.exit_code if refuse else 0


def _config(recording: Path | None, config_path: Path | None) -> Config | None:
    if config_path is None and (recording is not None or not is_configured()):
        return None
    from clustertools.config import load

    return load([config_path] if config_path else None).config


def _playbooks() -> Sequence[Any]:
    from clustertools import policy

    return policy.load_playbooks()


def _rules(config: Config | None, orders: Orders, node: str, act: bool) -> Rules:
    confirm = {name: check.confirm for name, check in orders.checks.items()}
    if config is None:
        return Rules(confirm=confirm, may_act=act)
    said, mine = config.policy, config.node_health
    # nobody approves anything on a node: "ask" only looks
    modes = {name: "act" if mode == "act" else "observe" for name, mode in said.per_playbook.items()}
    return Rules(
        mode="act" if said.mode == "act" else "observe",
        playbook_modes=modes,
        confirm=confirm,
        observe_only=frozenset(n for n, c in config.checks.items() if c.observe),
        paused=_paused(said.pause_file),
        may_act=act,
        hold_seconds=mine.hold_seconds,
        per_node_per_day=said.budgets.per_node_per_day,
        earn_cases=said.earned.cases,
        max_nodes=mine.max_nodes,
        max_fraction=mine.max_fraction,
        breaker_seconds=said.circuit_breaker.window_seconds,
        flap_window_seconds=said.flap_window_seconds,
        in_class=_class_of(config, node),
    )


def _paused(path: str) -> str:
    """Why nothing may be done now. A pause file that cannot be looked at pauses: it may well be there."""
    try:
        if path:
            os.stat(path)
            return f"{path} exists"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        return f"nobody can see whether the pause file is there: {exc.strerror}"
    return ""


def _class_of(config: Config, node: str) -> Callable[[str], bool]:
    """Whether another node is of this one's class; without a class all are. Reads node sets when asked."""

    @functools.cache
    def members() -> Any:
        from ClusterShell.NodeSet import NodeSet

        sets = (NodeSet(each.nodes) for each in config.node_classes.values())
        return next((found for found in sets if node in found), None)

    return lambda other: members() is None or other in members()


# memory


def _folder(out: Output) -> Path | None:
    try:
        return node_memory.folder()
    except Unobservable as exc:
        out.note(f"{exc}; looking without memory")
        return None


def _recall(folder: Path | None, name: str, load: Callable[[Path], Any], out: Output) -> Any:
    try:
        return load(folder / name) if folder else {}
    except Unobservable as exc:
        out.note(f"{exc}; beginning with an empty memory")
        return {}


def _load(path: Path) -> Memory:
    try:
        return health.memory_from_data(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Memory()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise Unobservable(f"{path} cannot be read: {exc}") from exc


def _keep(write: Callable[[], None], out: Output) -> None:
    try:
        write()
    except (Unobservable, OSError) as exc:
        out.note(str(exc))


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[bool]:
    """Whether we decide alone on this node: the health check and the prologs of several jobs may meet."""
    try:
        if folder is None:
            raise OSError
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = open(folder / "node-health.lock", "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError:
        yield True
        return
    with file:
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                yield False
            else:
                yield True
            return


# telling


def _told(
    stage: str, node: str, verdicts: Sequence[Verdict], decision: Decision, refuse: bool, now: float
) -> Mapping[str, Any]:
    """The verdict file: what the next stage of the job, or a person, may read."""
    return {
        "schema": 1, "kind": "node-health", "stage": stage, "node": node, "time": now,
        "job": os.environ.get("SLURM_JOB_ID", ""), "status": worst(v.status for v in verdicts).name,
        "refuse": refuse, "said": list(decision.sentences),
        "verdicts": [
            {
                "check": v.check, "status": v.status.name, "blind": v.blind,
                "findings": [
                    {"code": f.code, "part": f.subject.part, "status": f.status.name, "summary": f.summary}
                    for f in v.findings
                ],
            }
            for v in verdicts
        ],
    }  # fmt: skip


def _log(decision: Decision, verdicts: Sequence[Verdict], stage: str, now: float) -> Decision:
    """Say it in the system log too, where slurmd's own log is not read; the same only once an hour."""
    status = worst(v.status for v in verdicts)
    bad = [f"{v.check}: {formats.summary(v)}" for v in verdicts if v.status >= Status.WARNING]
    lines = [*bad, *decision.sentences]
    # without numbers: what counts down would be news every minute
    said = "".join(c for c in "\n".join(lines) if not c.isdigit())
    memory = decision.memory
    if not lines or (said == memory.said and now - memory.said_at < REPEAT_SECONDS):
        return dataclasses.replace(decision, memory=dataclasses.replace(memory, said=said))
    import syslog  # not paid for by a healthy node

    syslog.openlog("clustertools", syslog.LOG_PID, syslog.LOG_DAEMON)
    level = syslog.LOG_ERR if status is Status.CRITICAL else syslog.LOG_WARNING
    for line in lines:
        syslog.syslog(level, f"{stage}: {line}".replace("\x00", "")[:900])
    return dataclasses.replace(decision, memory=dataclasses.replace(memory, said=said, said_at=now))
