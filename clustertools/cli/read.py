"""`clustertools read`: what another tool printed, as JSON. Each parser by itself, on a file or a pipe."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.errors import ConfigError, Unparsable
from clustertools.model import Status
from clustertools.sources.tools import Reader, read_tolerantly, readers, recognised

_GZIP = b"\x1f\x8b"
#: More than any tool prints of one machine, less than memory.
INPUT_LIMIT_BYTES = 1 << 30
#: Colours and the window's title: ECMA-48 control sequences, and xterm's operating system commands.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
#: What is left of a colour where a web page took the escape itself: [4mGPU0 ... [0m
_COLOUR = re.compile(r"\[\d{1,3}(?:;\d{1,3}){0,4}m")
#: root@gpu-017:~# ibstat        [root@gpu-017 ~]$        (base) user@login:/tmp$ cat x.txt
_PROMPT_WITH_HOST = re.compile(
    r"(?:\(\S{1,60}\) ?)?\[?[\w.-]{1,64}@[\w.-]{1,255}[: ][^#$%>]{0,200}[#$%>](?: .*|$)"
)
#: $ ibstat -l        # sudo /usr/sbin/ibstat        "# " begins a remark of many tools: the word decides
_PROMPT = re.compile(
    r"(?:[$%>] |# (?:sudo )?(?:\S{0,100}/)?(?:ib[a-z_]+|perfquery|sminfo|m(?:lx|st)link|rdma|ethtool|mdadm"
    r"|nvidia-smi|rocm-smi|dcgmi|nvbandwidth|sinfo|squeue|sacct|scontrol|smartctl|nvme|zpool|ipmitool"
    r"|lscpu|lspci|chronyc|timedatectl|ntpq|systemctl|journalctl|dmesg|dmidecode -\S+|cat)(?: |$)|[$#%>] *$)"
)


@click.command(
    epilog=examples(
        "ibstat | clustertools read",
        "clustertools read --kind nccl-tests slurm-4812.out",
        "clustertools read --list",
    )
)
@click.option("--kind", metavar="KIND", help="Whose output it is; recognised by its content when left out.")
@click.option("--list", "list_only", is_flag=True, help="Say which kinds there are.")
@click.argument("path", metavar="[FILE]", default="-")
@common
def read(kind: str | None, list_only: bool, path: str, out: Output) -> Status:
    """Print what a tool said as one JSON object.

    The fields are described in docs/read.md. Lines of an unknown form stand in `unparsed`, with their
    number, and make the exit code 1; when nothing could be made of the input it is 3.
    """
    known = readers()
    if list_only:
        for name, reader in known.items():
            first = (getattr(reader, "__doc__", "") or "").strip().split("\n", 1)[0]
            out.record("kind", {"name": name, "what": first}) if out.json else out.line(f"{name:<24} {first}")
        return Status.OK
    if kind is not None and kind not in known:
        raise ConfigError(f"there is no kind {kind!r}; `clustertools read --list` shows all")
    reader, data, unparsed = _understood(kind, path)
    answer: dict[str, Any] = {**_with_guids_in_hexadecimal(data), "unparsed": unparsed}
    if out.json or not sys.stdout.isatty():
        out.record(reader.KIND, answer)
    else:
        out.line(json.dumps({"kind": reader.KIND, **answer}, indent=2, ensure_ascii=False))
    for line in unparsed[:3]:
        out.note(f"line {line['line']} was not understood: {line['text'][:120]!r}")
    return Status.WARNING if unparsed else Status.OK


def _understood(kind: str | None, path: str) -> tuple[Reader, dict[str, Any], list[dict[str, Any]]]:
    """The reader, what it made of the input, and the lines that it did not know."""
    text, first_line = as_printed(_input(path))

    def understand() -> tuple[Reader, dict[str, Any], list[dict[str, Any]]]:
        reader = readers()[kind] if kind is not None else _one(text, path)
        return (reader, *read_tolerantly(reader, text, first_line))

    try:
        return understand()
    except Unparsable:
        others = [reader.KIND for reader in recognised(text)]
        if kind is not None and others and kind not in others:
            raise ConfigError(
                f"{_named(path)} is not what {kind} prints; by its content it is {' or '.join(others)}"
            ) from None
        if not text[:1].isspace():
            raise
    # cut out of a document, with its indentation
    text, skipped = as_printed(textwrap.dedent(text))
    first_line += skipped - 1
    return understand()


def as_printed(text: str) -> tuple[str, int]:
    """The text as the tool printed it, and the number of the line it begins with in what was given.

    Removed is what terminals and people add: line ends of DOS, colours, empty lines before, and the shell's
    prompts before and after.
    """
    text = text.removeprefix("\ufeff").replace("\r\r\n", "\n").replace("\r\n", "\n")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    if "[0m" in text:
        text = _COLOUR.sub("", text)
    first, start = 1, 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        if not _not_the_tools(text[start:end]):
            break
        first, start = first + 1, end
    stop = len(text)
    while stop > start:
        begin = text.rfind("\n", start, stop - 1) + 1 or start
        if not _not_the_tools(text[begin:stop]):
            break
        stop = begin
    return text[start:stop], first


def _not_the_tools(line: str) -> bool:
    line = line.rstrip()
    return not line or (len(line) < 1000 and bool(_PROMPT.match(line) or _PROMPT_WITH_HOST.fullmatch(line)))


def _with_guids_in_hexadecimal(value: Any) -> Any:
    """The same with every `guid` as text: most readers of JSON keep 53 bits of a number, a GUID has 64."""
    if isinstance(value, list):
        return [_with_guids_in_hexadecimal(one) for one in value]
    if isinstance(value, dict):
        return {
            key: f"0x{one:016x}"
            if key == "guid" and isinstance(one, int)
            else _with_guids_in_hexadecimal(one)
            for key, one in value.items()
        }
    return value


def _one(text: str, path: str) -> Reader:
    fitting = recognised(text)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        kinds = ", ".join(reader.KIND for reader in fitting)
        raise ConfigError(f"{_named(path)} may be of several kinds ({kinds}): say which with --kind")
    if not text:
        raise Unparsable(f"{_named(path)} is empty; what a tool says to standard error is lost without 2>&1")
    raise Unparsable(
        f"{_named(path)} is not recognised as the output of any tool; `--kind` says which it is, "
        "`clustertools read --list` shows all"
    )


def _named(path: str) -> str:
    return "the standard input" if path == "-" else path


def _input(path: str) -> str:
    """The file's text, or that of standard input; gzip is undone. Raises ConfigError."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(INPUT_LIMIT_BYTES + 1)
        else:
            with open(Path(path), "rb") as file:
                data = file.read(INPUT_LIMIT_BYTES + 1)
        if data.startswith(_GZIP):
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(INPUT_LIMIT_BYTES + 1)
    except (OSError, EOFError) as exc:
        raise ConfigError(f"{_named(path)}: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(data) > INPUT_LIMIT_BYTES:
        raise ConfigError(f"{_named(path)} is larger than 1 GiB: cut out what is of interest")
    return data.decode("utf-8-sig", "replace")
