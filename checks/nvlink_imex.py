"""Whether IMEX, by which the GPUs of several nodes share memory over NVLink, is ready where it is used."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.fabric_manager import unit
from clustertools.sources.nvidia import gpus
from clustertools.sources.pci import nvidia_devices

UNIT = "nvidia-imex.service"
ASK = ("nvidia-imex-ctl", "-q")


@check(
    stages={"preflight", "watch"},
    confirm=3,  # a daemon waits for its peers while a domain forms
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "ImexDown": "the IMEX daemon failed, or does not run where it should",
        "ImexNotReady": "the IMEX daemon runs and is not ready",
    },
)
def nvlink_imex(ctx: Context) -> Iterator[Finding | Reading]:
    """Asks systemd for nvidia-imex, and the daemon for its state, on nodes whose NVLink fabric spans nodes.

    A node that is in no IMEX domain has no daemon: on an idle GB200 or GB300 that is right, and where domains
    come and go with the jobs the daemon runs in their containers. So a daemon that is stopped is a finding
    only where `expect["imex"]` says that it always runs.
    """
    wanted = bool(ctx.expect.get("imex"))
    if not wanted and not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    try:
        service = unit(ctx.host, UNIT)
    except Absent as exc:
        raise ctx.skip(str(exc)) from None
    if not wanted and not service.active and not service.state.startswith("failed"):
        raise ctx.skip("no IMEX domain is active on this node")
    if not wanted and not any(gpu.fabric_cluster for gpu in gpus(ctx.host)):
        raise ctx.skip("the NVLink fabric does not span nodes")
    say = ctx.critical if wanted else ctx.warning
    if not service.active:
        state = service.state if service.known else "it is not installed"
        yield say(
            "ImexDown", "", f"the IMEX daemon does not run: {state}",
            evidence=(f"systemctl status {UNIT}",), remedy=Remedy.INSPECT,
        )  # fmt: skip
        return
    try:
        # READY, or INITIALIZING, WAITING_FOR_PEERS, WAITING_FOR_RECOVERY, UNAVAILABLE ...
        state = ctx.host.run(*ASK, timeout_seconds=5.0).check().stdout.strip()[:60]
    except Absent:
        ctx.note("nvidia-imex-ctl is not installed: that the daemon runs is all that is known")
        return
    if state != "READY":
        yield say(
            "ImexNotReady", "", f"the IMEX daemon is not ready: {state or 'it says nothing'}",
            evidence=("nvidia-imex-ctl -N",), remedy=Remedy.INSPECT,
        )  # fmt: skip
