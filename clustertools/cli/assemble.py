"""Puts a watchdog together from config and command line. The only place that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clustertools import policy
from clustertools.check import Check, discover
from clustertools.cli.site import adjusted, is_configured
from clustertools.delivery import Mail
from clustertools.errors import ConfigError, StoreError
from clustertools.fleet.nodesets import expand
from clustertools.hanging_files import mount_of
from clustertools.host import Host, LocalHost
from clustertools.plugins import all_checks
from clustertools.schedulers import RunSpec
from clustertools.schedulers.local import LocalScheduler
from clustertools.sinks import Sink, SinkRule
from clustertools.sinks.http import Service
from clustertools.sinks.message import KINDS
from clustertools.sinks.secret import Secret
from clustertools.sinks.standing import StandingSink
from clustertools.sources import hardware
from clustertools.sources.job_look import JobLook, Looker, LookOrder
from clustertools.store import Store, default_state_dir
from clustertools.watchdog import Settings, Watchdog

if TYPE_CHECKING:
    from clustertools.config import Config, Loaded, SinkConfig
    from clustertools.fleet.job_looks import FleetLooker
    from clustertools.sources.rank_files import JobFiles

#: What is no change of an incident: whoever hears of an incident hears what became of it.
_ALWAYS = KINDS - {"opened", "reopened", "worsened", "resolved"}
_locks: list[IO[str]] = []


def load_config(path: Path | None) -> Loaded | None:
    """The site's config; None when there is none and none was asked for. Raises ConfigError."""
    if path is None and not is_configured():
        return None
    from clustertools.config import load  # not paid for without a config

    return load([path] if path else None)


