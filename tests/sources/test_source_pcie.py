"""The PCI bus by sysfs: what hangs below what, links, error counters."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.sources.pcie import FOLDER, bus, errors, generation
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.pcie import aer, link


class Machine(MemoryHost):
    """A PCI bus that the test puts together."""

    def device(self, address, vendor="0x10de", pci_class="0x030200", device="0x2330", width=16, gen=5, **now):
        folder = f"{FOLDER}/{address}"
        self.files[f"{folder}/vendor"] = f"{vendor}\n"
        self.files[f"{folder}/class"] = f"{pci_class}\n"
        self.files[f"{folder}/device"] = f"{device}\n"
        if width:
            self.files.update(link(address, width, gen, **now))

    def bridge(self, address, below, vendor="0x1000", **more):
        self.device(address, vendor, "0x060400", "0xc030", **more)
        self.files[f"{FOLDER}/{address}/secondary_bus_number"] = f"{below}\n"


@pytest.fixture
def host():
    return Machine()


def test_a_gpu_below_a_switch(host):
    host.bridge("0000:15:01.0", 0x16, vendor="0x8086")
    host.bridge("0000:16:00.0", 0x17)
    host.bridge("0000:17:00.0", 0x18)
    host.bridge("0000:00:01.0", 0x40)  # nothing that matters is below it
    host.device("0000:18:00.0", now=8)
    found = bus(host)
    (gpu,) = found.endpoints
    assert (gpu.kind, gpu.part, gpu.link.width, gpu.link.width_max) == ("gpu", "gpu@0000:18:00.0", 8, 16)
    assert gpu.above == ("0000:17:00.0", "0000:16:00.0", "0000:15:01.0")
    assert found.port(gpu).address == "0000:17:00.0"
    assert "0000:00:01.0" not in found.by_address
    assert generation(gpu.link.speed) == 5


@pytest.mark.parametrize(
    ("vendor", "pci_class", "kind"),
    [
        ("0x10de", "0x030000", "gpu"), ("0x1002", "0x120000", "gpu"), ("0x1a03", "0x030000", None),
        ("0x15b3", "0x020000", "nic"), ("0x15b3", "0x020700", "nic"), ("0x144d", "0x010802", "nvme"),
        ("0x10de", "0x068000", "nvswitch"), ("0x8086", "0x068000", None), ("0x8086", "0x060100", None),
    ],
)  # fmt: skip
def test_what_matters(host, vendor, pci_class, kind):
    host.device("0000:18:00.0", vendor, pci_class)
    assert [d.kind for d in bus(host).endpoints] == ([kind] if kind else [])


def test_functions_and_virtual_functions(host):
    for address in ("0000:18:00.0", "0000:18:00.1", "0000:18:00.2"):
        host.device(address, "0x15b3", "0x020700")
    host.files[f"{FOLDER}/0000:18:00.2/physfn"] = ""
    found = bus(host)
    assert [d.address for d in found.endpoints] == ["0000:18:00.0"]
    assert "0000:18:00.2" not in found.by_address


def test_a_domain_has_its_own_numbers(host):
    host.bridge("0000:00:01.0", 1)
    host.device("0002:01:00.0")
    assert bus(host).endpoints[0].above == ()


def test_bridges_in_a_ring_end(host):
    host.bridge("0000:01:00.0", 2)
    host.bridge("0000:02:00.0", 1)
    host.device("0000:01:01.0")
    assert len(bus(host).endpoints[0].above) == 2


@pytest.mark.parametrize(
    ("file", "text"),
    [("current_link_width", "0"), ("current_link_width", "63"), ("current_link_speed", "Unknown"),
     ("current_link_speed", "Unknown speed"), ("max_link_width", "255")],
)  # fmt: skip
def test_a_device_that_sleeps_tells_nothing(host, file, text):
    host.device("0000:18:00.0")
    host.files[f"{FOLDER}/0000:18:00.0/{file}"] = f"{text}\n"
    told = bus(host).endpoints[0].link
    assert None in (told.width, told.width_max, told.speed)


def test_the_older_form_of_a_speed(host):
    host.device("0000:18:00.0")
    host.files[f"{FOLDER}/0000:18:00.0/current_link_speed"] = "8 GT/s\n"
    assert bus(host).endpoints[0].link.speed == 8.0


@pytest.mark.parametrize(
    ("file", "text"),
    [("current_link_width", "x16"), ("current_link_speed", "fast"), ("class", "pci"), ("vendor", "")],
)
def test_unknown_forms(host, file, text):
    host.device("0000:18:00.0")
    host.files[f"{FOLDER}/0000:18:00.0/{file}"] = text
    with pytest.raises(Unparsable):
        bus(host)


def test_a_device_that_vanishes_meanwhile(host):
    host.device("0000:18:00.0")
    del host.files[f"{FOLDER}/0000:18:00.0/device"]
    assert bus(host).endpoints == []


def test_a_file_that_is_refused(host):
    host.device("0000:18:00.0")
    host.files[f"{FOLDER}/0000:18:00.0/current_link_width"] = refused("Invalid argument")
    with pytest.raises(Unobservable):
        bus(host)


def test_error_counters(host):
    assert errors(host, "0000:18:00.0") is None
    host.files.update(aer("0000:18:00.0", correctable_RxErr=7, fatal_DLP=1))
    told = errors(host, "0000:18:00.0")
    assert (told["correctable"]["RxErr"], told["fatal"]["DLP"]) == (7, 1)
    assert not any(name.startswith("TOTAL") for names in told.values() for name in names)


def test_the_older_names_of_errors(host):
    host.files.update(aer("0000:18:00.0"))
    host.files[f"{FOLDER}/0000:18:00.0/aer_dev_correctable"] = (
        "Receiver Error 2\nRELAY_NUM Rollover 0\nTOTAL_ERR_COR 2\n"
    )
    assert errors(host, "0000:18:00.0")["correctable"] == {"Receiver Error": 2, "RELAY_NUM Rollover": 0}


@given(st.text(max_size=300))
def test_any_text_is_numbers_or_unparsable(text):
    host = Machine()
    host.files.update(aer("0000:18:00.0"))
    host.files[f"{FOLDER}/0000:18:00.0/aer_dev_fatal"] = text
    with contextlib.suppress(Unparsable):
        assert errors(host, "0000:18:00.0") is not None
