"""`clustertools plan`: how often a job should save, by its own failures and costs or by figures given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from clustertools import goodput
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.goodput import in_units, measured, table
from clustertools.cli.oncall import state_option
from clustertools.config_units import parse_size
from clustertools.errors import ConfigError
from clustertools.goodput import Costs, Expected, Plan
from clustertools.goodput_measured import Goodput
from clustertools.model import to_data

#: Kokolis et al. reckon with 5 minutes from a failure to the next step. Where the best interval lies does
#: not depend on it.
ASSUMED_RESTART_SECONDS = 300.0
#: Two rates of failures this far apart are worth a word.
DISAGREE = 2.0


@dataclass
class Told:
    """What the costs are taken from: figures by name, and for each in words where it comes from."""

    values: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failures: int | None = None
    watched_seconds: float = 0.0

    def put(self, name: str, value: float | None, source: str) -> None:
        """Note a figure, unless one that goes before it is there or it is None."""
        if value is not None and name not in self.values:
            self.values[name], self.sources[name] = float(value), source


@click.command(
    epilog=examples(
        "clustertools plan --nodes 128 --failures-per-node-day 0.0065 --save-seconds 30 --interval 1h",
        "clustertools plan --run pretrain-70b",
        "clustertools plan --failures 419 --over 54d --save-seconds 60 --restart-seconds 180",
    )
)
@click.argument("logs", nargs=-1, metavar="[LOG]...", type=click.Path(path_type=Path))
@click.option(
    "--run", metavar="NAME", help="A run that a watchdog here looks after: its own failures and times."
)
@click.option("--nodes", type=click.IntRange(1), help="Nodes of the job.")
@click.option(
    "--failures-per-node-day",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Failures of a node and day; Meta saw 0.0065 on one cluster, 0.0023 on another.",
)
@click.option("--failures", type=click.IntRange(0), metavar="N", help="Failures of this job that were seen,")
@click.option("--over", type=Duration(zero=False), metavar="TIME", help="and in how much time.")
@click.option("--mtbf", type=Duration(zero=False), help="Mean time between failures of the whole job.")
@click.option(
    "--save-seconds", type=click.FloatRange(0), metavar="S", help="How long a save holds training up."
)
@click.option(
    "--restart-seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="From the last step before a failure to the first after it.",
)
@click.option("--interval", type=Duration(zero=False), help="Time from save to save now.")
@click.option(
    "--step-seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Time of one step: the interval is told in steps too.",
)
@click.option("--checkpoint-size", metavar="SIZE", help="Of one checkpoint, as 2.3TB: what is written a day.")
@click.option(
    "--repair",
    type=Duration(zero=False),
    default="1d",
    show_default=True,
    help="Until a broken node is replaced: how many spare ones that takes.",
)
@state_option
@common
def plan(
    out: Output,
    logs: tuple[Path, ...],
    run: str | None,
    nodes: int | None,
    failures_per_node_day: float | None,
    failures: int | None,
    over: float | None,
    mtbf: float | None,
    save_seconds: float | None,
    restart_seconds: float | None,
    interval: float | None,
    step_seconds: float | None,
    checkpoint_size: str | None,
    repair: float,
    state: Path | None,
) -> None:
    """Say how often to save, and what share of the time is training then (ETTR).

    From figures that are given, from logs of the job, or from what a watchdog wrote down of a run; what is
    given goes first. A rate of failures that was seen goes before one by node: what stops a job is more than
    broken hardware. Sources of the formulas: Kokolis 2024, Young 1974, Daly 2006, Aupy 2013.
    """
    told = Told(failures=failures, watched_seconds=over or 0.0)
    if (failures is None) != (over is None):
        raise click.UsageError("--failures and --over belong together: so many failures in so much time")
    for name, value in (
        ("save_seconds", save_seconds), ("restart_seconds", restart_seconds), ("step_seconds", step_seconds),
        ("interval_seconds", interval),
    ):  # fmt: skip
        told.put(name, value, "given")
    if checkpoint_size is not None:
        told.put("checkpoint_bytes", _size(checkpoint_size), "given")
    if logs or run is not None:
        _learn(told, measured(out, logs, run, state))
    _rate(told, nodes, failures_per_node_day, mtbf)
    made, bounds = reckon(told)
    node_rate = failures_per_node_day or (made.failures_per_day / nodes if nodes else None)
    spare = None
    if nodes and node_rate:
        spare = goodput.spares(nodes, goodput.failure_chance_in(node_rate, repair))
    if out.json:
        out.record("plan", _data(made, told, bounds, spare))
        return
    for line in _text(made, told, bounds):
        out.line(line)
    if spare is not None:
        out.line(
            f"Spare nodes: {spare}. With them all of {nodes} nodes are there on 99 % of days, "
            f"when a broken one is back after {in_units(repair)}."
        )
    for warning in told.warnings:
        out.line(f"Note: {warning}")


def _size(text: str) -> float:
    try:
        return float(parse_size(text))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--checkpoint-size") from exc


def _learn(told: Told, found: Goodput) -> None:
    """Take what was not given from a run's own history."""
    told.put("step_seconds", found.step_seconds, "measured")
    told.put("save_seconds", found.save_seconds, "measured")
    told.put("restart_seconds", found.restart_seconds, "measured")
    told.put("interval_seconds", found.interval_seconds, "measured")
    if told.failures is None and found.wall_seconds:
        told.failures, told.watched_seconds = found.failures, found.wall_seconds
    if found.ettr is not None:
        told.warnings.append(f"the ETTR of this run was {found.ettr:.3f} so far (clustertools goodput)")
    told.warnings += found.notes


