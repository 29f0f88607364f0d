"""The transports there are, by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from clustertools.errors import ConfigError
from clustertools.fleet import Transport

if TYPE_CHECKING:
    from clustertools.fleet.srun import SrunSettings

#: What `open_transport` takes, in the order in which a person should be told of them.
NAMES = ("ssh", "srun", "local")


class OpenTransport(Transport, Protocol):
    """A transport as `open_transport` gives it: a context manager."""

    def __enter__(self) -> OpenTransport: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


def open_transport(
    name: str,
    *,
    ssh_config: Path | None = None,
    connect_timeout_seconds: float | None = None,
    job_id: str = "",
    slurm: SrunSettings | None = None,
    nodes: tuple[str, ...] = (),
) -> OpenTransport:
    """The transport of that name.

    `ssh` takes ssh_config and connect_timeout_seconds; `srun` job_id, or with `slurm` the partition, account
    and so on by which nodes of no job are allocated; `local` the names under which this machine answers.

    Raises ConfigError for another name and for settings that cannot be read.
    """
    makers: dict[str, Callable[[], OpenTransport]] = {
        "ssh": lambda: _ssh(ssh_config, connect_timeout_seconds),
        "srun": lambda: _srun(job_id, slurm),
        "local": lambda: _local(nodes),
    }
    if name not in makers:
        raise ConfigError(f"no transport is called {name!r}; there are {', '.join(NAMES)}")
    return makers[name]()


def _ssh(config: Path | None, connect_timeout_seconds: float | None) -> OpenTransport:
    from clustertools.fleet.ssh import SshSettings, SshTransport

    return SshTransport(SshSettings(config=config, connect_timeout_seconds=connect_timeout_seconds))


def _srun(job_id: str, settings: SrunSettings | None) -> OpenTransport:
    from clustertools.fleet.srun import SrunTransport

    return SrunTransport(settings, job_id=job_id)


def _local(nodes: tuple[str, ...]) -> OpenTransport:
    from clustertools.fleet.local import LocalTransport

    return LocalTransport(*nodes)
