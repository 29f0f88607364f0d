"""Writes docs/{checks,codes,coverage,read}.md from the checks, the catalogue and the playbooks: `make docs`.

What a check may yield is read from its source text: the calls of `ctx.critical` and `ctx.warning`. Where the
code or the way of telling is only known at run time, both statuses are taken for possible, except where a
table says more (the Xid catalogue, the rules of host_kernel).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from clustertools.catalog import load_xids, sxids
from clustertools.check import Check, NoLimits, discover
from clustertools.cli.dev import BLIND
from clustertools.incidents import Rules
from clustertools.model import Playbook, Status
from clustertools.policy import load_playbooks, playbook_for
from clustertools.sources.tools import readers

FOLDER = Path(__file__).parent
TELLS = {"critical": Status.CRITICAL, "warning": Status.WARNING}


@dataclass
class Told:
    """What is known of a code: every status that it can have, those to show, and how it clears, in words."""

    statuses: set[Status] = field(default_factory=set)
    clears: set[str] = field(default_factory=set)
    shown: set[Status] = field(default_factory=set)

    @property
    def usual(self) -> set[Status]:
        """Without what only an Xid 154 of the same GPU can make of it."""
        return self.shown or self.statuses


def told(check: Check) -> dict[str, Told]:
    """Every code of a check with what it may be told as; more than the truth where the source cannot say."""
    module = sys.modules[check.look.__module__]
    tree = ast.parse(inspect.getsource(module))
    found = {code: Told() for code in check.codes}
    dynamic: set[Status] = set()
    # how often a code stands in the source: once it is declared, and then where it is told or chosen
    named = Counter(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in check.codes)
    for codes, statuses, clears in _calls(tree, module):
        known = codes & found.keys()
        named.subtract(known)
        for code in known:
            found[code].statuses |= statuses
            found[code].clears.add(clears)
        if not codes:
            dynamic |= statuses
    for code, one in found.items():
        if not one.statuses or named[code] > 1:
            one.statuses |= dynamic
    _refine(module, found)
    return found


def _refine(module: ModuleType, found: Mapping[str, Told]) -> None:
    """What tables say of codes that a check yields out of a table."""
    if hasattr(module, "finding_codes"):
        _refine_xids(found)
    rows = _rows(module)
    for row in rows:
        found[row.code].statuses = {other.status for other in rows if other.code == row.code}
    for rule in getattr(module, "RULES", {}).values():
        one = found[rule.code]
        # the one rule whose events add up: many kills are a node that cannot host jobs
        adds_up = rule.code == "HostOomKill"
        one.statuses = {Status.WARNING, Status.CRITICAL} if adds_up else {rule.status}
        reboot = rule.limit == "reboot"
        one.clears.add(_words("reboot") if reboot else f"not repeated for the limit `{rule.limit}`")


def _rows(module: ModuleType) -> list[Any]:
    """The rows of a check's own table: TOLD_AS of fabric_manager_log, _KINDS of bmc_sel."""
    held = [getattr(module, "_KINDS", ()), getattr(module, "TOLD_AS", {}).values()]
    return [row for rows in held for row in rows if isinstance(getattr(row, "status", None), Status)]


def _refine_xids(found: Mapping[str, Told]) -> None:
    found["NvlinkDiscoveryFailed"].statuses = {Status.WARNING}  # of no GPU, so no Xid 154 is about it
    for xid in load_xids(()).values():
        one = found[xid.finding_code]
        if xid.status is Status.OK:
            one.statuses.clear()
            continue
        one.clears.add(_words(xid.clears))
        # of these the text of the line decides (catalog/nvlink5.yaml)
        one.shown |= {Status.WARNING, Status.CRITICAL} if 144 <= xid.code <= 149 else {xid.status}
    for sxid in sxids():
        if sxid.status is not Status.OK:
            one = found["SxidFatal" if sxid.status is Status.CRITICAL else "SxidNonFatal"]
            one.statuses = {sxid.status}
            one.clears.add(_words(sxid.clears))


