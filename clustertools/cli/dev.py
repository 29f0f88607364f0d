"""For people who write checks or wonder what one means: `checks list`, `explain`."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from clustertools import check as checking
from clustertools import policy
from clustertools.check import Check
from clustertools.cli.frame import Output, common, examples
from clustertools.cli.site import is_configured
from clustertools.errors import ConfigError
from clustertools.host import Host, LocalHost, RecordedHost
from clustertools.model import Playbook
from clustertools.shared_host import SharedHost

#: How often `--cost` runs each check.
COST_RUNS = 3
#: The one code that no check declares: the watchdog makes it for any of them.
BLIND = "a check could not look, several times in a row; nobody knows whether all is well"


class _Checks(click.Group):
    """`precision` reads stores: imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "precision"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "precision":
            return super().get_command(ctx, cmd_name)
        from clustertools.cli.judge import show_precision

        return show_precision


@click.group(cls=_Checks)
def checks() -> None:
    """The checks there are."""


@checks.command(
    "list",
    epilog=examples(
        "clustertools checks list",
        "clustertools checks list --stage prolog --cost",
        "clustertools checks list --cost --host tests/hosts/h100-healthy",
    ),
)
@click.option("--stage", type=click.Choice(sorted(checking.STAGES)), help="Only those of one stage.")
@click.option(
    "--cost", is_flag=True, help="Run each a few times, and say what it takes and what it may take."
)
@click.option("--host", "recording", type=click.Path(path_type=Path), metavar="DIR",
              help="Measure on a recorded host, not on this one.")  # fmt: skip
@common
def list_checks(stage: str | None, cost: bool, recording: Path | None, out: Output) -> None:
    """Every check: its name, stages, codes and what it looks at."""
    found = [c for c in _known(out).values() if stage is None or stage in c.stages]
    total = 0.0
    for check in found:
        # a check of runs has no run to look at here
        spent = _cost_seconds(check, recording) if cost and check.stages != {"job"} else None
        total += spent or 0.0
        if out.json:
            row = {
                "name": check.name, "stages": sorted(check.stages), "codes": dict(check.codes),
                "summary": check.summary, "confirm": check.confirm, "source": check.source,
                "interval_seconds": check.interval_seconds, "timeout_seconds": check.timeout_seconds,
                "declared_cost_seconds": check.cost_seconds, "needs": sorted(check.needs),
            }  # fmt: skip
            out.record("check", row if spent is None else {**row, "cost_seconds": spent})
            continue
        took = f"{_against(spent, check.cost_seconds)}  " if cost else ""
        needs = f"  needs {' and '.join(sorted(check.needs))}" if check.needs else ""
        out.line(f"{took}{check.name}  [{', '.join(sorted(check.stages))}]{needs}  {check.summary}")
        out.line(f"{' ' * len(took)}    {', '.join(check.codes)}")
    if cost and not out.json:
        out.line(f"{_against(total, sum(c.cost_seconds for c in found if c.stages != {'job'}))}  together")


def _known(out: Output) -> Mapping[str, Check]:
    """All checks, with those that only the site's config names; a config that is wrong hides no other."""
    if is_configured():
        from clustertools.config import load
        from clustertools.plugins import all_checks

        try:
            return all_checks(load().config)
        except ConfigError as exc:
            out.note(f"the config is left out: {exc}")
    return checking.discover()


def _against(spent: float | None, declared: float) -> str:
    """Measured against declared; "!" where it takes longer than it may."""
    if spent is None:
        return f"{'':>10}   {declared * 1000:6.0f} ms"
    return f"{spent * 1000:7.1f} ms{'!' if spent > declared else ' '}of {declared * 1000:6.0f} ms"


def _cost_seconds(check: Check, recording: Path | None) -> float:
    """The median of a few runs, each with an empty memo: the price of a check alone."""
    from clustertools.cli.check import orders_for

    spent = []
    for _ in range(COST_RUNS):
        host: Host = RecordedHost(recording) if recording else LocalHost()
        orders = orders_for(host, None)
        began = time.perf_counter()
        checking.run(
            check, SharedHost(host), limits=orders.limits.get(check.name), expect=orders.expect,
            cluster=orders.cluster,
        )  # fmt: skip
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


@click.command(
    epilog=examples(
        "clustertools explain XidGpuLost", 'clustertools explain "xid 79"', "clustertools explain gpu_ecc"
    )
)
@click.argument("words", nargs=-1, required=True, metavar='CODE|CHECK|"xid N"')
@common
def explain(words: tuple[str, ...], out: Output) -> None:
    """What a code, a check or an Xid means, where it comes from and what to do about it."""
    asked = " ".join(words).strip()
    # "xid 79", "Xid79", "XID:79"
    xid = re.fullmatch(r"xid[\s:#]*(\d+)", asked, re.IGNORECASE)
    if xid:
        _explain_xid(int(xid[1]), out)
        return
    found = _known(out)
    if asked in found:
        _explain_check(found[asked], out)
        for code, meaning in found[asked].codes.items():
            _explain_code(code, meaning, [found[asked]], out)
        return
    codes = {code.lower(): code for c in found.values() for code in c.codes} | {"blind": "Blind"}
    if asked.lower() not in codes:
        raise ConfigError(_unknown(asked, [*codes.values(), *found]))
    code = codes[asked.lower()]
    declared_by = [c for c in found.values() if code in c.codes]
    _explain_code(code, declared_by[0].codes[code] if declared_by else BLIND, declared_by, out)
    if not out.json:
        for check in declared_by:
            _explain_check(check, out)


def _explain_xid(number: int, out: Output) -> None:
    from clustertools.catalog import explain_xid
    from clustertools.catalog import xid as entry_of

    text, code = explain_xid(number), entry_of(number).finding_code
    if out.json:
        out.record("explanation", {"xid": number, "code": code, "text": text, "playbook": _playbook(code)})
        return
    out.line(text)
    _print_playbook(code, out)


def _explain_code(code: str, meaning: str, by: Sequence[Check], out: Output) -> None:
    if out.json:
        out.record(
            "explanation",
            {"code": code, "meaning": meaning, "checks": [c.name for c in by], "playbook": _playbook(code)},
        )
        return
    out.line(f"{code}: {meaning}")
    _print_playbook(code, out)
    out.line()


def _playbook(code: str) -> Playbook | None:
    return policy.playbook_for(code, policy.load_playbooks())


def _print_playbook(code: str, out: Output) -> None:
    book = _playbook(code)
    if book is None:
        out.line("  no playbook names it: people are told, nothing else happens")
        return
    out.line(f"\n  playbook {book.name}: {', '.join(s.kind for s in book.steps) or 'people are told'}")
    out.line(_indented(book.runbook))


def _explain_check(check: Check, out: Output) -> None:
    if out.json:
        return
    out.line(f"check {check.name} [{', '.join(sorted(check.stages))}]")
    out.line(_indented(check.doc))
    out.line()


def _indented(text: str) -> str:
    import inspect
    import textwrap

    return textwrap.indent(inspect.cleandoc(text).rstrip(), "    ")


def _unknown(asked: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(asked, known, 1)
    hint = f"; did you mean {near[0]}?" if near else "; `clustertools checks list` shows all codes"
    return f"nothing is called {asked!r}{hint}"
