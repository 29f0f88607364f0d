"""Which host keys are known: OpenSSH's known_hosts files, read once and indexed. Pure but for the reading.

Format: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". A line is `[marker] names type key`; names are exact, hashed
(`|1|salt|hash`), or patterns with `*`, `?` and `!`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REVOKED, AUTHORITY = "@revoked", "@cert-authority"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One key of one line. `marker` is empty, REVOKED or AUTHORITY."""

    key_type: str
    blob: bytes
    path: str
    line: int
    marker: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)


def fingerprint(blob: bytes) -> str:
    """As `ssh-keygen -l` prints it: `SHA256:` and the digest without its padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def host_name(name: str, port: int) -> str:
    """What stands in known_hosts for that name and port."""
    return name if port == 22 else f"[{name}]:{port}"


class KnownHosts:
    """The keys of all the lines, found by name without going through them one by one.

    Hashed lines have to be tried one after the other, as their authors intended. `unreadable` are lines that
    were left out since they are of no known form.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """`texts` are pairs of a path (for messages) and the content of that file."""
        self._exact: dict[str, list[KnownKey]] = {}
        self._hashed: list[tuple[bytes, bytes, KnownKey]] = []
        self._patterns: list[tuple[tuple[str, ...], KnownKey]] = []
        self.unreadable: list[str] = []
        for path, text in texts:
            for number, line in enumerate(text.splitlines(), 1):
                self._read(path, number, line)

    @classmethod
    def from_files(cls, paths: Sequence[str]) -> KnownHosts:
        """Files that do not exist are left out, as OpenSSH does. Raises OSError for an unreadable one."""
        found = []
        for path in dict.fromkeys(paths):
            try:
                found.append((path, Path(path).read_text("utf-8", "replace")))
            except FileNotFoundError:
                continue
        return cls(found)

    def _read(self, path: str, number: int, line: str) -> None:
        words = line.split()
        if not words or words[0].startswith("#"):
            return
        marker = words.pop(0) if words[0].startswith("@") else ""
        try:
            names, key_type, encoded = words[:3]
            key = KnownKey(key_type, base64.b64decode(encoded, validate=True), path, number, marker)
            if marker not in ("", REVOKED, AUTHORITY):
                raise ValueError(marker)
            if names.startswith("|"):
                _, kind, salt, digest = names.split("|")
                if kind != "1":
                    raise ValueError(kind)
                self._hashed.append((base64.b64decode(salt), base64.b64decode(digest), key))
                return
        except (ValueError, binascii.Error):
            self.unreadable.append(f"{path}:{number}")
            return
        listed = tuple(name.lower() for name in names.split(",") if name)
        if any(c in names for c in "*?!"):
            self._patterns.append((listed, key))
        else:
            for name in listed:
                self._exact.setdefault(name, []).append(key)

    def find(self, name: str) -> list[KnownKey]:
        """Every key that is known, trusted as an authority, or revoked for that name."""
        name = name.lower()
        found = list(self._exact.get(name, ()))
        encoded = name.encode()
        found += [key for salt, digest, key in self._hashed if hmac.digest(salt, encoded, "sha1") == digest]
        found += [key for patterns, key in self._patterns if _matches(patterns, name)]
        return found


def _matches(patterns: Sequence[str], name: str) -> bool:
    """`!` refuses whatever else matches. Only `*` and `?` are special: `[` begins a name with a port."""
    found = False
    for pattern in patterns:
        literal = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name, literal):
            if pattern.startswith("!"):
                return False
            found = True
    return found
