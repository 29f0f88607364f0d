"""A kernel log as somebody sent it: dmesg in its forms, /dev/kmsg, syslog, or the journal as JSON.

Forms (util-linux dmesg(1), kernel ABI dev-kmsg, RFC 3164 as rsyslog and journalctl write it, systemd "Journal
JSON Format"):

    [88120.443901] text                                    dmesg
    [88120.443901][  T412] text                            dmesg, with the caller (CONFIG_PRINTK_CALLER)
    [Sat Nov 21 13:30:51 2026] text                        dmesg -T
    2026-11-21T13:30:51,443901+00:00 text                  dmesg --time-format iso
    kern  :err   : [88120.443901] text                     dmesg -x
    <3>[88120.443901] text                                 dmesg -r
    3,911,88120443901,-;text                               /dev/kmsg
    Nov 21 13:30:51 gpu-017 kernel: [88120.443901] text    syslog, journalctl -k
    2026-11-21T13:30:51.443901+00:00 gpu-017 kernel: text  rsyslog
    {"MESSAGE": "text", "PRIORITY": "3", ...}              journalctl -o json
"""

from __future__ import annotations

import calendar
import datetime
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from clustertools import catalog
from clustertools.errors import Unparsable
from clustertools.sources.kernel import (
    is_driver_load,
    parse_gpu_uuid,
    parse_nvlink5,
    parse_nvlink74,
    parse_recovery_action,
    parse_shader,
    parse_sxid,
    parse_xid,
)
from clustertools.sources.kernel_events import parse_host_event

KIND = "kernel-log"

FIELDS = {
    "form": "of most lines: dmesg, dmesg -T, dmesg iso, dmesg -x, dmesg -r, kmsg, syslog, rsyslog or journal",
    "records[].time_seconds": "since 1970; null where the form does not tell; a clock without a zone is "
    "taken for UTC",
    "records[].since_boot_seconds": "null where the form does not tell",
    "records[].level": "emerg to debug; null where the form does not tell",
    "records[].program": "kernel, or who else wrote into the log",
    "records[].text": "what it says, with the lines that continue it",
    "records[].event": "what is known of the line: name (\"xid 79\", \"sxid 20034\", \"oom-kill\" ...) "
    "and what belongs to it: pci, meaning, finding, remedy, pid, process, link ...",
    "events[]": "every event and device once: name, what, count, and first and last as places in `records`",
    "lost_records": "records of /dev/kmsg that are missing, by their numbers",
    "left_out_records": "records beyond the first 200000",
    "other_lines": "lines that are no record of their own",
}  # fmt: skip

#: A record of the kernel holds about 1000 characters; a line of a log that was damaged may hold anything.
TEXT_CHARACTERS = 4096
#: A node's whole boot is some ten thousand lines.
MOST_RECORDS = 200_000
_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_LOOKED_AT_LINES = 40

_BOOT = r"\[ {0,6}(?P<boot>\d{1,9}\.\d{1,9})\](?:\[ {0,6}[TC]\d{1,8}\])?:? ?"
_FORMS = {
    # 3,911,88120443901,-;text       3,911,88120443901,-,caller=T412;text
    "kmsg": r"(?P<priority>\d{1,5}),(?P<sequence>\d{1,18}),(?P<microseconds>\d{1,18}),[^;]{1,100};",
    # kern  :err   : [88120.443901] text       kern  :err   : [Sat Nov 21 13:30:51 2026] text
    "dmesg -x": r"(?P<facility>[a-z]{3,8}\d?) *:(?P<level>[a-z]{3,6}) *: ",
    # <3>[88120.443901] text
    "dmesg -r": rf"<(?P<priority>\d{{1,3}})>(?:{_BOOT})?",
    # [Sat Nov 21 13:30:51 2026] text
    "dmesg -T": (
        r"\[[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) {1,2}(?P<day>\d{1,2}) (?P<clock>\d\d:\d\d:\d\d) "
        r"(?P<year>\d{4})\] ?"
    ),
    # [88120.443901] text
    "dmesg": _BOOT,
    # Nov 21 13:30:51 gpu-017 kernel: [88120.443901] text     Nov 21 13:30:51 gpu-017 sshd[411]: text
    "syslog": (
        r"(?P<month>[A-Z][a-z]{2}) {1,2}(?P<day>\d{1,2}) (?P<clock>\d\d:\d\d:\d\d)(?:\.\d{1,6})? "
        r"(?P<host>\S{1,255}) "
        rf"(?P<program>[^\s:\[]{{1,64}})(?:\[\d{{1,10}}\])?: (?:{_BOOT})?"
    ),
    # 2026-11-21T13:30:51.443901+00:00 gpu-017 kernel: [88120.443901] text
    "rsyslog": (
        r"(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?) (?P<host>\S{1,255}) "
        rf"(?P<program>[^\s:\[]{{1,64}})(?:\[\d{{1,10}}\])?: (?:{_BOOT})?"
    ),
    # 2026-11-21T13:30:51,443901+00:00 text
    "dmesg iso": r"(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{6}[+-]\d\d:\d\d) ",
}


