"""From incidents to actions: playbooks, guards, and `plan`. Pure, apart from reading the playbook files.

An action that a guard stops is planned all the same, with the reason in `blocked`: what would be done, and
why it is not, is what people need to see before they trust the tool with more.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from clustertools.errors import ConfigError
from clustertools.model import (
    Action,
    Attempt,
    Incident,
    Job,
    Playbook,
    Status,
    Step,
    Subject,
    starts_without_progress,
)
from clustertools.restarts import DIVERGED, Decision

#: Everything a playbook may ask for. `run` is only for commands named in config.
STEPS = frozenset(
    "capture drain resume cancel requeue restart exclude reset_gpu reboot notify silence run".split()
)
#: Steps that only look or tell need no permission.
HARMLESS = frozenset({"capture", "notify"})
ON_RUNS = frozenset({"restart", "requeue", "cancel"})
STARTS = frozenset({"restart", "requeue"})
MODES = ("observe", "ask", "act")
#: What an action says that waits for a person, before the command that lets it happen.
WAITS = "waits for approval"
#: How long a person's word counts: who approved before lunch did not mean what is found in the evening.
APPROVAL_SECONDS = 3600.0
#: What a playbook may limit by itself.
LIMITS = frozenset({"per_node_per_day", "without_progress"})
#: Options of a step where its playbook does not say.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"drain": {"reason": "clustertools: {code} on {part}"}}
SITE_FOLDERS = ("/etc/clustertools/playbooks.d",)


@dataclass(frozen=True, slots=True)
class Past:
    """One action of the past, as the guards need it."""

    id: str
    kind: str
    target: Subject
    playbook: str
    state: str
    blocked: str
    time: float
    step: str = ""

    @property
    def is_busy(self) -> bool:
        """Under way, and not merely waiting for the first new step of what it started."""
        return self.state in ("planned", "running") and self.step != "wait_step"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was done before: actions, and the attempts of each run."""

    actions: tuple[Past, ...] = ()
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What is true now, as the guards need it.

    `drained` maps a drained node to its reason. `owned_runs` are the runs that config or the command line
    names. `fresh` holds the keys that this very pass reported. `supported` are the steps that the scheduler
    can carry out here. `judged` maps a code to how many of its firings people judged, and the share of true
    ones. `rollbacks` says of each run whose loss diverged whether that is to be undone, `decisions` of each
    run in any other trouble whether it is to be started again, and where. `class_size` is the number of nodes
    that the circuit breaker's share is taken of.
    """

    mode: str = "observe"
    playbook_modes: Mapping[str, str] = field(default_factory=dict)
    paused: str = ""
    fresh: frozenset[str] = frozenset()
    owned_runs: frozenset[str] = frozenset()
    jobs: tuple[Job, ...] = ()
    drained: Mapping[str, str] = field(default_factory=dict)
    supported: frozenset[str] = STEPS
    class_size: int = 1
    approved: frozenset[str] = frozenset()
    judged: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    rollbacks: Mapping[str, Decision] = field(default_factory=dict)
    preview: Callable[[str, Subject, Mapping[str, Any]], str] = lambda kind, target, options: (
        f"{kind} {target}"
    )


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits on what may be done, whatever the playbooks say.

    The circuit breaker opens when more than `breaker_nodes` nodes and more than `breaker_share` of them
    ask for the same step inside `breaker_window_seconds`: such a fault is ours or the fabric's.
    With `earn_cases` nothing is done to a node for a code of which people have not judged so many firings,
    `earn_precision` of them as true.
    """

    per_node_per_day: int = 2
    restarts_per_hour: int = 6
    without_progress: int = 3
    breaker_nodes: int = 4
    breaker_share: float = 0.1
    breaker_window_seconds: float = 1800.0
    earn_cases: int = 0
    earn_precision: float = 0.0


