"""Imports go in one direction, and the node side stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

_NODE = {
    "model", "stats", "hanging_files", "host", "shared_host", "sources", "catalog", "curves", "check",
}  # fmt: skip
_PURE = {"incidents", "policy", "notices", "precision", "diagnose", "restarts", "goodput"}
_HEAD = {
    "store",
    "config",
    "sinks",
    "delivery",
    "render",
    "schedulers",
    "fleet",
    "actions",
    "redact",
    "systemd",
}

#: What only the preflight's active tests are made of.
_ACTIVE = {
    "measurement", "isolate", "performance", "grading", "budget", "baselines", "preflight_report", "handover",
    "drift",
}  # fmt: skip

#: What imports nothing of ours and may be imported by all.
_GROUND = {"errors", "text"}

#: Room -> the rooms that it may import. The ground and the room itself may always be imported.
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set() for room in (*_GROUND, "systemd")},
    "model": set(),
    "drift": set(),
    "measurement": {"model"},
    "preflight_report": {"model", "measurement"},
    "stats": set(),
    "hanging_files": set(),
    "host": {"model", "hanging_files"},
    "shared_host": {"model", "host"},
    "bounded": {"model", "host", "shared_host", "check"},
    "recorder": {"model", "host"},
    "catalog": {"model", "host"},
    "sources": {"model", "host", "catalog"},
    "curves": {"stats", "sources"},
    "probes": {"model", "host", "sources", "measurement"},
    "check": {"model", "stats", "host", "sources", "catalog"},
    "checks": {"model", "stats", "host", "sources", "catalog", "curves", "check"},
    "plugins": {"model", "host", "sources", "check", "config"},
    **{room: set() for room in ("playbooks", "share")},
    **{
        room: {"model", "stats", "catalog"}
        | ({"diagnose", "restarts"} if room in ("restarts", "policy") else set())
        for room in _PURE
    },
    **{room: {"model", "stats", "catalog", "measurement"} for room in ("isolate", "performance")},
    "budget": set(),
    "baselines": {"stats", "measurement", "performance", "budget"},
    "grading": {"model", "measurement", "performance", "preflight_report"},
    **{room: {"model"} for room in ("store", "config", "sinks")},
    "render": {"model", "measurement", "preflight_report", "curves"},
    "handover": {"model", "measurement", "preflight_report"},
    "delivery": {"model", "notices", "sinks", "store"},
    "redact": {"host"},
    "schedulers": {"model", "host", "sources"},
    "fleet": {"model", "host", "sources", "measurement"},
    "actions": {"model", "host", "sources", "schedulers", "catalog"},
    **{
        room: _NODE | _PURE | _HEAD | _ACTIVE | {"checks", "probes"}
        for room in ("preflight", "watchdog", "simulate", "node_health")
    },
    "replay": _NODE | _PURE | _HEAD | {"checks", "watchdog"},
}
#: Rooms that may import anything.
TOP = {"cli", "__main__"}

#: What a Slurm prolog or a check every minute must not pay for.
HEAVY = ("fabric", "paramiko", "slack_sdk", "pydantic", "rich", "jinja2", "click", "torch", "numpy")


def modules() -> dict[str, Path]:
    """Dotted name -> file, for all of clustertools, clustertools.checks and clustertools.playbooks."""
    found = {}
    for folder in ("clustertools", "checks", "playbooks"):
        prefix = "" if folder == "clustertools" else "clustertools."
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[prefix + ".".join(p for p in parts if p != "__init__")] = path
    return found


def room(module: str) -> str:
    """`clustertools.config_lines` and `clustertools.config` are both the room `config`."""
    parts = module.split(".")
    if len(parts) < 2:
        return ""
    return next(
        (many for many in ("config", "performance", "goodput") if parts[1].startswith(f"{many}_")), parts[1]
    )


def imports(source: str, module: str, names: set[str]) -> Iterator[str]:
    """Every module of ours that the source imports, at any depth, relative imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "clustertools")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], base]).rstrip(".")
            if base.split(".")[0] != "clustertools":
                continue
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in names else base


def forbidden_edges(module: str, source: str, names: set[str]) -> list[str]:
    """The imports of one module that the picture does not have."""
    mine = room(module)
    if mine in TOP or not mine:
        return []
    allowed = MAY_IMPORT[mine] | _GROUND | {mine, ""}
    return [f"{module} -> {found}" for found in imports(source, module, names) if room(found) not in allowed]


def test_every_import_is_in_the_picture():
    found = modules()
    strangers = {room(m) for m in found} - MAY_IMPORT.keys() - TOP - {""}
    assert not strangers, f"no layer is given for {sorted(strangers)}"
    names = set(found)
    wrong = [edge for m, path in found.items() for edge in forbidden_edges(m, path.read_text(), names)]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clustertools.model", "from clustertools.host import Host"),
        ("clustertools.sources.kernel", "def f():\n    from clustertools import store"),
        ("clustertools.checks.gpu_ecc", "import clustertools.policy as p"),
        ("clustertools.incidents", "from clustertools.store import Store"),
        ("clustertools.sinks.slack", "from ..render import formats"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    names = {"clustertools.host", "clustertools.store", "clustertools.policy", "clustertools.render.formats"}
    assert len(forbidden_edges(module, source, names)) == 1


def test_a_right_import_is_let_through():
    source = (
        "from clustertools.errors import Unparsable\nfrom clustertools.sources.pci import gpus\nimport os"
    )
    assert forbidden_edges("clustertools.sources.kernel", source, set()) == []


def test_the_node_side_is_light():
    """Importing the machinery of checks, and all checks, brings in nothing heavy."""
    program = (
        "import sys, clustertools.check as c, clustertools.shared_host; c.discover(site_folders=())\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
