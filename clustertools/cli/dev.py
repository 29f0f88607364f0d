"""For people who write checks or wonder what one means: `checks list`, `explain`, `record`."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from clustertools import check as checking
from clustertools import policy
from clustertools.check import Check
from clustertools.cli.frame import Output, common, examples
from clustertools.errors import ConfigError
from clustertools.host import Host, LocalHost, RecordedHost, Recorder
from clustertools.model import Playbook, Verdict
from clustertools.shared_host import SharedHost

#: The one code that no check declares: the watchdog makes it for any of them.
BLIND = "a check could not look, several times in a row; nobody knows whether all is well"


@click.group()
def checks() -> None:
    """The checks there are."""


@checks.command("list", epilog=examples("clustertools checks list", "clustertools checks list --cost"))
@click.option("--stage", type=click.Choice(sorted(checking.STAGES)), help="Only those of one stage.")
@click.option("--cost", is_flag=True, help="Run each once on this machine and say how long it took.")
@common
def list_checks(stage: str | None, cost: bool, out: Output) -> None:
    """Every check: its name, stages, codes and what it looks at."""
    found = [c for c in checking.discover().values() if stage is None or stage in c.stages]
    host = LocalHost()
    for check in found:
        spent = _cost_seconds(check, host) if cost else None
        if out.json:
            row = {
                "name": check.name, "stages": sorted(check.stages), "codes": dict(check.codes),
                "summary": check.summary, "confirm": check.confirm, "source": check.source,
                "interval_seconds": check.interval_seconds, "timeout_seconds": check.timeout_seconds,
            }  # fmt: skip
            out.record("check", row if spent is None else {**row, "cost_seconds": spent})
            continue
        took = "" if spent is None else f"{spent * 1000:8.1f} ms  "
        out.line(f"{took}{check.name}  [{', '.join(sorted(check.stages))}]  {check.summary}")
        out.line(f"{' ' * len(took)}    {', '.join(check.codes)}")


def _cost_seconds(check: Check, host: Host) -> float:
    # its own memo each time: the price of a check alone, not of what others asked before it
    began = time.perf_counter()
    checking.run(check, SharedHost(host))
    return time.perf_counter() - began


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
    found = checking.discover()
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


@click.command(
    epilog=examples(
        "clustertools record /tmp/gpu-017 gpu_xid gpu_ecc",
        "clustertools check --host /tmp/gpu-017      the same answers, without the machine",
    )
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("names", nargs=-1)
@click.option("--stage", type=click.Choice(sorted(checking.STAGES)), default="watch", show_default=True)
@click.option("--keep-names", is_flag=True, help="Leave the names of users, hosts and jobs in.")
@click.option("--what", default="", help="What is wrong with this machine, in a sentence.")
@common
def record(
    folder: Path, names: tuple[str, ...], stage: str, keep_names: bool, what: str, out: Output
) -> None:
    """Run checks here and write down every answer they got, redacted, as a host for tests.

    DIR must not exist or be empty. Review it before you pass it on: names that stand in no known field are
    not recognised.
    """
    from clustertools.redact import Redactor

    chosen = checking.select(names, stage, checking.discover())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; recordings are not overwritten")
    local = LocalHost()
    recorder = Recorder(local, folder)
    verdicts = [checking.run(c, recorder) for c in chosen]
    people = (os.environ.get(n, "") for n in ("USER", "LOGNAME", "SUDO_USER"))
    redact = Redactor.of(local, users=people, job_names=True, keep_names=keep_names)
    about = {
        "what": what or "recorded live, not yet described",
        "node_class": "",
        "expect_codes": sorted({code for v in verdicts for code in v.codes}),
        "provenance": f"recorded live on Linux {platform.release()} with `clustertools record`",
    }
    written = recorder.save(about, redact)
    _empty_identities(written)
    changed = _differences(chosen, verdicts, folder)
    if out.json:
        out.record(
            "recording",
            {
                "folder": str(folder), "files": [str(p) for p in written], "redacted": dict(redact.counts),
                "changed": changed,
            },
        )  # fmt: skip
        return
    for path in written:
        out.line(str(path))
    told = ", ".join(f"{n} x {kind}" for kind, n in sorted(redact.counts.items())) or "nothing"
    out.line(f"\n{len(written)} files; redacted: {told}")
    for name, how in changed.items():
        out.line(f"{name} answers differently on the recording: {how}")
    out.line(f"Review every file in {folder} before you pass it on: only known forms were redacted.")


def _empty_identities(written: Sequence[Path]) -> None:
    """Files whose whole content is a serial number or an asset tag have no field name to go by."""
    # /sys/class/dmi/id/product_serial, .../board_asset_tag
    for path in written:
        if re.search(r"(serial|asset_tag|_uuid)$", path.name) and path.read_text(errors="replace").strip():
            path.write_text("REDACTED\n", encoding="utf-8")


def _differences(chosen: Sequence[Check], live: Sequence[Verdict], folder: Path) -> Mapping[str, str]:
    """Checks that judge the recording otherwise than the machine: the redaction, or time, took too much."""
    host = RecordedHost(folder)
    changed = {}
    for check, before in zip(chosen, live, strict=True):
        after = checking.run(check, host)
        if (after.status, after.codes) != (before.status, before.codes):
            why = f" ({after.blind})" if after.blind else ""
            changed[check.name] = f"{after.status.name}, was {before.status.name}{why}"
    return changed