def plan(
    incidents: Mapping[str, Incident],
    playbooks: Iterable[Playbook],
    ledger: Ledger,
    world: World,
    now: float,
    budgets: Budgets | None = None,
) -> list[Action]:
    """The actions that the open incidents call for and that are not yet under way, in order.

    Those that a guard stops carry the reason in `blocked`. The same inputs give the same ids, so a plan made
    again after a crash adds nothing.
    """
    budgets = budgets or Budgets()
    by_code = {code: book for book in playbooks for code in book.codes}
    under_way = {p.id for p in ledger.actions if p.state in ("planned", "running", "done", "failed")}
    stopped = {p.id: p.blocked for p in ledger.actions if p.state == "blocked"}
    busy = {p.target.run for p in ledger.actions if p.kind in ON_RUNS and p.is_busy}
    planned: list[Action] = []
    for key in sorted(incidents):
        incident = incidents[key]
        book = by_code.get(incident.finding.code)
        if book is None or incident.state != "open" or now - incident.opened_at < book.after_seconds:
            continue
        for action in _actions(incident, book, world, now):
            if action.id in under_way or (action.kind in ON_RUNS and action.target.run in busy):
                continue
            if incident.explained_by and incident.finding.subject.run and action.target.node:
                continue  # what is done to the nodes of a run is for the root of its trouble to say
            if action.kind in HARMLESS | ON_RUNS and key not in world.fresh:
                continue  # a run that is not seen to be in trouble now is left alone
            why = _guards(action, incident, book, ledger, planned, world, now, budgets)
            action = dataclasses.replace(action, blocked=why)
            if not why or stopped.get(action.id) != why:
                planned.append(action)
    return planned


def _actions(incident: Incident, book: Playbook, world: World, now: float) -> Iterator[Action]:
    for number, step in enumerate(book.steps):
        if step.kind in ("notify", "silence"):
            continue  # told through the sinks
        options = _filled({**_DEFAULTS.get(step.kind, {}), **step.options}, incident)
        bad_enough = Status.WARNING if options.pop("on", "") == "warning" else Status.CRITICAL
        if step.kind not in HARMLESS and (
            incident.finding.status is Status.UNKNOWN or incident.finding.status < bad_enough
        ):
            continue  # a warning, and what could not be seen, are told and looked at; nobody is hurt for them
        for target in _targets(step, incident, world):
            # an incident may span several attempts of its run: each may be restarted once
            attempt = next((f"#{j.attempt}" for j in world.jobs if target.run and j.run == target.run), "")
            if step.kind in STARTS:
                options = _decided(options, incident, target.run, world)
            yield Action(
                id=f"{incident.key}@{incident.opened_at:.3f}/{number}:{step.kind}:{target}{attempt}",
                kind=step.kind, target=target, because=incident.key, playbook=book.name,
                preview=world.preview(step.kind, target, options), options=options, planned_at=now,
            )  # fmt: skip


def _decision_on(key: str, run: str, world: World) -> Decision | None:
    """What was decided about a run because of the incident `key`: a rollback is not what else it needs."""
    return (world.rollbacks if _is_divergence(key) else world.decisions).get(run)


def _is_divergence(key: str) -> bool:
    return key.startswith(f"{DIVERGED}:")


def _decided(options: Mapping[str, Any], incident: Incident, run: str, world: World) -> dict[str, Any]:
    """The options of a start, with the nodes that it leaves out and the step that it begins before.

    A playbook's `exclude: [node]` is the node that its incident is about. Where there are no other nodes the
    decision's are not left out: a suspect that works is better than none.
    """
    decided, decision = dict(options), _decision_on(incident.key, run, world)
    out = {incident.finding.subject.node for word in options.get("exclude", ()) if word == "node"}
    if decision is not None:
        out |= set(decision.exclude) if "exclude" in world.supported else set()
        decided["reason"] = decision.why
        if decision.before_step is not None:
            decided["before_step"] = decision.before_step
        if decision.skip_data:
            decided["skip_data"] = True
    if "exclude" in decided or out:
        decided["exclude"] = sorted(filter(None, out))
    return decided


