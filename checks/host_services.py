"""The node's services: those that it needs run, none has failed, none restarts over and over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.processes import programs
from clustertools.sources.tools.systemctl_show import PROPERTIES, Unit, units


@dataclass(frozen=True)
class Limits:
    # node-problem-detector takes 5 restarts of containerd or kubelet in 20 minutes
    restarts: int = 5
    restarts_seconds: float = 1200.0
    # they fail on healthy machines: no network in time at boot, a site without internet
    ignored: tuple[str, ...] = (
        "systemd-networkd-wait-online.service", "NetworkManager-wait-online.service", "apt-news.service",
        "esm-cache.service", "motd-news.service", "fwupd-refresh.service", "apt-daily.service",
        "apt-daily-upgrade.service", "dnf-makecache.service", "man-db.service", "ua-timer.service",
        "update-notifier-download.service", "update-notifier-motd.service", "logrotate.service",
        "plymouth-quit-wait.service", "user@0.service", "systemd-tmpfiles-clean.service",
        "cloud-init.service", "cloud-final.service", "cloud-config.service", "snapd.seeded.service",
        "casper-md5check.service", "e2scrub_reap.service",
    )  # fmt: skip
    most_units: int = 20


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    codes={
        "ServiceDown": "a service that this class of node needs does not run",
        "ServiceRestarting": "systemd restarts a service over and over",
        "UnitFailed": "a systemd unit has failed",
    },
    # a service that is being restarted is away for some seconds
    confirm=2,
    cost_seconds=0.15,
)
def host_services(ctx: Context) -> Iterator[Finding | Reading]:
    """`expect["services"]` are active, no unit failed, none is in a restart loop: one question to systemd.

    Without systemd the expected services are looked for among the processes. A restart loop shows over
    several looks, which takes memory.
    """
    wanted = [_unit(str(name)) for name in ctx.expect.get("services", ())]
    try:
        done = ctx.host.run(
            "systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", *wanted,
            "*.service", "*.mount", timeout_seconds=10,
        )  # fmt: skip
    except Absent:
        yield from _without_systemd(ctx, wanted)
        return
    # System has not been booted with systemd as init system (PID 1). Can't operate.
    if "not been booted with systemd" in done.stderr:
        yield from _without_systemd(ctx, wanted)
        return
    found = {unit.name: unit for unit in units(done.check().stdout)}
    for name in wanted:
        yield from _expected(ctx, name, found.get(name))
    failed = [
        unit for unit in found.values()
        if unit.active_state == "failed" and unit.name not in wanted and unit.name not in ctx.limits.ignored
    ]  # fmt: skip
    yield ctx.reading("units_failed_total", len(failed))
    for unit in failed[: ctx.limits.most_units]:
        yield ctx.warning(
            "UnitFailed", f"unit@{unit.name}", f"{unit.name} has failed ({unit.result or unit.sub_state})"
        )
    yield from _loops(ctx, found)


def _unit(name: str) -> str:
    return name if "." in name else f"{name}.service"


def _expected(ctx: Context, name: str, unit: Unit | None) -> Iterator[Finding]:
    if unit is None:
        ctx.unseen(f"systemctl did not tell of {name}")
    elif unit.load_state == "not-found":
        yield _down(ctx, name, "is not installed")
    # a service of type oneshot has done its work and is "active (exited)"
    elif unit.active_state not in ("active", "reloading", "refreshing"):
        yield _down(ctx, name, f"is {unit.active_state} ({unit.sub_state}, {unit.result or 'no result'})")


def _down(ctx: Context, name: str, how: str) -> Finding:
    return ctx.critical("ServiceDown", f"unit@{name}", f"{name} {how}", remedy=Remedy.INSPECT)


def _loops(ctx: Context, found: Mapping[str, Unit]) -> Iterator[Finding]:
    now = ctx.host.now()
    counts = {unit.name: unit.restarts for unit in found.values() if unit.restarts}
    before: Mapping[str, Any] = ctx.past.get("restarts") or {}
    fresh = not before or before["boot_id"] != ctx.host.boot_id
    if fresh or now - before["time"] > ctx.limits.restarts_seconds:
        ctx.remember["restarts"] = {"time": now, "boot_id": ctx.host.boot_id, "counts": counts}
    else:
        ctx.remember["restarts"] = dict(before)
    if fresh:
        return
    for name, count in counts.items():
        # counted anew after somebody started it by hand
        grown = count - before["counts"].get(name, 0)
        if grown >= ctx.limits.restarts:
            yield ctx.warning(
                "ServiceRestarting",
                f"unit@{name}",
                f"systemd restarted {name} {grown} times in {(now - before['time']) / 60:.0f} min (limit "
                f"{ctx.limits.restarts})",
            )


def _without_systemd(ctx: Context, wanted: list[str]) -> Iterator[Finding]:
    if not wanted:
        raise ctx.skip("no systemd, and no services are expected (expect.services)")
    running = programs(ctx.host)
    for name in wanted:
        program = name.rsplit(".", 1)[0][:15]
        if program not in running:
            yield _down(ctx, name, "does not run: no process has its name, and there is no systemd")
