"""`python -m clustertools` and the zip archive: the command line, the probes, and the children of sources.

clustertools check ...                           the command line
clustertools probe serve ...                     clustertools.probes.serve, without the command line
python clustertools.pyz -m clustertools.X ...    what `python -m` does where it is installed
"""

from __future__ import annotations

import importlib
import pkgutil
import runpy
import sys
from collections.abc import Sequence

#: As an exit code: nobody could look.
COULD_NOT_RUN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["probe"]:
        return probe(words[1:])
    if words[:1] == ["-m"] and words[1:2] and words[1].startswith("clustertools."):
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return 0
    from clustertools.cli import main as command_line

    return command_line(words)


def probe(words: Sequence[str]) -> int:
    """Run the probe that the first word names: its `main(words) -> int`."""
    package = importlib.import_module("clustertools.probes")
    known = {found.name for found in pkgutil.iter_modules(package.__path__)}
    if words and words[0] in known:
        module = importlib.import_module(f"clustertools.probes.{words[0]}")
        if hasattr(module, "main"):
            code: int = module.main(list(words[1:]))
            return code
    sys.stderr.write(f"clustertools: there is no probe {' '.join(words[:1])!r} to run\n")
    return COULD_NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