def _filled(options: Mapping[str, Any], incident: Incident) -> dict[str, Any]:
    """A step's options, with the incident's `{code}`, `{part}` and `{node}` where its texts name them."""
    subject = incident.finding.subject
    words = {"{code}": incident.finding.code, "{part}": subject.part or "the node", "{node}": subject.node}
    filled = dict(options)
    for name, text in options.items():
        # replaced, not formatted: a part's name comes from a log line
        for mark, word in words.items() if isinstance(text, str) else ():
            text = text.replace(mark, word)
        filled[name] = text
    return filled


def _targets(step: Step, incident: Incident, world: World) -> list[Subject]:
    subject = incident.finding.subject
    nodes = [subject.node] if subject.node else list(incident.finding.nodes)
    if step.kind not in ON_RUNS | HARMLESS and subject.run:
        # the nodes of a run are no suspects: only who was found guilty, and is left out for it
        decision = world.decisions.get(subject.run)
        nodes = [n for n in incident.finding.blamed if decision is not None and n in decision.exclude]
    if step.kind in ON_RUNS or (step.kind == "capture" and subject.run):
        if subject.run:
            return [Subject(run=subject.run)]
        hit = (j.run for j in world.jobs if j.state == "running" and set(nodes) & set(j.nodes))
        return [Subject(run=run) for run in sorted(set(hit))]
    part = subject.part if step.kind in ("reset_gpu", "capture") else ""
    return [Subject(cluster=subject.cluster, node=node, part=part) for node in nodes]


def _guards(
    action: Action,
    incident: Incident,
    book: Playbook,
    ledger: Ledger,
    planned: Sequence[Action],
    world: World,
    now: float,
    budgets: Budgets,
) -> str:
    """The first guard that stops the action, in words; empty when none does."""
    if action.kind not in world.supported:
        return f"{action.kind} is not possible here"
    if action.options.get("exclude") and "exclude" not in world.supported:
        return f"{action.kind} on other nodes is not possible here"
    if action.kind in HARMLESS:
        return ""
    return (
        ("observe mode" if _mode(book, world) == "observe" else "")
        or _ownership(action, world)
        or _decision(action, world)
        or _not_earned(action, incident, book, world, budgets)
        or _budget(action, book, ledger, planned, world, now, budgets)
        or _circuit_breaker(action, ledger, planned, world, now, budgets)
        or _stale(incident, world)
        # nobody is asked about what could not be done anyway
        or _approval(action, book, world)
        or (f"paused: {world.paused}" if world.paused else "")
        or ("" if action.id in world.approved else _person(incident, now))
    )


def asks(action: Action) -> bool:
    """Whether the action waits for a person's word."""
    return action.blocked.startswith(WAITS)


def is_approved(by: str, at: float, now: float) -> bool:
    """Whether a person's word of `at` still counts."""
    return bool(by) and now - at < APPROVAL_SECONDS


def _mode(book: Playbook, world: World) -> str:
    mode = world.playbook_modes.get(book.name, world.mode)
    return mode if mode in ("ask", "act") else "observe"


def _approval(action: Action, book: Playbook, world: World) -> str:
    if _mode(book, world) != "ask" or action.id in world.approved:
        return ""
    # people paste this into a shell, and the name of a job may hold anything
    return f"{WAITS}: clustertools approve {shlex.quote(action.id)}"


def _ownership(action: Action, world: World) -> str:
    target = action.target
    if target.run and target.run not in world.owned_runs:
        return f"run {target.run} is not named in the config"
    reason = world.drained.get(target.node, "")
    if target.node and reason and not reason.startswith("clustertools:"):
        return f"{target.node} was drained by somebody else: {reason}"
    if reason and action.kind == "drain":
        return f"{target.node} is drained already: {reason}"
    if action.kind == "resume" and target.node not in world.drained:
        return f"{target.node} is not drained"
    return ""