def _rate(told: Told, nodes: int | None, rate: float | None, mtbf: float | None) -> None:
    """The mean time between failures: the one seen, else the one given, else that of the nodes' rate."""
    if told.failures and told.watched_seconds:
        seen = told.watched_seconds / told.failures
        told.put("mtbf_seconds", seen, _count(told.failures, told.watched_seconds))
    told.put("mtbf_seconds", mtbf, "given")
    if rate is not None:
        if nodes is None:
            raise click.UsageError("--failures-per-node-day needs --nodes")
        of_nodes = goodput.mttf_seconds(nodes, rate)
        told.put("mtbf_seconds", of_nodes, f"{nodes} nodes x {rate:g} failures a node and day")
        used = told.values["mtbf_seconds"]
        if used == of_nodes:
            told.warnings.append(
                "the rate of node failures is not all that stops a job: for 1,024 GPUs Meta reckoned "
                f"{goodput.RSC_HARDWARE_MTTF_HOURS} h and saw {goodput.RSC_SEEN_MTTF_HOURS} h; use what was "
                "seen (--failures and --over) when there is something"
            )
        elif max(used / of_nodes, of_nodes / used) >= DISAGREE:
            told.warnings.append(
                f"by the rate of its nodes this job would fail every {in_units(of_nodes)}; not used"
            )
    if told.failures == 0 and told.watched_seconds:
        # none in that time: with 95 % the mean is longer than a third of it (the rule of three)
        told.put("mtbf_seconds", told.watched_seconds / 3, "no failure seen: a third of the time, cautiously")


def _count(failures: int, seconds: float) -> str:
    return f"{failures} failure{'s' if failures != 1 else ''} in {in_units(seconds)}"


def reckon(told: Told) -> tuple[Plan, tuple[Plan, Plan] | None]:
    """The plan; and, where the failures were counted, those for the ends of what the true rate may be.

    Raises ConfigError with everything that is missing.
    """
    missing = []
    if "mtbf_seconds" not in told.values:
        missing.append(
            "how often the job fails is not known: say --failures and --over, --mtbf, --nodes and "
            "--failures-per-node-day, or --run"
        )
    if "save_seconds" not in told.values:
        missing.append("how long a save holds training up is not known: say --save-seconds")
    if missing:
        raise ConfigError(*missing)
    told.put("restart_seconds", ASSUMED_RESTART_SECONDS, "assumed, as Kokolis et al. do")
    interval = told.values.get("interval_seconds", 0.0)

    def advise(mtbf_seconds: float) -> Plan:
        names = ("save_seconds", "restart_seconds", "step_seconds", "checkpoint_bytes")
        costs = Costs(mtbf_seconds, *(told.values.get(name, 0.0) for name in names))
        return goodput.advise(costs, interval)

    made = advise(told.values["mtbf_seconds"])
    told.warnings += _warnings(made)
    bounds = None
    if told.failures and told.watched_seconds:
        low, high = goodput.rate_bounds(told.failures)
        bounds = advise(told.watched_seconds / high), advise(told.watched_seconds / low)
    return made, bounds


