"""Programs that follow the Nagios contract, wrapped as checks by the section `plugins` of the config.

    plugins:
      raid:
        command: [/usr/lib/nagios/plugins/check_raid, --all]

is the check `plugin_raid` with the code `PluginRaid`. The exit code says how it is (0 OK, 1 WARNING,
2 CRITICAL), the first line why. A contract that is not kept is UNKNOWN, never a fault of the node: another
exit code, a signal, a deadline, a program that is not there, and 1 or 2 without a word on standard output,
which is how an interpreter ends that could not run its script.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

from clustertools.check import Check, Context, NoLimits, discover
from clustertools.errors import ConfigError, Unobservable
from clustertools.host import PYTHON, Completed
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources import plugin_output
from clustertools.text import plain

if TYPE_CHECKING:
    from clustertools.config import Config, PluginConfig

PREFIX = "plugin_"


def all_checks(config: Config) -> dict[str, Check]:
    """Every check that there is with this config, sorted by name: ours, the site's and its plugins.

    Raises ConfigError when a check cannot be loaded, or bears the name or a code of a plugin.
    """
    found = dict(discover(config.site_checks))
    wrapped = {PREFIX + name: as_check(name, said) for name, said in config.plugins.items()}
    codes = {code: other.name for other in found.values() for code in other.codes}
    problems = [f"plugins: there is a check called {name} already" for name in wrapped.keys() & found.keys()]
    problems += [
        f"plugins: the code {code} of {check.name} is one of the check {codes[code]}"
        for check in wrapped.values()
        for code in check.codes.keys() & codes.keys()
        if check.name not in found
    ]
    if problems:
        raise ConfigError(*sorted(problems))
    return dict(sorted({**found, **wrapped}.items()))


def code_of(name: str) -> str:
    """`infiniband_cables` -> `PluginInfinibandCables`."""
    return "Plugin" + "".join(word.capitalize() for word in name.split("_"))


def as_check(name: str, said: PluginConfig) -> Check:
    """The check that runs one plugin."""
    code = code_of(name)
    shown = plain(" ".join(said.command), 200)
    return Check(
        PREFIX + name,
        functools.partial(_look, said.command, code),
        f"What the site's plugin says: {shown}\n\nIts exit code is the state, its first line the reason.",
        NoLimits,
        frozenset(said.stages),
        {code: f"the site's plugin {name} reports a problem"},
        # Nagios asks again as well before it tells (max_check_attempts)
        confirm=2,
        timeout_seconds=said.timeout_seconds,
        interval_seconds=said.interval_seconds,
        source=said.command[0],
        cost_seconds=min(1.0, said.timeout_seconds),
    )


def _look(command: tuple[str, ...], code: str, ctx: Context) -> Iterable[Finding | Reading]:
    # `python` alone is our own interpreter to the host: this is the site's
    argv = ("env", *command) if command[0] == PYTHON else command
    done = ctx.host.run(*argv, timeout_seconds=ctx.check.timeout_seconds)
    told = plugin_output.read(done.stdout)
    tell = {1: ctx.warning, 2: ctx.critical}.get(done.returncode)
    if done.returncode != 0 and (tell is None or not told.summary):
        raise Unobservable(_why(done, told.summary))
    name = ctx.check.name
    yield from (ctx.reading(f"{name}_{value.name}", value.value) for value in told.values)
    if told.strange:
        ctx.note(f"{told.strange} of its performance data have an unknown form, or are too many")
    if tell is not None:
        yield tell(code, "", told.summary, evidence=told.lines, remedy=Remedy.INSPECT)
    elif told.summary:
        ctx.note(told.summary)


def _why(done: Completed, summary: str) -> str:
    """Why that is neither OK nor a problem, in words."""
    said = summary or plain((done.stderr.strip().splitlines() or [""])[-1], plugin_output.LINE_CHARACTERS)
    program = plain(done.argv[0], 100)
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        how = f"{program} was ended by {name}"
    elif done.returncode == 3:
        how = f"{program} could not tell"
    elif done.returncode in (1, 2):
        how = f"{program} ended with {done.returncode} and said nothing on standard output"
    else:
        how = f"{program} ended with {done.returncode}, which is no answer of a plugin"
    return f"{how}: {said}" if said else how