def state_folder(given: Path | None, config: Config | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the state is: told on the command line, by CLUSTERTOOLS_STATE, in the config, or the default."""
    if given is not None:
        return given.absolute()
    if environ.get("CLUSTERTOOLS_STATE") or config is None or not config.state_dir:
        return default_state_dir(environ).absolute()
    return Path(config.state_dir)


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
    if store.warning and not read_only:
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
    _locks.append(file)
    # on a full disk the lock holds all the same; only who has it cannot be told
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(
            file.fileno(), f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})".encode()
        )


def local_watchdog(
    spec: RunSpec, options: Mapping[str, Any], *, color: bool = False, json: bool = False
) -> Watchdog:
    """The watchdog of one command on this machine. Raises ConfigError and StoreError."""
    loaded = load_config(options["config_file"])
    config = loaded.config if loaded else None
    folder = run_folder(state_folder(options["state"], config), spec.name)
    lock(folder, f"run {spec.name}")
    host = LocalHost()
    checks = all_checks(config) if config else discover()
    limits = _limits(loaded, checks)
    own = {
        "minimum_silence_seconds": options["hang_after"],
        "startup_seconds": options["startup"],
        "stack_gap_seconds": options["stack_gap"],
    }
    limits["job_progress"] = dataclasses.replace(limits["job_progress"], **own)
    limits["job_checkpoint"] = dataclasses.replace(limits["job_checkpoint"], cache=checkpoint_cache(folder))
    limits["job_restarts"] = dataclasses.replace(limits["job_restarts"], without_progress=options["restarts"])
    base = settings(loaded, host) if loaded else Settings(expect=hardware.expectations(host, {}))
    post = mail(loaded, terminal=not json)
    return Watchdog(
        store=open_store(folder),
        host=host,
        scheduler=LocalScheduler(folder / "attempts", host.name),
        checks=_chosen(checks, {"watch", "job"}, config),
        specs=[spec],
        playbooks=policy.load_playbooks(),
        mail=post,
        settings=dataclasses.replace(
            base,
            # the command was given to us to start and stop; the scheduler here can touch nothing else
            mode="observe" if options["observe"] else "act",
            playbook_modes={} if options["observe"] else base.playbook_modes,
            interval_seconds=options["interval"],
            limits=limits,
            budgets=dataclasses.replace(base.budgets, without_progress=options["restarts"]),
        ),
        evidence_folder=folder / "evidence",
        looker=_looker_of_a_command(host),
    )


def _looker_of_a_command(host: Host, environ: Mapping[str, str] = os.environ) -> Looker:
    """The way to the ranks of a command of ours: they are here, or on all nodes of the job that we are in."""
    from clustertools.fleet.job_looks import FleetLooker, LocalLooker

    job_id, nodes = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_JOB_NODELIST", "")
    if not job_id or environ.get("SLURM_JOB_NUM_NODES", "1") == "1":
        return LocalLooker(host)
    return _InsideJob(FleetLooker(host=host), job_id, expand(nodes))


@dataclasses.dataclass(frozen=True)
class _InsideJob:
    """Looks at all nodes of one Slurm job, whatever processes this machine has of it."""

    looker: FleetLooker
    job_id: str
    nodes: tuple[str, ...]

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        return self.looker.look([self._whole(order) for order in orders])

    def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles:
        return self.looker.bring(self._whole(order), ask_dumps=ask_dumps)

    def _whole(self, order: LookOrder) -> LookOrder:
        return LookOrder(dataclasses.replace(order.request, job_id=self.job_id, roots=()), self.nodes, "srun")


def node_watchdog(
    loaded: Loaded,
    state: Path | None,
    *,
    act: bool,
    once: bool,
    interval: float | None,
    terminal: bool,
    job_checks: bool = False,
) -> Watchdog:
    """The watchdog of this machine's own health, as the config says. Raises ConfigError and StoreError."""
    folder = state_folder(state, loaded.config)
    now, post, checks = site(
        loaded, act=act, once=once, interval=interval, terminal=terminal, job_checks=job_checks
    )
    lock(folder, "this machine")
    if job_checks:
        own = dataclasses.replace(now.limits["job_checkpoint"], cache=checkpoint_cache(folder))
        now = dataclasses.replace(now, limits={**now.limits, "job_checkpoint": own})
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


def site(
    loaded: Loaded,
    *,
    act: bool,
    once: bool,
    interval: float | None,
    terminal: bool,
    job_checks: bool = False,
) -> tuple[Settings, Mail, list[Check]]:
    """Settings, sinks and checks of a node's watchdog as the config says. Raises ConfigError."""
    config = loaded.config
    checks: Mapping[str, Check] = all_checks(config)
    base = settings(loaded, LocalHost())
    base = dataclasses.replace(
        base,
        mode=base.mode if act else "observe",
        playbook_modes=base.playbook_modes if act else {},
        interval_seconds=interval if interval is not None else base.interval_seconds,
        limits=_limits(loaded, checks),
        # one pass by hand or by cron looks at everything; cron is what spaces it
        intervals=dict.fromkeys(checks, 0.0) if once else base.intervals,
    )
    stages = {"watch", "job"} if job_checks else {"watch"}
    return base, mail(loaded, terminal=terminal), _chosen(checks, stages, config)


def _chosen(checks: Mapping[str, Check], stages: set[str], config: Config | None) -> list[Check]:
    """The checks of these stages that are enabled, with the deadlines that the config gives them."""
    every = [c for c in checks.values() if c.stages & stages]
    if config is None:
        return every
    return [adjusted(c, config.check(c.name)) for c in every if config.check(c.name).enabled]


def _limits(loaded: Loaded | None, checks: Mapping[str, Any]) -> dict[str, Any]:
    if loaded is None:
        return {name: check.limits() for name, check in checks.items()}
    from clustertools.config import validate_limits

    return validate_limits(loaded, checks, [book.name for book in policy.load_playbooks()])


def settings(loaded: Loaded, host: Host) -> Settings:
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
            earn_cases=said.earned.cases,
            earn_precision=said.earned.precision,
        ),
        flap_window_seconds=said.flap_window_seconds,
        intervals={n: c.interval_seconds for n, c in checks.items() if c.interval_seconds is not None},
        confirm={n: c.confirm for n, c in checks.items() if c.confirm is not None},
        expect=hardware.expectations(host, expectations(config, host.name)),
        pause_file=said.pause_file,
        observe_only=frozenset(n for n, c in checks.items() if c.observe),
    )


def expectations(config: Config, node: str) -> dict[str, Any]:
    """What the node's class expects, as the checks read it; empty when no class names the node.

    Raises ConfigError for every class whose nodes are no node set.
    """
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, node_class in config.node_classes.items():
        try:
            if node in NodeSet(node_class.nodes) and not found:
                found = {"node_class": name, **node_class.expectations()}
        except NodeSetException as exc:
            problems.append(f"node_classes.{name}.nodes: {node_class.nodes!r} is not a node set: {exc}")
    if problems:
        raise ConfigError(*problems)
    return found


def mail(loaded: Loaded | None, *, terminal: bool) -> Mail:
    """The sinks of the config; a terminal one when there is a person to read it.

    Raises ConfigError with every sink that cannot be used.
    """
    sinks: dict[str, Sink] = {}
    rules: dict[str, SinkRule] = {}
    standing: dict[str, StandingSink] = {}
    problems: list[str] = []
    for name, said in (loaded.config.sinks if loaded else {}).items():
        try:
            rule = _rule(name, said, loaded.config if loaded else None)
            if said.kind in ("alertmanager", "deadman", "metrics"):
                standing[name] = _standing_sink(name, said, rule)
            else:
                sinks[name], rules[name] = _sink(name, said, loaded.config.cluster if loaded else ""), rule
        except ConfigError as exc:
            origin = loaded.origins.get(f"sinks.{name}.kind", "") if loaded else ""
            problems += [f"{origin}: {problem}".removeprefix(": ") for problem in exc.problems]
    if problems:
        raise ConfigError(*problems)
    if terminal:
        from clustertools.sinks.terminal import TerminalSink

        sinks.setdefault("terminal", TerminalSink())
    return Mail(sinks, rules, standing)


