"""Whether and where a site has a config, and how its checks run there. Light: nothing is read to find out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clustertools.check import Check

if TYPE_CHECKING:
    from clustertools.config import CheckConfig

ETC = "/etc/clustertools"


def etc(environ: Mapping[str, str] = os.environ) -> Path:
    """The system's folder: $CLUSTERTOOLS_ETC, or /etc/clustertools."""
    return Path(environ.get("CLUSTERTOOLS_ETC") or ETC)


def is_configured(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether there is any config to read. Reading it costs imports, and a prolog pays for each."""
    folder = etc(environ)
    named = bool(environ.get("CLUSTERTOOLS_CONFIG"))
    return named or any(os.path.exists(folder / name) for name in ("config.yaml", "config.d"))


def adjusted(declared: Check, wanted: CheckConfig) -> Check:
    """The check as config wants it; what config leaves open stays as declared."""
    changes = {
        name: value
        for name in ("confirm", "interval_seconds", "timeout_seconds")
        if (value := getattr(wanted, name)) is not None
    }
    return dataclasses.replace(declared, **changes)
