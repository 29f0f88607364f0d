"""What an operator says about the cluster: layered YAML files, read into frozen dataclasses.

    loaded = load()
    loaded.config.policy.mode

Later layers win: the defaults below, /etc/clustertools/config.yaml, /etc/clustertools/config.d/*.yaml in the
order of their names, $CLUSTERTOOLS_CONFIG or --config, and `-o path.to.key=value`. YAML keys are the field
names without their unit (`interval_seconds` is `interval: 5m`). Secrets are never in here, only their places.
"""

# ruff: noqa: RUF009 - option() gives a dataclasses.field, which ruff cannot know

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from clustertools.config_lines import (
    Node,
    Problems,
    join,
    merge,
    read_file,
    read_override,
)
from clustertools.config_shape import WRONG, Reader, leaves, nearest, option
from clustertools.errors import ConfigError
from clustertools.model import Status

ETC = "/etc/clustertools"

Mode = Literal["observe", "ask", "act"]
TransitionKind = Literal["opened", "reopened", "worsened", "resolved"]
PluginStage = Literal["preflight", "watch", "prolog", "epilog", "daily"]
CurveKind = Literal[
    "spike", "divergence", "restart", "level_shift", "slow_bump", "grad_burst", "grad_rise",
    "param_norm_rise", "loss_scale_collapse", "stall", "nan",
]  # fmt: skip
SinkKind = Literal["terminal", "slack", "webhook", "pagerduty", "alertmanager", "mail", "deadman", "metrics"]


@dataclass(frozen=True, slots=True)
class NodeClass:
    """What to expect of some nodes. Without an expectation a check that needs one answers UNKNOWN."""

    nodes: str = option(doc="the nodes of this class, as a node set: gpu-[001-128]")
    hardware: str | None = option(
        None, "its name in the hardware catalogue; unset: recognised by what is there; none: nothing of it"
    )
    gpu_count: int | None = option(None, "GPUs in a node", at_least=0)
    gpu_name: str | None = option(None, "the product name that NVML gives, or a part of it")
    gpu_memory_bytes: int | None = option(None, "memory of one GPU")
    memory_bytes: int | None = option(None, "memory of a node")
    cpu_count: int | None = option(None, "logical CPUs of a node", at_least=1)
    ib_ports: int | None = option(None, "active InfiniBand or RoCE ports", at_least=0)
    ib_rate_bits_per_second: int | None = option(None, "rate of each of these ports")
    allreduce_busbw_bytes_per_second: int | None = option(None, "bus bandwidth of an all-reduce in one node")
    ecc: bool | None = option(None, "whether ECC is to be on; unset: as the card has it by default")
    mounts: tuple[str, ...] | None = option(None, "mount points that have to be there")
    expect: Mapping[str, Any] = option(dict, "further expectations, handed to the checks as they are")

    def expectations(self) -> dict[str, Any]:
        """What the checks get as `ctx.expect`: the fields that are set, by field name, and `expect`."""
        fields = (f.name for f in dataclasses.fields(self) if f.name not in ("nodes", "expect"))
        known = {name: getattr(self, name) for name in fields}
        return {**{k: v for k, v in known.items() if v is not None}, **self.expect}


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """How one check runs here. None means: as the check itself declares."""

    enabled: bool = option(True, "false: never run it")
    observe: bool = option(False, "true: run and report it, but never act on its findings")
    interval_seconds: float | None = option(None, "time between two runs", at_least=1)
    confirm: int | None = option(None, "passes in a row before a state is believed", at_least=1)
    timeout_seconds: float | None = option(None, "deadline of one run", at_least=0.1)
    limits: Mapping[str, Any] = option(dict, "the check's own limits; `clustertools checks list` shows them")


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """A program that follows the Nagios contract, run as the check `plugin_NAME`."""

    command: tuple[str, ...] = option(doc="the program and its arguments, as a list; no shell reads it")
    # the Monitoring Plugins end themselves after 10 s by default
    timeout_seconds: float = option(10.0, "deadline of one run", at_least=0.1)
    interval_seconds: float = option(60.0, "time between two runs", at_least=1)
    stages: tuple[PluginStage, ...] = option(("watch", "preflight"), "where it is run")