@functools.cache
def _form(name: str) -> re.Pattern[str]:
    return re.compile(_FORMS[name], re.ASCII)


def recognise(text: str) -> bool:
    """Whether most of the first lines are those of a kernel log."""
    lines = [line for line in text[:65536].split("\n") if line.strip()][:_LOOKED_AT_LINES]
    if text[65536:] and len(lines) > 1:
        lines.pop()  # it may be half a line
    known = sum(
        1 for line in lines if (found := _record(line[:TEXT_CHARACTERS])) and found["program"] == "kernel"
    )
    return bool(lines) and 2 * known >= len(lines)


def read(text: str) -> dict[str, Any]:
    """Every record with what it says, and how often each event was there.

    {"form", "records": [{"time_seconds", "since_boot_seconds", "level", "program", "text", "event"?}],
    "events": [{"name", "count", "first", "last"}], "lost_records", "other_lines"}. `time_seconds` is since
    1970, null where the form tells only the time since boot, or no year; a clock without a zone is taken as
    UTC. `first` and `last` are places in `records`. A line of another form continues the record above it.
    Raises Unparsable when no line is one of a kernel log.
    """
    records: list[dict[str, Any]] = []
    forms: dict[str, int] = {}
    lost, last_number, other = 0, None, 0
    for line in _lines(text):
        found = _record(line)
        if found is None:
            other += 1
            if records and len(records[-1]["text"]) < TEXT_CHARACTERS:
                records[-1]["text"] = f"{records[-1]['text']}\n{line}"[:TEXT_CHARACTERS]
            continue
        form = found.pop("form")
        forms[form] = forms.get(form, 0) + 1
        number = found.pop("sequence")
        if number is not None:
            lost += max(0, number - last_number - 1) if last_number is not None else 0
            last_number = number
        if len(records) < MOST_RECORDS:
            records.append(found)
    if not forms:
        raise Unparsable("no line of this text is one of a kernel log", text[:200])
    for record in records:
        event = _event(record["text"]) if record["program"] == "kernel" else None
        if event:
            record["event"] = event
    return {
        "form": max(forms, key=lambda name: forms[name]),
        "records": records,
        "events": _counted(records),
        "lost_records": lost,
        "left_out_records": sum(forms.values()) - len(records),
        "other_lines": other,
    }


