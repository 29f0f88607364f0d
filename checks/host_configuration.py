"""The node's software and settings are those of its class: kernel, system, sysctls, packages, any fact."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping

from clustertools.check import Context, check
from clustertools.errors import Unparsable
from clustertools.model import Finding
from clustertools.sources.facts import facts


@check(
    stages={"preflight", "daily"},
    codes={"ConfigurationDrift": "a version or setting is not that of this class of node"},
    interval_seconds=3600,
    cost_seconds=0.2,
)
def host_configuration(ctx: Context) -> Iterator[Finding]:
    """Facts of the node against `expect`: `kernel`, `os_release`, `sysctls`, `packages` and `facts`.

    `facts` maps any name that `clustertools facts` shows to its value. Values may be patterns (`5.15.0-*`).
    Without an expectation there is nothing to compare with here: `clustertools drift` compares nodes.
    """
    told = facts(ctx.host)
    wanted = {str(name): str(value) for name, value in _map(ctx, "facts").items()}
    for key, fact in (("kernel", "kernel"), ("os_release", "os")):
        if key in ctx.expect:
            wanted[fact] = str(ctx.expect[key])
    wanted |= {f"sysctl.{name}": str(value) for name, value in _map(ctx, "sysctls").items()}
    packages = {str(name): str(version) for name, version in _map(ctx, "packages").items()}
    if not wanted and not packages:
        raise ctx.skip("nothing is expected (kernel, os_release, sysctls, packages, facts)")
    for name, value in sorted(wanted.items()):
        if name in told:
            yield from _compare(ctx, name, told[name], value)
        elif name.startswith("sysctl.") and name[7:] not in told:
            yield from _compare(ctx, name, _sysctl(ctx, name[7:]), value)
        else:
            ctx.unseen(f"{name} could not be found out")
    if packages:
        yield from _packages(ctx, packages)


def _map(ctx: Context, key: str) -> Mapping[str, object]:
    value = ctx.expect.get(key) or {}
    return value if isinstance(value, Mapping) else {}


def _compare(ctx: Context, name: str, has: str, wanted: str) -> Iterator[Finding]:
    # a sysctl of several numbers is written with tabs by the kernel, with blanks by people
    if not fnmatch.fnmatchcase(" ".join(has.split()), " ".join(wanted.split())):
        yield ctx.warning("ConfigurationDrift", name, f"{name} is {has[:200]!r}, not {wanted[:200]!r}")


def _sysctl(ctx: Context, name: str) -> str:
    if not re.fullmatch(r"[\w./-]{1,200}", name) or ".." in name:
        raise Unparsable("not the name of a sysctl", name)
    return ctx.host.read(f"/proc/sys/{name.replace('.', '/')}")


def _packages(ctx: Context, wanted: Mapping[str, str]) -> Iterator[Finding]:
    """Versions by dpkg; by rpm where that keeps the packages."""
    # ID=debian, or ID_LIKE=debian
    debian = bool(re.search(r"^ID(_LIKE)?=.*debian", ctx.host.read("/etc/os-release"), re.MULTILINE))
    ask = ["rpm", "-q", "--qf", "%{NAME}\\t%{VERSION}-%{RELEASE}\\n"]
    if debian:
        ask = ["dpkg-query", "-W", "-f=${Package}\\t${Version}\\n"]
    # exit code 1 comes with those that are not installed; the others are told all the same
    said = ctx.host.run(*ask, *sorted(wanted), timeout_seconds=15).stdout
    found = dict(line.split("\t", 1) for line in said.splitlines() if line.count("\t") == 1)
    for name, version in sorted(wanted.items()):
        yield from _compare(ctx, f"package.{name}", found.get(name, "not installed"), version)
