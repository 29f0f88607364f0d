"""The BMC: old and new events, states taken back, sensors, and a real ipmitool against a simulated BMC."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, LocalHost, PassingHost
from clustertools.model import Status
from tests.checks.altered_node import AlteredNode
from tests.lab.parts import bmc

DAY = 86400.0


def parts(verdict):
    return {(f.code, f.subject.part, f.status.name) for f in verdict.findings}


def events(run, node, *lines, past=None):
    node.commands[bmc.EVENTS] = "".join(f"{line}\n" for line in lines)
    return run("bmc_sel", node, past=past)


def test_an_old_log_pages_nobody(run):
    verdict = run("bmc_sel", "h100-healthy")
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert {r.name: r.value for r in verdict.readings} == {"bmc_events_total": 6, "bmc_log_used_ratio": 0.01}


def test_new_events(run):
    verdict = run("bmc_sel", "h100-bmc-events")
    assert parts(verdict) == {
        ("BmcUncorrectableError", "bmc@Memory #0x88", "CRITICAL"),
        ("BmcBusError", "bmc@Critical Interrupt #0xa1", "CRITICAL"),
        ("BmcOverheated", "bmc@Processor CPU1_Status", "CRITICAL"),
        ("BmcPowerLost", "bmc@Power Supply PSU2_Status", "WARNING"),
        ("BmcPowerLost", "bmc@Power Supply PSU_Redundancy", "WARNING"),
        ("BmcLogFull", "bmc", "WARNING"),
    }
    found = {f.code: f for f in verdict.findings}
    assert "2026-08-05 22:10 by the BMC's clock" in found["BmcUncorrectableError"].summary
    assert (found["BmcUncorrectableError"].clears, found["BmcPowerLost"].clears) == (3 * DAY, "recovery")


LOST = "  10 | 08/05/2026 | 06:00:00 | Power Supply PSU2 | Power Supply AC lost | Asserted"
BACK = "  11 | 08/05/2026 | 07:00:00 | Power Supply PSU2 | Power Supply AC lost | Deasserted"
ERROR = "  12 |  Pre-Init  |0000000123| Memory #0x88 | Uncorrectable ECC | Asserted"


def test_a_state_lasts_until_it_is_taken_back(run):
    node = AlteredNode()
    first = events(run, node, LOST)
    assert first.codes == {"BmcPowerLost"}
    node.time += 30 * DAY  # long after, and nothing new
    second = events(run, node, LOST, past=first.memory)
    assert second.codes == {"BmcPowerLost"}
    third = events(run, node, LOST, BACK, past=second.memory)
    assert third.codes == set()
    assert events(run, node, LOST, BACK, past=third.memory).codes == set()


def test_what_the_bmc_adds_to_an_event_is_its_evidence(run):
    hot = "  10 | 08/05/2026 | 06:00:00 | Temperature Inlet | Upper Critical going high | Asserted"
    assert events(run, AlteredNode(), hot).findings[0].evidence == ()
    [finding] = events(run, AlteredNode(), f"{hot} | Reading 75 > Threshold 70 degrees C").findings
    assert finding.evidence == ("Reading 75 > Threshold 70 degrees C",)


def test_an_event_is_told_once(run):
    node = AlteredNode()
    first = events(run, node, LOST, BACK)
    assert first.codes == set()
    second = events(run, node, LOST, BACK, ERROR, past=first.memory)
    assert second.codes == {"BmcUncorrectableError"}
    assert events(run, node, LOST, BACK, ERROR, past=second.memory).codes == set()


def test_an_event_of_unknown_time_is_not_recent_at_the_first_look(run):
    assert events(run, AlteredNode(), ERROR).codes == set()


def test_a_number_that_is_given_again_after_the_log_was_cleared(run):
    node = AlteredNode()
    first = events(run, node, LOST.replace("PSU2", "PSU1"), BACK.replace("PSU2", "PSU1"))
    again = LOST.replace("06:00:00", "09:00:00")
    assert events(run, node, again, past=first.memory).codes == {"BmcPowerLost"}


@pytest.mark.parametrize(
    ("days", "codes"), [(6.9, {"BmcPowerLost"}), (7.1, set()), (-0.9, {"BmcPowerLost"}), (-2, set())]
)
def test_how_old_is_recent(run, days, codes):
    node = AlteredNode()
    node.time = 1785909600.0 + days * DAY  # the event is of 06:00 that day, UTC
    assert events(run, node, LOST).codes == codes


@pytest.mark.parametrize(("sensor", "event", "found"), [
    ("Memory #0x02", "Uncorrectable ECC (UnCorrectable ECC |  DIMMD7)", "BmcUncorrectableError"),
    ("Memory #0x02", "Correctable ECC", ""),
    ("Memory #0x02", "Correctable ECC logging limit reached", "BmcMemoryCorrected"),
    ("Processor CPU1", "IERR", "BmcUncorrectableError"),
    ("OEM CPU0_MCA", "NVIDIA MCA error", "BmcUncorrectableError"),
    ("Processor CPU1", "Processor Automatically Throttled", "BmcCpuThrottled"),
    ("Processor CPU1", "Presence detected", ""),
    ("Critical Interrupt #0xa1", "PCI SERR", "BmcBusError"),
    ("Critical Interrupt #0xa1", "Bus Correctable error", ""),
    ("System Firmwares #0x06", "Firmware (BIOS) ROM corruption detected", "BmcFirmwareFault"),
    ("System Firmware Progress #0x06", "Motherboard initialization", ""),
    ("Watchdog2 #0x03", "Hard reset", "BmcWatchdog"),
    ("Watchdog2 #0x03", "Timer interrupt", ""),
    ("Temperature Inlet", "Upper Critical going high", "BmcOverheated"),
    ("Temperature Inlet", "Upper Non-critical going high", ""),
    ("Fan FAN3", "Lower Critical going low", "BmcFanFailed"),
    ("Power Supply PS1", "Failure detected", "BmcPowerLost"),
    ("Power Supply PS1", "Presence detected", ""),
    ("Power Unit #0x02", "Fully Redundant", ""),
    ("Physical Security #0x05", "General Chassis intrusion", ""),
])  # fmt: skip
def test_what_the_words_of_the_log_mean(run, sensor, event, found):
    line = f"   1 | 08/05/2026 | 06:00:00 | {sensor} | {event} | Asserted"
    assert events(run, AlteredNode(), line).codes == ({found} if found else set())


@pytest.mark.parametrize(("used", "overflow", "codes"), [
    ("89%", "false", set()), ("90%", "false", {"BmcLogFull"}), ("unknown", "false", set()),
    ("3%", "true", {"BmcLogFull"}),
])  # fmt: skip
def test_room_in_the_log(run, used, overflow, codes):
    node = AlteredNode()
    node.commands[bmc.INFO] = bmc.log_info(6, used, overflow)
    verdict = run("bmc_sel", node)
    assert verdict.codes == codes
    how = "overflowed" if overflow == "true" else f"is {used.rstrip('%')} % full"
    assert all(how in f.summary for f in verdict.findings)


def test_an_empty_log(run):
    node = AlteredNode()
    node.commands[bmc.EVENTS] = Completed((), 0, "", "SEL has no entries\n")
    assert run("bmc_sel", node).status is Status.OK


@pytest.mark.parametrize("name", ["bmc_sel", "bmc_sensors"])
def test_no_bmc_no_tool_no_answer(run, name):
    node = AlteredNode()
    node.commands["ipmitool",] = Unobservable("ipmitool did not answer within 45 s")
    assert run(name, node).status is Status.UNKNOWN
    # recorded: ipmitool 1.8.19 without the right to open the device
    refused = "Could not open device at /dev/ipmi0 or /dev/ipmi/0 or /dev/ipmidev/0: Permission denied\n"
    node.commands["ipmitool",] = Completed((), 1, "", refused)
    assert run(name, node).status is Status.UNKNOWN
    node.commands["ipmitool",] = Absent("ipmitool is not installed")
    assert run(name, node).status is Status.SKIPPED
    node.globs["/dev/ipmi[0-9]*"] = []
    assert run(name, node).status is Status.SKIPPED


# ------------------------------------------------------------------ sensors


@pytest.mark.parametrize(("line", "found"), [
    ("Inlet Temp | 04h | unr |  7.1 | 61 degrees C", {("BmcTemperature", "bmc@Inlet Temp", "CRITICAL")}),
    ("Inlet Temp | 04h | ucr |  7.1 | 51 degrees C", {("BmcTemperature", "bmc@Inlet Temp", "WARNING")}),
    ("Inlet Temp | 04h | unc |  7.1 | 45 degrees C", set()),
    ("TEMP_GPU5  | 04h | lnr |  7.1 | 0 degrees C", set()),  # an empty slot
    ("FAN4       | 44h | lnr | 29.4 | 0 RPM", {("BmcFan", "bmc@FAN4", "WARNING")}),
    ("FAN4       | 44h | ns  | 29.4 | No Reading", set()),
    ("PS2        | 65h | ok  | 10.2 | Presence detected, Power Supply AC lost",
     {("BmcPowerSupply", "bmc@PS2", "WARNING")}),
    ("PS2        | 65h | cr  | 10.2 | Failure detected", {("BmcPowerSupply", "bmc@PS2", "WARNING")}),
    ("PS2_STATUS | 2Ch | ok  | 10.2 |", set()),
    ("PS Redundancy | 74h | ok |  7.1 | Redundancy Lost",
     {("BmcPowerSupply", "bmc@PS Redundancy", "WARNING")}),
    ("Inlet Temp | 04h | unr |  7.1 | 0 degrees C", {("BmcTemperature", "bmc@Inlet Temp", "WARNING")}),
    ("Power Supply 1 | 5Ah | ucr | 10.1 | 1900 Watts", {("BmcPowerSupply", "bmc@Power Supply 1", "WARNING")}),
    ("PWR_PSU1   | 61h | ucr | 10.2 | 3300 Watts", {("BmcPowerSupply", "bmc@PWR_PSU1", "WARNING")}),
    ("P12V       | 6Ah | lcr |  7.1 | 10.80 Volts", {("BmcSensor", "bmc@P12V", "WARNING")}),
    ("P12V       | 6Ah | cr  |  7.1 | No Reading", set()),
])  # fmt: skip
def test_sensors(run, line, found):
    node = AlteredNode()
    node.commands[bmc.SENSORS] = bmc.HEALTHY + line + "\n"
    assert parts(run("bmc_sensors", node)) == found


def test_readings_and_lamps(run):
    node = AlteredNode()
    node.commands[bmc.CHASSIS] = bmc.LAMPS.replace(
        "Intrusion    : inactive", "Intrusion    : active"
    ).replace("Cooling/Fan Fault    : false", "Cooling/Fan Fault    : true")
    verdict = run("bmc_sensors", node)
    assert [f.summary for f in verdict.findings] == ["the chassis tells: cooling fault"]
    readings = {(r.name, r.subject.part): r.value for r in verdict.readings}
    assert readings["bmc_temperature_celsius", "bmc@TEMP_AMBIENT"] == 24
    assert readings["bmc_fan_rpm", "bmc@SPD_FAN_SYS0_F"] == 7840
    assert readings["bmc_power_watts", "bmc@PWR_PSU0"] == 412
    assert readings["bmc_chassis_intrusion_total", ""] == 1


# ------------------------------------------------------------------ a simulated BMC


class Simulated(PassingHost):
    """This machine, whose BMC is the simulated one."""

    def __init__(self, port: int) -> None:
        super().__init__(LocalHost("n1"))
        self.lan = (
            "-I",
            "lanplus",
            "-C",
            "3",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "admin",
            "-P",
            "test",
        )

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        words = (argv[0], *self.lan, *argv[1:]) if argv[0] == "ipmitool" else argv
        return self.host.run(*words, timeout_seconds=timeout_seconds, stdin=stdin)

    def glob(self, pattern: str) -> list[str]:
        return ["/dev/ipmi0"] if pattern.startswith("/dev/ipmi") else self.host.glob(pattern)


def sensor(number: int, name: str, kind: int, file: Path) -> str:
    """A threshold sensor of degrees C whose value is in `file`: limits 60, 70, 80."""
    text = name.encode()
    body = [
        0x20,
        0,
        number,
        7,
        1,
        0x7F,
        0x68,
        kind,
        1,
        0x80,
        0x0A,
        0x80,
        0x7A,
        0x38,
        0x38,
        0,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    body += [0, 0, 0, 0x20, 0x50, 0x10, 0xFF, 0, 80, 70, 60, 0, 0, 0, 2, 2, 0, 0, 0, 0xC0 | len(text), *text]
    words = " ".join(hex(b) for b in [number, 0, 0x51, 1, len(body), *body])
    states = " ".join(["000111111000000"] * 4)
    return f"""sensor_add 0x20 0 {number} {kind} 0x01 poll 200 file "{file}"
