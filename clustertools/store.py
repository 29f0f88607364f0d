"""What the watchdog remembers: one SQLite file, one writer, nine tables, one transaction a pass.

Losing the file delays a detection by one threshold; it never invents one. A store that cannot be used raises
StoreError, and without a store nothing acts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clustertools.errors import StoreError
from clustertools.model import (
    Action,
    Attempt,
    Incident,
    Outcome,
    Reading,
    Subject,
    Transition,
    Verdict,
    from_data,
    to_data,
)

T = TypeVar("T")

#: File systems on which SQLite's write-ahead log works: it needs shared memory between processes.
LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})

#: Another command that writes holds the file for milliseconds; a watchdog must not wait for ever.
WAIT_SECONDS = 5.0
#: Of the readings of one check and subject those of one pass in this time are kept.
READING_SECONDS = 300.0

_MIGRATIONS = (
    """
    CREATE TABLE verdict (
        name TEXT NOT NULL, subject TEXT NOT NULL, time REAL NOT NULL, data TEXT NOT NULL,
        PRIMARY KEY (name, subject)) WITHOUT ROWID;
    CREATE TABLE reading (
        subject TEXT NOT NULL, name TEXT NOT NULL, time REAL NOT NULL, value REAL NOT NULL,
        PRIMARY KEY (subject, name, time)) WITHOUT ROWID;
    CREATE TABLE incident (key TEXT PRIMARY KEY, state TEXT NOT NULL, data TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE transition (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
        data TEXT NOT NULL);
    CREATE INDEX transition_time ON transition (time);
    CREATE TABLE delivery (
        id INTEGER PRIMARY KEY, sink TEXT NOT NULL, key TEXT NOT NULL, message TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'waiting', tries INTEGER NOT NULL DEFAULT 0,
        due REAL NOT NULL, reason TEXT NOT NULL DEFAULT '');
    CREATE INDEX delivery_state ON delivery (state, id);
    CREATE TABLE action (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, step TEXT NOT NULL DEFAULT '', time REAL NOT NULL,
        data TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '{}', outcome TEXT NOT NULL DEFAULT '',
        approved_by TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
    CREATE TABLE attempt (
        run TEXT NOT NULL, number INTEGER NOT NULL, data TEXT NOT NULL,
        PRIMARY KEY (run, number)) WITHOUT ROWID;
    CREATE TABLE silence (
        id INTEGER PRIMARY KEY, pattern TEXT NOT NULL, until REAL NOT NULL, by TEXT NOT NULL,
        why TEXT NOT NULL);
    CREATE TABLE cursor (
        name TEXT NOT NULL, subject TEXT NOT NULL, data TEXT NOT NULL,
        PRIMARY KEY (name, subject)) WITHOUT ROWID;
    """,
    "ALTER TABLE action ADD COLUMN approved_at REAL NOT NULL DEFAULT 0",
)


@dataclass(frozen=True, slots=True)
class ActionRow:
    """An action as stored. `state`: planned, blocked, running, done, failed. `step` and `detail` belong to
    the sequence that performs it."""

    action: Action
    state: str
    step: str
    time: float
    detail: Mapping[str, Any]
    outcome: Outcome | None = None
    approved_by: str = ""
    approved_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Silence:
    """Someone asked not to hear of incidents whose key matches `pattern` until `until`."""

    id: int
    pattern: str
    until: float
    by: str
    why: str


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$STATE_DIRECTORY` (systemd), `/var/lib/clustertools` for root, else `$XDG_STATE_HOME/clustertools`."""
    if environ.get("CLUSTERTOOLS_STATE"):
        return Path(environ["CLUSTERTOOLS_STATE"])
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/clustertools")
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/"), ".local/state")
    return Path(home) / "clustertools"


class Store:
    """The state of one watchdog. Use `with store.transaction():` around what belongs together."""

    def __init__(self, path: str | Path, *, file_system: str = "", read_only: bool = False) -> None:
        """Open or create the store at `path`. Raises StoreError, saying what to try.

        `file_system` is the type of the mount that holds it, when the caller knows; on one that is not local
        a rollback journal is used and `warning` is set.
        """
        self.path = Path(path)
        self.warning = ""
        local = not file_system or file_system in LOCAL_FILE_SYSTEMS
        if not local:
            self.warning = (
                f"{self.path} is on {file_system}: keep the state on a local disk "
                "(CLUSTERTOOLS_STATE); using the slower rollback journal"
            )
        # the path may hold %, ? and #, which mean something in a URI
        # without a write-ahead log nobody has it open, and who may not write there could not make one to read
        log, folder = f"{self.path}-wal", self.path.absolute().parent
        still = read_only and not os.path.exists(log) and not os.access(folder, os.W_OK)
        place = f"file:{urllib.parse.quote(str(self.path.absolute()))}?mode={'ro' if read_only else 'rw'}"
        place += "&immutable=1" if still else ""
        try:
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # born private, and its journal with it: never readable by others, not even for a moment
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(place, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as exc:
            raise StoreError(f"cannot open the state in {self.path}: {exc}; {_advice(exc)}") from exc
        try:
            with self._errors("open"):
                if not read_only:
                    self._use_journal("wal" if local else "delete")
                    # what is written down before it is done must outlive a power failure too; a pass commits
                    # a handful of times, so the price is a few milliseconds
                    self._db.execute("PRAGMA synchronous=FULL")
                self._migrate(read_only)
        except BaseException:  # whatever it was, it is raised again
            self._db.close()
            raise

    def _use_journal(self, kind: str) -> None:
        # SQLite does not wait for others when it changes this: two that open it for the first time collide
        end = time.monotonic() + WAIT_SECONDS
        while self._db.execute("PRAGMA journal_mode").fetchone()[0] != kind:
            try:
                self._db.execute(f"PRAGMA journal_mode={kind}")
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
            if time.monotonic() > end:
                return  # a file system that has no such journal keeps the one it has
            time.sleep(0.01)

    def _migrate(self, read_only: bool) -> None:
        if self._version() == len(_MIGRATIONS) or read_only:
            return
        # two processes may come here at once: who gets the lock looks again
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for number, script in enumerate(_MIGRATIONS[self._version() :], 1 + self._version()):
                # not executescript: it commits what is open
                for statement in filter(str.strip, script.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={number}")
            self._db.execute("COMMIT")
        except BaseException:  # whatever it was, it is raised again
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _version(self) -> int:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"{self.path} was written by a newer clustertools (schema {version}, this one knows "
                f"{len(_MIGRATIONS)}); use that version or another state folder"
            )
        return version

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StoreError(f"cannot {doing} the state in {self.path}: {exc}; {_advice(exc)}") from exc

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises StoreError when it cannot be committed; nothing was changed then."""
        with self._errors("write"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.commit()
            except BaseException:  # whatever it was, it is raised again
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def commit(self) -> None:
        """End the transaction. The one point at which anything becomes true."""
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _content(self) -> Iterator[None]:
        """Around the decoding of rows: what another version or a bad disk wrote is a StoreError, no crash."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise StoreError(
                f"the state in {self.path} holds a row that cannot be read ({exc!r}); "
                "it is damaged or of another version: move it aside and start anew"
            ) from exc

    def _all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._errors("read"):
            return self._db.execute(sql, values).fetchall()

    def _values(self, kind: type[T], sql: str, *values: Any) -> list[T]:
        """The values in the rows' only column."""
        rows = self._all(sql, *values)
        with self._content():
            return [from_data(kind, json.loads(row[0])) for row in rows]

    def _put(self, sql: str, *values: Any) -> int:
        with self._errors("write"):
            return self._db.execute(sql, values).lastrowid or 0

    def _put_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            with self._errors("write"):
                self._db.executemany(sql, rows)

    # incidents and transitions

    def incidents(self) -> dict[str, Incident]:
        found = self._values(Incident, "SELECT data FROM incident")
        return {incident.key: incident for incident in found}

    def marks(self) -> dict[str, tuple[str, str]]:
        """Of every incident its state and who has it, without reading the rest."""
        sql = "SELECT key, state, coalesce(json_extract(data, '$.acknowledged_by'), '') FROM incident"
        return {key: (state, by) for key, state, by in self._all(sql)}

    def save_incidents(self, before: Mapping[str, Incident], after: Mapping[str, Incident]) -> None:
        """Write what differs between the two."""
        for key in before.keys() - after.keys():
            self._put("DELETE FROM incident WHERE key = ?", key)
        for key, incident in after.items():
            if before.get(key) != incident:
                self._put("REPLACE INTO incident VALUES (?, ?, ?)", key, incident.state, _dump(incident))

    def add_transition(self, transition: Transition) -> int:
        return self._put(
            "INSERT INTO transition (key, time, kind, data) VALUES (?, ?, ?, ?)",
            transition.incident.key, transition.time, transition.kind, _dump(transition),
        )  # fmt: skip

    def transitions(self, since: float = 0.0) -> list[Transition]:
        return self._values(Transition, "SELECT data FROM transition WHERE time >= ? ORDER BY id", since)

    # verdicts, readings, memories

    def save_verdict(self, verdict: Verdict) -> None:
        """Keep the latest verdict, its readings and what the check wants to remember."""
        self.save_verdicts((verdict,))

    def save_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """The same for many. Of one that says what it said before only the time is written.

        Readings are kept once in READING_SECONDS: a pass over a thousand runs gives thousands of them.
        """
        news, again, memories = [], [], []
        readings: list[Reading] = []
        for verdict in verdicts:
            name, subject, said = verdict.check, str(verdict.subject), _said(verdict)
            rows = self._all("SELECT time, data FROM verdict WHERE name = ? AND subject = ?", name, subject)
            before, known = rows[0] if rows else (-READING_SECONDS, "")
            if known == said:
                again.append((verdict.time, name, subject))
            else:
                news.append((name, subject, verdict.time, said))
            if verdict.time // READING_SECONDS != before // READING_SECONDS:
                readings += verdict.readings
            memory, name = json.dumps(dict(verdict.memory)), "check:" + name
            rows = self._all("SELECT data FROM cursor WHERE name = ? AND subject = ?", name, subject)
            if rows != [(memory,)]:
                memories.append((name, subject, memory))
        self._put_many("UPDATE verdict SET time = ? WHERE name = ? AND subject = ?", again)
        self._put_many("REPLACE INTO verdict VALUES (?, ?, ?, ?)", news)
        self._put_many("REPLACE INTO cursor VALUES (?, ?, ?)", memories)
        self.add_readings(readings)

    def verdicts(self) -> list[Verdict]:
        """The latest of every check and subject, without readings, memory and the time that it took."""
        rows = self._all("SELECT time, data FROM verdict ORDER BY subject, name")
        with self._content():
            return [from_data(Verdict, {**json.loads(data), "time": time}) for time, data in rows]

    def unseen(self) -> list[tuple[str, str]]:
        """(check, subject) of every latest verdict that could not see, or not all."""
        sql = (
            "SELECT name, subject FROM verdict WHERE json_extract(data, '$.status') = 'UNKNOWN' "
            "OR coalesce(json_extract(data, '$.blind'), '') != ''"
        )
        return [(name, subject) for name, subject in self._all(sql)]

    def memory(self, check: str, subject: Subject) -> dict[str, Any]:
        """What a check remembered of a subject; empty at first."""
        return self.cursor("check:" + check, str(subject))

    def cursor(self, name: str, subject: str = "") -> dict[str, Any]:
        rows = self._all("SELECT data FROM cursor WHERE name = ? AND subject = ?", name, subject)
        with self._content():
            return dict(json.loads(rows[0][0])) if rows else {}

    def put_cursor(self, name: str, subject: str, data: Mapping[str, Any]) -> None:
        self._put("REPLACE INTO cursor VALUES (?, ?, ?)", name, subject, json.dumps(data))

    def cursors(self, name: str) -> dict[str, dict[str, Any]]:
        """Every cursor of this name by its subject."""
        rows = self._all("SELECT subject, data FROM cursor WHERE name = ? ORDER BY subject", name)
        with self._content():
            return {subject: dict(json.loads(data)) for subject, data in rows}

    def add_readings(self, readings: Iterable[Reading]) -> None:
        rows = [(str(r.subject), r.name, r.time, r.value) for r in readings]
        self._put_many("REPLACE INTO reading VALUES (?, ?, ?, ?)", rows)

    def history(self, subject: str, name: str, since: float = 0.0) -> list[tuple[float, float]]:
        """(time, value) in order of time."""
        sql = "SELECT time, value FROM reading WHERE subject = ? AND name = ? AND time >= ? ORDER BY time"
        return [(row[0], row[1]) for row in self._all(sql, subject, name, since)]

    def thin(self, now: float, *, fine_seconds: float = 6 * 3600, keep_seconds: float = 30 * 86400) -> None:
        """Bound the history: all readings for six hours, then one an hour, none after thirty days.

        What no check has looked at for a week is forgotten with its memory, a run that ended thirty days ago
        with its attempts: a scheduler brings new ones every day.
        """
        self._put("DELETE FROM reading WHERE time < ?", now - keep_seconds)
        self._put(
            "DELETE FROM reading WHERE time < ? AND EXISTS (SELECT 1 FROM reading AS first "
            "WHERE first.subject = reading.subject AND first.name = reading.name "
            "AND first.time >= CAST(reading.time / 3600 AS INTEGER) * 3600 AND first.time < reading.time)",
            now - fine_seconds,
        )  # fmt: skip
        self._put("DELETE FROM transition WHERE time < ?", now - 90 * 86400)
        self._put("DELETE FROM delivery WHERE state != 'waiting' AND due < ?", now - 30 * 86400)
        self._put(
            "DELETE FROM action WHERE state IN ('done', 'failed', 'blocked') AND time < ?", now - 90 * 86400
        )
        self._put("DELETE FROM silence WHERE until < ?", now - 86400)
        stale = self._all("SELECT name, subject FROM verdict WHERE time < ?", now - 7 * 86400)
        self._put_many("DELETE FROM verdict WHERE name = ? AND subject = ?", stale)
        for kind in ("check:", "ran:"):
            rows = [(kind + name, subject) for name, subject in stale]
            self._put_many("DELETE FROM cursor WHERE name = ? AND subject = ?", rows)
        for run, attempts in self.all_attempts().items():
            if all(a.end and 0 < a.ended_at < now - keep_seconds for a in attempts):
                self._put("DELETE FROM attempt WHERE run = ?", run)
        # the threads of incidents that are forgotten, unless something about them waits to be told
        self._put(
            "DELETE FROM cursor WHERE name LIKE 'told:%' AND subject NOT IN (SELECT key FROM incident) AND "
            "NOT EXISTS (SELECT 1 FROM delivery WHERE state = 'waiting')"
        )

    # actions and attempts

    def put_action(self, action: Action, state: str, now: float) -> None:
        """Write an action down, or bring its row up to date; its step, detail and approval stay."""
        self._put(
            "INSERT INTO action (id, state, time, data) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE "
            "SET state = excluded.state, time = excluded.time, data = excluded.data",
            action.id, state, now, _dump(action),
        )  # fmt: skip

    def advance_action(self, id: str, state: str, step: str, detail: Mapping[str, Any], now: float) -> None:
        self._put(
            "UPDATE action SET state = ?, step = ?, detail = ?, time = ? WHERE id = ?",
            state, step, json.dumps(detail), now, id,
        )  # fmt: skip

    def finish_action(self, outcome: Outcome, now: float) -> None:
        state = "done" if outcome.ok else "failed"
        self._put(
            "UPDATE action SET state = ?, outcome = ?, time = ? WHERE id = ?",
            state, _dump(outcome), now, outcome.action_id,
        )  # fmt: skip

    def approve(self, id: str, by: str, now: float) -> bool:
        """Approve a blocked action, or approve it once more; False when there is none by that id."""
        with self._errors("write"):
            done = self._db.execute(
                "UPDATE action SET approved_by = ?, approved_at = ? WHERE id = ? AND state = 'blocked'",
                (by, now, id),
            )
            return done.rowcount == 1

    def actions(self, since: float = 0.0) -> list[ActionRow]:
        rows = self._all(
            "SELECT data, state, step, time, detail, outcome, approved_by, approved_at FROM action "
            "WHERE time >= ? OR state IN ('planned', 'running') ORDER BY time, id",
            since,
        )
        with self._content():
            return [
                ActionRow(
                    from_data(Action, json.loads(data)), state, step, time, json.loads(detail),
                    from_data(Outcome, json.loads(outcome)) if outcome else None, by, at,
                )
                for data, state, step, time, detail, outcome, by, at in rows
            ]  # fmt: skip

    def put_attempt(self, attempt: Attempt) -> None:
        self._put("REPLACE INTO attempt VALUES (?, ?, ?)", attempt.run, attempt.number, _dump(attempt))

    def attempts(self, run: str) -> list[Attempt]:
        rows = self._all("SELECT data FROM attempt WHERE run = ? ORDER BY number", run)
        with self._content():
            return [_attempt(row[0]) for row in rows]

    def all_attempts(self) -> dict[str, list[Attempt]]:
        """Those of every run."""
        found: dict[str, list[Attempt]] = {}
        with self._content():
            for run, data in self._all("SELECT run, data FROM attempt ORDER BY run, number"):
                found.setdefault(run, []).append(_attempt(data))
        return found

    def runs(self) -> list[str]:
        return [row[0] for row in self._all("SELECT DISTINCT run FROM attempt ORDER BY run")]

    # silences

    def add_silence(self, pattern: str, until: float, by: str, why: str) -> int:
        return self._put(
            "INSERT INTO silence (pattern, until, by, why) VALUES (?, ?, ?, ?)", pattern, until, by, why
        )

    def end_silences(self, pattern: str, now: float) -> int:
        """End those of exactly this pattern; how many there were."""
        with self._errors("write"):
            sql = "UPDATE silence SET until = ? WHERE pattern = ? AND until > ?"
            return self._db.execute(sql, (now, pattern, now)).rowcount

    def silences(self, now: float) -> list[Silence]:
        rows = self._all("SELECT id, pattern, until, by, why FROM silence WHERE until > ?", now)
        return [Silence(*row) for row in rows]

    # the outbox

    def enqueue(self, sink: str, key: str, message: Mapping[str, Any], now: float) -> int:
        """Put a message in the outbox, to be sent after the transaction."""
        return self._put(
            "INSERT INTO delivery (sink, key, message, due) VALUES (?, ?, ?, ?)",
            sink, key, json.dumps(message), now,
        )  # fmt: skip

    def waiting(self, limit: int = 2000) -> list[tuple[int, str, Mapping[str, Any], float, int]]:
        """(id, sink, message, due, tries) of what was not sent yet, oldest first, at most `limit` a sink:
        one that is down for days must not hide what the others are owed."""
        sql = (
            "SELECT id, sink, message, due, tries FROM (SELECT *, row_number() OVER "
            "(PARTITION BY sink ORDER BY id) AS place FROM delivery WHERE state = 'waiting') "
            "WHERE place <= ? ORDER BY id"
        )
        rows = self._all(sql, limit)
        with self._content():
            return [(i, sink, json.loads(text), due, tries) for i, sink, text, due, tries in rows]

    def delivered(self, id: int, now: float) -> None:
        self._put("UPDATE delivery SET state = 'sent', due = ? WHERE id = ?", now, id)

    def not_delivered(self, id: int, reason: str, next_try: float | None, now: float) -> None:
        """Another try at `next_try`, or (None) give up."""
        self._put(
            "UPDATE delivery SET state = ?, tries = tries + 1, reason = ?, due = ? WHERE id = ?",
            "waiting" if next_try is not None else "failed", reason, next_try or now, id,
        )  # fmt: skip


@functools.lru_cache(maxsize=1 << 14)
def _attempt(text: str) -> Attempt:
    """Most are the same from pass to pass, and decoding one takes a hundred times what reading it does."""
    return from_data(Attempt, json.loads(text))


def _said(verdict: Verdict) -> str:
    """The verdict as text, without what is kept elsewhere or differs each time."""
    slim = dataclasses.replace(verdict, memory={}, readings=(), time=0.0, elapsed_seconds=0.0)
    return _dump(slim)


def _dump(value: Any) -> str:
    return _encode(to_data(value))


#: json.dumps with options of one's own makes an encoder each time.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def _advice(exc: Exception) -> str:
    if isinstance(exc, OSError):
        # not by its text: that holds the path, and a path may hold any word
        number = exc.errno
        is_full, is_closed = (
            number in (errno.ENOSPC, errno.EDQUOT),
            number in (errno.EACCES, errno.EPERM, errno.EROFS),
        )
        text = "full" if is_full else "readonly" if is_closed else ""
    else:
        text = str(exc)
    if "locked" in text:
        return "another watchdog or command holds it; is a second one running?"
    if "malformed" in text or "not a database" in text:
        return "it is damaged: move it aside and start anew (open incidents will be found again)"
    if "readonly" in text:
        return "it cannot be written: check the owner and the mount, or set CLUSTERTOOLS_STATE"
    if "full" in text:
        return "the disk is full: make room"
    if "I/O error" in text:
        return "the disk is full, failing or gone: see `df` and the kernel log"
    return "set CLUSTERTOOLS_STATE to a writable folder on a local disk"
