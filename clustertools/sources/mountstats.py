"""What the NFS client counted for each mount: requests, retransmissions, timeouts, answers.

Format: fs/nfs/super.c `nfs_show_stats` and net/sunrpc/stats.c `rpc_clnt_show_stats`, statvers 1.0 and 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clustertools.errors import Unparsable
from clustertools.host import Host

_STATS = "/proc/self/mountstats"


@dataclass(frozen=True, slots=True)
class NfsCounts:
    """One NFS mount since it was mounted. Of several connections (nconnect) the sums."""

    point: str
    source: str
    operations: int = 0
    transmissions: int = 0
    major_timeouts: int = 0
    answer_milliseconds: int = 0
    sent: int = 0
    received: int = 0

    @property
    def retransmissions(self) -> int:
        return max(0, self.transmissions - self.operations)


def nfs_counts(host: Host) -> list[NfsCounts]:
    """One for each NFS mount, the others left out. Raises Unparsable for counts of another form."""
    found = []
    for block in re.split(r"^(?=device )", host.read(_STATS), flags=re.MULTILINE):
        # device nas:/export mounted on /home with fstype nfs4 statvers=1.1
        match = re.match(r"device (\S+) mounted on (\S+) with fstype nfs4? statvers=", block)
        if match:
            found.append(_counts(match[2], match[1], block))
    return found


def _counts(point: str, source: str, block: str) -> NfsCounts:
    sums = dict.fromkeys(("operations", "transmissions", "major_timeouts", "answer_milliseconds"), 0)
    sent = received = 0
    operations = False
    for line in block.splitlines()[1:]:
        words = line.split()
        if words[:1] == ["xprt:"]:
            # xprt: tcp 940 0 2 0 1 938505 938504 ...   port bind connects connect-time idle sends receives
            first = {"tcp": 7, "rdma": 7, "local": 6, "udp": 4}.get(words[1] if len(words) > 1 else "")
            if first is not None:
                sent += _number(words, first, line)
                received += _number(words, first + 1, line)
        elif words == ["per-op", "statistics"]:
            operations = True
        elif operations and len(words) >= 9 and words[0].endswith(":"):
            # READ: 34096 34096 0 7103096 1792122744 2272 464840 467945 0
            #       ops transmissions timeouts sent received queue rtt execute [errors]
            for name, place in zip(sums, (1, 2, 3, 7), strict=True):
                sums[name] += _number(words, place, line)
    return NfsCounts(_unescape(point), _unescape(source), **sums, sent=sent, received=received)


def _number(words: list[str], place: int, line: str) -> int:
    if len(words) <= place or not re.fullmatch("[0-9]{1,20}", words[place]):
        raise Unparsable(f"{_STATS} has a line of an unknown form", line)
    return int(words[place])


def _unescape(text: str) -> str:
    # /mnt/my\040disk
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)
