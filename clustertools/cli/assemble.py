"""Puts a watchdog together from config and command line. The only place that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clustertools import policy
from clustertools.check import Check, discover
from clustertools.delivery import Mail
from clustertools.errors import ConfigError, StoreError
from clustertools.host import LocalHost, mount_of
from clustertools.schedulers import RunSpec
from clustertools.schedulers.local import LocalScheduler
from clustertools.sinks import Sink, SinkRule
from clustertools.store import Store, default_state_dir
from clustertools.watchdog import Settings, Watchdog

if TYPE_CHECKING:
    from clustertools.config import Config, Loaded, SinkConfig

ETC = Path("/etc/clustertools")
_locks: list[IO[str]] = []


def load_config(path: Path | None) -> Loaded | None:
    """The site's config; None when there is none and none was asked for. Raises ConfigError."""
    if path is None and not os.environ.get("CLUSTERTOOLS_CONFIG") and not ETC.exists():
        return None
    from clustertools.config import load  # not paid for without a config

    return load([path] if path else None)


def state_folder(given: Path | None, config: Config | None) -> Path:
    """Where the state is: told on the command line, in the config, or the default."""
    if given is not None:
        return given.absolute()
    if config is not None and config.state_dir:
        return Path(config.state_dir)
    return default_state_dir()


def run_folder(state: Path, run: str) -> Path:
    """The folder of one `clustertools run`: its store, its attempts, its evidence."""
    return state / "runs" / run


def open_store(folder: Path, *, read_only: bool = False) -> Store:
    """The store in a folder. Raises StoreError."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        file_system = mount_of(str(folder.absolute()), table)[1]
    except OSError:
        file_system = ""
    store = Store(folder / "state.db", file_system=file_system, read_only=read_only)
    if store.warning:
        print(f"clustertools: {store.warning}", file=sys.stderr)
    return store


def lock(folder: Path, what: str) -> None:
    """Hold `folder` for this process. Raises StoreError when another process has it: two would act twice."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    except OSError as exc:
        raise StoreError(f"cannot use {folder}: {exc.strerror}; set CLUSTERTOOLS_STATE or --state") from exc
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise StoreError(f"{what} is already watched by {holder}; two watchdogs would act twice") from exc
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
    _locks.append(file)


def local_watchdog(
    spec: RunSpec, options: Mapping[str, Any], *, color: bool = False, json: bool = False
) -> Watchdog:
    """The watchdog of one command on this machine. Raises ConfigError and StoreError."""
    loaded = load_config(options["config_file"])
    config = loaded.config if loaded else None
    folder = run_folder(state_folder(options["state"], config), spec.name)
    lock(folder, f"run {spec.name}")
    host = LocalHost()
    checks = discover(config.site_checks) if config else discover()
    limits = _limits(loaded, checks)
    own = {
        "minimum_silence_seconds": options["hang_after"],
        "startup_seconds": options["startup"],
        "stack_gap_seconds": options["stack_gap"],
    }
    limits["job_progress"] = dataclasses.replace(limits["job_progress"], **own)
    limits["job_restarts"] = dataclasses.replace(limits["job_restarts"], without_progress=options["restarts"])
    base = settings(loaded, host.name) if loaded else Settings()
    return Watchdog(
        store=open_store(folder),
        host=host,
        scheduler=LocalScheduler(folder / "attempts", host.name),
        checks=[c for c in checks.values() if c.stages & {"watch", "job"} and _enabled(config, c.name)],
        specs=[spec],
        playbooks=policy.load_playbooks(),
        mail=mail(config, terminal=not json),
        settings=dataclasses.replace(
            base,
            # the command was given to us to start and stop; the scheduler here can touch nothing else
            mode="observe" if options["observe"] else "act",
            interval_seconds=options["interval"],
            limits=limits,
            budgets=dataclasses.replace(base.budgets, without_progress=options["restarts"]),
        ),
        evidence_folder=folder / "evidence",
    )


def node_watchdog(options: Mapping[str, Any], *, terminal: bool) -> Watchdog:
    """The watchdog of this machine's own health, as the config says. Raises ConfigError and StoreError."""
    loaded = load_config(options["config_file"])
    folder = state_folder(options["state"], loaded.config if loaded else None)
    now, post, checks = reloaded(options, terminal=terminal)
    lock(folder, "this machine")
    host = LocalHost()
    return Watchdog(
        store=open_store(folder),
        host=host,
        scheduler=LocalScheduler(folder / "attempts", host.name),
        checks=checks,
        playbooks=policy.load_playbooks(),
        mail=post,
        settings=now,
        evidence_folder=folder / "evidence",
    )