sensor_set_threshold 0x20 0 {number} settable 111000 80 70 60 0 0 0
sensor_set_event_support 0x20 0 {number} enable scanning per-state {states}
main_sdr_add 0x20 {words}
"""


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[tuple[Simulated, Path]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inlet = tmp_path / "inlet"
    inlet.write_text("24\n")
    (tmp_path / "state").mkdir()
    ways = "\n".join(f"allowed_auths_{who} none md2 md5 straight" for who in ("user", "operator", "admin"))
    (tmp_path / "lan.conf").write_text(
        f'name "bmc1"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n'
        f"allowed_auths_callback none md2 md5 straight\n{ways}\n"
        "guid a123456789abcdefa123456789abcdef\nendlan\n"
        'user 2 true "admin" "test" admin 10 none md2 md5 straight\n'
    )
    (tmp_path / "bmc.emu").write_text(
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\n"
        f"sel_enable 0x20 1000 0x0a\n{sensor(1, 'Inlet Temp', 1, inlet)}mc_enable 0x20\n"
    )
    log = (tmp_path / "log").open("w")
    words = ["ipmi_sim", "-c", "lan.conf", "-f", "bmc.emu", "-s", "state", "-n"]
    child = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    host = Simulated(port)
    try:
        for _ in range(50):
            if host.run("ipmitool", "mc", "info").returncode == 0:
                break
            time.sleep(0.05)
        yield host, inlet
    finally:
        child.kill()
        child.wait()
        log.close()


def until(answer, wanted, seconds=10.0):
    """`answer()` once it holds `wanted`: the simulation looks at its sensors now and then."""
    end = time.monotonic() + seconds
    while wanted not in (told := answer()) and time.monotonic() < end:
        time.sleep(0.1)
    return told


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("ipmi_sim") and shutil.which("ipmitool")), reason="needs ipmi_sim and ipmitool"
)
def test_real_ipmitool_and_a_simulated_bmc(run, simulated, tmp_path):
    host, inlet = simulated
    first = run("bmc_sel", host)
    assert (first.status, first.blind) == (Status.OK, "")
    assert [r.value for r in first.readings] == [0.0, 0.0]
    calm = run("bmc_sensors", host)
    # the simulation has no chassis that is powered, which its lamps say nothing of
    assert (calm.codes, calm.blind) == (frozenset(), "")
    assert {r.name: r.value for r in calm.readings}["bmc_temperature_celsius"] == 24

    (tmp_path / "events").write_text(
        "0x04 0x08 0xc8 0x6f 0x03 0xff 0xff # Power Supply AC lost\n"
        "0x04 0x0c 0x87 0x6f 0x01 0xff 0x07 # Uncorrectable ECC\n"
        "0x04 0x13 0xa1 0x6f 0x0a 0xff 0xff # Bus Fatal Error\n"
        "0x04 0x07 0x65 0x6f 0x0a 0xff 0xff # Processor Throttled\n"
        "0x04 0x23 0x03 0x6f 0x03 0xff 0xff # Watchdog, Power cycle\n"
    )
    host.run("ipmitool", "sel", "add", str(tmp_path / "events")).check()
    inlet.write_text("90\n")
    until(lambda: host.run("ipmitool", "sel", "elist").stdout, "Upper Non-recoverable going high")
    second = run("bmc_sel", host, past=first.memory)
    assert second.codes == {
        "BmcPowerLost", "BmcUncorrectableError", "BmcBusError", "BmcCpuThrottled",
        "BmcWatchdog", "BmcOverheated",
    }  # fmt: skip
    assert parts(run("bmc_sensors", host)) == {("BmcTemperature", "bmc@Inlet Temp", "CRITICAL")}

    (tmp_path / "events").write_text(
        "0x04 0x08 0xc8 0xef 0x03 0xff 0xff # Power Supply AC lost, deasserted\n"
    )
    host.run("ipmitool", "sel", "add", str(tmp_path / "events")).check()
    inlet.write_text("24\n")
    third = run("bmc_sel", host, past=second.memory)
    assert "BmcPowerLost" not in third.codes
    assert not {"BmcUncorrectableError", "BmcBusError", "BmcWatchdog"} & third.codes