def _lines(text: str) -> Iterator[str]:
    """The lines, each cut: one of 10 MB must not cost 10 MB of matching. NULs, as a crash leaves them in a
    file, are dropped."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        # a journal entry is an object, which cut is none
        limit = 1 << 20 if text.startswith("{", start) else TEXT_CHARACTERS
        line = text[start : min(end, start + limit)].replace("\0", "").rstrip("\r")
        if line.strip() and not (line.startswith(" ") and "=" in line and _DICTIONARY.fullmatch(line)):
            yield line
        start = end + 1


# " SUBSYSTEM=pci": the dictionary of a record of /dev/kmsg
_DICTIONARY = re.compile(r" (?:SUBSYSTEM|DEVICE)=\S{1,200}")


def _record(line: str) -> dict[str, Any] | None:
    if line.startswith("{"):
        return _journal(line)
    for name in _FORMS:
        match = _form(name).match(line)
        if match:
            return _told(name, match, line[match.end() :])
    return None


def _told(form: str, match: re.Match[str], text: str) -> dict[str, Any] | None:
    found = match.groupdict()
    boot = float(found["boot"]) if found.get("boot") else None
    level, program = found.get("level"), found.get("program") or "kernel"
    if found.get("priority"):
        level = _LEVELS[int(found["priority"]) & 7]
        program = "kernel" if int(found["priority"]) >> 3 == 0 else "user"
    if form == "dmesg -x":
        if level not in _LEVELS:
            return None
        program = "kernel" if found["facility"] == "kern" else found["facility"]
        for name in ("dmesg", "dmesg -T", "dmesg iso"):
            if stamp := _form(name).match(text):
                found, text = {**found, **stamp.groupdict()}, text[stamp.end() :]
                boot = float(found["boot"]) if found.get("boot") else None
                break
    if found.get("microseconds"):
        boot = int(found["microseconds"]) / 1e6
    sequence = int(found["sequence"]) if found.get("sequence") else None
    return {
        "form": form, "sequence": sequence, "time_seconds": _time(found), "since_boot_seconds": boot,
        "level": level, "program": program, "text": text,
    }  # fmt: skip


def _time(found: dict[str, str | None]) -> float | None:
    """Seconds since 1970; None where the line does not say, or says what is no time."""
    try:
        if iso := found.get("iso"):
            plain = re.sub(r"([.,]\d{1,6})\d*", r"\1", iso.replace("Z", "+00:00")).replace(",", ".")
            fraction = re.search(r"\.(\d+)", plain)
            whole = re.sub(r"\.\d+", "", plain)
            whole = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", whole)
            when = datetime.datetime.fromisoformat(whole)
            if when.tzinfo is None:
                when = when.replace(tzinfo=datetime.timezone.utc)
            return when.timestamp() + (float(f"0.{fraction[1]}") if fraction else 0.0)
        if found.get("year"):
            hour, minute, second = (int(part) for part in str(found["clock"]).split(":"))
            month, day = _MONTHS[str(found["month"])], int(str(found["day"]))
            when = datetime.datetime(
                int(str(found["year"])), month, day, hour, minute, second, tzinfo=datetime.timezone.utc
            )
            return when.timestamp()
    except (ValueError, KeyError, OverflowError):
        pass
    return None


def _journal(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        message = entry["MESSAGE"]
        if isinstance(message, list):  # bytes that are not UTF-8
            message = bytes(b for b in message if isinstance(b, int) and 0 <= b < 256).decode(
                "utf-8", "replace"
            )
        time = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        boot = entry.get("_SOURCE_MONOTONIC_TIMESTAMP") or entry.get("__MONOTONIC_TIMESTAMP")
        kernel = entry.get("_TRANSPORT") == "kernel" or entry.get("SYSLOG_IDENTIFIER") == "kernel"
        return {
            "form": "journal", "sequence": None, "time_seconds": time,
            "since_boot_seconds": int(boot) / 1e6 if boot else None,
            "level": _LEVELS[int(entry.get("PRIORITY", 6)) & 7],
            "program": "kernel" if kernel else str(entry.get("SYSLOG_IDENTIFIER", ""))[:64],
            "text": str(message).encode("utf-8", "replace").decode()[:TEXT_CHARACTERS],
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _event(text: str) -> dict[str, Any] | None:
    """What one record says, with `name` first; None for most."""
    event = parse_xid(text)
    if event is not None:
        return _xid_event(event.code, event.pci, event.text, event.pid, event.process)
    switch = parse_sxid(text)
    if switch is not None:
        entry = catalog.sxid(switch.code)
        return {
            "name": f"sxid {switch.code}", "pci": switch.pci, "meaning": entry.meaning, "kind": entry.kind,
            "fatal": switch.fatal, "link": switch.link,
        }  # fmt: skip
    host = parse_host_event(text)
    if host is not None:
        told = {"name": host.kind, "what": host.what, "pid": host.pid, "job": host.job}
        return {key: value for key, value in told.items() if value not in ("", None)}
    named = parse_gpu_uuid(text)
    if named is not None:
        return {"name": "gpu-uuid", "pci": named[0], "uuid": named[1]}
    return {"name": "driver-load"} if is_driver_load(text) else None


def _xid_event(code: int, pci: str, text: str, pid: int | None, process: str) -> dict[str, Any]:
    entry = catalog.xid(code)
    told: dict[str, Any] = {"name": f"xid {code}", "pci": pci, "meaning": entry.meaning}
    told |= {"finding": entry.finding_code, "remedy": entry.remedy.value, "pid": pid, "process": process}
    if code == 154 and (action := parse_recovery_action(text)):
        told |= {"recovery_action": action.now, "recovery_action_before": action.was}
    elif code == 74 and (words := parse_nvlink74(text)):
        told |= {"link": words.link, "registers": [str(bits) for bits in catalog.nvlink74(words.registers)]}
    elif code == 13 and (place := parse_shader(text)):
        told |= {"gpc": place[0], "tpc": place[1]}
    elif 144 <= code <= 150 and (error := parse_nvlink5(text)):
        rule = catalog.nvlink5_rule(code, error.unit, error.error_status, error.sub_code, error.intrinfo)
        told |= {**asdict(error), "do": rule.now if rule else None, "look_at": rule.look_at if rule else None}
    return {key: value for key, value in told.items() if value not in ("", None)}


def _counted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each event and device once, with how often and where: a storm is one of these."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, record in enumerate(records):
        event = record.get("event")
        if event is None:
            continue
        what = str(event.get("pci") or event.get("what") or "")
        one = found.setdefault(
            (event["name"], what), {"name": event["name"], "what": what, "count": 0, "first": number}
        )
        one["count"] += 1
        one["last"] = number
    return sorted(found.values(), key=lambda one: int(one["first"]))
