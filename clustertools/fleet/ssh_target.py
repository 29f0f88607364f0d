"""Where a node is and as whom to go there: the user's ssh configuration, in our terms."""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clustertools.errors import ConfigError
from clustertools.fleet import Fate
from clustertools.fleet.known_hosts import host_name
from clustertools.fleet.ssh_config import ConfigText
from clustertools.text import plain

DEFAULT_CONNECT_TIMEOUT_SECONDS = 10.0


class LoginFailed(Exception):
    """No session, and why. `is_transient`: the server hung up before it knew us, as a busy one does."""

    def __init__(self, fate: Fate, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.fate, self.reason, self.is_transient = fate, reason, is_transient


@dataclass(frozen=True)
class SshSettings:
    """What a site or a command line may say. What is not said here stands in the ssh configuration.

    `config` is read instead of the user's and the system's, like `ssh -F`. `connect_timeout_seconds` covers
    everything until the login is done: name, TCP, banner, keys. `at_once` are the handshakes at the same
    time. `per_gateway` are the ProxyCommands that begin at the same time: the gateway's sshd refuses more
    logins than MaxStartups, 10 by default. A ProxyJump takes one login, for all nodes behind it.
    """

    config: Path | None = None
    user: str = ""
    identity_files: tuple[str, ...] = ()
    connect_timeout_seconds: float | None = None
    at_once: int = 64
    per_gateway: int = 8


@dataclass(frozen=True)
class Target:
    """One node, or one gateway."""

    node: str
    address: str
    port: int
    user: str
    #: What stands in known_hosts for it.
    known_as: str
    known_hosts_files: tuple[str, ...]
    identity_files: tuple[str, ...] = ()
    identities_only: bool = False
    #: The socket of the agent; empty: SSH_AUTH_SOCK, `none`: no agent.
    agent: str = ""
    gateways: tuple[str, ...] = ()
    proxy_command: str = ""
    connect_timeout_seconds: float = DEFAULT_CONNECT_TIMEOUT_SECONDS
    family: int = socket.AF_UNSPEC
    is_aliased: bool = False


class Targets:
    """Looks nodes up. `read_hard`: see ConfigText."""

    def __init__(self, settings: SshSettings, read_hard: Callable[[str, str], Mapping[str, Any]]) -> None:
        self._settings = settings
        home = Path("~/.ssh/config").expanduser()
        paths = [(home, False), (Path("/etc/ssh/ssh_config"), False)]
        self._text = ConfigText([(settings.config, True)] if settings.config else paths, read_hard)
        self._user = getpass.getuser()

    def of(self, node: str, *, via: tuple[str, ...] | None = None) -> Target:
        """The target for a node, or for a gateway as ProxyJump writes it (`user@host:port`).

        `via` are the gateways before it, instead of its own. Raises ConfigError.
        """
        spec = node.removeprefix("ssh://")
        user, _, host = spec.rpartition("@") if via is not None else ("", "", spec)
        port = ""
        if via is not None and (head := host.rpartition(":"))[1] and head[2].isdigit():
            host, port = head[0].strip("[]"), head[2]
        try:
            return self._target(node, host, self._text.of(host), user, port, via)
        except (ValueError, KeyError) as exc:
            raise ConfigError(f"the ssh configuration for {node}: {plain(str(exc), 200)}") from exc

    def _target(
        self, node: str, host: str, says: Mapping[str, Any], user: str, port: str, via: tuple[str, ...] | None
    ) -> Target:
        settings = self._settings
        address = str(says.get("hostname", host)).replace("%h", host)
        number = int(port or says.get("port", 22))
        whom = user or settings.user or str(says.get("user", self._user))
        alias = str(says.get("hostkeyalias", ""))
        tokens = {"~": str(Path.home()), "%d": str(Path.home()), "%h": address, "%n": host, "%p": str(number),
                  "%r": whom, "%u": self._user, "%k": alias or address}  # fmt: skip

        def files(keyword: str, default: str) -> tuple[str, ...]:
            return tuple(_filled(w, tokens) for w in _words(str(says.get(keyword, default))) if w != "none")

        known = files("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        known += files("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
        usual = [f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]
        identities = settings.identity_files or tuple(says.get("identityfile", usual))
        jump = str(says.get("proxyjump", "none"))
        gateways = (
            via if via is not None else tuple(w.strip() for w in jump.split(",") if w.strip() != "none")
        )
        command = str(says.get("proxycommand") or "")
        seconds = settings.connect_timeout_seconds or float(says.get("connecttimeout", 0) or 0)
        if command:
            # word by word: a name with a blank in it does not become two
            command = shlex.join(_filled(word, tokens) for word in _words(command))
        agent = str(says.get("identityagent", ""))
        families = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
        return Target(
            node=node,
            address=address,
            port=number,
            user=whom,
            known_as=alias or host_name(address, number),
            known_hosts_files=known,
            identity_files=tuple(_filled(str(path), tokens) for path in identities),
            identities_only=str(says.get("identitiesonly", "no")).lower() == "yes",
            agent="" if agent == "SSH_AUTH_SOCK" else _filled(agent, tokens),
            gateways=gateways,
            proxy_command="" if gateways or command.lower() == "none" else command,
            connect_timeout_seconds=seconds or DEFAULT_CONNECT_TIMEOUT_SECONDS,
            family=families.get(str(says.get("addressfamily", "any")).lower(), socket.AF_UNSPEC),
            is_aliased=bool(alias),
        )

    def of_gateway(self, gateways: tuple[str, ...]) -> Target:
        """The target for the last of those gateways, which is reached through the others."""
        last, before = gateways[-1], gateways[:-1]
        if before:
            return self.of(last, via=before)
        # the first one may have a gateway of its own
        target = self.of(last, via=())
        own = self.of(last.rpartition("@")[2].partition(":")[0]).gateways
        return replace(target, gateways=own) if own else target


@functools.lru_cache(maxsize=256)
def _words(text: str) -> tuple[str, ...]:
    # the same few lines for each of a thousand nodes
    return tuple(shlex.split(text))


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    """ssh_config's tokens and the home folder, at one go: what was put in is not looked at again."""
    if "%" not in text:
        return os.path.expanduser(text) if text.startswith("~") else text
    parts = text.split("%%")
    done = []
    for part in parts:
        for token in ("%d", "%h", "%n", "%p", "%r", "%u", "%k"):
            part = part.replace(token, tokens[token])
        done.append(part)
    return os.path.expanduser("%".join(done))


def hang_up(sock: Any) -> None:
    """Wake whoever reads from that socket or channel, with the end of it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except (OSError, EOFError):
        # it was not connected, or is closed already
        return
