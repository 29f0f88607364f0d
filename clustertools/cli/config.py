"""The commands about configuration: is it right, what is in force and why, and what an editor should know."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import click

from clustertools import config as configuration
from clustertools import config_show
from clustertools.check import discover
from clustertools.cli.assemble import expectations as class_expectations
from clustertools.cli.frame import Output, common, examples
from clustertools.config import Loaded
from clustertools.errors import ConfigError
from clustertools.host import Host, LocalHost, RecordedHost
from clustertools.model import Status
from clustertools.plugins import all_checks
from clustertools.sources import hardware


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--config FILE` and `-o path.to.key=value`.

    The command gets `load`, which loads the config and raises ConfigError.
    """

    @click.option(
        "--config", "files", multiple=True, metavar="FILE",
        help="A config file, in place of $CLUSTERTOOLS_CONFIG. It is read after /etc/clustertools.",
    )  # fmt: skip
    @click.option(
        "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="One value, as policy.mode=ask."
    )
    @functools.wraps(function)
    def with_config(*args: Any, files: tuple[str, ...], overrides: tuple[str, ...], **options: Any) -> Any:
        return function(*args, load=lambda: configuration.load(files or None, overrides), **options)

    return with_config


@click.group()
def group() -> None:
    """Check, show and describe the configuration."""


@group.command(epilog=examples("clustertools config check", "clustertools config check --config new.yaml"))
@config_options
@common
def check(load: Callable[[], Loaded], out: Output) -> Status:
    """Say everything that is wrong with the config, with file and line."""
    try:
        loaded = load()
        # what the config says of limits can only be judged by the checks themselves
        configuration.validate_limits(loaded, all_checks(loaded.config))
    except ConfigError as exc:
        if not out.json:
            raise
        out.record("config-check", {"ok": False, "problems": exc.problems, "files": ()})
        return Status.UNKNOWN
    if out.json:
        out.record("config-check", {"ok": True, "problems": (), "files": loaded.files})
    else:
        out.line(f"config is fine: {', '.join(loaded.files) or 'no files, all defaults'}")
    return Status.OK


@group.command(
    epilog=examples("clustertools config show --origin", "clustertools config show -o policy.mode=act")
)
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@config_options
@common
def show(load: Callable[[], Loaded], origin: bool, out: Output) -> None:
    """Print the config that is in force."""
    loaded = load()
    if out.json:
        data: dict[str, Any] = {"config": loaded.config, "files": loaded.files}
        out.record("config", {**data, "origins": loaded.origins} if origin else data)
    else:
        out.line(config_show.show(loaded, origin).rstrip("\n"))


@group.command(
    epilog=examples(
        "clustertools config expectations", "clustertools config expectations --host tests/hosts/h100-healthy"
    )
)
@click.option("--host", "recording", metavar="DIR", help="Of a recorded host, not of this machine.")
@config_options
@common
def expectations(load: Callable[[], Loaded], recording: str | None, out: Output) -> None:
    """Print what the checks expect of this machine, and whether config or the catalogue says so."""
    host: Host = RecordedHost(recording) if recording else LocalHost()
    said = dict(host.about.get("expect") or {}) if isinstance(host, RecordedHost) else {}
    said = {**class_expectations(load().config, host.name), **said}
    known = hardware.expected(host, said.get("hardware", ""))
    config = "the recording" if recording else "the config"
    found = {
        key: {
            "value": said.get(key, known.expect.get(key)),
            "from": config if key in said else known.origin[key],
        }
        for key in sorted(said.keys() | known.expect.keys())
    }
    if out.json:
        out.record("expectations", {"hardware": known.name, "expectations": found})
        return
    out.line(f"hardware: {known.name or 'not in the catalogue'}")
    for key, told in found.items():
        out.line(f"{key:<28} {told['value']!s:<16}  {told['from']}")


@group.command(epilog=examples("clustertools config schema > clustertools.schema.json"))
@common
def schema(out: Output) -> None:
    """Print a JSON Schema, for editors that complete and check YAML."""
    out.line(json.dumps(config_show.schema(discover()), indent=None if out.json else 2))


@group.command(epilog=examples("clustertools config sample > /etc/clustertools/config.yaml"))
@common
def sample(out: Output) -> None:
    """Print an example config with every key explained."""
    from clustertools.config_sample import SAMPLE

    out.line(SAMPLE.rstrip("\n"))