def _decision(action: Action, world: World) -> str:
    if action.kind not in STARTS:
        return ""
    decision = _decision_on(action.because, action.target.run, world)
    if decision is None:
        return "nobody decided to undo it" if _is_divergence(action.because) else ""
    return "" if decision.kind == "restart" else decision.why


def _not_earned(action: Action, incident: Incident, book: Playbook, world: World, budgets: Budgets) -> str:
    if not (budgets.earn_cases and action.target.node) or _mode(book, world) == "ask":
        return ""  # a person who looks at each case is what it has to earn
    code = incident.finding.code
    cases, share = world.judged.get(code, (0, 0.0))
    if cases < budgets.earn_cases:
        return f"not earned yet: {cases} alarms of {code} were judged (needs {budgets.earn_cases})"
    if share < budgets.earn_precision:
        return (
            f"not earned: {share:.0%} of {cases} judged alarms of {code} were true "
            f"(needs {budgets.earn_precision:.0%})"
        )
    return ""


def _budget(
    action: Action,
    book: Playbook,
    ledger: Ledger,
    planned: Sequence[Action],
    world: World,
    now: float,
    budgets: Budgets,
) -> str:
    # two faults of one node, or of one run, are answered once
    if any(a.kind == action.kind and a.target == action.target and not a.blocked for a in planned):
        return f"a {action.kind} of {action.target} is already under way"
    done = [p for p in ledger.actions if p.state in ("planned", "running", "done", "failed")]
    if action.target.node:
        limit = int(book.limits.get("per_node_per_day", budgets.per_node_per_day))
        spent = sum(
            p.kind == action.kind and p.target.node == action.target.node and now - p.time < 86400
            for p in done
        )
        if spent >= limit:
            return f"budget: {action.kind} of {action.target.node} {spent} times in 24 h (limit {limit})"
    if action.kind in STARTS:
        recent = [p for p in done if p.kind == action.kind and now - p.time < 3600]
        if len(recent) >= budgets.restarts_per_hour:
            return f"budget: {len(recent)} restarts in the last hour (limit {budgets.restarts_per_hour})"
        if _decision_on(action.because, action.target.run, world) is not None:
            return ""  # the decision has counted its starts
        limit = int(book.limits.get("without_progress", budgets.without_progress))
        lost = starts_without_progress(ledger.attempts.get(action.target.run, ()))
        if lost >= limit:
            return f"crash loop: {lost} starts in a row made no new step (limit {limit})"
    return ""


def _circuit_breaker(
    action: Action,
    ledger: Ledger,
    planned: Sequence[Action],
    world: World,
    now: float,
    budgets: Budgets,
) -> str:
    if not action.target.node:
        return ""
    nodes = {action.target.node}
    window = budgets.breaker_window_seconds
    nodes |= {a.target.node for a in planned if a.kind == action.kind and a.target.node}
    nodes |= {
        p.target.node
        for p in ledger.actions
        if p.kind == action.kind and p.target.node and now - p.time < window and p.state != "blocked"
    }
    if len(nodes) > budgets.breaker_nodes and len(nodes) > budgets.breaker_share * world.class_size:
        return (
            f"circuit breaker: {len(nodes)} nodes ask for {action.kind} within "
            f"{window / 60:.0f} min; that is the fabric's fault or ours, not theirs"
        )
    return ""


def _stale(incident: Incident, world: World) -> str:
    return "" if incident.key in world.fresh else "not seen on this pass"


def _person(incident: Incident, now: float) -> str:
    if incident.acknowledged_until > now:
        return f"{incident.acknowledged_by} has taken it"
    return ""


# playbooks


