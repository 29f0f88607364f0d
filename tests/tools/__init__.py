"""What tools really print, a folder for each kind of `clustertools read`; each README says where from."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def sample(name: str) -> str:
    """The text of `KIND/FILE`."""
    return (FOLDER / name).read_text(encoding="utf-8")