def reloaded(options: Mapping[str, Any], *, terminal: bool) -> tuple[Settings, Mail, list[Check]]:
    """Settings, sinks and checks as the config says now. Raises ConfigError."""
    loaded = load_config(options["config_file"])
    config = loaded.config if loaded else None
    checks = discover(config.site_checks) if config else discover()
    base = settings(loaded, LocalHost().name) if loaded else Settings()
    interval = options["interval"] if options["interval"] is not None else base.interval_seconds
    base = dataclasses.replace(
        base,
        mode=base.mode if options["act"] else "observe",
        interval_seconds=interval,
        limits=_limits(loaded, checks),
        # one pass by hand or by cron looks at everything; cron is what spaces it
        intervals=dict.fromkeys(checks, 0.0) if options["once"] else base.intervals,
    )
    chosen = [c for c in checks.values() if "watch" in c.stages and _enabled(config, c.name)]
    return base, mail(config, terminal=terminal), chosen


def _limits(loaded: Loaded | None, checks: Mapping[str, Any]) -> dict[str, Any]:
    if loaded is None:
        return {name: check.limits() for name, check in checks.items()}
    from clustertools.config import validate_limits

    return validate_limits(loaded, checks, [book.name for book in policy.load_playbooks()])


def _enabled(config: Config | None, name: str) -> bool:
    return config is None or config.check(name).enabled


def settings(loaded: Loaded, node: str) -> Settings:
    """What the config says, in the words of the watchdog."""
    config = loaded.config
    said = config.policy
    checks = config.checks
    return Settings(
        cluster=config.cluster,
        mode=said.mode,
        playbook_modes=dict(said.per_playbook),
        budgets=policy.Budgets(
            per_node_per_day=said.budgets.per_node_per_day,
            restarts_per_hour=said.budgets.restarts_per_hour,
            breaker_nodes=said.circuit_breaker.nodes,
            breaker_share=said.circuit_breaker.fraction,
            breaker_window_seconds=said.circuit_breaker.window_seconds,
        ),
        flap_window_seconds=said.flap_window_seconds,
        intervals={n: c.interval_seconds for n, c in checks.items() if c.interval_seconds is not None},
        confirm={n: c.confirm for n, c in checks.items() if c.confirm is not None},
        expect=expectations(config, node),
        observe_only=frozenset(n for n, c in checks.items() if c.observe),
    )


def expectations(config: Config, node: str) -> dict[str, Any]:
    """What the node's class expects, as the checks read it; empty when no class names the node."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    for name, node_class in config.node_classes.items():
        try:
            nodes = NodeSet(node_class.nodes)
        except NodeSetException as exc:
            raise ConfigError(f"node class {name}: {node_class.nodes!r} is not a node set: {exc}") from exc
        if node in nodes:
            fields = {f.name: getattr(node_class, f.name) for f in dataclasses.fields(node_class)}
            plain = {k: v for k, v in fields.items() if v is not None and k not in ("nodes", "expect")}
            return {"node_class": name, **plain, **node_class.expect}
    return {}


def mail(config: Config | None, *, terminal: bool) -> Mail:
    """The sinks of the config; a terminal one when there is a person to read it."""
    sinks: dict[str, Sink] = {}
    rules: dict[str, SinkRule] = {}
    for name, said in (config.sinks if config else {}).items():
        sinks[name] = _sink(name, said)
        rules[name] = SinkRule(said.min_status, frozenset(said.kinds))
    if terminal:
        from clustertools.sinks.terminal import TerminalSink

        sinks.setdefault("terminal", TerminalSink())
    return Mail(sinks, rules)


def _sink(name: str, said: SinkConfig) -> Sink:
    if said.kind == "terminal":
        from clustertools.sinks.terminal import TerminalSink

        return TerminalSink(name=name)
    if said.kind == "slack":
        from clustertools.sinks.slack import SlackSink

        return SlackSink(
            said.channel, token_file=said.token_file, token_env=said.token_env,
            webhook_file=said.webhook_file, webhook_env=said.webhook_env, name=name,
        )  # fmt: skip
    raise ConfigError(f"sinks.{name}: the kind {said.kind} is not available in this version")


def stores(state: Path) -> list[tuple[str, Store]]:
    """(name, store) of the cluster's watchdog ("") and of every run below a state folder, read-only."""
    found = []
    folders = [("", state)]
    with contextlib.suppress(OSError):
        folders += [(p.name, p) for p in sorted((state / "runs").iterdir())]
    for name, folder in folders:
        if (folder / "state.db").exists():
            found.append((name, open_store(folder, read_only=True)))
    return found
