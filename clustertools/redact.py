"""Takes out of a text what names people, machines and secrets, and leaves what a diagnosis needs.

    redact = Redactor(users=["alice"], hosts=["gpu-017"])
    redact("alice from 10.1.2.3 on gpu-017")     # "anonuser1 from 198.18.0.1 on anonhost1"
    redact.counts                                # {"user": 1, "address": 1, "host": 1}

The same original always gets the same stand-in, so that what belonged together still does. Stand-ins have
forms of their own or come from ranges reserved for documentation, and are left alone when met again:
redacting twice changes nothing. PCI addresses, Xid numbers, counters and times stay as they are.

It knows forms, not meanings: a name that stands in no known field and no list survives. A person reviews.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from re import Match

from clustertools.errors import Unobservable
from clustertools.host import Host

GONE = "REDACTED"

# -----BEGIN RSA PRIVATE KEY----- ... -----END RSA PRIVATE KEY-----, or to the end when it was cut off
_PEM = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]{1,40})-----(?P<body>.*?)(?:-----END (?P=kind)-----|\Z)", re.DOTALL
)
# https://alice:hunter2@registry.example.com/
_URL_LOGIN = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://)(?P<login>[^\s/@'\"<>]+(?:@[^\s/@'\"<>]+)*)@"
)
_TOKEN = re.compile(
    "|".join(
        (
            r"(?<![A-Za-z0-9])xox[a-z]-[A-Za-z0-9-]{8,}",  # Slack: xoxb-1234-5678-abcdef
            r"(?<![A-Za-z0-9])xapp-[A-Za-z0-9-]{8,}",
            r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/_-]+",
            r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS access key id
            r"(?<![A-Za-z0-9])(?:gh[opsur]|github_pat)_[A-Za-z0-9_]{16,}",
            r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{16,}",
            r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}",  # Hugging Face
            r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}",
            r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}",  # Google API key
            r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JSON Web Token
            r"(?<=(?i:bearer) )[A-Za-z0-9+/=._~-]{8,}",  # RFC 6750, section 2.1
        )
    )
)
# WANDB_API_KEY=..., "password": "...", --hub-token ...; in /proc/PID/cmdline a NUL stands between the words
_SECRET_FIELD = re.compile(
    r"(?P<field>(?i:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|credential)[\w-]{0,40}"
    r"[\"']?\s{0,8}[=:]\s{0,8}[\"']?|--[\w-]{0,40}(?i:password|token|api[_-]?key|secret)[ \0])"
    r"(?P<value>[^\s\"',;&\0]+)"
)
# "tokens: 1048576", "token_type = false": a count or a switch, not a secret
_NO_SECRET = re.compile(r"[\d.,eE+%-]*|(?i:true|false|none|null)")
# 64 hex digits: a key or a digest
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0[xX])?[0-9a-fA-F]{32,}(?![0-9A-Za-z])")
_EMAIL = re.compile(
    r"(?<![\w.+-])(?P<who>[\w.+-]+)@(?P<domain>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.(?P<top>[A-Za-z]{2,}))"
)
#: getty@tty1.service is a unit of systemd, not a person (systemd.unit(5)).
_UNIT_TYPES = frozenset("service socket target mount automount timer slice scope device path swap".split())
# GPU-8f4e1c2a-1b2c-..., MIG-..., or a bare one such as a boot id
_UUID = re.compile(r"(?<![0-9A-Fa-f])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9A-Fa-f])")
# b8:ce:f6:d9:2f:3a; InfiniBand has 20 groups. The two lookbehinds: not inside a word or a longer address
_MAC = re.compile(
    r"(?<![0-9A-Za-z])(?<!\b[0-9a-fA-F]{2}:)[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5,31}"
    r"(?![0-9A-Za-z]|:[0-9a-fA-F])"
)
# b8-ce-f6-03-00-d9-2f-3a, as lspci prints; with a letter in it, since 26-11-21-10-30-00 is a time
_MAC_DASHED = re.compile(
    r"(?<![0-9A-Za-z-])(?=[0-9-]*[a-fA-F])[0-9a-fA-F]{2}(?:-[0-9a-fA-F]{2}){5,31}(?![0-9A-Za-z]|-[0-9a-fA-F])"
)
# b8ce:f603:00d9:2f3a, as sysfs prints a node's GUID, and 0xb8cef60300d92f3a after the word
_GUID = re.compile(
    r"(?<![0-9A-Za-z:])[0-9a-fA-F]{4}(?::[0-9a-fA-F]{4}){3}(?![0-9A-Za-z]|:[0-9a-fA-F])"
    r"|(?<=(?i:guid): )0x[0-9a-fA-F]{16}(?![0-9A-Za-z])"
)
# 2001:db8::5, fe80::1%eth0, addr:fe80::1; not the "::" of C++ names
_IPV6 = re.compile(
    r"(?:(?<![0-9A-Za-z:.])|(?<=[g-zG-Z]:))(?=[0-9a-fA-F]*:[0-9a-fA-F]*:)[0-9a-fA-F:.]{3,}(?![0-9A-Za-z:])"
)
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])\d{1,3}(?:\.\d{1,3}){3}(?![0-9A-Za-z]|\.\d)")
# ip-10-1-2-3: how one cloud names its machines
_IPV4_NAME = re.compile(r"(?<![0-9A-Za-z])ip-\d{1,3}(?:-\d{1,3}){3}(?![0-9A-Za-z])")
# Serial Number    : 1654922001234 / "serial": "1654922001234" / S/N MT2242X12345 / <serial>165...</serial>
_SERIAL = re.compile(
    r"(?P<field>(?i:serial|s/n)(?i:[ _-]?(?:number|num|no))?[\"']?"
    r"(?:\s{0,40}[=:>]\s{0,40}[\"']?|(?<=[rRnN]) ))(?P<value>[A-Za-z0-9][A-Za-z0-9._/-]{4,})"
)
_HOME = re.compile(r"(?P<root>/(?:home|users|Users)/)(?P<value>[A-Za-z0-9_][\w.-]*)")
# user=alice, UserId=alice(1001), "user": "alice", LOGNAME: alice
_USER_FIELD = re.compile(
    r"(?P<field>(?<![A-Za-z0-9])(?i:user(?:_?name|_?id)?|login|logname|ruser|run_?as)[\"']?\s?[=:]\s?[\"']?)"
    r"(?P<value>[A-Za-z_][\w.-]*)"
)
# JobName=pretrain-7, --job-name=pretrain-7
_JOB_FIELD = re.compile(
    r"(?P<field>(?i:job_?name[\"']?\s?[=:]\s?|--job-name[= ])[\"']?)(?P<value>[^\s\"',;]+)"
)
#: Names that belong to no person; a stand-in for them would only hide what ran.
_NOBODY = frozenset(
    "root nobody daemon bin sys adm mail slurm munge nvidia systemd messagebus sshd ntp chrony postfix dbus "
    "unknown none null true false user gpu admin test kernel".split()
)
#: RFC 2544's benchmark range: 131,072 IPv4 stand-ins that are nobody's. RFC 3849's range for IPv6.
_IPV4_STAND_INS = ipaddress.ip_network("198.18.0.0/15")
_IPV6_STAND_INS = ipaddress.ip_network("2001:db8::/32")
_STAND_IN = re.compile(
    r"anon(?:user|host|job)\d+|SERIAL\d{6,}|9999999\d{6,}|00000000-0000-4000-8000-\d{12}"
    r"|02(?:[:-]00){2}(?:[:-]\d\d)+|feed:0000:0000:\d{4}|0xfeed00000000\d{4}"
)


class Redactor:
    """A function on texts that remembers its stand-ins and counts what it replaced, by kind.

    `users`, `hosts` and `jobs` are names to take out wherever they stand as a word of their own; with
    `job_names` also the value of every field that names a job. `keep_names` leaves all names alone:
    addresses, serial numbers and secrets still go.
    """

    def __init__(
        self,
        *,
        users: Iterable[str] = (),
        hosts: Iterable[str] = (),
        jobs: Iterable[str] = (),
        job_names: bool = False,
        keep_names: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._stand_ins: dict[str, dict[str, str]] = {}
        self._job_names = job_names
        self._keep_names = keep_names
        # a name of one or two letters is also a unit, a device or a word of some log
        self._users = _words(u for u in users if len(u) > 2 and u.lower() not in _NOBODY)
        self._hosts = _words(
            (h for h in hosts if h != "localhost" and (len(h) > 3 or re.search(r"\d", h))),
            tail=r"(?:(?:\.[A-Za-z0-9-]+){2,})?",
        )
        self._jobs = _words(jobs)

    @classmethod
    def of(
        cls,
        host: Host,
        *,
        users: Iterable[str] = (),
        jobs: Iterable[str] = (),
        job_names: bool = False,
        keep_names: bool = False,
    ) -> Redactor:
        """One that knows the host's own name and the people in its /etc/passwd (user ids from 1000 on)."""
        people = list(users)
        try:
            passwd = host.read("/etc/passwd")
        except Unobservable:
            passwd = ""  # people of a directory service are not in it either: their home paths tell them
        # alice:x:1001:1001:Alice:/home/alice:/bin/bash
        for line in passwd.splitlines():
            fields = line.split(":")
            if len(fields) >= 3 and fields[2].isdigit() and 1000 <= int(fields[2]) < 65000:
                people.append(fields[0])
        return cls(users=people, hosts=[host.name], jobs=jobs, job_names=job_names, keep_names=keep_names)

    def __call__(self, text: str) -> str:
        """The text without its secrets. Idempotent: a redacted text comes back as it is."""
        # taking one thing out can lay bare another beside it; three rounds have always been enough
        for _ in range(6):
            before, text = text, self._once(text)
            if text == before:
                break
        return text

    def _once(self, text: str) -> str:
        text = _PEM.sub(self._pem, text)
        text = _URL_LOGIN.sub(self._login, text)
        text = _TOKEN.sub(lambda m: self._gone("token", m[0]), text)
        text = _SECRET_FIELD.sub(self._secret, text)
        text = _EMAIL.sub(self._email, text)
        text = _UUID.sub(lambda m: self._numbered("uuid", m[0], "00000000-0000-4000-8000-{:012d}"), text)
        text = _HEX.sub(lambda m: m[0] if len(set(m[0])) == 1 else self._gone("token", m[0]), text)
        text = _MAC.sub(lambda m: self._mac(m[0], ":"), text)
        text = _MAC_DASHED.sub(lambda m: self._mac(m[0], "-"), text)
        text = _GUID.sub(self._guid, text)
        text = _IPV6.sub(lambda m: self._ipv6(m[0]), text)
        text = _IPV4.sub(lambda m: self._ipv4(m[0]), text)
        text = _SERIAL.sub(self._serial, text)
        return text if self._keep_names else self._names(text)

    def _names(self, text: str) -> str:
        text = _IPV4_NAME.sub(lambda m: self._numbered("host", m[0], "anonhost{}"), text)
        text = _HOME.sub(lambda m: m["root"] + self._user(m["value"]), text)
        text = _USER_FIELD.sub(lambda m: m["field"] + self._user(m["value"]), text)
        if self._job_names:
            text = _JOB_FIELD.sub(lambda m: m["field"] + self._numbered("job", m["value"], "anonjob{}"), text)
        if self._hosts:
            text = self._hosts.sub(lambda m: self._numbered("host", m[0], "anonhost{}"), text)
        if self._users:
            text = self._users.sub(lambda m: self._user(m[0]), text)
        if self._jobs:
            text = self._jobs.sub(lambda m: self._numbered("job", m[0], "anonjob{}"), text)
        return text

    def _gone(self, kind: str, value: str) -> str:
        if value == GONE:
            return value
        self.counts[kind] += 1
        return GONE

    def _numbered(self, kind: str, value: str, form: str) -> str:
        """The stand-in for `value`: the next number of its kind at the first sight, the same ever after."""
        if _STAND_IN.fullmatch(value) or value == GONE:
            return value
        known = self._stand_ins.setdefault(kind, {})
        if value not in known:
            known[value] = form.format(len(known) + 1)
        self.counts[kind] += 1
        return known[value]

    def _user(self, name: str) -> str:
        return name if name.lower() in _NOBODY else self._numbered("user", name, "anonuser{}")

    def _pem(self, match: Match[str]) -> str:
        kind = match["kind"]
        return f"-----BEGIN {kind}-----{self._gone('key', match['body'])}-----END {kind}-----"

    def _login(self, match: Match[str]) -> str:
        return f"{match['scheme']}{self._gone('token', match['login'])}@"

    def _secret(self, match: Match[str]) -> str:
        value: str = match["value"]
        if _NO_SECRET.fullmatch(value) and "passw" not in match["field"].lower():
            return match[0]
        return match["field"] + self._gone("token", value)

    def _email(self, match: Match[str]) -> str:
        known = match["domain"].endswith("example.com") or match["who"] == GONE
        if known or match["top"] in _UNIT_TYPES:
            return match[0]
        return self._numbered("email", match[0], "person{}@example.com")

    def _mac(self, value: str, separator: str) -> str:
        groups = value.count(separator) + 1
        if len(set(value.lower())) == 2:  # all zeros or all ones: nobody's
            return value
        # 02: "locally administered" (IEEE 802); as many groups as before
        number = len(self._stand_ins.get("mac", {})) + 1
        digits = f"{number:0{2 * (groups - 3)}d}"
        pairs = [digits[i : i + 2] for i in range(0, len(digits), 2)]
        return self._numbered("mac", value, separator.join(["02", "00", "00", *pairs]))

    def _guid(self, match: Match[str]) -> str:
        form = "0xfeed00000000{:04d}" if match[0].startswith("0x") else "feed:0000:0000:{:04d}"
        return match[0] if set(match[0]) <= set("0x:") else self._numbered("guid", match[0], form)

    def _ipv6(self, text: str) -> str:
        # "fe80::1: no route", "from 2001:db8::5."; the longest written address has 45 characters
        endings = (text[: len(text) - n] for n in range(3) if not text[len(text) - n :].strip(":."))
        value = next((v for v in endings if len(v) <= 45 and _is_address(v)), "")
        if not value:
            return text
        address = ipaddress.IPv6Address(value)
        if address.is_loopback or address.is_unspecified or address in _IPV6_STAND_INS:
            return text
        return self._numbered("address", str(address), "2001:db8::{:x}") + text[len(value) :]

    def _ipv4(self, value: str) -> str:
        try:
            address = ipaddress.IPv4Address(value)
        except ValueError:
            return value  # 96.00.74.00 is a VBIOS version
        if address.is_loopback or int(address) == 0 or value.startswith("255.") or address in _IPV4_STAND_INS:
            return value
        known = self._stand_ins.setdefault("ipv4", {})
        if value not in known:
            known[value] = str(_IPV4_STAND_INS[1 + len(known) % (_IPV4_STAND_INS.num_addresses - 2)])
        self.counts["address"] += 1
        return known[value]

    def _serial(self, match: Match[str]) -> str:
        value: str = match["value"]
        if not re.search(r"\d", value):
            return match[0]  # "Serial Number: Unspecified"
        form = "9999999{:06d}" if value.isdigit() else "SERIAL{:06d}"
        return match["field"] + self._numbered("serial", value, form)


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _words(names: Iterable[str], tail: str = "") -> re.Pattern[str] | None:
    """A pattern for any of the names as a word; "_" and "-" end a word, so "alice_run3" counts."""
    wanted = sorted({n for n in names if n and not _STAND_IN.fullmatch(n)}, key=len, reverse=True)
    if not wanted:
        return None
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, wanted))}){tail}(?![A-Za-z0-9])")