@dataclass(frozen=True, slots=True)
class ResumeConfig:
    """How a restarted run is told which checkpoint to begin from."""

    kind: Literal["env", "placeholder", "tracker", "file", "newest", "none"] = option(
        "none",
        "env: in the environment variable `name`; placeholder: put in place of `name` in the command; "
        "tracker: the framework finds it through its own file; file: written into the file `name`, which the "
        "job script reads; newest: the framework takes the newest, so refused ones are renamed; none: it is "
        "not told. A job that Slurm requeues keeps its environment and command: tracker, file or newest",
    )
    name: str = option("", "the variable, the placeholder, the tracker file, or the file that is written")


@dataclass(frozen=True, slots=True)
class HangConfig:
    """When silence of a run is a hang: the larger of `minimum` and `factor` median steps."""

    minimum_seconds: float = option(300.0, "never call a shorter silence a hang", at_least=1)
    # 5 times the longest interval: NVIDIA/nvidia-resiliency-ext, fault_tolerance/timeouts_calc.py
    factor: float = option(5.0, "silence in units of the run's own step time", at_least=1)
    # the NeMo plugin of nvidia-resiliency-ext waits 1800 s for the first heartbeat
    startup_seconds: float = option(1800.0, "time allowed before the first step", at_least=1)


@dataclass(frozen=True, slots=True)
class LossConfig:
    """What is made of a run's curves: its loss, its gradient norm, its loss scale."""

    rollback: Literal["never", "on-divergence"] = option(
        "never",
        "on-divergence: a loss that left its level and did not come back is undone, from a checkpoint before "
        "its first bad step, without the data around it where the job script can; once for a step. A spike "
        "is only told",
    )
    extra: tuple[str, ...] = option((), "further metrics that are watched like a loss: a rise is bad")
    kinds_off: tuple[CurveKind, ...] = option((), "kinds of events that nobody is told of")


