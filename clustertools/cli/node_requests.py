"""What the nodes are asked, from the head's config: limits, deadlines, what each node's class expects.

requests, left_out = requests_for(nodes, load_config(path))
look_all(transport, tool, requests, timeout_seconds=60)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clustertools.check import SITE_FOLDERS, Check, discover
from clustertools.cli.request import choose
from clustertools.errors import ConfigError
from clustertools.fleet.looking import Request
from clustertools.model import to_data

if TYPE_CHECKING:
    from clustertools.config import Config, Loaded


def requests_for(
    nodes: Sequence[str],
    loaded: Loaded | None,
    *,
    stage: str = "preflight",
    without: Collection[str] = (),
    facts: bool = True,
) -> tuple[dict[str, Request], tuple[str, ...]]:
    """The request for each node, and the checks of this config that no node is asked for.

    `without` are checks to leave out; other words in it do not matter here. A node knows our checks and those
    of its own /etc/clustertools/checks.d. Plugins, and checks of another folder, are this machine's only: a
    request cannot name a program. Raises ConfigError when the config is wrong.
    """
    shipped = discover(job_checks=False)
    if loaded is None:
        base = Request(stage=stage, disabled=_known(without, shipped), facts=facts)
        return dict.fromkeys(nodes, base), ()
    from clustertools.config import validate_limits
    from clustertools.plugins import all_checks

    config = loaded.config
    every = all_checks(config)
    ours = {name: each for name, each in every.items() if name in shipped and _is_on_nodes(each, config)}
    limits = validate_limits(loaded, every)
    disabled = {name for name in ours if not config.check(name).enabled}
    base = Request(
        stage=stage,
        limits={name: told for name in ours if (told := _changed(limits[name]))},
        timeouts={
            name: seconds for name in ours if (seconds := config.check(name).timeout_seconds) is not None
        },
        disabled=_known({*disabled, *without}, shipped),
        cluster=config.cluster,
        facts=facts,
    )
    left_out = [
        name
        for name, each in every.items()
        if name not in ours and stage in each.stages and config.check(name).enabled and name not in without
    ]
    by_class = {name: dataclasses.replace(base, expect=told) for name, told in _expected(config).items()}
    for request in (base, *by_class.values()):
        choose(Request.read(request.text()), shipped)  # what a node would refuse is said here, once
    classes = dict(_classes(nodes, config))
    return {node: by_class.get(classes.get(node, ""), base) for node in nodes}, tuple(left_out)


def _known(names: Collection[str], checks: Mapping[str, Check]) -> tuple[str, ...]:
    return tuple(sorted(name for name in set(names) if name in checks))


def _is_on_nodes(check: Check, config: Config) -> bool:
    return not any(
        check.source.startswith(f"{folder}/") for folder in config.site_checks if folder not in SITE_FOLDERS
    )


def _changed(limits: Any) -> dict[str, Any]:
    """The limits that are not the check's own defaults."""
    default = type(limits)()
    return {
        f.name: to_data(value)
        for f in dataclasses.fields(limits)
        if (value := getattr(limits, f.name)) != getattr(default, f.name)
    }


def _expected(config: Config) -> dict[str, dict[str, Any]]:
    return {
        name: {"node_class": name, **to_data(each.expectations())}
        for name, each in config.node_classes.items()
    }


def _classes(nodes: Sequence[str], config: Config) -> Iterator[tuple[str, str]]:
    """(node, class) for each node that a class names; the first one counts. Raises ConfigError."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    problems, left = [], set(nodes)
    for name, each in config.node_classes.items():
        try:
            members = left & set(NodeSet(each.nodes))
        except NodeSetException as exc:
            problems.append(f"node_classes.{name}.nodes: {each.nodes!r} is not a node set: {exc}")
            continue
        left -= members
        yield from ((node, name) for node in members)
    if problems:
        raise ConfigError(*problems)
