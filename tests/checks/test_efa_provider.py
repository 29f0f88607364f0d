"""efa_provider: libfabric on a node with EFA devices."""

from __future__ import annotations

from clustertools.errors import Unobservable
from clustertools.model import Status
from tests.checks.test_efa_devices import efa
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.efa_provider import SAID

ASK = ("fi_info", "-p", "efa")


def test_a_provider_on_the_path_or_where_the_installer_puts_it(run):
    for program in ("fi_info", "/opt/amazon/efa/bin/fi_info"):
        host = efa()
        host.commands[program, "-p", "efa"] = SAID
        assert run("efa_provider", host=host).status is Status.OK


def test_no_provider(run):
    host = efa()
    host.commands[ASK] = "fi_getinfo: -61 (No data available)\n"
    verdict = run("efa_provider", host=host)
    assert [(f.code, f.subject.part, f.status) for f in verdict.findings] == [
        ("EfaProviderMissing", "efa", Status.WARNING)
    ]
    assert verdict.findings[0].evidence == ("fi_getinfo: -61 (No data available)",)


def test_who_cannot_be_asked_is_no_finding(run):
    verdict = run("efa_provider", host=efa())
    assert (verdict.status, "not installed" in verdict.detail) == (Status.OK, True)
    host = efa()
    host.commands[ASK] = Unobservable("fi_info did not answer within 10 s")
    assert run("efa_provider", host=host).status is Status.UNKNOWN
    assert run("efa_provider", host=MemoryHost()).status is Status.SKIPPED
