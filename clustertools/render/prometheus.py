"""Verdicts as Prometheus metrics: the text format, and the file that node_exporter collects.

Format: prometheus.io/docs/instrumenting/exposition_formats. Every check has a series for every status, so
that an alert has something to compare with before the first fault.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from clustertools.errors import Unobservable
from clustertools.model import Reading, Status, Verdict

Labels = tuple[tuple[str, str], ...]
#: name -> (type, help, its samples by their labels)
Families = dict[str, tuple[str, str, dict[Labels, float]]]

_PREFIX = "clustertools_"
_NOT_NAME = re.compile(r"[^a-zA-Z0-9_]")
#: Units of ours that Prometheus wants in base units: (end of the name, its new end, factor).
_BASE_UNITS = (("_percent", "_ratio", 0.01), ("_bits_per_second", "_bytes_per_second", 0.125))


def prometheus(verdicts: Sequence[Verdict]) -> str:
    """The exposition: status, findings, readings, and when each node was last looked at."""
    families: Families = {}

    def put(name: str, kind: str, text: str, labels: Mapping[str, str], value: float) -> None:
        _, _, samples = families.setdefault(_PREFIX + name, (kind, text, {}))
        # the same series twice would make node_exporter refuse the whole file
        samples[tuple((k, v) for k, v in labels.items() if v)] = value

    for verdict in verdicts:
        about = _about(verdict)
        here = {**about, "check": verdict.check}
        for status in Status:
            put(
                "check_status", "gauge", "1 for the outcome of the check's last look, 0 for the others.",
                {**here, "status": status.name.lower()}, float(verdict.status is status),
            )  # fmt: skip
        put(
            "check_duration_seconds", "gauge", "How long the check's last look took.",
            here, verdict.elapsed_seconds,
        )  # fmt: skip
        for finding in verdict.findings:
            put(
                "finding", "gauge", "A finding of the last look: 1 for as long as it is reported.",
                {**here, "code": finding.code, "part": finding.subject.part,
                 "status": finding.status.name.lower()}, 1.0,
            )  # fmt: skip
        put(
            "last_look_timestamp_seconds", "gauge", "When the last of these checks looked.",
            about, max((v.time for v in verdicts if _about(v) == about), default=0.0),
        )  # fmt: skip
    for verdict in verdicts:
        for reading in verdict.readings:
            name, kind, value = _named(reading)
            labels = {**_about(verdict), "check": verdict.check, "part": reading.subject.part}
            put(name, kind, f"The reading {reading.name} of a check.", labels, value)
    return "".join(_family(name, *families[name]) for name in sorted(families)).removesuffix("\n")


def _about(verdict: Verdict) -> dict[str, str]:
    subject = verdict.subject
    return {"cluster": subject.cluster, "node": subject.node, "run": subject.run}


def _named(reading: Reading) -> tuple[str, str, float]:
    """(name, type, value) of a reading: a counter ends in `_total`, all else is a gauge."""
    name, value = _NOT_NAME.sub("_", reading.name), reading.value
    for end, base, factor in _BASE_UNITS:
        if name.endswith(end):
            name, value = name.removesuffix(end) + base, value * factor
    return name, "counter" if name.endswith("_total") else "gauge", value


def _family(name: str, kind: str, text: str, samples: Mapping[Labels, float]) -> str:
    lines = [f"# HELP {name} {_help(text)}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{_labels(labels)} {_value(value)}" for labels, value in sorted(samples.items())]
    return "\n".join(lines) + "\n"


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    # a label is UTF-8; what a log line smuggled in as a lone surrogate is not
    value = value.encode("utf-8", "replace").decode("utf-8")
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", " ")


def _value(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def write_textfile(path: str | os.PathLike[str], verdicts: Sequence[Verdict]) -> None:
    """Replace `path` in one step: the collector never reads half a file. Raises Unobservable.

    The new text lies beside it under a name that does not end in .prom, which the collector would read.
    """
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            with open(fd, "w", encoding="utf-8", errors="replace") as file:
                os.fchmod(fd, 0o644)  # whatever our umask: node_exporter is another user
                file.write(prometheus(verdicts) + "\n")
            os.replace(temporary, path)
        except BaseException:  # whatever it was, it is raised again
            os.unlink(temporary)
            raise
    except OSError as exc:
        raise Unobservable(f"could not write {path}: {exc.strerror}") from exc
