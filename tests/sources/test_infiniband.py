"""Our reading of sysfs: against the real ibstat and ibstatus on the same files, and on ugly ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.infiniband import (
    CLASS,
    counters,
    devices,
    netdev,
    parse_lid,
    parse_rate,
    parse_state,
)
from clustertools.sources.tools import ibstat, ibstatus
from tests.lab.memory_host import refused
from tests.lab.rdma import RdmaHost

OURS = """
import json
from clustertools.host import LocalHost
from clustertools.sources.infiniband import devices
unseen = []
found = [[d.name, d.firmware, p.number, p.state, p.phys_state, p.rate_bits_per_second, p.lid, p.sm_lid,
          p.link_layer] for d in devices(LocalHost(), unseen.append) for p in d.ports]
print(json.dumps([found, unseen]))
"""


def lab() -> RdmaHost:
    """Ports of all sorts, with the files that the tools want beside ours."""
    host = RdmaHost(8)
    host.down("mlx5_1")
    host.port("mlx5_2", state="2: INIT", lid="0xffff", sm_lid="0x0")
    host.port("mlx5_3", rate="40 Gb/sec (4X FDR10)")
    host.port("mlx5_4", rate="2.5 Gb/sec (1X)", lid="0xbfff")
    host.port("mlx5_5", rate="25 Gb/sec (1X EDR)", link_layer="Ethernet", lid="0x0", sm_lid="0x0")
    host.port("mlx5_6", rate="800 Gb/sec (4X XDR)", state="3: ARMED")
    host.port("mlx5_7", state="1: DOWN", phys_state="3: Disabled", rate="10 Gb/sec (4X SDR)")
    for n in range(8):
        guid = f"0200:00ff:fe00:{n:04x}"
        about = {"node_guid": guid, "sys_image_guid": guid, "hw_rev": "0", "node_desc": f"node0001 mlx5_{n}"}
        port = {
            "lid_mask_count": "0",
            "sm_sl": "0",
            "cap_mask": "0xa651e848",
            "gids/0": f"fe80:0000:0000:0000:{guid}",
        }
        host.files |= {f"{CLASS}/mlx5_{n}/{name}": f"{text}\n" for name, text in about.items()}
        host.files |= {f"{CLASS}/mlx5_{n}/ports/1/{name}": f"{text}\n" for name, text in port.items()}
    return host


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ibstat") is None, reason="needs root and infiniband-diags"
)
def test_the_real_tools_on_the_same_files(tmp_path: Path) -> None:
    for path, text in lab().files.items():
        if path.startswith("/sys/class/infiniband/"):
            place = tmp_path / path.removeprefix("/sys/class/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(text))
    script = 'mount -t overlay overlay -o "lowerdir=$1:/sys/class" /sys/class && shift && "$@"'

    def inside(*argv: str) -> str:
        command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ours, unseen = json.loads(inside(sys.executable, "-c", OURS))
    assert (len(ours), unseen) == (8, [])
    by_status = {p["device"]: p for p in ibstatus.read(inside("ibstatus"))["ports"]}
    told = ibstat.read(inside("ibstat"))
    assert told["errors"] == []
    by_stat = {d["name"]: d for d in told["devices"]}
    assert set(by_status) == set(by_stat) == {row[0] for row in ours}
    words = {"ACTIVE": "Active", "DOWN": "Down", "INIT": "Initializing", "ARMED": "Armed"}
    for name, firmware, number, state, phys_state, rate, lid, sm_lid, layer in ours:
        status, device = by_status[name], by_stat[name]
        assert (status["number"], status["state"], status["phys_state"]) == (number, state, phys_state)
        assert (status["rate_bits_per_second"], status["lid"], status["sm_lid"]) == (rate, lid, sm_lid)
        assert status["link_layer"] == layer
        port = device["ports"][0]
        assert (device["firmware"], port["number"], port["state"]) == (firmware, number, words[state])
        assert (port["phys_state"], port["lid"], port["sm_lid"]) == (phys_state, lid, sm_lid)
        assert (port["rate_bits_per_second"], port["link_layer"]) == (rate, layer)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("400 Gb/sec (4X NDR)\n", (400e9, 4, "NDR")), ("2.5 Gb/sec (1X)", (2.5e9, 1, "")),
        ("2.5 Gb/sec (1X SDR)", (2.5e9, 1, "SDR")), ("56 Gb/sec (4X FDR)", (56e9, 4, "FDR")),
        ("40 Gb/sec (4X FDR10)", (40e9, 4, "FDR10")), ("800 Gb/sec (4X XDR)", (800e9, 4, "XDR")),
        ("200 Gb/sec (2X NDR)", (200e9, 2, "NDR")), ("300 Gb/sec (12X EDR)", (300e9, 12, "EDR")),
    ],
)  # fmt: skip
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "400", "400 Gb/s (4X NDR)", "-1 Gb/sec (4X NDR)", "4 Gb/sec (X NDR)", "٤ Gb/sec (4X)"]
)
def test_rates_of_an_unknown_form(text):
    with pytest.raises(Unparsable):
        parse_rate(text)


@given(st.text(max_size=60))
def test_any_text(text):
    for parse in (parse_rate, parse_state, parse_lid):
        try:
            parse(text)
        except Unparsable:
            continue


def test_devices():
    host = RdmaHost(12)
    host.files[f"{CLASS}/mlx5_3/ports/1/phys_state"] = "0: <unknown>\n"
    unseen = []
    found = devices(host, unseen.append)
    assert [d.name for d in found] == [f"mlx5_{n}" for n in range(12)]
    assert unseen == []
    first = found[0]
    assert (first.pci, first.driver, first.model, first.numa_node, first.netdevs) == (
        "0000:10:00.0", "mlx5_core", "MT_0000000838", 0, ("net0",),
    )  # fmt: skip
    assert (first.ports[0].part, first.ports[0].lid, first.ports[0].rate) == (
        "mlx5_0/1", 0x10, "400 Gb/s (4X NDR)",
    )  # fmt: skip
    assert found[3].ports[0].phys_state == "<unknown>"


@pytest.mark.parametrize("junk", ["", "\0\0\0", "ACTIVE", "x" * 100000, "4: ACTIVE\n5: ACTIVE"])
def test_files_of_an_unknown_form(junk):
    for name in ("state", "phys_state", "rate", "lid", "sm_lid"):
        host = RdmaHost(2)
        host.files[f"{CLASS}/mlx5_0/ports/1/{name}"] = junk
        unseen: list[str] = []
        found = devices(host, unseen.append)
        assert [len(d.ports) for d in found] == [0, 1]
        assert len(unseen) == 1
        assert len(unseen[0]) < 1000
    host = RdmaHost(1)
    for name in ("device/uevent", "device/numa_node", "board_id", "fw_ver"):
        host.files[f"{CLASS}/mlx5_0/{name}"] = junk
    assert devices(host, unseen.append)[0].pci == ""


def test_two_ports_of_one_function_and_their_interfaces():
    host = RdmaHost(1, link_layer="Ethernet")
    device = devices(host, print)[0]
    assert netdev(host, device, device.ports[0]) == "net0"
    host.files[f"{CLASS}/mlx5_0/device/net/pf0vf0/type"] = "1\n"
    device = devices(host, print)[0]
    assert netdev(host, device, device.ports[0]) == ""
    host.files[f"{CLASS}/mlx5_0/ports/1/gid_attrs/ndevs/0"] = "net0\n"
    assert netdev(host, device, device.ports[0]) == "net0"
    host.files[f"{CLASS}/mlx5_0/ports/1/gid_attrs/ndevs/0"] = refused("EINVAL")
    assert netdev(host, device, device.ports[0]) == ""


def test_counters_of_one_kind_at_a_time():
    host = RdmaHost(2)
    host.set("mlx5_1", counters__symbol_error="7", hw_counters__out_of_sequence="9")
    of = [d.ports[0] for d in devices(host, print)]
    assert counters(host, of, {"symbol_error"}, print)[of[1]] == {"symbol_error": 7}
    assert counters(host, of, {"out_of_sequence"}, print, "hw_counters")[of[1]] == {"out_of_sequence": 9}
    assert counters(host, [], {"symbol_error"}, print) == {}