@dataclass(frozen=True, slots=True)
class JobConfig:
    """Runs to watch, and how to restart them. Jobs that are not named here are never touched."""

    name: str = option("", "the scheduler's job name, as a pattern; default: the key of this entry")
    user: str = option("", "only jobs of this user")
    partition: str = option("", "only jobs in this partition")
    comment: str = option("", "only jobs with this comment, as a pattern")
    job: str = option("", "only the job of this number")
    array: Literal["tasks", "chain"] = option(
        "tasks",
        "tasks: each task of an array is a run of its own; chain: they are the starts of one run, one after "
        "the other (--array=1-10%1)",
    )
    log: tuple[str, ...] = option(
        (), "log files, as patterns; %j, %x, %u, %A, %a as for sbatch; default: the job's own output"
    )
    metrics: str = option("", "a file of metrics, if the run writes one")
    checkpoints: str = option("", "the directory that checkpoints are written to")
    total_steps: int | None = option(None, "the last step of the run", at_least=1)
    command: tuple[str, ...] = option(
        (), "what starts the run, as a list: with Slurm its sbatch command, for jobs that cannot be requeued"
    )
    again: Literal["auto", "requeue", "submit"] = option(
        "auto", "how Slurm begins it anew: requeue, by `command`, or whichever is possible"
    )
    on_time_limit: Literal["leave", "restart"] = option(
        "leave", "restart: begin it anew when its time limit ended it"
    )
    look: Literal["auto", "ssh", "srun", "none"] = option(
        "auto",
        "how its nodes are looked at when it is in doubt; auto: srun inside the job where that is allowed",
    )
    preflight: bool = option(False, "look at its nodes by the passive checks before it is started anew")
    kill_switch: str = option("", "while this file exists the run is never started anew")
    deep_verify: bool = option(True, "read every byte of a checkpoint before resuming from it")
    resume: ResumeConfig = option(ResumeConfig)
    hang: HangConfig = option(HangConfig)
    loss: LossConfig = option(LossConfig)
    # 3 cycles without progress: NVIDIA/nvidia-resiliency-ext, fault_tolerance/progress_tracker.py
    max_restarts_without_progress: int = option(3, "then give up, loudly", at_least=0)
    # Slurm's KillWait has the same default
    grace_seconds: float = option(30.0, "time between SIGTERM and SIGKILL", at_least=0)


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """Where news go. Secrets are named by file or by environment variable."""

    kind: SinkKind = option(doc="what is there")
    channel: str = option("", "the Slack channel, by name or id")
    url: str = option(
        "",
        "the address, when it is no secret: Alertmanager's; Slack's API for GovSlack, PagerDuty's for Europe",
    )
    path: str = option("", "the file that metrics are written to, ending in .prom")
    server: str = option("", "the mail server, HOST or HOST:PORT")
    tls: Literal["starttls", "tls", "none"] = option(
        "starttls", "how mail is protected on its way; none: for a relay on this machine"
    )
    sender: str = option("", "the address that mail comes from")
    to: tuple[str, ...] = option((), "the addresses that mail goes to")
    user: str = option("", "whom the mail server knows; the password is in token_file or token_env")
    body: Literal["event", "text"] = option(
        "event", "what a webhook gets: the whole message as JSON, or the {text: ...} of chat services"
    )
    method: Literal["GET", "POST"] = option("GET", "how a dead man's switch is called")
    ca_file: str = option("", "the certificate authority to trust, where it is not one of the system's")
    token_file: str = option("", "a file that holds the bot token, routing key or password")
    token_env: str = option("", "an environment variable that holds it")
    webhook_file: str = option("", "a file that holds the address, when that is the secret")
    webhook_env: str = option("", "an environment variable that holds it")
    min_status: Status = option(Status.WARNING, "nothing below this is sent")
    kinds: tuple[TransitionKind, ...] = option(
        ("opened", "reopened", "worsened", "resolved"), "the changes of an incident that are sent"
    )
    only: tuple[str, ...] = option(
        (), "only incidents whose key one of these patterns matches, as for `clustertools silence`"
    )
    classes: tuple[str, ...] = option((), "only incidents on nodes of these classes, beside those of `only`")
    remind_seconds: float = option(
        0.0, "tell again what is CRITICAL, open and in nobody's hands, so often; 0s: never", at_least=0
    )


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """Limits on acting, whatever the playbooks say."""

    per_node_per_day: int = option(2, "actions on one node", at_least=0)
    restarts_per_hour: int = option(6, "restarts of one run", at_least=0)


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig:
    """When more than `nodes` nodes and more than `fraction` of them ask for the same step, nobody acts."""

    nodes: int = option(4, "nodes that ask for the same step", at_least=1)
    fraction: float = option(0.1, "their share of all, from 0 to 1", at_least=0, at_most=1)
    window_seconds: float = option(1800.0, "the time in which they are counted", at_least=1)


@dataclass(frozen=True, slots=True)
class EarnedConfig:
    """What a code must have shown before anything is done to a node for it; people judge its alarms with
    `clustertools resolve --true` and `--false-alarm`."""

    cases: int = option(0, "alarms of it that people have judged; 0: none are needed", at_least=0)
    precision: float = option(0.9, "the share of these that were true", at_least=0, at_most=1)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What may be done. Nothing, until somebody says so."""

    mode: Mode = option("observe", "observe: only say it; ask: wait for approval; act: do it")
    per_playbook: Mapping[str, Mode] = option(dict, "the mode of single playbooks")
    budgets: BudgetConfig = option(BudgetConfig)
    circuit_breaker: CircuitBreakerConfig = option(CircuitBreakerConfig)
    earned: EarnedConfig = option(EarnedConfig)
    flap_window_seconds: float = option(
        1800.0, "an incident that returns within this is the same", at_least=0
    )
    pause_file: str = option("", "while this file exists nothing is done")
    commands: Mapping[str, tuple[str, ...]] = option(dict, "commands that the step `run` may name")


@dataclass(frozen=True, slots=True)
class NodeHealthConfig:
    """What slurmd's health check and prolog do on each node (`clustertools node-health`), in mode act."""

    # long enough to outlive a link that flaps, short beside a repair
    hold_seconds: float = option(
        600.0, "all well for so long before a node that it drained is resumed", at_least=0
    )
    max_nodes: int = option(8, "drain no more when so many nodes carry our reason", at_least=1)
    max_fraction: float = option(
        0.1, "nor when they are this share of the node's class", at_least=0, at_most=1
    )
    slurm_conf: str = option("", "slurm.conf, where it is not /etc/slurm/slurm.conf")
    textfile: str = option("", "where node_exporter collects *.prom files: what was seen, after each look")


