"""The checkpoints of a run, newest first, each with a verdict and the reason; the last good one; the tracker.

    listing = checkpoints(host, "/data/run7/checkpoints")
    good = last_good(listing.reports)

A checkpoint is good only when every test that can be made without PyTorch passed. The looking happens in a
child (`python -m clustertools.sources.checkpoints DIR`), so that a file system whose server is away costs a
deadline and not the watchdog.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import PYTHON, Host
from clustertools.sources.checkpoint_cache import FileCache, cache_file
from clustertools.sources.checkpoint_files import Look, OutOfTime, size_text
from clustertools.sources.checkpoint_layouts import candidates, newest_first
from clustertools.sources.checkpoint_problem import SEVERITY, Problem
from clustertools.sources.checkpoint_rules import lacks
from clustertools.sources.checkpoint_tracker import Tracker, read_tracker
from clustertools.sources.checkpoint_verify import Seen, look_at

SCHEMA = 1
CheckpointVerdict = Literal["good", "torn", "incomplete", "in_progress", "hostile", "poisoned", "unknown"]
_VERDICTS = frozenset(("good", "torn", "incomplete", "in_progress", "hostile", "poisoned", "unknown"))
#: One that is not whole and was touched this recently is still being written: the ranks of a large save touch
#: some file every few seconds, storage that stalls for a minute is common.
WRITING_SECONDS = 120.0
NEWEST = 10
#: Checkpoints of one run differ by a few percent (random states, lists of metrics); half is another thing.
_SIZE_SHARE = 0.5
_SIZE_FLOOR_BYTES = 1 << 20
#: The part of the caller's deadline after which the child stops reading and tells what it has.
_SHARE_OF_DEADLINE = 0.8
#: The index of the largest checkpoints takes a few gigabytes in memory; a hostile pickle asks for terabytes.
_MEMORY_CAP_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint and whether a run can resume from it.

    `reason` names the file and what is wrong with it, or says what was tested when it is good. `deep`: every
    byte that has a checksum was read. `poisoned` is whole, but was saved after the loss became non-finite.
    `late`: the deadline passed before all of it was looked at. `proved`: every byte of its weights was read
    and has a checksum that matches. `parts` are its files where it is no folder and more than one.
    """

    path: str
    step: int | None
    layout: str
    verdict: CheckpointVerdict
    reason: str
    size_bytes: int
    mtime: float
    deep: bool = False
    files: int = 1
    late: bool = False
    proved: bool = False
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the caller wants to know, and what counts as good; see `list_checkpoints`."""

    look: Look
    now: float
    newest: int = NEWEST
    refuse_after_step: int | None = None
    writing_seconds: float = WRITING_SECONDS
    cache: FileCache | None = None


@dataclass(frozen=True, slots=True)
class CheckpointListing:
    """Newest first. `not_looked_at` counts older ones beyond the number that was asked for."""

    reports: tuple[CheckpointReport, ...] = ()
    tracker: Tracker | None = None
    not_looked_at: int = 0


def last_good(reports: Iterable[CheckpointReport]) -> CheckpointReport | None:
    """The newest good one of reports that come newest first, or None."""
    return next((r for r in reports if r.verdict == "good"), None)


def list_checkpoints(
    folder: str,
    *,
    deep: bool = False,
    now: float,
    newest: int = NEWEST,
    refuse_after_step: int | None = None,
    writing_seconds: float = WRITING_SECONDS,
    allow: Sequence[str] = (),
    cache: FileCache | None = None,
    tick: Callable[[], object] = lambda: None,
) -> list[CheckpointReport]:
    """The checkpoints in `folder`, newest first: `newest` of them, and further back until one is good.

    `refuse_after_step` is the step of the first non-finite loss. `allow` names the site's own packages
    whose classes may be in a checkpoint. `tick` may raise OutOfTime; what was not looked at is `unknown`
    then. Raises OSError when the folder cannot be read.
    """
    look = Look(deep, tuple(allow), tick)
    return _list(folder, _Terms(look, now, newest, refuse_after_step, writing_seconds, cache))[0]


def _list(folder: str, terms: _Terms) -> tuple[list[CheckpointReport], int]:
    seen: list[Seen] = []
    reports: list[CheckpointReport] = []
    found = newest_first(candidates(folder))
    left = 0
    for position, candidate in enumerate(found):
        # one more than asked for: the oldest is judged by comparison with the one before it
        if len(seen) > terms.newest and any(r.verdict == "good" for r in reports):
            left = len(found) - position
            break
        one = look_at(candidate, terms.look, terms.cache)
        if one is None:
            continue
        seen.append(one)
        if len(seen) > terms.newest or position + 1 == len(found):
            reports = _reports(seen, terms)
    if not reports:
        reports = _reports(seen, terms)
    good_at = next((i for i, r in enumerate(reports) if r.verdict == "good"), len(reports))
    shown = max(terms.newest, good_at + 1)
    return reports[:shown], left + len(reports[shown:])


def _reports(seen: Sequence[Seen], terms: _Terms) -> list[CheckpointReport]:
    """Reports in the order of age, each compared with the next older one that is whole by itself."""
    ordered = _ordered(seen)
    reports = []
    for position, one in enumerate(ordered):
        whole = [o for o in ordered[position + 1 :] if not o.problems and not o.late]
        older = next((o for o in whole if _is_alike(one, o)), None)
        found = list(one.problems)
        if older is not None and not one.late:
            found += lacks(one.roles, older.roles, older.candidate.name, ranks_known=one.ranks_known)
        dist = next((o for o in whole if o.layout == "megatron-dist"), None)
        if one.layout == "dcp" and dist is not None and not one.late:
            # the last file of the save is also what tells this layout from a plain distributed checkpoint
            reason = f"metadata.json, which is written last, is missing, {dist.candidate.name} has it"
            found.append(Problem("incomplete", reason))
        report = _judge(one, found, terms)
        if older is not None and report.verdict == "good":
            report = replace(report, reason=report.reason + _much_smaller(one, older))
        reports.append(replace(report, reason=_plain(report.reason)))
    return reports


def _is_alike(one: Seen, other: Seen) -> bool:
    """Whether the two must consist of the same files: the same layout or, of files, the same names."""
    if one.candidate.is_dir or other.candidate.is_dir:
        return one.layout == other.layout
    return one.candidate.family == other.candidate.family


def _much_smaller(one: Seen, older: Seen) -> str:
    """A partial write of a format without sizes shows here; so does a change of the model, hence a note."""
    if older.size_bytes < _SIZE_FLOOR_BYTES or one.size_bytes > _SIZE_SHARE * older.size_bytes:
        return ""
    return f"; much smaller than {older.candidate.name} ({size_text(older.size_bytes)})"


def _ordered(seen: Sequence[Seen]) -> list[Seen]:
    """Newest first, now that files without a step in their name have told theirs."""
    if all(s.step is not None for s in seen):
        return sorted(seen, key=lambda s: (s.step or 0, not s.candidate.unfinished, s.mtime), reverse=True)
    return sorted(seen, key=lambda s: (s.mtime, s.step or 0), reverse=True)


def _judge(one: Seen, found: Sequence[Problem], terms: _Terms) -> CheckpointReport:
    deep = terms.look.deep
    report = CheckpointReport(
        one.candidate.path, one.step, one.layout, "good", _praise(one, deep), one.size_bytes, one.mtime,
        deep and not one.late, len(one.entries), one.late, deep and one.summed and not one.late,
        one.candidate.members,
    )  # fmt: skip
    fresh = terms.now - one.mtime < terms.writing_seconds
    mark = one.candidate.unfinished
    worst = min(found, key=lambda p: SEVERITY.index(p.verdict), default=None)
    if worst is not None and worst.verdict == "hostile":
        return replace(report, verdict="hostile", reason=_sentence(worst, found))
    if mark:
        if fresh:
            return replace(report, verdict="in_progress", reason=f"{report.name}: still written ({mark})")
        age = _age(terms.now - one.mtime)
        reason = f"{report.name}: left by a save that did not finish ({mark}), untouched for {age}"
        return replace(report, verdict="incomplete", reason=reason)
    if one.changing:
        return replace(report, verdict="in_progress", reason=one.changing)
    if worst is not None:
        reason = _sentence(worst, found)
        if fresh and worst.verdict in ("torn", "incomplete"):
            age = _age(terms.now - one.mtime)
            return replace(report, verdict="in_progress", reason=f"touched {age} ago and not whole: {reason}")
        return replace(report, verdict=worst.verdict, reason=reason)
    if one.late:
        return replace(report, verdict="unknown", reason=f"{report.name}: not looked at to the end in time")
    limit = terms.refuse_after_step
    if limit is not None and (one.step is None or one.step >= limit):
        reason = f"saved after the first non-finite loss at step {limit}"
        if one.step is None:
            reason = f"tells no step, so it may have been {reason}"
        return replace(report, verdict="poisoned", reason=reason)
    return report


def _praise(one: Seen, deep: bool) -> str:
    count = len(one.entries)
    files = "the file is" if count == 1 else f"{count} files are"
    how = "every checksum matches" if deep else "by structure and sizes"
    return "; ".join((f"{files} whole ({size_text(one.size_bytes)}), {how}", *one.notes[:2]))


def _sentence(worst: Problem, found: Sequence[Problem]) -> str:
    more = len(found) - 1
    return worst.reason + (f"; and {more} more" if more else "")


def _plain(text: str) -> str:
    """Names out of a file reach terminals and chats: without control characters, and not without end."""
    return "".join(c if c.isprintable() else "?" for c in text[:600])


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def judge_tracker(tracker: Tracker | None, reports: Sequence[CheckpointReport]) -> Tracker | None:
    """The tracker, not ok when the checkpoint that it names was refused."""
    if tracker is None or not tracker.ok:
        return tracker
    named = next((r for r in reports if _same(r.path, tracker.points_to)), None)
    if named is None or named.verdict in ("good", "in_progress", "unknown"):
        return tracker
    reason = f"{os.path.basename(tracker.path)} names {named.name}, which was refused ({named.verdict})"
    return replace(tracker, ok=False, reason=reason)


def _same(one: str, other: str) -> bool:
    return os.path.normpath(one) == os.path.normpath(other)


# The port


def checkpoints(
    host: Host,
    folder: str,
    *,
    deep: bool = False,
    timeout_seconds: float = 60,
    newest: int = NEWEST,
    refuse_after_step: int | None = None,
    allow: Sequence[str] = (),
    cache: str = "",
) -> CheckpointListing:
    """The checkpoints of `folder` as `host` sees them, looked at by a child with a deadline.

    A deep look that does not end in time tells what it has; with `cache` (a file on that host, or a folder of
    such files) the next one goes on where it stopped. Raises Absent when there is no such folder,
    Unobservable when it cannot be read or the child did not answer, Unparsable when it answered in another
    form.
    """
    words = [folder, "--max", str(newest), "--seconds", f"{timeout_seconds * _SHARE_OF_DEADLINE:g}"]
    words += ["--deep"] if deep else []
    words += ["--refuse-after-step", str(refuse_after_step)] if refuse_after_step is not None else []
    words += ["--cache", cache] if cache else []
    for prefix in allow:
        words += ["--allow", prefix]
    done = host.run(
        PYTHON, "-m", "clustertools.sources.checkpoints", *words, timeout_seconds=timeout_seconds
    ).check()
    return decode(done.stdout)


def verify_in_background(
    host: Host, folder: str, cache: str, *, seconds: float, newest: int = NEWEST, allow: Sequence[str] = ()
) -> None:
    """Let a process of its own read every byte of the checkpoints, for `seconds`, and keep it in `cache`.

    It goes on when whoever asked ends; while one reads no second is started. What it found is told by the
    next `checkpoints(..., deep=True, cache=cache)`. Raises Unobservable when it could not be started.
    """
    words = [folder, "--deep", "--background", "--max", str(newest), "--seconds", f"{seconds:g}"]
    words += ["--cache", cache]
    for prefix in allow:
        words += ["--allow", prefix]
    host.run(PYTHON, "-m", "clustertools.sources.checkpoints", *words, timeout_seconds=10.0).check()


def is_being_verified(folder: str, cache: str) -> bool:
    """Whether a process that `verify_in_background` started still reads, by the lock beside the cache."""
    try:
        lock = os.open(f"{cache_file(cache, folder)}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def decode(text: str) -> CheckpointListing:
    """A listing from what the child prints. Raises Absent, Unobservable or Unparsable."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable("the list of checkpoints is not JSON", text) from exc
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise Unparsable("the list of checkpoints has another form", text)
    if "error" in data:
        raise (Absent if data.get("absent") else Unobservable)(str(data["error"]))
    try:
        items = [{**item, "parts": tuple(item.get("parts", ()))} for item in data["checkpoints"]]
        reports = tuple(CheckpointReport(**item) for item in items)
        told = data["tracker"]
        listing = CheckpointListing(reports, Tracker(**told) if told else None, int(data["not_looked_at"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise Unparsable("the list of checkpoints has another form", text) from exc
    if not {r.verdict for r in reports} <= _VERDICTS:
        raise Unparsable("the list of checkpoints has a verdict that is not known", text)
    return listing


def _deadline(seconds: float) -> Callable[[], object]:
    end = time.monotonic() + seconds

    def tick() -> None:
        if time.monotonic() > end:
            raise OutOfTime

    return tick


def _cap_memory() -> None:
    """A pickle of a few bytes can ask for terabytes; then it fails here instead of taking the node down."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or hard > _MEMORY_CAP_BYTES:
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_CAP_BYTES, hard))


def _answer(options: argparse.Namespace) -> dict[str, Any]:
    now = time.time()
    cache = FileCache(cache_file(options.cache, options.folder), now) if options.cache else None
    look = Look(options.deep, tuple(options.allow), _deadline(options.seconds))
    try:
        os.listdir(options.folder)
        terms = _Terms(look, now, options.max, options.refuse_after_step, options.writing_seconds, cache)
        reports, left = _list(options.folder, terms)
        tracker = judge_tracker(read_tracker(options.folder), reports)
    except OSError as exc:
        # something in it that vanished meanwhile does not make the folder absent
        absent = exc.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(options.folder)
        said = f"{options.folder}: {exc.strerror or exc}"
        return {"schema": SCHEMA, "error": said, "absent": absent}
    finally:
        if cache:
            cache.save()
    return {
        "schema": SCHEMA,
        "checkpoints": [asdict(r) for r in reports],
        "tracker": asdict(tracker) if tracker else None,
        "not_looked_at": left,
    }


def _make_folder(cache: str) -> None:
    """A cache without an ending is a folder. One that cannot be made costs time and nothing else."""
    if cache and not os.path.splitext(cache)[1]:
        with contextlib.suppress(OSError):
            os.makedirs(cache, mode=0o700, exist_ok=True)


def _alone(cache: str) -> bool:
    """Go on in a process of its own, without a terminal or an open pipe; False in the one that was called,
    and where another one reads already.
    """
    if os.fork():
        return False
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    try:
        lock = os.open(f"{cache}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends
    except OSError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object about the checkpoints of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m clustertools.sources.checkpoints", description=main.__doc__
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--deep", action="store_true", help="read every byte that has a checksum")
    parser.add_argument("--max", type=int, default=NEWEST, help="how many, newest first")
    parser.add_argument("--seconds", type=float, default=1e9, help="tell what is known after so long")
    parser.add_argument("--refuse-after-step", type=int, help="the step of the first non-finite loss")
    parser.add_argument("--writing-seconds", type=float, default=WRITING_SECONDS)
    parser.add_argument("--allow", action="append", default=[], help="a package whose classes are harmless")
    parser.add_argument("--cache", default="", help="a file that remembers results of unchanged files")
    parser.add_argument("--background", action="store_true", help="answer at once, and read on alone")
    parser.add_argument("--json", action="store_true", help="the only form; accepted for symmetry")
    options = parser.parse_args(arguments)
    _make_folder(options.cache)
    if options.background and not _alone(cache_file(options.cache, options.folder)):
        return 0
    _cap_memory()
    # an index of a million chunks is a million objects without cycles, and this process ends right after
    gc.disable()
    print(json.dumps(_answer(options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
