"""Verdicts as text: for a person, for JSON readers, Nagios, NHC, node-problem-detector and JUnit readers.

Prometheus' is in `render/prometheus.py`.

Pure functions. What a check quotes from a log may hold terminal escapes: they are shown, not sent.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from clustertools.model import Finding, Reading, Remedy, Status, Verdict, worst
from clustertools.render.json_lines import json_line
from clustertools.render.prometheus import prometheus

#: node-problem-detector keeps this much of a plugin's output by default (its `max_output_length`).
NPD_MESSAGE_BYTES = 80
#: Nagios Core reads 8 KiB of a plugin's output (MAX_PLUGIN_OUTPUT_LENGTH); performance data gets half.
NAGIOS_OUTPUT_BYTES = 8000
_PERFDATA_BYTES = NAGIOS_OUTPUT_BYTES // 2

_COLORS = {
    Status.OK: "32",
    Status.SKIPPED: "2",
    Status.WARNING: "33",
    Status.UNKNOWN: "35",
    Status.CRITICAL: "1;31",
}
# "\x1b[31m": everything below space and the C1 range, except the tab
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
# XML 1.0 section 2.2 allows no other characters, not even as references
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Units that Nagios knows, by the end of a reading's name.
_NAGIOS_UNITS = (("_seconds", "s"), ("_bytes", "B"), ("_percent", "%"), ("_total", "c"))


def plain(text: str) -> str:
    """`text` on one line with control characters made visible (`\\x1b`)."""
    return _CONTROL.sub(lambda m: " " if m[0] == "\n" else f"\\x{ord(m[0]):02x}", text)


def paint(text: str, status: Status, color: bool) -> str:
    """`text` in the colour of a status, or as it is."""
    return f"\x1b[{_COLORS[status]}m{text}\x1b[0m" if color else text


def summary(verdict: Verdict) -> str:
    """What the verdict says, in one line without the check's name."""
    if verdict.status is Status.UNKNOWN:
        return plain(f"could not look: {verdict.blind or 'no reason was given'}")
    if verdict.findings:
        first = max(verdict.findings, key=lambda f: f.status)
        more = f" (and {len(verdict.findings) - 1} more)" if len(verdict.findings) > 1 else ""
        return f"{_about(first)}{more}"
    return plain(verdict.detail.split("\n", 1)[0])


def _about(finding: Finding) -> str:
    place = finding.subject.part or finding.subject.job or finding.subject.run
    return plain(f"{place}: {finding.summary}" if place else finding.summary)


#: More checks than this that are OK without a word stand in one line.
_FOLD = 4


def text(verdicts: Sequence[Verdict], *, color: bool = False, quiet: bool = False, verbose: int = 0) -> str:
    """For a person: a line for each check with something to say, findings below it, the worst status last.

    Checks that are OK without a word, that are blind for one reason, or that do not apply are folded.
    `quiet` leaves out the checks that are OK; `verbose` unfolds, and shows notes, readings and times.
    """
    width = max((len(v.check) for v in verdicts), default=0)
    lines: list[str] = []
    fine = [v for v in verdicts if v.status is Status.OK and not summary(v)]
    fine = fine if len(fine) > _FOLD and not verbose else []
    alike = {} if verbose else _blind_alike(verdicts)
    for verdict in verdicts:
        if verdict.status is Status.SKIPPED or verdict in fine or (quiet and verdict.status is Status.OK):
            continue
        others = alike.get(verdict.blind, [verdict])
        if verdict is others[0]:
            lines += _text_of(verdict, width, color, verbose)
            if len(others) > 1:
                lines[-1] += f" (also {', '.join(other.check for other in others[1:])})"
        elif verdict not in others:
            lines += _text_of(verdict, width, color, verbose)
    if fine and not quiet:
        word = paint(f"{Status.OK.name:<8}", Status.OK, color)
        lines.append(f"{word}  {len(fine)} checks: {', '.join(v.check for v in fine)}")
    skipped = [v for v in verdicts if v.status is Status.SKIPPED]
    if skipped and not quiet:
        lines.append(f"skipped {len(skipped)}: {_folded(skipped)}")
    status = _overall(verdicts)
    nodes = sorted({str(v.subject) for v in verdicts})
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    counts = Counter(v.status for v in verdicts)
    tally = ", ".join(f"{counts[s]} {s.name.lower()}" for s in sorted(counts, reverse=True))
    lines.append(f"{paint(status.name, status, color)}: {where}: {tally or 'nothing was looked at'}")
    return "\n".join(lines)


