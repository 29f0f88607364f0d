"""What the machine knows of its own clock: the kernel's view, chrony's view, and the hardware it reads.

The kernel is asked by a child (`python -m clustertools.sources.clock`), which prints what adjtimex(2) answers
as one JSON object; that call always answers, without privileges, in a container too.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from dataclasses import dataclass

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import PYTHON, Host

#: Bits of timex.status, from the kernel's include/uapi/linux/timex.h.
_STA_PLL, _STA_UNSYNC, _STA_NANO = 0x0001, 0x0040, 0x2000
_SOURCE = "/sys/devices/system/clocksource/clocksource0"


@dataclass(frozen=True, slots=True)
class KernelClock:
    """The kernel's time keeping. `max_error_seconds` grows by 0.5 ms a second while nobody sets the clock.

    `offset_seconds` is what the kernel itself still has to correct, which only some services use (ntpd,
    systemd-timesyncd): None when it is not in use.
    """

    synchronised: bool
    max_error_seconds: float
    offset_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Tracking:
    """chronyd's answer. `offset_seconds` is the clock's distance from its source's time, either way."""

    source: str
    synchronised: bool
    stratum: int
    reference_time: float
    offset_seconds: float
    root_delay_seconds: float
    root_dispersion_seconds: float
    update_interval_seconds: float

    @property
    def error_bound_seconds(self) -> float:
        """The most that the clock can be wrong: offset, plus what lies between us and the true time."""
        return abs(self.offset_seconds) + self.root_dispersion_seconds + self.root_delay_seconds / 2


@dataclass(frozen=True, slots=True)
class ClockSource:
    """The counter that the kernel reads the time from, and those that it would take."""

    current: str
    available: tuple[str, ...]


def clock_source(host: Host) -> ClockSource:
    """Raises Absent where sysfs does not show it."""
    current = host.read(f"{_SOURCE}/current_clocksource").strip()
    available = host.read(f"{_SOURCE}/available_clocksource").split()
    if not re.fullmatch(r"[\w.-]{1,40}", current):
        raise Unparsable(f"{_SOURCE}/current_clocksource has an unknown form", current)
    return ClockSource(current, tuple(available))


def chrony_tracking(host: Host) -> Tracking:
    """What `chronyc -c tracking` says. Raises Absent without chrony, Unobservable when chronyd does not run.

    The 14 fields are those of chrony 2 to 4 (chronyc.c, process_cmd_tracking).
    """
    done = host.run("chronyc", "-c", "tracking", timeout_seconds=5).check()
    # 7F000001,127.0.0.1,2,1795230822.823210116,-0.000001592,0.000001617,...,0.000403229,64.2,Normal
    fields = done.stdout.strip().split(",")
    try:
        if len(fields) != 14 or not re.fullmatch(r"[0-9A-F]{8}", fields[0]):
            raise ValueError(done.stdout)
        numbers = [_number(text) for text in fields[3:13]]
        stratum = int(fields[2])
    except ValueError as exc:
        raise Unparsable("chronyc -c tracking has an unknown form", done.stdout) from exc
    if fields[13] not in ("Normal", "Insert second", "Delete second", "Not synchronised"):
        raise Unparsable("chronyc -c tracking has an unknown leap status", fields[13])
    # 00000000: no source; 7F7F0101: its own clock, told on to others
    synchronised = fields[13] != "Not synchronised" and fields[0] not in ("00000000", "7F7F0101")
    return Tracking(
        fields[1] or fields[0],
        synchronised,
        stratum,
        numbers[0],
        numbers[1],
        numbers[7],
        numbers[8],
        numbers[9],
    )


def _number(text: str) -> float:
    # -0.000001592
    if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text):
        raise ValueError(text)
    return float(text)


def kernel_clock(host: Host) -> KernelClock:
    """What adjtimex(2) says. Raises Unobservable when the call is not allowed (some sandboxes)."""
    text = host.run(PYTHON, "-m", "clustertools.sources.clock").check().stdout
    try:
        data = json.loads(text)
        # {"status": 64, "offset": 0, "maxerror_us": 16000000}
        status, offset, error = data["status"], data["offset"], data["maxerror_us"]
        if not all(type(value) is int and abs(value) < 1 << 62 for value in (status, offset, error)):
            raise TypeError(text)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Unparsable("the clock child printed an unknown form", text) from exc
    unit = 1e-9 if status & _STA_NANO else 1e-6
    return KernelClock(not status & _STA_UNSYNC, error * 1e-6, offset * unit if status & _STA_PLL else None)


#: Programs that keep a clock, by their names in /proc/PID/comm (at most 15 characters).
TIME_SERVICES = ("chronyd", "ntpd", "systemd-timesyn", "phc2sys", "ptp4l", "timemaster")


def time_services(host: Host) -> list[str]:
    """Those of TIME_SERVICES that run, sorted."""
    found = set()
    for path in host.glob("/proc/[0-9]*/comm"):
        try:
            found.add(host.read(path).strip())
        except Unobservable:
            # it ended in between
            continue
    return sorted(found & set(TIME_SERVICES))


# ------------------------------------------------------------------ the child


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2) on 64-bit Linux, as far as it is read; the rest is room for the kernel."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def main() -> int:
    """Print the kernel's clock as JSON; exit code 1 when the call is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = _Timex()
    if libc.adjtimex(ctypes.byref(timex)) < 0:
        print(f"adjtimex failed with errno {ctypes.get_errno()}", file=sys.stderr)
        return 1
    print(json.dumps({"status": timex.status, "offset": timex.offset, "maxerror_us": timex.maxerror}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
