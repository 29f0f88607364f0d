"""Who the processes are that NVML names by number only.

one = holder(host, process)     one.name, one.state: "python (pid 4711)", "D"
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clustertools.errors import Unobservable
from clustertools.host import Host
from clustertools.sources.nvidia import GpuProcess

_STATES = {
    "Z": "a zombie",
    "X": "dead",
    "D": "hangs in the kernel",
    "T": "stopped",
    "t": "held by a debugger",
}


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a GPU. `state` is the letter of /proc/PID/stat, empty where nobody can see it."""

    pid: int
    command: str
    state: str
    parent: int = 0
    waits_in: str = ""
    memory_bytes: int | None = None

    @property
    def name(self) -> str:
        return f"{self.command or 'a process that is not seen from here'} (pid {self.pid})"

    @property
    def story(self) -> str:
        """One line that says all that is known."""
        words = [self.name]
        if self.memory_bytes is not None:
            words.append(f"{self.memory_bytes / 2**20:.0f} MiB")
        if self.state in _STATES:
            words.append(_STATES[self.state])
        if self.waits_in:
            words.append(f"waits in {self.waits_in}")
        if self.state == "Z":
            words.append(f"its parent {self.parent} has to take note of its end")
        return ", ".join(words)


def holder(host: Host, process: GpuProcess) -> Holder:
    """What /proc says of `process`; only its number where it says nothing (another pid namespace, gone)."""
    told = state_of(host, process.pid)
    if told is None:
        return Holder(process.pid, "", "", memory_bytes=process.memory_bytes)
    command, state, parent, _ = told
    waits = ""
    if state == "D":
        try:
            waits = re.sub(r"\W", "", host.read(f"/proc/{process.pid}/wchan"))[:64]
        except Unobservable:
            waits = ""  # root only; the state says enough
    return Holder(process.pid, command, state, parent, waits, process.memory_bytes)


def state_of(host: Host, pid: int) -> tuple[str, str, int, int] | None:
    """Name, state, parent and start (ticks since boot) by /proc/PID/stat; None when it cannot be read."""
    try:
        text = host.read(f"/proc/{pid}/stat")
    except Unobservable:
        return None  # gone, or /proc hides other users' processes (hidepid)
    # 4711 (pt_main_thread) S 4700 ...: the name may hold anything, ")" too; the start is field 22
    head, _, rest = text.rpartition(")")
    words = rest.split()
    if len(words) < 20 or not words[1].isdecimal() or not words[19].isdecimal():
        return None
    name = re.sub(r"[^\x20-\x7e]", "?", head.partition("(")[2])[:64]
    return name, words[0][:1], int(words[1]), int(words[19])
