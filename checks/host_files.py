"""Files and folders that a node of its class must have: there, of the right owner and mode, fresh."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, ConfigError, Unparsable
from clustertools.model import Finding, Reading

#: mode, owner, group, size, time of change, kind; the name last, since it may hold anything.
_FORMAT = "%a %U %G %s %Y %F\t%n"
_KINDS = {
    "file": ("regular file", "regular empty file"),
    "folder": ("directory",),
    "socket": ("socket",),
    "device": ("character special file", "block special file"),
}
_KEYS = frozenset(
    "path owner group mode kind max_age_seconds min_size_bytes max_size_bytes contains absent".split()
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is wanted of one path. `mode` are octal digits; `contains` is a regular expression."""

    path: str
    wanted: Mapping[str, Any]


@check(
    stages={"preflight", "watch", "prolog"},
    cost_seconds=0.05,
    codes={
        "HostFileMissing": "a file or folder that this node class should have is not there",
        "HostFileWrong": "a file has another owner, mode, age, size or content than it should",
    },
)
def host_files(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares files with `expect["files"]`: paths, or mappings with `path` and what is wanted of it.

    Keys: owner, group, mode ("0644"), kind (file, folder, socket, device), max_age_seconds, min_size_bytes,
    max_size_bytes, contains (a regular expression, in the first 64 KiB), absent (true: it must not exist).
    """
    rules = _rules(ctx.expect.get("files"))
    if not rules:
        raise ctx.skip("no `files` in the expectations of this node class")
    found, refused = _stat(ctx, [rule.path for rule in rules])
    for rule in rules:
        part = f"file@{rule.path}"
        about = found.get(rule.path)
        if rule.path in refused:
            ctx.unseen(f"{rule.path}: {refused[rule.path]}")
        elif rule.wanted.get("absent"):
            if about:
                yield ctx.warning("HostFileWrong", part, f"{rule.path} is there and should not be")
        elif about is None:
            yield ctx.critical("HostFileMissing", part, f"{rule.path} is not there")
        else:
            wrong = [*_wrong(ctx, rule, about), *_content(ctx, rule)]
            if wrong:
                yield ctx.warning("HostFileWrong", part, f"{rule.path}: {'; '.join(wrong)}")


def _rules(told: Any) -> list[Rule]:
    """Raises ConfigError for a rule of another form."""
    listed = told if isinstance(told, list | tuple) else [told] if told else []
    rules = []
    for one in listed:
        wanted = {"path": one} if isinstance(one, str) else one
        if not isinstance(wanted, Mapping) or not str(wanted.get("path", "")).startswith("/"):
            raise ConfigError(f"expect.files: each needs a `path` that begins with /, not {one!r}")
        unknown = set(wanted) - _KEYS
        if unknown:
            raise ConfigError(f"expect.files: {sorted(unknown)} unknown; choose from {sorted(_KEYS)}")
        rules.append(Rule(str(wanted["path"]), wanted))
    return rules


def _stat(ctx: Context, paths: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What is there, and why others could not be looked at. One command: a path on a server may hang."""
    done = ctx.host.run("stat", "-L", "-c", _FORMAT, "--", *paths)
    found = {}
    for line in done.stdout.splitlines():
        # 644 root root 1034 1785909600 regular file<TAB>/etc/slurm/slurm.conf
        match = re.fullmatch(r"([0-7]{1,5}) (\S+) (\S+) ([0-9]+) (-?[0-9]+) ([^\t]+)\t(.*)", line)
        if match is None:
            raise Unparsable("stat printed a line of an unknown form", line)
        found[match[7]] = {
            "mode": int(match[1], 8), "owner": match[2], "group": match[3], "size": int(match[4]),
            "changed": float(match[5]), "kind": match[6],
        }  # fmt: skip
    refused = {}
    for line in done.stderr.splitlines():
        # stat: cannot statx '/etc/x': No such file or directory
        match = re.match(r"stat: cannot statx? '?(.*?)'?: (.*)$", line)
        if match and match[2] not in ("No such file or directory", "Not a directory"):
            refused[match[1]] = match[2]
    return found, refused


def _wrong(ctx: Context, rule: Rule, about: Mapping[str, Any]) -> Iterator[str]:
    wanted = rule.wanted
    for key in ("owner", "group"):
        if key in wanted and about[key] != str(wanted[key]):
            yield f"{key} {about[key]}, not {wanted[key]}"
    if "mode" in wanted and about["mode"] != (mode := _octal(wanted["mode"])):
        yield f"mode {about['mode']:04o}, not {mode:04o}"
    if "kind" in wanted and about["kind"] not in _KINDS.get(str(wanted["kind"]), (wanted["kind"],)):
        yield f"a {about['kind']}, not a {wanted['kind']}"
    age = ctx.host.now() - about["changed"]
    if "max_age_seconds" in wanted and age > float(wanted["max_age_seconds"]):
        yield f"not changed for {age / 3600:.1f} h (limit {float(wanted['max_age_seconds']) / 3600:.1f} h)"
    if "min_size_bytes" in wanted and about["size"] < float(wanted["min_size_bytes"]):
        yield f"{about['size']} bytes, less than {float(wanted['min_size_bytes']):.0f}"
    if "max_size_bytes" in wanted and about["size"] > float(wanted["max_size_bytes"]):
        yield f"{about['size']} bytes, more than {float(wanted['max_size_bytes']):.0f}"


def _octal(told: Any) -> int:
    # YAML reads 0644 as the number 420 and "0644" as text: both mean the same mode
    if isinstance(told, int):
        return told
    if not re.fullmatch("(0o)?[0-7]{1,5}", str(told)):
        raise ConfigError(f"expect.files: mode {told!r} is not octal, as '0644' is")
    return int(str(told).removeprefix("0o"), 8)


def _content(ctx: Context, rule: Rule) -> Iterator[str]:
    if "contains" not in rule.wanted:
        return
    try:
        text = ctx.host.read(rule.path, 0, 1 << 16)
    except Absent:
        yield "it went away under the look"
        return
    try:
        pattern = re.compile(str(rule.wanted["contains"]), re.MULTILINE)
    except re.error as exc:
        raise ConfigError(f"expect.files: {rule.path}: contains is not a regular expression: {exc}") from exc
    if not pattern.search(text):
        yield f"nothing in it matches {rule.wanted['contains']!r}"
