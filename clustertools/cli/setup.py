"""`clustertools setup`: files for systemd, Slurm, cron and sudo, for a person to read and put into place."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.errors import ConfigError

#: What is printed for each word: the template and the name that it gets in --into.
FILES = {
    "systemd": ("clustertools.service", "clustertools-once.service", "clustertools-once.timer",
                "clustertools.sysusers"),
    "slurm": ("slurm.conf", "slurm-operator.sh", "authorized_keys"),
    "cron": ("clustertools.cron",),
    "sudoers": ("clustertools.sudoers",),
}  # fmt: skip
#: The GPUs of one node that the sudo rules know, by index: the largest servers that are sold hold 16.
_GPUS = 16
# "/opt/clustertools/bin": no blank, %, $, quote or backslash, which units, crontabs and sudoers read in ways
# of their own
_PATH = re.compile(r"/[A-Za-z0-9._/+-]*[A-Za-z0-9._+-]")
# useradd(8): "ct_watch", no longer than 32
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@click.command(
    epilog=examples(
        "clustertools setup systemd                    what goes where, to read",
        "clustertools setup slurm --into review        the files, for a diff with what is there",
    )
)
@click.argument("what", type=click.Choice(tuple(FILES)))
@click.option("--into", type=click.Path(path_type=Path), help="Write the files into this folder, for review.")
@click.option("--user", default="clustertools", help="Whom the watchdog runs as [clustertools].")
@click.option(
    "--bin", "programs", default="/opt/clustertools/bin", help="Where ct-watchdog is [/opt/clustertools/bin]."
)
@click.option(
    "--head", default="192.0.2.1", help="Whence the watchdog comes to the nodes, for authorized_keys."
)
@common
def setup(out: Output, what: str, into: Path | None, user: str, programs: str, head: str) -> None:
    """Print files that make a site run clustertools; install nothing.

    Read them, adjust them, put them where their first line says. --into writes them into a folder instead,
    never over a file that is there.
    """
    texts = {name: filled(name, user=user, programs=programs, head=head) for name in FILES[what]}
    if into is not None:
        for path in _written(into, texts):
            out.line(str(path))
        return
    for name, text in texts.items():
        if out.json:
            out.record("file", {"name": name, "text": text})
        else:
            out.line(f"# ---- {name}\n{text}")


def filled(name: str, *, user: str, programs: str, head: str) -> str:
    """One template with its words filled in. Raises ConfigError for a word that does not fit all files."""
    problems = []
    if not _PATH.fullmatch(programs):
        problems.append(f"--bin {programs!r}: a full path of letters, digits and ._+-/ only")
    if not _USER.fullmatch(user):
        problems.append(f"--user {user!r}: not the name of an account")
    if not re.fullmatch(r"[A-Za-z0-9.:,*/_-]+", head):
        problems.append(f"--head {head!r}: addresses or names, separated by commas")
    if problems:
        raise ConfigError(*problems)
    resets = ", \\\n".join(f"    /usr/bin/nvidia-smi --gpu-reset -i {n}" for n in range(_GPUS))
    words = {"@SANDBOX@": _template("sandbox.conf"), "@RESETS@": resets}
    words |= {"@USER@": user, "@BIN@": programs, "@HEAD@": head}
    text = _template(name)
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text


def _template(name: str) -> str:
    return (resources.files("clustertools.share") / name).read_text(encoding="utf-8")


def _written(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Write the files, or none of them when one is there already. Raises ConfigError."""
    paths = {folder / name: text for name, text in texts.items()}
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there:
        raise ConfigError(*(f"{path} is there already; nothing was written" for path in there))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8"
            ) as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
    except OSError as exc:
        raise ConfigError(f"cannot write into {folder}: {exc.strerror}") from exc
    return list(paths)