def parse_playbook(data: Any, source: str) -> Playbook:
    """A playbook from its YAML data. Raises ConfigError with every problem at once."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: a playbook is a mapping with name, codes and runbook")
    problems = [
        f"{source}: {key!r} is not known; a playbook has name, codes, after, steps, explains, limits, runbook"
        for key in data.keys() - {"name", "codes", "after", "steps", "explains", "limits", "runbook"}
    ]
    problems += [f"{source}: {key} is missing" for key in ("name", "codes", "runbook") if not data.get(key)]
    problems += [
        f"{source}: {key} must be a list of codes, such as [RemapPending]"
        for key in ("codes", "explains")
        if not _is_list_of_words(data.get(key) or [])
    ]
    problems += _wrong_limits(data.get("limits") or {}, source)
    steps = []
    listed = data.get("steps") or []
    if not isinstance(listed, list):
        problems.append(f"{source}: steps must be a list, such as [capture, drain]")
        listed = []
    for item in listed:
        kind, options = (
            next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, {})
        )
        if kind not in STEPS:
            problems.append(f"{source}: step {kind!r} is not one of {', '.join(sorted(STEPS))}")
        elif not isinstance(options or {}, Mapping):
            problems.append(f"{source}: the options of {kind} must be a mapping")
        else:
            steps.append(Step(str(kind), dict(options or {})))
    after = _seconds(data.get("after", "0s"))
    if after is None:
        problems.append(f"{source}: after must be a duration such as 30s, 5m or 2h")
    if problems:
        raise ConfigError(*problems)
    return Playbook(
        str(data["name"]), tuple(data["codes"]), str(data["runbook"]), after or 0.0, tuple(steps),
        tuple(data.get("explains") or ()), dict(data.get("limits") or {}),
    )  # fmt: skip


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item.isalnum() for item in value)


def _wrong_limits(limits: Any, source: str) -> list[str]:
    if not isinstance(limits, Mapping):
        return [f"{source}: limits must be a mapping, such as {{per_node_per_day: 2}}"]
    return [
        f"{source}: limits.{name}: {value!r} is wrong; there is {' and '.join(sorted(LIMITS))}, whole numbers"
        for name, value in limits.items()
        if name not in LIMITS or not isinstance(value, int) or isinstance(value, bool) or value < 0
    ]


def _seconds(text: Any) -> float | None:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    text = str(text)
    if text[-1:] in units and text[:-1].replace(".", "", 1).isdigit():
        return float(text[:-1]) * units[text[-1]]
    return None


@functools.cache
def load_playbooks(site_folders: tuple[str, ...] = SITE_FOLDERS) -> tuple[Playbook, ...]:
    """Ours, then the site's; a site's playbook of the same name replaces ours.

    A code that several name belongs to the last of them. Raises ConfigError with every problem at once.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Playbook] = {}
    problems: list[str] = []
    files = [f for f in resources.files("clustertools.playbooks").iterdir() if f.name.endswith(".yaml")]
    site = [p for folder in site_folders for p in sorted(Path(folder).glob("*.yaml"))]
    for file in (*sorted(files, key=lambda f: f.name), *site):
        try:
            book = parse_playbook(loader(file.read_text(encoding="utf-8")).get_single_data(), str(file))
        except ConfigError as exc:
            problems += exc.problems
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            problems.append(f"{file}: {exc}")
        else:
            found.pop(book.name, None)  # what is named again comes last
            found[book.name] = book
    if problems:
        raise ConfigError(*problems)
    return tuple(found.values())


def playbook_for(code: str, playbooks: Iterable[Playbook]) -> Playbook | None:
    """The playbook that answers a code, if any: the last that names it, as in `plan`."""
    return next((book for book in reversed(tuple(playbooks)) if code in book.codes), None)


def explains(playbooks: Iterable[Playbook]) -> dict[str, frozenset[str]]:
    """Root code -> the codes that it explains, from what the playbooks say."""
    return {code: frozenset(book.explains) for book in playbooks if book.explains for code in book.codes}
