"""Eight sshd's for the tests of one file, and a transport to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clustertools.fleet.ssh import SshSettings, SshTransport
from tests.lab.sshd import Sshds


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshds]:
    with Sshds(tmp_path_factory.mktemp("sshd"), 8) as sshds:
        yield sshds


@pytest.fixture
def ssh(lab: Sshds) -> Iterator[SshTransport]:
    with SshTransport(SshSettings(config=lab.ssh_config)) as transport:
        yield transport