def _calls(tree: ast.Module, module: ModuleType) -> Iterator[tuple[set[str], set[Status], str]]:
    """(codes, statuses, clears) of every call that makes a finding; no codes when they are not literal."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        aliases = {
            target.id: statuses
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and (statuses := _tells(node.value))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            statuses = aliases.get(name) or (
                _tells(call.func) if isinstance(call.func, ast.Attribute) else set()
            )
            if statuses:
                yield _literals(call.args[0], function, tree), statuses, _clears(call, module)


def _tells(node: ast.AST) -> set[Status]:
    """The statuses of the methods that an expression names: `ctx.critical if bad else ctx.warning`."""
    return {TELLS[n.attr] for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr in TELLS}


def _literals(code: ast.expr, function: ast.FunctionDef, tree: ast.Module) -> set[str]:
    """The code itself; or, of a function's own argument, what its callers pass."""
    if isinstance(code, ast.Constant):
        return {str(code.value)}
    names = [a.arg for a in function.args.args]
    if not isinstance(code, ast.Name) or code.id not in names:
        return set()
    place = names.index(code.id)
    passed = (
        call.args[place]
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == function.name
        and len(call.args) > place
    )
    return {str(arg.value) for arg in passed if isinstance(arg, ast.Constant)}


def _clears(call: ast.Call, module: ModuleType) -> str:
    given = next((k.value for k in call.keywords if k.arg == "clears"), None)
    if given is None:
        return _words("recovery")
    if isinstance(given, ast.Constant):
        return _words(given.value)
    named = getattr(module, given.id, None) if isinstance(given, ast.Name) else None
    return "as the event says" if named is None else _words(named)


def _words(clears: Any) -> str:
    said = {"recovery": "no longer seen", "reboot": "after a reboot", "manual": "a person says so"}
    return said.get(clears) or f"not repeated for {_span(float(clears))}"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def own_checks() -> list[Check]:
    """The checks of this repository: not those of a site or an installed pack."""
    folder = Path(str(importlib.import_module("clustertools.checks").__file__)).parent
    return [c for c in discover(site_folders=()).values() if Path(c.source).parent == folder]


def limits(check: Check) -> list[tuple[str, str, str]]:
    """(name, default, where it comes from) of each limit; the source is the comment above the field."""
    if check.limits is NoLimits:
        return []
    lines = textwrap.dedent(inspect.getsource(check.limits)).splitlines()
    body = ast.parse("\n".join(lines)).body[0]
    assert isinstance(body, ast.ClassDef)
    comments = {n.target.id: _above(lines, n.lineno - 1) for n in body.body
                if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}  # fmt: skip
    return [(f.name, _value(f), comments[f.name]) for f in dataclasses.fields(check.limits)]


def _above(lines: list[str], row: int) -> str:
    comment: list[str] = []
    while row > 0 and (line := lines[row - 1].strip()).startswith("#"):
        comment.insert(0, line.lstrip("#:").strip())
        row -= 1
    return " ".join(comment)


def _value(limit: dataclasses.Field[Any]) -> str:
    value = limit.default
    if limit.name.endswith("_bytes") and isinstance(value, (int, float)):
        for power, unit in ((30, "GiB"), (20, "MiB")):
            if value >= 1 << power:
                return f"{value / (1 << power):g} {unit}"
    if limit.name.endswith("_seconds") and isinstance(value, (int, float)) and value >= 60:
        return _span(value)
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if isinstance(value, (str, tuple)) else str(value)


