"""`timedatectl`, the table for people, and `timedatectl show`, by systemd 204 and later."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "timedatectl"
FIELDS = {
    "synchronised": "whether the kernel says that the clock is synchronised",
    "ntp": "whether a time service is on; null where it is not told",
    "rtc_in_local_time": "whether the hardware clock keeps local time; null where it is not told",
    "time_zone": "Etc/UTC; null where it is not told",
}


def recognise(text: str) -> bool:
    head = text[:4000]
    return bool(re.search(r"^\s*(RTC time: |RTC in local TZ: )", head, re.M)) or bool(
        re.search(r"^NTPSynchronized=(yes|no)$", head, re.M)
    )


def read(text: str) -> dict[str, Any]:
    """{"synchronised": true, "ntp": true, "time_zone": "Etc/UTC", "rtc_in_local_time": false}.

    What the output does not say is None.
    """
    told: dict[str, str] = {}
    for line in text.splitlines():
        if len(line) > 1000:
            raise Unparsable("timedatectl printed an endless line", line)
        # System clock synchronized: yes        or, of `show`: NTPSynchronized=yes
        row = re.fullmatch(r"\s*([A-Za-z][A-Za-z. -]{1,40})(?::|=)\s*(.{0,200})", line)
        if row:
            told[row[1].strip().lower()] = row[2].strip()
        elif re.match(r"\s*Warning:|\s*(Last|Next) DST|\s{9,}", line):
            continue
        elif line.strip():
            raise Unparsable("timedatectl printed an unknown line", line)
    keys = {
        # "NTP synchronized" before systemd 233, "NTP enabled" and "Network time on" before 239
        "synchronised": ("system clock synchronized", "ntp synchronized", "ntpsynchronized"),
        "ntp": ("ntp service", "systemd-timesyncd.service active", "network time on", "ntp enabled", "ntp"),
        "rtc_in_local_time": ("rtc in local tz", "localrtc"),
    }
    found: dict[str, Any] = {
        name: _yes(next((told[key] for key in spelled if key in told), "")) for name, spelled in keys.items()
    }
    found["time_zone"] = (told.get("time zone") or told.get("timezone") or "").split(" ")[0] or None
    if found["synchronised"] is None:
        raise Unparsable("timedatectl did not say whether the clock is synchronised", text)
    return found


def _yes(word: str) -> bool | None:
    return {"yes": True, "active": True, "no": False, "inactive": False}.get(word)