def _blind_alike(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Checks that found nothing and could not look, by why: a missing privilege blinds many."""
    alike: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.status is Status.UNKNOWN and verdict.blind and not verdict.findings:
            alike.setdefault(verdict.blind, []).append(verdict)
    return alike


def _overall(verdicts: Iterable[Verdict]) -> Status:
    """The worst status; a check that does not apply here says nothing once another one ran."""
    statuses = {v.status for v in verdicts}
    return worst(statuses - {Status.SKIPPED}) if len(statuses) > 1 else worst(statuses)


def _text_of(verdict: Verdict, width: int, color: bool, verbose: int) -> list[str]:
    word = paint(f"{verdict.status.name:<8}", verdict.status, color)
    head = f"{len(verdict.findings)} findings" if len(verdict.findings) > 1 else summary(verdict)
    if verdict.status is Status.UNKNOWN:
        head = summary(verdict)
    took = f"  ({verdict.elapsed_seconds * 1000:.0f} ms)" if verbose else ""
    lines = [f"{word}  {verdict.check:<{width}}  {head}{took}".rstrip()]
    for finding in verdict.findings:
        # a single finding of a verdict that saw everything already stands on the first line
        told = len(verdict.findings) == 1 and verdict.status is not Status.UNKNOWN
        remedy = f"  remedy: {finding.remedy.value}" if finding.remedy is not Remedy.NONE else ""
        status = f"{finding.status.name} " if finding.status is not verdict.status else ""
        lines.append(f"    {status}{finding.code}{'' if told else '  ' + _about(finding)}{remedy}")
        lines += [f"      | {plain(line)}" for line in finding.evidence]
    if verdict.blind and verdict.status is not Status.UNKNOWN:
        lines.append(f"    not everything could be seen: {plain(verdict.blind)}")
    if verbose:
        lines += [f"    {plain(line)}" for line in verdict.detail.splitlines()]
        lines += [f"    {r.name} {r.value:g}  {r.subject.part}".rstrip() for r in verdict.readings]
    return lines


def _folded(skipped: Iterable[Verdict]) -> str:
    """Names of checks under their common reason: "no NVIDIA device: gpu_count, gpu_ecc"."""
    reasons: dict[str, list[str]] = {}
    for verdict in skipped:
        reasons.setdefault(plain(verdict.detail.split("\n", 1)[0]), []).append(verdict.check)
    return "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())


def json_lines(verdicts: Sequence[Verdict]) -> str:
    """One verdict a line: {"schema": 1, "kind": "verdict", ...}."""
    return "\n".join(json_line("verdict", v) for v in verdicts)


def nagios(verdicts: Sequence[Verdict]) -> str:
    """The plugin output of the Monitoring Plugins guidelines: `STATUS: summary | perfdata`, then long text.

    A "|" would begin performance data, so texts have "/" instead.
    """
    status = worst(v.status for v in verdicts)
    bad = sorted((v for v in verdicts if v.status >= Status.WARNING), key=lambda v: -v.status)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        said = f"{bad[0].check}: {summary(bad[0])}{more}"
    else:
        ran = [v for v in verdicts if v.status is not Status.SKIPPED]
        said = f"{len(ran)} checks fine, {len(verdicts) - len(ran)} skipped"
    word = Status.OK.name if status is Status.SKIPPED else status.name
    first = f"{word}: {said}".replace("|", "/")[:1000]
    performance = _perfdata(r for v in verdicts for r in v.readings)
    out = [f"{first} | {performance}" if performance else first]
    out += [line.replace("|", "/") for v in bad for line in _nagios_long(v)]
    return cut("\n".join(out), NAGIOS_OUTPUT_BYTES)


def _nagios_long(verdict: Verdict) -> list[str]:
    if verdict.status is Status.UNKNOWN or not verdict.findings:
        return [f"{verdict.status.name} {verdict.check}: {summary(verdict)}"]
    return [f"{f.status.name} {verdict.check} {f.code}: {_about(f)}" for f in verdict.findings]


def _perfdata(readings: Iterable[Reading]) -> str:
    pieces: list[str] = []
    size = 0
    for reading in readings:
        label = f"{reading.subject.part} {reading.name}".strip().translate(str.maketrans("'=|\n", "____"))
        unit = next((u for end, u in _NAGIOS_UNITS if reading.name.endswith(end)), "")
        piece = f"'{plain(label)}'={_number(reading.value)}{unit if math.isfinite(reading.value) else ''}"
        size += len(piece.encode("utf-8", "replace")) + 1
        if size > _PERFDATA_BYTES:
            break
        pieces.append(piece)
    return " ".join(pieces)


def _number(value: float) -> str:
    """Without an exponent, which not every reader of performance data knows; "U" says unknown."""
    if not math.isfinite(value):
        return "U"
    return f"{value:.9f}".rstrip("0").rstrip(".")


def npd(verdicts: Sequence[Verdict]) -> str:
    """The message of a node-problem-detector plugin: where and how much first, at most 80 bytes."""
    status = worst(v.status for v in verdicts)
    if status < Status.WARNING:
        return "OK"
    bad = [v for v in verdicts if v.status >= Status.WARNING]
    first = max(bad, key=lambda v: v.status)
    if first.status is Status.UNKNOWN or not first.findings:
        said, others = f"{first.check} {summary(first)}", len(bad) - 1
    else:
        finding = max(first.findings, key=lambda f: f.status)
        said, others = _about(finding), sum(max(1, len(v.findings)) for v in bad) - 1
    more = f" (+{others})" if others else ""
    return cut(said, NPD_MESSAGE_BYTES - len(more)) + more


def nhc(verdicts: Sequence[Verdict]) -> str:
    """The line that LBNL Node Health Check prints for its first failure, and nothing when there is none.

    `die()` in its driver writes `ERROR:  nhc:  Health check failed:  CHECK:  TEXT`. It knows no warnings, and
    a failure takes the node out of service: so only CRITICAL is one, and what could not be looked at is said
    in a line that begins with another word.
    """
    status = worst(v.status for v in verdicts)
    first = next((v for v in verdicts if v.status is status), None)
    if first is None or status <= Status.WARNING:
        return ""
    if status is Status.UNKNOWN:
        return f"WARNING:  nhc:  {first.check}:  {summary(first)}"
    code = next((f.code for f in first.findings if f.status is status), "")
    return f"ERROR:  nhc:  Health check failed:  {first.check}:  {code} {summary(first)}"


def junit(verdicts: Sequence[Verdict]) -> str:
    """JUnit XML: a suite for each node, a case for each check.

    CRITICAL is a failure, UNKNOWN an error, SKIPPED skipped; a WARNING passes and stands in system-out.
    """
    from xml.etree import ElementTree as Xml

    root = Xml.Element("testsuites", name="clustertools")
    suites: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        suites.setdefault(str(verdict.subject), []).append(verdict)
    for node, cases in suites.items():
        counts = Counter(v.status for v in cases)
        when = datetime.datetime.fromtimestamp(min(v.time for v in cases), datetime.timezone.utc)
        suite = Xml.SubElement(
            root, "testsuite", name=xml_text(node), tests=str(len(cases)),
            hostname=xml_text(cases[0].subject.node), failures=str(counts[Status.CRITICAL]),
            errors=str(counts[Status.UNKNOWN]), skipped=str(counts[Status.SKIPPED]),
            timestamp=when.strftime("%Y-%m-%dT%H:%M:%S"),
            time=f"{sum(v.elapsed_seconds for v in cases):.3f}",
        )  # fmt: skip
        for verdict in cases:
            case = Xml.SubElement(
                suite, "testcase", name=xml_text(verdict.check), classname=xml_text(node),
                time=f"{verdict.elapsed_seconds:.3f}",
            )  # fmt: skip
            long = "\n".join(_text_of(verdict, 0, False, 0))
            tag = _JUNIT.get(verdict.status)
            if tag:
                kind = ",".join(sorted(verdict.codes)) or verdict.status.name
                outcome = Xml.SubElement(case, tag, message=xml_text(summary(verdict)), type=xml_text(kind))
                outcome.text = xml_text(long) if tag != "skipped" else None
            elif verdict.status is Status.WARNING:
                Xml.SubElement(case, "system-out").text = xml_text(long)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode")


_JUNIT = {Status.CRITICAL: "failure", Status.UNKNOWN: "error", Status.SKIPPED: "skipped"}


def xml_text(text: str) -> str:
    """`text` with "?" for each character that XML does not allow."""
    return _NOT_XML.sub("?", text)


def cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8, never half a character; what was cut shows as "..."."""
    data = text.encode("utf-8", "replace")
    if len(data) <= size:
        return text
    return data[: max(0, size - 3)].decode("utf-8", "ignore") + "..."


def exit_code(format_name: str, verdicts: Iterable[Verdict]) -> int:
    """The process's exit code: by the worst status, except for `npd`, which reads codes in its own way.

    node-problem-detector takes 0 for no problem, 1 for a problem and all else for "unknown": there a
    Nagios-like 2 for CRITICAL would be lost. NHC and its callers take every code but 0 for a bad node.
    """
    status = worst(v.status for v in verdicts)
    if format_name == "nhc":
        return int(status is Status.CRITICAL)
    if format_name != "npd":
        return status.exit_code
    return {Status.OK: 0, Status.SKIPPED: 0, Status.UNKNOWN: 3}.get(status, 1)


#: The formats without options; `text` takes some.
FORMATS: Mapping[str, Callable[[Sequence[Verdict]], str]] = {
    "text": text,
    "json": json_lines,
    "nagios": nagios,
    "nhc": nhc,
    "npd": npd,
    "junit": junit,
    "prometheus": prometheus,
}