def checks_page() -> str:
    """The text of docs/checks.md."""
    parts = [
        "# Checks",
        "Made by `make docs` from the checks themselves; do not edit. What a code means for you is in "
        "[codes.md](codes.md), how to add a check in [new-check.md](new-check.md).",
        "A check costs at most its deadline, once per interval. `clustertools checks list --cost` measures "
        "each on your machine. Limits, interval and passes are set in the config under `checks.NAME`.",
        _table(
            ("check", "looks at", "stages"),
            [(f"[{c.name}](#{c.name})", c.summary, ", ".join(sorted(c.stages))) for c in own_checks()],
        ),
    ]
    for check in own_checks():
        passes = f"believed after {check.confirm} passes" if check.confirm > 1 else "believed at once"
        parts += [
            f"## {check.name}",
            inspect.cleandoc(check.doc),
            f"Stages: {', '.join(sorted(check.stages))}. Interval {_span(check.interval_seconds)}, "
            f"deadline {_span(check.timeout_seconds)}, {passes}.",
            _limits_text(check),
            "Codes: " + ", ".join(f"[{code}](codes.md#{code.lower()})" for code in check.codes) + ".",
        ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _limits_text(check: Check) -> str:
    found = limits(check)
    if not found:
        return "Limits: none."
    said = inspect.cleandoc(check.limits.__doc__ or "")
    # a dataclass without a docstring is given its signature as one
    said = "" if said.startswith("Limits(") else said
    rows = [(f"`{name}`", f"`{value}`", source) for name, value, source in found]
    sources = any(source for _, _, source in rows)
    table = _table(
        ("limit", "default", "why") if sources else ("limit", "default"),
        rows if sources else [row[:2] for row in rows],
    )
    return f"{said}\n\n{table}" if said else table


def codes_page() -> str:
    """The text of docs/codes.md."""
    books = load_playbooks(())
    parts = [
        "# Codes",
        "Made by `make docs` from the checks, the Xid catalogue and the playbooks; do not edit. A code is "
        "never renamed. `clustertools explain CODE` prints the playbook's text.",
        "Only CRITICAL findings are acted on, and only in mode `act` or with an approval. A WARNING is told. "
        "*Clears* says how the incident ends; where several ways are named, it depends on the event. An Xid "
        "with WARNING here becomes CRITICAL when the driver asks for a reset or a reboot within the limit "
        "`consequence_seconds` (Xid 154). What a reset or a new load of the driver cures ends with it.",
    ]
    for check in own_checks():
        for code, one in told(check).items():
            parts += _code(code, check.codes[code], f"[{check.name}](checks.md#{check.name})", one, books)
    passes = Rules().blind_confirm
    one = Told({Status.UNKNOWN}, {"the check can look again"})
    parts += _code("Blind", BLIND, f"every check, after {passes} passes", one, books)
    parts += ["# Playbooks", _table(("playbook", "steps", "codes"), [_book(b) for b in books])]
    return "\n\n".join(parts) + "\n"


def _code(code: str, meaning: str, by: str, one: Told, books: tuple[Playbook, ...]) -> list[str]:
    statuses = ", ".join(s.name for s in sorted(one.usual, reverse=True))
    statuses = statuses or "only evidence of another code"
    book = playbook_for(code, books)
    answer = f"playbook {book.name}" if book else "no playbook"
    return [
        f"## {code}",
        f"{meaning[:1].upper()}{meaning[1:]}.",
        f"{statuses}; clears: {' or '.join(sorted(one.clears)) or 'no longer seen'}; {by}; {answer}.",
    ]


def _book(book: Playbook) -> tuple[str, str, str]:
    steps = ", ".join(step.kind for step in book.steps) or "tell"
    after = f" after {_span(book.after_seconds)}" if book.after_seconds else ""
    return book.name, steps + after, ", ".join(book.codes)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


#: What the rows of docs/coverage.yaml are about, by the beginning of their names.
ROOMS = {
    "gpu": "GPU", "nvlink": "NVLink", "nvswitch": "NVSwitch and fabric", "xgmi": "xGMI", "pcie": "PCIe",
    "ib": "InfiniBand and RoCE", "rdma": "RDMA", "efa": "EFA", "gdr": "GPUDirect", "roce": "RoCE",
    "gm": "Myrinet", "eth": "Ethernet", "net": "Network", "fs": "File systems", "disk": "Drives",
    "cpu": "CPU", "mem": "Memory", "os": "Operating system", "svc": "Services", "slurm": "Slurm",
    "clock": "Clock", "job": "Job", "bmc": "BMC", "act": "Active tests",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A health check of the field, and where it is here: checks and codes, readings only, or why not.

    `by_config` is the section of the config that makes such a check, `probe` the preflight's active test.
    """

    name: str
    cost: str
    checks: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()
    left_out: str = ""
    by_config: str = ""
    probe: str = ""

    @property
    def is_open(self) -> bool:
        has_check = self.checks and (self.codes or self.readings)
        return not (self.left_out or self.by_config or self.probe or has_check)


def coverage() -> list[Row]:
    """The rows of docs/coverage.yaml. Raises TypeError for a key that no row has."""
    with open(FOLDER / "coverage.yaml", encoding="utf-8") as file:
        rows = yaml.safe_load(file)
    found = []
    for name, told_row in rows.items():
        given = dict(told_row)
        checks = given.pop("check", ())
        lists = {key: tuple(given.pop(key, ())) for key in ("codes", "readings")}
        found.append(
            Row(name, checks=(checks,) if isinstance(checks, str) else tuple(checks), **lists, **given)
        )
    return found


def coverage_page() -> str:
    """The text of docs/coverage.md."""
    rows = coverage()
    left_out = sum(bool(row.left_out) for row in rows)
    parts = [
        "# Coverage",
        "Made by `make docs` from docs/coverage.yaml; do not edit. The rows are the distinct health checks "
        "of fifteen systems of the field (gpud, gcm, Azure's and LBNL's node health checks, Google's cluster "
        "health scanner, Imbue's, SuperBench, NVIDIA's resiliency extension, AWS's, the ML engineering book, "
        "DCGM, node-problem-detector, NVSentinel, soperator and the cluster readiness engine). Cost: P1 "
        "reads in less than 0.1 s, P2 in less than 2 s, A needs an idle GPU or network card.",
        f"{len(rows)} rows: {len(rows) - left_out} have a check or a probe here, {left_out} are left out "
        "with a reason.",
    ]
    rooms: dict[str, list[Row]] = {}
    for row in rows:
        rooms.setdefault(ROOMS[row.name.split(".")[0]], []).append(row)
    for room, members in rooms.items():
        parts += [
            f"## {room}",
            _table(("row", "cost", "here"), [(r.name, r.cost, _here(r)) for r in members]),
        ]
    return "\n\n".join(parts) + "\n"


def _here(row: Row) -> str:
    if row.left_out:
        return f"left out: {row.left_out}"
    if row.probe:
        return f"the probe `{row.probe}` of `clustertools preflight`"
    if row.by_config:
        return f"the site's own, by the section `{row.by_config}` of the config"
    checks = ", ".join(f"[{name}](checks.md#{name})" for name in row.checks)
    codes = [f"[{code}](codes.md#{code.lower()})" for code in row.codes]
    said = "; ".join(filter(None, (", ".join(codes), ", ".join(f"reading `{r}`" for r in row.readings))))
    return f"{checks}: {said}" if checks and said else "**open**"


def read_page() -> str:
    """The text of docs/read.md."""
    known = readers()
    parts = [
        "# What `clustertools read` prints",
        "Made by `make docs` from the readers themselves; do not edit. `clustertools read [--kind KIND] "
        "[FILE]` prints one JSON object: `schema`, `kind`, the fields below, and `unparsed`, the lines of "
        "an unknown form, each with `line` (its number) and `text`. `a[].b` is the field b of each element "
        "of the list a; `a.*` is every value of the map a. A field that the tool did not tell is null or "
        "left out. Units are in the names.",
        _table(("kind", "of what"), [(f"[{k}](#{k})", _first(reader)) for k, reader in known.items()]),
    ]
    for kind, reader in known.items():
        rows = [(f"`{name}`", meaning) for name, meaning in getattr(reader, "FIELDS", {}).items()]
        parts += [f"## {kind}", _first(reader), _table(("field", "what it is"), rows) if rows else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def _first(reader: Any) -> str:
    return (reader.__doc__ or "").strip().split("\n\n", 1)[0].replace("\n", " ")


PAGES = {
    "checks.md": checks_page, "codes.md": codes_page, "coverage.md": coverage_page, "read.md": read_page,
}  # fmt: skip

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