@dataclass(frozen=True, slots=True)
class PreflightConfig:
    """What `clustertools preflight` does where the command line says nothing else."""

    transport: Literal["auto", "ssh", "srun", "local"] = option(
        "auto", "auto: srun for a job or idle nodes of Slurm, else ssh"
    )
    # CRE plans 12 minutes for a healthy 232-node cluster; people wait five
    budget_seconds: float = option(300.0, "time for all of it", at_least=1)
    python: str = option("python3", "the Python on the nodes that has PyTorch: the job's own")
    interface: str = option("", "where the ranks of the collectives meet; default: what all nodes share")
    data: tuple[str, ...] = option((), "folders of training data: read from all nodes at once")
    checkpoints: tuple[str, ...] = option((), "where checkpoints go: a small file is written from all nodes")
    without: tuple[str, ...] = option((), "checks and probes that do not count")
    topology: Mapping[str, str] = option(dict, "leaf switch or rack: its nodes; default: Slurm's topology")
    partition: str = option("", "Slurm's, for nodes that are in no job")
    account: str = option("", "whom Slurm charges for that")
    qos: str = option("", "with which quality of service")
    reservation: str = option("", "in which reservation")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured, for one cluster."""

    cluster: str = option("", "the name of the cluster, in every message")
    node_classes: Mapping[str, NodeClass] = option(dict, "what to expect of which nodes")
    checks: Mapping[str, CheckConfig] = option(dict, "checks that run otherwise than they declare")
    plugins: Mapping[str, PluginConfig] = option(dict, "programs for Nagios, each a check called plugin_NAME")
    jobs: Mapping[str, JobConfig] = option(dict, "runs to watch")
    sinks: Mapping[str, SinkConfig] = option(dict, "where news go")
    policy: PolicyConfig = option(PolicyConfig)
    node_health: NodeHealthConfig = option(NodeHealthConfig)
    preflight: PreflightConfig = option(PreflightConfig)
    scheduler: Literal["auto", "slurm", "none"] = option(
        "auto", "where the jobs of `jobs` run; auto: Slurm, where its commands are"
    )
    state_dir: str = option("", "where the state is kept, on a local disk")
    site_checks: tuple[str, ...] = option(("/etc/clustertools/checks.d",), "folders of the site's own checks")

    def check(self, name: str) -> CheckConfig:
        """How the check runs here: the defaults when nothing was configured for it."""
        return self.checks.get(name) or CheckConfig()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config, and where each of its values came from.

    `origins` maps a path (`policy.mode`) to "FILE:LINE", "-o" or "default". `tree` is the merged YAML.
    """

    config: Config
    origins: Mapping[str, str]
    files: tuple[str, ...]
    tree: Node


class Checkable(Protocol):
    """What `validate_limits` needs to know of a check: the type of its limits."""

    @property
    def limits(self) -> type: ...


