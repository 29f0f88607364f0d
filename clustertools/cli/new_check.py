"""`clustertools new-check NAME`: a check, its test and a recorded host that already pass, to be filled in."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.errors import ConfigError

# "@NAME@" and "@CODE@" are replaced; the texts are Python and YAML otherwise, braces and all
_CHECK = '''"""What @NAME@ looks at, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unparsable
from clustertools.model import Finding, Reading


@dataclass(frozen=True)
class Limits:
    """Where the number comes from: a data sheet, a paper, a measurement on healthy nodes."""

    load: float = 1000.0


@check(limits=Limits, stages={"watch"}, codes={"@CODE@": "one sentence for the person who is called"})
def @NAME@(ctx: Context) -> Iterator[Finding | Reading]:
    """What it looks at, why that matters, and what it must not be mistaken for.

    As it stands it compares the load average with a limit.
    """
    text = ctx.host.read("/proc/loadavg")
    try:
        # 0.20 0.18 0.12 1/80 11206
        load = float(text.split()[0])
    except (IndexError, ValueError) as exc:
        raise Unparsable("/proc/loadavg", text) from exc
    yield ctx.reading("load", load)
    if load > ctx.limits.load:
        yield ctx.warning("@CODE@", "", f"load {load:g} (limit {ctx.limits.load:g})")
'''

_TEST = '''"""@NAME@ on recorded hosts."""

from __future__ import annotations

from clustertools.checks.@NAME@ import Limits

from clustertools.model import Status


def test_healthy(run):
    assert run("@NAME@", host="@HOST@").status is Status.OK


def test_fault(run):
    verdict = run("@NAME@", host="@HOST@", limits=Limits(load=0.1))
    assert verdict.codes == {"@CODE@"}


def test_could_not_look(run, tmp_path):
    (tmp_path / "host.yaml").write_text("name: nothing-recorded\\n")
    assert run("@NAME@", host=tmp_path).status is Status.UNKNOWN
'''

_HOST = """name: node1
boot_id: 00000000-0000-4000-8000-000000000001
time: 1700000000.0
what: healthy
node_class: cpu
checks: [@NAME@]
expect_codes: []
provenance: written from proc_loadavg(5)
"""

_LOADAVG = "0.20 0.18 0.12 1/80 11206\n"


@click.command("new-check", epilog=examples("clustertools new-check gpu_fan", "make new-check NAME=gpu_fan"))
@click.argument("name")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="The repository; default: the current folder.",
)
@common
def new_check(name: str, root: Path, out: Output) -> None:
    """Write a new check, its test and a recorded host that pass as they are; then fill them in."""
    for path in write(name, root):
        out.line(str(path))
    out.line(f"next: pytest -k {name}; clustertools check {name} --host tests/hosts/{_host_of(name)}")


def write(name: str, root: Path) -> list[Path]:
    """Write the files of check `name` under `root`. Raises ConfigError, having written nothing."""
    problems = []
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", name) or keyword.iskeyword(name):
        problems.append(f"{name!r} is not a check's name: write it like gpu_fan, subject first")
    if not (root / "checks" / "__init__.py").is_file():
        problems.append(f"{root.resolve()} is not the repository: it has no checks/__init__.py")
    files = _files(name, root)
    problems += [f"{path} exists already" for path in files if path.exists()]
    if problems:
        raise ConfigError(*problems)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _host_of(name: str) -> str:
    return f"{name.replace('_', '-')}-healthy"


def _files(name: str, root: Path) -> dict[Path, str]:
    code = "".join(part.capitalize() for part in name.split("_"))

    def filled(text: str) -> str:
        return text.replace("@NAME@", name).replace("@CODE@", code).replace("@HOST@", _host_of(name))

    host = root / "tests" / "hosts" / _host_of(name)
    return {
        root / "checks" / f"{name}.py": filled(_CHECK),
        root / "tests" / "checks" / f"test_{name}.py": filled(_TEST),
        host / "host.yaml": filled(_HOST),
        host / "files" / "proc" / "loadavg": _LOADAVG,
    }