def _warnings(made: Plan) -> list[str]:
    costs, found = made.costs, []
    if costs.save_seconds == 0:
        found.append(
            "a save that costs nothing would be made after each step; what the storage can take is the limit"
        )
    if costs.restart_seconds > costs.mtbf_seconds / 3:
        found.append(
            f"a restart takes {in_units(costs.restart_seconds)} and the job fails every "
            f"{in_units(costs.mtbf_seconds)}: a faster restart, or better nodes, gains more than any interval"
        )
    if abs(made.best.ettr - made.best.ettr_small_loss) > 0.02:
        found.append("the losses are not small, so the closed form (small losses) and the exact ETTR differ")
    now = made.now
    if now is not None and made.flat[0] <= now.interval_seconds <= made.flat[1]:
        found.append("the interval is good as it is")
    return found


_COLUMNS: tuple[tuple[str, Callable[[Expected], str]], ...] = (
    ("interval", lambda e: in_units(e.interval_seconds)),
    ("steps", lambda e: str(e.steps or "")),
    ("ETTR", lambda e: f"{e.ettr:.3f}"),
    ("(small losses)", lambda e: f"{e.ettr_small_loss:.3f}"),
    ("saves", lambda e: f"{e.saving:.2%}"),
    ("trained twice", lambda e: f"{e.repeating:.2%}"),
    ("restarts", lambda e: f"{e.restarting:.2%}"),
    ("written a day", lambda e: f"{e.bytes_per_day / 1e12:.3g} TB" if e.bytes_per_day else ""),
)


def _text(made: Plan, told: Told, bounds: tuple[Plan, Plan] | None) -> list[str]:
    source = told.sources
    lines = [
        f"A failure every {in_units(made.costs.mtbf_seconds)} ({source['mtbf_seconds']}); "
        f"at least one a day with {made.failure_chance_per_day:.1%}",
        f"A save holds training up for {in_units(made.costs.save_seconds)} ({source['save_seconds']}), a "
        f"restart for {in_units(made.costs.restart_seconds)} ({source['restart_seconds']})",
        "",
    ]
    rows = [("best", made.best), *([("now", made.now)] if made.now else [])]
    lines += table(["", *(title for title, _ in _COLUMNS)], [
        [name, *(cell(expected) for _, cell in _COLUMNS)] for name, expected in rows
    ])  # fmt: skip
    low, high = made.flat
    reach = f"from {in_units(low)} to" if low >= 1 else "up to"
    lines += ["", f"Anything {reach} {in_units(high)} costs at most 1 % of the time more."]
    if bounds is not None:
        few, many = sorted(bounds, key=lambda p: p.best.interval_seconds)
        lines.append(
            f"{told.failures} seen: consistent (95 %) with one every "
            f"{in_units(few.costs.mtbf_seconds)} to {in_units(many.costs.mtbf_seconds)}: best "
            f"{in_units(few.best.interval_seconds)} to {in_units(many.best.interval_seconds)}."
        )
    methods = ", ".join(f"{name} {in_units(t)}" for name, t in made.methods.items() if t)
    return [*lines, *([f"By formula: {methods}."] if methods else [])]


def _data(made: Plan, told: Told, bounds: tuple[Plan, Plan] | None, spare: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {**to_data(made), "sources": told.sources, "notes": told.warnings}
    data["flat"] = {"from_seconds": made.flat[0], "to_seconds": made.flat[1]}
    if bounds is not None:
        data["may_be"] = [to_data(end.best) for end in bounds]
    if spare is not None:
        data["spare_nodes"] = spare
    return data