def load(
    files: Iterable[str | os.PathLike[str]] | None = None,
    overrides: Iterable[str] = (),
    *,
    etc: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """The effective config. `files` (from --config) replace $CLUSTERTOOLS_CONFIG; they must exist.

    `etc` is the system's folder: $CLUSTERTOOLS_ETC, or /etc/clustertools.
    Raises ConfigError with every problem of every layer, each with file and line.
    """
    problems = Problems()
    layers: list[Node] = []
    read: list[str] = []
    for path, must_exist in _files(
        files, Path(etc or environ.get("CLUSTERTOOLS_ETC") or ETC), environ, problems
    ):
        before = len(problems.found)
        node = read_file(path, problems, must_exist=must_exist)
        if node is not None:
            layers.append(node)
        if node is not None or (len(problems.found) == before and path.exists()):
            read.append(str(path))
    layers += [node for text in overrides if (node := read_override(text, problems)) is not None]
    for layer in layers:  # each by itself, so that a mistake is told even where a later layer hides it
        Reader(problems, whole=False).record(Config, layer, "")
    tree = merge([n for n in layers if isinstance(n.value, dict)])
    config = Reader(problems).record(Config, tree, "")
    if config is not WRONG:
        _relations(config, tree, problems)
    problems.stop()
    return Loaded(config, _origins(config, tree), tuple(read), tree)


def _files(
    files: Iterable[str | os.PathLike[str]] | None, etc: Path, environ: Mapping[str, str], problems: Problems
) -> list[tuple[Path, bool]]:
    """The files in their order, and whether each has to exist."""
    found = [(etc / "config.yaml", False)]
    folder = etc / "config.d"
    try:
        names = sorted(p.name for p in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as exc:
        problems.add(str(folder), "", f"cannot be read: {exc.strerror}")
        names = []
    for name in names:
        if name.endswith(".yml"):
            problems.add(str(folder / name), "", f"would not be read; name it {name[:-3]}yaml")
        elif name.endswith(".yaml") and not name.startswith("."):
            found.append((folder / name, True))
    if files is not None:
        found += [(Path(f), True) for f in files]
    elif environ.get("CLUSTERTOOLS_CONFIG"):
        found.append((Path(environ["CLUSTERTOOLS_CONFIG"]), True))
    return found


def find(tree: Node, keys: Sequence[str]) -> Node | None:
    """The node at the end of `keys`; None when nobody wrote it."""
    node: Node | None = tree
    for key in keys:
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    return node


def path_of(keys: Iterable[str]) -> str:
    path = ""
    for key in keys:
        path = join(path, key)
    return path


def _origins(config: Config, tree: Node) -> dict[str, str]:
    origins = {}
    for keys, _ in leaves(config):
        node = find(tree, keys)
        # the merged sections that hold nothing are nobody's
        origin = node.origin if node is not None and node.value is not None else "default"
        origins[path_of(keys)] = "-o" if origin.startswith("-o ") else origin
    return origins


# an environment variable, in capitals: a pasted token or routing key does not look like one
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
# what every sink of a kind needs: one of each group
_NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "slack": (("token_file", "token_env", "webhook_file", "webhook_env"),),
    "webhook": (("webhook_file", "webhook_env", "url"),),
    "pagerduty": (("token_file", "token_env"),),
    "alertmanager": (("url",),),
    "deadman": (("webhook_file", "webhook_env", "url"),),
    "mail": (("server",), ("sender",), ("to",)),
    "metrics": (("path",),),
}


def _relations(config: Config, tree: Node, problems: Problems) -> None:
    """What no single field can say: which of them belong together."""

    def wrong(keys: tuple[str, ...], text: str) -> None:
        at = max((n for n in range(len(keys) + 1) if find(tree, keys[:n]) is not None), default=0)
        node = find(tree, keys[:at])
        problems.add(node.origin if node else "default", path_of(keys), text)

    for name, sink in config.sinks.items():
        _sink_relations(sink, ("sinks", name), wrong)
    for name, plugin in config.plugins.items():
        _plugin_relations(name, plugin, wrong)
    for name, job in config.jobs.items():
        keys = ("jobs", name, "resume")
        if job.resume.kind in ("env", "placeholder") and not job.resume.name:
            wrong(keys, f"resume by {job.resume.kind} needs a name")
        elif job.resume.kind == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", job.resume.name):
            wrong((*keys, "name"), f"{job.resume.name!r} is not the name of an environment variable")
        elif (
            job.resume.kind == "placeholder" and job.command and job.resume.name not in " ".join(job.command)
        ):
            wrong((*keys, "name"), f"{job.resume.name!r} does not occur in the command")
    for name, node_class in config.node_classes.items():
        if not node_class.nodes.strip() or node_class.nodes.count("[") != node_class.nodes.count("]"):
            wrong(("node_classes", name, "nodes"), "not a node set; write one such as gpu-[001-128]")


def _plugin_relations(name: str, plugin: PluginConfig, wrong: Any) -> None:
    keys = ("plugins", name)
    # infiniband_cables: each word begins with a letter, so that two names never share a code
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*", name) or len(name) > 40:
        wrong(keys, "the name must be words of small letters and digits joined by _, at most 40 characters")
    if not plugin.stages:
        wrong((*keys, "stages"), "names no stage: it would never run")
    program = plugin.command[0] if plugin.command else ""
    if not program:
        wrong((*keys, "command"), "names no program")
    elif len(plugin.command) == 1 and re.search(r"\s", program):
        wrong((*keys, "command"), "no shell splits this; write a list: [check_load, -w, 100]")
    elif "/" in program and not program.startswith("/"):
        wrong((*keys, "command"), "must be a full path beginning with /, or a name on PATH")
    if any("\0" in word for word in plugin.command):
        wrong((*keys, "command"), "holds a NUL character, which no argument can")


def _sink_relations(sink: SinkConfig, keys: tuple[str, ...], wrong: Any) -> None:
    for group in _NEEDS.get(sink.kind, ()):
        if not any(getattr(sink, field) for field in group):
            wrong(keys, f"a sink of the kind {sink.kind} needs {' or '.join(group)}")
    if sink.kind == "slack" and (sink.token_file or sink.token_env) and not sink.channel:
        wrong(keys, "a Slack token needs a channel as well")
    for secret in ("token", "webhook"):
        file, variable = getattr(sink, f"{secret}_file"), getattr(sink, f"{secret}_env")
        if file and variable:
            wrong((*keys, f"{secret}_env"), f"{secret}_file is set too; keep one of them")
        if file and not file.startswith("/"):
            wrong((*keys, f"{secret}_file"), "must be the full path of a file, beginning with /")
        if variable and not _VARIABLE.fullmatch(variable):
            wrong((*keys, f"{secret}_env"), "must be the name of an environment variable, in capitals")
    if sink.url and not re.match(r"https?://", sink.url):
        wrong((*keys, "url"), "must begin with http:// or https://")
    elif "@" in sink.url or "hooks.slack.com" in sink.url:
        wrong((*keys, "url"), "this address is a secret; write webhook_file or webhook_env")


def validate_limits(
    loaded: Loaded, checks: Mapping[str, Checkable], playbooks: Iterable[str] | None = None
) -> dict[str, Any]:
    """The limits of every check, with what config says in place of the defaults.

    Raises ConfigError for a check or a playbook that does not exist and for limits that are wrong, all at
    once, each with file and line.
    """
    problems = Problems()
    known = list(playbooks) if playbooks is not None else list(loaded.config.policy.per_playbook)
    for section, names, there, what in (
        (("checks",), loaded.config.checks, list(checks), "check"),
        (("policy", "per_playbook"), loaded.config.policy.per_playbook, known, "playbook"),
    ):
        for name in names:
            node = find(loaded.tree, (*section, name))
            if name not in there:
                problems.add(
                    node.origin if node else "", path_of((*section, name)),
                    f"there is no {what} of this name{nearest(name, there)}",
                )  # fmt: skip
    result: dict[str, Any] = {}
    for name, check in checks.items():
        keys = ("checks", name, "limits")
        node = find(loaded.tree, keys) or Node(None, "default")
        result[name] = Reader(problems).record(check.limits, node, path_of(keys))
    problems.stop()
    return result


def read_secret(file: str, variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret kept in `file` or in the environment variable `variable`; "" when neither is named.

    Raises ConfigError when it is not there, empty, or in a file that everybody may read. Its text never
    appears in a message.
    """
    if variable:
        if not environ.get(variable, "").strip():
            raise ConfigError(f"the environment variable {variable} is not set")
        return environ[variable].strip()
    if not file:
        return ""
    try:
        with open(file, encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & stat.S_IROTH:
                raise ConfigError(f"{file}: everybody may read this secret; chmod o-r {file}")
            secret = opened.read(1 << 16).strip()
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{file}: not text") from exc
    if not secret:
        raise ConfigError(f"{file}: empty")
    return secret
