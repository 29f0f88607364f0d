"""An argv as the one string that ssh takes, exact in every login shell, and how to end what it started. Pure.

sshd hands the string to the user's login shell: sh, bash, zsh, csh or fish. They agree on words in single
quotes, and differ on `\\`, `!` and line breaks inside of them; a command that has those travels encoded.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from clustertools.errors import ConfigError
from clustertools.fleet import NODE_VARIABLE

#: Marks all processes of one program, so that they can be found and ended: their environment is inherited.
RUN_VARIABLE = "CLUSTERTOOLS_RUN"

#: In single quotes these mean something to csh (`!`, line breaks) or fish (`\\`).
_DIFFER = frozenset("\\!\n\r")

# $0 is the mark. The shell and grep do not carry it in their environment. A process in state D stays: said.
_KILL = (
    "n=0; while [ $n -lt 25 ]; do "
    'found=$(grep -lsF -e "$0" /proc/[0-9]*/environ); [ -n "$found" ] || exit 0; '
    "for p in $found; do p=${p#/proc/}; kill -KILL ${p%/environ} 2>/dev/null; done; "
    "n=$((n+1)); sleep 0.1; done; echo $found; exit 1"
)


def command_line(argv: Sequence[str], node: str, mark: str) -> bytes:
    """The string for sshd that runs `argv` with NODE_VARIABLE and RUN_VARIABLE set, each word as it is.

    Raises ConfigError for what no program can be given, and for a program whose name is an option.
    """
    if not argv or not argv[0]:
        raise ConfigError("no command was given to run")
    if any("\0" in word for word in argv):
        raise ConfigError("a word of the command holds a NUL: no program can be given that")
    if argv[0].startswith("-"):
        raise ConfigError(f"the command begins with an option, {argv[0]!r}: name the program first")
    words = ["env", f"{NODE_VARIABLE}={node}", f"{RUN_VARIABLE}={mark}"]
    # `env a=b` would set a variable instead of running a program of that name
    words += ["sh", "-c", 'exec "$@"', "sh"] if "=" in argv[0] else []
    return _portable([*words, *argv])


def kill_line(mark: str) -> bytes:
    """The string that ends every process with that mark; exit code 1 and their paths if some stay."""
    return _portable(["sh", "-c", _KILL, f"{RUN_VARIABLE}={mark}"])


def _portable(words: Sequence[str]) -> bytes:
    # a word may hold bytes that are no text: they came in as surrogates, and go out as they were
    line = shlex.join(words)
    if not _DIFFER.intersection(line):
        return line.encode("utf-8", "surrogateescape")
    encoded = "".join(f"\\0{byte:03o}" for byte in line.encode("utf-8", "surrogateescape"))
    return shlex.join(["sh", "-c", 'eval "exec $(printf %b "$0")"', encoded]).encode()
