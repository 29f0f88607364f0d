"""One checkpoint by itself: its files looked at, its layout's rules applied, what was found wrong.

seen = look_at(candidate, look, cache=None)
seen.problems                               # empty when it is whole
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clustertools.sources.checkpoint_cache import FileCache, question
from clustertools.sources.checkpoint_files import (
    FileReport,
    Look,
    OutOfTime,
    Segment,
    Torn,
    size_text,
    verify_file,
    verify_segments,
)
from clustertools.sources.checkpoint_layouts import Candidate, Entry, is_weights
from clustertools.sources.checkpoint_pickle import HostilePickle
from clustertools.sources.checkpoint_problem import SEVERITY, Problem, Verified, few
from clustertools.sources.checkpoint_rules import (
    METADATA,
    check_integrity,
    layout_of,
    problems,
    read_division,
    roles,
    shard_gaps,
)

#: Threads that read files: on a network file system each one costs a round trip.
_READERS = 8
#: Kinds of files that carry a checksum of every byte of weights, or hold none.
_SUMMED = frozenset(("torch zip", "npz", "distcp", "json"))


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. `late`: the deadline passed before everything was looked at.

    `changing` names a file that changed while it was read. `roles` say what its files are for, to compare
    with another checkpoint's; `ranks_known`: it tells itself how many ranks there are. `summed`: all its
    weights are in formats with checksums.
    """

    candidate: Candidate
    layout: str
    step: int | None = None
    problems: tuple[Problem, ...] = ()
    entries: tuple[Entry, ...] = ()
    roles: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    changing: str = ""
    late: bool = False
    ranks_known: bool = False
    summed: bool = False

    @property
    def mtime(self) -> float:
        """When the last of its files was written."""
        return max((e.mtime for e in self.entries), default=self.candidate.mtime)

    @property
    def size_bytes(self) -> int:
        return sum(e.size_bytes for e in self.entries)


@dataclass(slots=True)
class _Parts:
    """What the `.metadata` files say: the division of other files, and what is wrong already."""

    segments: dict[str, tuple[Segment, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def look_at(candidate: Candidate, look: Look, cache: FileCache | None) -> Seen | None:
    """Look at one checkpoint; None when it is none after all (a folder without anything of a checkpoint).

    Never raises: what could not be read is a problem of its own, with the verdict `unknown`.
    """
    layout, entries = "file", []
    try:
        entries = candidate.files()
        if candidate.is_dir:
            layout = layout_of(candidate.name, entries)
            if candidate.step is None and not any(_is_judged(e) for e in entries):
                return None
        elif len(entries) > 1:
            layout = "files"
        parts = _divisions(entries, look)
        reports = _verify_all(entries, parts, look, cache)
        verified = Verified(reports)
        step = candidate.step
        if step is None:
            step = next((r.step for r in reports.values() if r.step is not None), None)
        found = [*parts.problems, *_from_files(reports)]
        if candidate.lost:
            found.append(Problem("incomplete", f"{few(candidate.lost)} is missing"))
        if candidate.is_dir:
            found += problems(candidate.name, layout, candidate.step, entries, verified)
            found += check_integrity(entries, look, cache)
        elif len(candidate.members) > 1:
            found += shard_gaps(entries)
        elif not entries:
            found.append(Problem("unknown", f"{candidate.name}: vanished while it was looked at"))
    except OutOfTime:
        return Seen(candidate, layout, candidate.step, entries=tuple(entries), late=True)
    except OSError as exc:
        why = Problem("unknown", f"{candidate.name}: cannot be read: {exc.strerror or exc}")
        return Seen(candidate, layout, candidate.step, (why,), tuple(entries))
    found.sort(key=lambda p: SEVERITY.index(p.verdict))
    changing = next((r.reason for r in reports.values() if r.verdict == "in_progress"), "")
    notes = tuple(r.note for r in reports.values() if r.note)
    return Seen(
        candidate, layout, step, tuple(found), tuple(entries), roles(candidate.step, entries),
        notes, changing, ranks_known=verified.fact("dp_world_size") is not None,
        summed=all(r.kind in _SUMMED for r in reports.values()),
    )  # fmt: skip


def _is_judged(entry: Entry) -> bool:
    return is_weights(entry.name) or METADATA.fullmatch(entry.base) is not None


def _from_files(reports: dict[str, FileReport]) -> list[Problem]:
    return [
        Problem(report.verdict, report.reason)
        for report in reports.values()
        if report.verdict in ("hostile", "torn", "unknown")
    ]


def _divisions(entries: Sequence[Entry], look: Look) -> _Parts:
    names = {e.name for e in entries}
    parts = _Parts()
    for entry in entries:
        if not METADATA.fullmatch(entry.base):
            continue
        look.tick()
        try:
            if entry.size_bytes == 0:
                raise Torn("is empty")
            found = read_division(entry, look).parts
        except HostilePickle as exc:
            parts.problems.append(Problem("hostile", f"{entry.name}: {exc}; nothing of it was run"))
            continue
        except Torn as exc:
            size = size_text(entry.size_bytes)
            parts.problems.append(Problem("torn", f"{entry.name}: {exc} ({size} on disk)"))
            continue
        for path, segments in sorted(found.items()):
            name = entry.folder + path
            parts.segments[name] = parts.segments.get(name, ()) + segments
            if name not in names:
                parts.problems.append(Problem("incomplete", f"{name}, which {entry.name} names, is missing"))
    return parts


def _verify_all(
    entries: Sequence[Entry], parts: _Parts, look: Look, cache: FileCache | None
) -> dict[str, FileReport]:
    """A report for every file of a known format, by name. Raises OutOfTime."""

    def one(entry: Entry) -> FileReport:
        segments = parts.segments.get(entry.name)
        how = question(look.deep, segments)
        known = cache.find(entry, how) if cache else None
        if known is not None:
            return known
        look.tick()
        if segments is None:
            report = verify_file(entry.path, name=entry.name, look=look)
        else:
            report = verify_segments(entry.path, segments, name=entry.name, look=look)
        if cache:
            cache.keep(entry, how, report)
        return report

    judged = [
        e
        for e in entries
        if e.name in parts.segments
        or (not e.base.endswith(".distcp") and (is_weights(e.name) or e.base.endswith(".json")))
    ]
    if len(judged) <= _READERS:
        return {e.name: one(e) for e in judged}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_READERS) as pool:
        return {r.name: r for r in pool.map(one, judged)}
