"""Names of nodes, many at once: `gpu[001-128],login1`, as every scheduler and admin writes them.

    expand("gpu[3,1-2]")          ("gpu1", "gpu2", "gpu3")
    fold(["gpu3", "gpu1", "gpu2"])   "gpu[1-3]"

Over ClusterShell's NodeSet, whose groups (`@rack7`, from /etc/clustershell/groups.conf) are known here too.
An unknown group is the empty set there, in silence; here an empty set is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from clustertools.errors import ConfigError
from clustertools.text import plain

#: A list longer than this is a mistake (the wrong file), not a cluster.
LIST_CAP_CHARACTERS = 16 << 20

# "gpu001.rack-7.example_1"; also "10.1.2.3" and "fe80::1": what a resolver takes, and nothing that a program
# could take for an option or a terminal for a command
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*")
# "@rack7", "@slurm:main", "@rack[1,3]"
_GROUP = re.compile(r"@(?:[^\s,!&^\[]|\[[^\]]*\])+")


def expand(text: str, groups: Any = None) -> tuple[str, ...]:
    """The node names that `text` selects, each once, in natural order (gpu2 before gpu10).

    Takes everything that ClusterShell takes: ranges, lists, `!` and `&`, `@groups` (`groups` may be another
    ClusterShell resolver). `@file:PATH` is a list in a file, `-` one on standard input: names or ranges with
    blanks, commas or line breaks between them, `#` begins a comment.

    Raises ConfigError when it cannot be read, selects nobody, or a name is none.
    """
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    wanted = _listed(text) if text == "-" or text.startswith("@file:") else text
    for character in wanted:
        if ord(character) < 32 and character not in "\t\n":
            raise ConfigError(f"the node set {plain(text, 80)!r} holds a control character: {character!r}")
    # without a `@` the configuration of groups is not even read
    resolver = (groups or None) if "@" in wanted else RESOLVER_NOGROUP
    try:
        nodes = NodeSet(wanted, resolver=resolver)
        # beside other names an unknown group would just be left out
        empty = [name for name in _GROUP.findall(wanted) if not NodeSet(name, resolver=resolver)]
    except (NodeSetException, OSError) as exc:
        raise ConfigError(
            f"the node set {plain(text, 80)!r} cannot be read: {plain(str(exc), 200)}; "
            "write it like gpu[001-128],login1"
        ) from exc
    names = tuple(str(name) for name in nodes)
    if empty:
        raise ConfigError(
            f"the group {plain(empty[0], 80)} is empty: nobody defined it, or nobody is in it; "
            "`nodeset -L` lists the groups there are"
        )
    if not names:
        raise ConfigError(
            f"the node set {plain(text, 80)!r} selects no node; name at least one, like gpu[001-128]"
        )
    refused = [name for name in names if not _NAME.fullmatch(name)]
    if refused:
        shown = ", ".join(repr(plain(name, 60)) for name in refused[:3])
        raise ConfigError(
            f"not a node name: {shown}; a name holds letters, digits, `.`, `-`, `_` and `:`, and does not "
            "begin with `-`"
        )
    return names


def fold(names: Iterable[str]) -> str:
    """The names in short: `gpu[1-3],login1`; nothing for none. A name that does not fold is kept as it is."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    listed = list(names)
    try:
        return str(NodeSet.fromlist(listed, resolver=RESOLVER_NOGROUP))
    except NodeSetException:
        # a name from elsewhere that holds brackets: said in full rather than not at all
        return ",".join(dict.fromkeys(plain(name, 200) for name in listed))


def _listed(text: str) -> str:
    """The content of a list of nodes as one node set."""
    try:
        if text == "-":
            content = sys.stdin.read(LIST_CAP_CHARACTERS + 1)
        else:
            with open(text.removeprefix("@file:"), encoding="utf-8") as file:
                content = file.read(LIST_CAP_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"the list of nodes {plain(text, 80)!r} cannot be read: {why}") from exc
    if len(content) > LIST_CAP_CHARACTERS:
        raise ConfigError(
            f"the list of nodes {plain(text, 80)!r} is longer than {LIST_CAP_CHARACTERS} characters"
        )
    lines = (line.partition("#")[0] for line in content.splitlines())
    return ",".join(word for line in lines for word in line.replace(",", " ").split()) if content else ""
