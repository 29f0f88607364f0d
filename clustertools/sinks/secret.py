"""Where the secret of a sink lies: a file (a systemd credential is one) or an environment variable."""

from __future__ import annotations

import os
import stat
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clustertools.errors import DeliveryFailed


@dataclass(frozen=True)
class Secret:
    """The place of one secret. `what` names it in errors: "Slack token".

    It is read anew each time, so one that was rotated needs no restart.
    """

    what: str
    file: str = ""
    variable: str = ""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def __bool__(self) -> bool:
        return bool(self.file or self.variable)

    @property
    def place(self) -> str:
        return self.file or f"${self.variable}"

    def read(self) -> str:
        """The secret, one printable word. Raises DeliveryFailed, which never holds its text."""
        try:
            text = Path(self.file).read_text("utf-8") if self.file else self.environ[self.variable]
        except KeyError:
            raise DeliveryFailed(f"no {self.what}: the environment has no {self.variable}") from None
        except OSError as exc:
            raise DeliveryFailed(
                f"could not read the {self.what} from {self.place}: {exc.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise DeliveryFailed(f"the {self.what} in {self.place} is not text") from None
        secret = text.strip()
        if not secret.isascii() or not secret.isprintable() or len(secret.split()) != 1:
            raise DeliveryFailed(f"the {self.what} in {self.place} must be one word, alone")
        return secret

    def readable_by_others(self) -> list[str]:
        """In a sentence, that the file's mode lets others read it."""
        # systemd shows its credentials as mode 0440 and guards them by the folder
        credentials = self.environ.get("CREDENTIALS_DIRECTORY")
        if not self.file or (credentials and Path(self.file).is_relative_to(credentials)):
            return []
        mode = stat.S_IMODE(os.stat(self.file).st_mode)
        if mode & 0o077:
            return [f"{self.file} has mode {mode:04o}: chmod 600 it, others can read it"]
        return []

    def address(self) -> str:
        """The secret as an address. Raises DeliveryFailed also where it would travel unencrypted."""
        secret = self.read()
        if not may_carry_secrets(secret):
            raise DeliveryFailed(f"the {self.what} in {self.place} does not begin with https://")
        return secret


def may_carry_secrets(url: str) -> bool:
    """https, or http to this very machine."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(host or ""))
    )


def is_this_machine(host: str) -> bool:
    return host in ("127.0.0.1", "::1", "localhost")


def hide(text: str, *secrets: str) -> str:
    """`text` without the secrets, and for those that are addresses without their path and query."""
    for secret in secrets:
        # by hand: an address that urlsplit refuses may hold a secret all the same
        _, is_address, rest = secret.partition("://")
        place = f"/{rest.partition('/')[2]}" if is_address else ""
        for word in (secret, place, place.partition("?")[0], place.partition("?")[2]):
            if len(word) > 1:
                text = text.replace(word, "(secret)")
    return text
