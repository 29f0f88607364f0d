"""ACS on the switches that GPUs share."""

from __future__ import annotations

import pytest
from clustertools.checks.pcie_acs import BRIDGES

from clustertools.model import Status
from tests.lab.parts.pcie import lspci
from tests.sources.test_source_pcie import Machine


def node(vendor="0x1000", other=True):
    host = Machine()
    host.bridge("0000:15:01.0", 0x16, vendor="0x8086")
    host.bridge("0000:16:00.0", 0x17, vendor=vendor)
    host.bridge("0000:17:00.0", 0x18, vendor=vendor)
    host.bridge("0000:17:01.0", 0x19, vendor=vendor)
    host.device("0000:18:00.0")
    if other:
        host.device("0000:19:00.0", "0x15b3", "0x020700", "0x1021")
    host.commands[BRIDGES] = lspci(["0000:15:01.0", "0000:16:00.0", "0000:17:00.0", "0000:17:01.0"])
    return host


def test_off(run):
    assert run("pcie_acs", host=node()).status is Status.OK


@pytest.mark.parametrize(("on", "status"), [("ReqRedir", Status.WARNING), ("SrcValid", Status.OK)])
def test_on(run, on, status):
    host = node()
    text = host.commands[BRIDGES]
    head, port, rest = text.partition("0000:17:01.0")
    host.commands[BRIDGES] = head + port + rest.replace(f"{on}-", f"{on}+", 1)
    verdict = run("pcie_acs", host=host)
    assert verdict.status is status
    if status is Status.WARNING:
        assert verdict.findings[0].evidence == ("0000:17:01.0: ReqRedir",)


def test_at_the_root_it_does_no_harm(run):
    host = node()
    host.commands[BRIDGES] = host.commands[BRIDGES].replace("ReqRedir-", "ReqRedir+", 1)
    assert run("pcie_acs", host=host).findings == ()


def test_without_root(run):
    host = node()
    host.commands[BRIDGES] = "".join(
        f"{a} PCI bridge: x\n\tCapabilities: <access denied>\n" for a in ("0000:17:00.0", "0000:17:01.0")
    )
    verdict = run("pcie_acs", host=host)
    assert (verdict.status, "root only" in verdict.blind) == (Status.UNKNOWN, True)


def test_where_it_does_not_matter(run):
    assert run("pcie_acs", host=node(vendor="0x1b36")).status is Status.SKIPPED
    assert run("pcie_acs", host=node(other=False)).status is Status.SKIPPED
    assert run("pcie_acs", host=Machine()).status is Status.SKIPPED
    host = Machine()  # a card in a slot of the processor's own
    host.bridge("0000:20:01.0", 0x21, vendor="0x8086")
    host.device("0000:21:00.0")
    assert run("pcie_acs", host=host).status is Status.SKIPPED
    host = node()
    del host.commands[BRIDGES]
    assert run("pcie_acs", host=host).status is Status.SKIPPED