def _rule(name: str, said: SinkConfig, config: Config | None) -> SinkRule:
    """What a sink hears of. Raises ConfigError for a node class that is not there."""
    nodes: frozenset[str] | None = None
    if said.classes and config:
        from ClusterShell.NodeSet import NodeSet

        wrong = [c for c in said.classes if c not in config.node_classes]
        if wrong:
            raise ConfigError(*(f"sinks.{name}.classes: there is no node class {c}" for c in wrong))
        nodes = frozenset(node for c in said.classes for node in NodeSet(config.node_classes[c].nodes))
    kinds = frozenset(said.kinds) | _ALWAYS
    return SinkRule(said.min_status, kinds, said.only, said.remind_seconds, nodes)


def _sink(name: str, said: SinkConfig, cluster: str) -> Sink:
    """A sink that hears of changes. Raises ConfigError."""
    if said.kind == "terminal":
        from clustertools.sinks.terminal import TerminalSink

        return TerminalSink(name=name)
    if said.kind == "slack":
        from clustertools.sinks.slack import API, SlackSink

        return SlackSink(
            said.channel, token_file=said.token_file, token_env=said.token_env,
            webhook_file=said.webhook_file, webhook_env=said.webhook_env, name=name,
            base_url=f"{said.url.rstrip('/')}/" if said.url else API,
        )  # fmt: skip
    if said.kind == "webhook":
        from clustertools.sinks.webhook import WebhookSink

        return WebhookSink(
            name=name, url=said.url, address=_address(said, f"address of {name}"),
            token=_token(said, f"token of {name}"), body=said.body,
            service=Service(f"the webhook {name}", ca_file=said.ca_file),
        )  # fmt: skip
    if said.kind == "pagerduty":
        from clustertools.sinks.pagerduty import PagerDutySink

        key = Secret("routing key of PagerDuty", said.token_file, said.token_env)
        return PagerDutySink(key, name=name, url=said.url, service=Service("PagerDuty", ca_file=said.ca_file))
    if said.kind == "mail":
        from clustertools.sinks.mail import MailSink

        return MailSink(
            said.server, sender=said.sender, to=said.to, name=name, tls=said.tls, user=said.user,
            password=_token(said, f"mail password of {name}"), cluster=cluster, ca_file=said.ca_file,
        )  # fmt: skip
    raise ConfigError(f"sinks.{name}: the kind {said.kind} is not available in this version")


def _standing_sink(name: str, said: SinkConfig, rule: SinkRule) -> StandingSink:
    """A sink that is told after each pass how things stand. Raises ConfigError."""
    if said.kind == "alertmanager":
        from clustertools.sinks.alertmanager import AlertmanagerSink

        return AlertmanagerSink(
            said.url, name=name, rule=rule, token=_token(said, f"token of {name}"),
            service=Service(f"the Alertmanager {name}", ca_file=said.ca_file),
        )  # fmt: skip
    if said.kind == "deadman":
        from clustertools.sinks.deadman import DeadManSink

        return DeadManSink(
            name=name, url=said.url, address=_address(said, f"address of {name}"), method=said.method,
            service=Service(f"the dead man's switch {name}", ca_file=said.ca_file),
        )  # fmt: skip
    from clustertools.render.prometheus import write_textfile
    from clustertools.sinks.metrics import MetricsSink

    return MetricsSink(said.path, write_textfile, name=name)


def _address(said: SinkConfig, what: str) -> Secret | None:
    return Secret(what, said.webhook_file, said.webhook_env) or None


def _token(said: SinkConfig, what: str) -> Secret | None:
    return Secret(what, said.token_file, said.token_env) or None


def checkpoint_cache(folder: Path) -> str:
    """Where the check and the restart remember what they read of checkpoints: a terabyte is read once."""
    return str(folder / "checkpoint-cache")


def store_folders(state: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of the cluster's watchdog ("") and of every run below a state folder."""
    folders = [("", state)]
    with contextlib.suppress(OSError):
        folders += [(p.name, p) for p in sorted((state / "runs").iterdir())]
    for name, folder in folders:
        if os.path.exists(folder / "state.db"):
            yield name, folder


def stores(state: Path) -> list[tuple[str, Store]]:
    """(name, store) of `store_folders`, read-only. Raises StoreError for one that cannot be read."""
    return [(name, open_store(folder, read_only=True)) for name, folder in store_folders(state)]
