"""What a node that runs alone remembers between two looks: cursors and previous readings, by check.

One JSON file on a runtime file system, replaced whole. Losing it costs one interval of rates, nothing else,
so a broken file is told and ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustertools.errors import Unobservable, Unparsable

NAME = "node-memory.json"
SYSTEM_FOLDER = "/run/clustertools"
_VERSION = 1


def folder(environment: Mapping[str, str] = os.environ, system: str = SYSTEM_FOLDER) -> Path:
    """Where the memory lies: $RUNTIME_DIRECTORY, else /run/clustertools if we may write there, else
    $XDG_RUNTIME_DIR/clustertools. Raises Unobservable when there is no such place.
    """
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd gives several, colon-separated
    if given:
        return Path(given)
    parent = system if os.path.isdir(system) else os.path.dirname(system)
    if os.access(parent, os.W_OK | os.X_OK):
        return Path(system)
    personal = environment.get("XDG_RUNTIME_DIR", "")
    if personal:
        return Path(personal) / "clustertools"
    raise Unobservable(f"no place to remember: {system} is not writable and XDG_RUNTIME_DIR is not set")


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Each check's memory; none on the first look. Raises Unobservable when the file cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise Unobservable(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise Unparsable(f"{path} is not JSON") from exc
    checks = data.get("checks") if isinstance(data, dict) and data.get("version") == _VERSION else None
    if not isinstance(checks, dict) or not all(isinstance(m, dict) for m in checks.values()):
        raise Unparsable(f"{path} is not a node memory of version {_VERSION}")
    return checks


def save(path: Path, memory: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep each check's memory. Raises Unobservable."""
    replace(path, {"version": _VERSION, "checks": memory})


def replace(path: Path, data: Mapping[str, Any], mode: int = 0o600) -> None:
    """Write JSON in one step: a reader sees the old file or the new one. Raises Unobservable."""
    import tempfile  # only a node that remembers pays for it

    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                json.dump(data, file)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.replace(file.name, path)
            except BaseException:  # whatever it was, it is raised again
                os.unlink(file.name)
                raise
    except (OSError, TypeError, ValueError) as exc:
        raise Unobservable(f"could not write {path}: {exc}") from exc
