"""What DCGM's background health watches found, where its host engine runs."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.pci import nvidia_devices
from clustertools.sources.tools import dcgmi_health


@check(
    stages={"preflight", "daily"},
    timeout_seconds=30.0,
    cost_seconds=1.0,
    codes={"DcgmIncident": "a background health watch of DCGM reports an incident"},
)
def gpu_dcgm(ctx: Context) -> Iterator[Finding | Reading]:
    """Asks the host engine for its own verdict; it finds nothing that it was not told to watch.

    What it reports our own checks judge too, with their evidence: it is a second opinion, and never critical.
    """
    if not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    try:
        done = ctx.host.run("dcgmi", "health", "-c", "-j", timeout_seconds=20.0)
    except Absent:
        raise ctx.skip("dcgmi is not installed") from None
    said = f"{done.stdout}\n{done.stderr}"
    # Error: unable to establish a connection to the specified host: localhost
    if "unable to establish a connection" in said.lower():
        raise ctx.skip("DCGM's host engine (nv-hostengine) does not run")
    if "Health watches not enabled" in said:
        raise ctx.skip("DCGM's health watches are off (dcgmi health -s a turns them on)")
    if done.returncode:
        said = next((line for line in said.splitlines() if line.strip()), "it said nothing")
        raise Unobservable(f"dcgmi health failed with exit code {done.returncode}: {said[:200]}")
    report = dcgmi_health.read(done.stdout)
    yield ctx.reading("dcgm_incidents", len(report["incidents"]))
    for entity in sorted({one["entity"] for one in report["incidents"]}):
        own = [one for one in report["incidents"] if one["entity"] == entity]
        systems = ", ".join(sorted({one["system"] for one in own}))
        yield ctx.warning(
            "DcgmIncident", f"dcgm@{entity.replace(' ', '')}", f"DCGM on {entity}: {systems}",
            evidence=tuple(f"{one['health']}: {one['system']}: {one['text']}" for one in own[:8]),
            remedy=Remedy.INSPECT,
        )  # fmt: skip
