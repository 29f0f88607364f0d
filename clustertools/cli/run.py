"""`clustertools run -- COMMAND`: one machine, no scheduler, the same watchdog."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustertools.actions.restart import how_it_ended
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.cli.relay import Relay
from clustertools.errors import ActionFailed, ConfigError, StoreError, Unobservable
from clustertools.model import Action, Attempt, Job, Outcome, Subject
from clustertools.schedulers import RESUME_KINDS, RunSpec

if TYPE_CHECKING:
    from clustertools.store import ActionRow
    from clustertools.watchdog import Pass

#: How often signals are looked at between two passes.
SLICE_SECONDS = 0.1
#: The time between two passes while an action is under way.
BUSY_SECONDS = 0.5
#: How long a pass may go on after a signal: reading a large checkpoint takes minutes.
PATIENCE_SECONDS = 5.0
#: After the grace, SIGKILL is sent for so long.
KILL_SECONDS = 10.0
#: A shim that was started has begun its work within this time, or it was never started.
UNBORN_SECONDS = 2.0
#: So many passes in a row may break before the end of the command is ours as well.
FAULTS = 5
#: How long we wait for a state that can be written again once the command has ended: after a good end only to
#: note it, after a bad one because it could then be restarted.
GOOD_END_PATIENCE_SECONDS = 5.0
BAD_END_PATIENCE_SECONDS = 60.0


@click.command(
    context_settings={"ignore_unknown_options": False},
    epilog=examples(
        "clustertools run --checkpoints ckpt -- torchrun --nproc-per-node 8 train.py",
        "clustertools run --resume placeholder --checkpoints out -- python train.py --from {checkpoint}",
    ),
)
@click.option("--name", help="Name of the run; the same name goes on where it was left.")
@click.option("--log", "logs", multiple=True, help="A log that the command writes, besides its output.")
@click.option("--metrics", default="", help="A metrics file with the steps (JSON Lines, CSV, ...).")
@click.option("--checkpoints", default="", help="The folder that the command saves checkpoints to.")
@click.option("--steps", type=int, default=0, help="How many steps there will be, when the log does not say.")
@click.option(
    "--resume", type=click.Choice(RESUME_KINDS), default="env", show_default=True,
    help="How the command learns where to go on.",
)  # fmt: skip
@click.option(
    "--resume-variable", default="CLUSTERTOOLS_RESUME_FROM", show_default=True,
    help="The environment variable that names the checkpoint.",
)  # fmt: skip
@click.option(
    "--hang-after", type=Duration(), default=300.0, help="The least silence that may be a hang [5m]."
)
@click.option("--startup", type=Duration(), default=1800.0, help="How long the first step may take [30m].")
@click.option("--stack-gap", type=Duration(), default=60.0, help="Time between two looks at the stacks [1m].")
@click.option("--interval", type=Duration(), default=5.0, help="Time between two passes [5s].")
@click.option("--grace", type=Duration(), default=15.0, help="Time between SIGTERM and SIGKILL [15s].")
@click.option(
    "--restarts",
    type=int,
    default=3,
    help="Restarts without a new step before giving up [3]; what never made one is tried once more only.",
)
@click.option("--shallow", is_flag=True, help="Verify the structure of checkpoints only, not every byte.")
@click.option("--observe", is_flag=True, help="Only watch and tell: restart nothing.")
@click.option("--fresh", is_flag=True, help="Do not go on from the last checkpoint of an earlier attempt.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder for the state.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Config file.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@common
def run(out: Output, command: tuple[str, ...], **options: Any) -> int:
    """Start COMMAND, watch it, and restart it from its last good checkpoint when it hangs or crashes.

    The command is ours to stop and start because you gave it here; nothing else is touched. Exit code 0 when
    the command ended well, 2 when it did not and was not, or could not be, started again.
    """
    from clustertools.cli.assemble import local_watchdog

    name = options["name"] or _default_name(command)
    # torchrun --nproc-per-node 2: letters, digits, dot, dash; it becomes a folder
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(f"--name {name!r}: use letters, digits, dots and dashes, at most 64")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{command[0]}: there is no such command, or it may not be executed")
    spec = RunSpec(
        name=name, command=command, cwd=os.getcwd(), log_paths=_absolute(options["logs"]),
        metrics_path=_absolute((options["metrics"],))[0] if options["metrics"] else "",
        checkpoint_dir=_absolute((options["checkpoints"],))[0] if options["checkpoints"] else "",
        total_steps=options["steps"], resume=options["resume"], resume_variable=options["resume_variable"],
        deep_verify=not options["shallow"], grace_seconds=options["grace"],
        without_progress=options["restarts"],
    )  # fmt: skip
    watchdog = local_watchdog(spec, options, color=out.color, json=out.json)
    return Supervision(watchdog, spec, out, options["interval"], options["fresh"]).run()


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(os.path.abspath(path) for path in paths)


def _default_name(command: tuple[str, ...]) -> str:
    """The name of the script, else of the program."""
    script = next((w for w in command[1:] if w.endswith((".py", ".sh"))), command[0])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(script).stem).strip("-.") or "run"


class Hurry(BaseException):
    """A signal came, and the pass that it came in does not end."""


class Supervision:
    """The loop of one `clustertools run`."""

    def __init__(
        self, watchdog: Any, spec: RunSpec, out: Output, interval_seconds: float, fresh: bool
    ) -> None:
        self.watchdog = watchdog
        self.spec = spec
        self.out = out
        self.interval_seconds = interval_seconds
        self.fresh = fresh
        self.signal = 0
        self._signals = 0
        self._in_pass = False
        self._paused = False
        self._seen_ended = 0
        self._troubled = ""
        self._faults = 0
        self._unwritten_since = 0.0
        self._attempts: tuple[Attempt, ...] = ()
        self._relay = Relay(None if out.json else sys.stdout.fileno())

    def run(self) -> int:
        """Until the command has ended for good, or somebody asks us to end it. The exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup, and a shell that starts something in the background, ignore them on purpose
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        over = self._begin()
        while not self.signal and not over:
            try:
                busy = self._pass()
            except Hurry:
                break  # as if we were killed here: whatever was begun is taken up the next time
            if busy is None:
                over = True
            else:
                self._wait(min(BUSY_SECONDS, self.interval_seconds) if busy else self.interval_seconds)
        return self._stop() if self.signal else self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = self.signal or number
        self._signals += 1
        if self._in_pass and self._signals > 1:
            raise Hurry
        if self._in_pass:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    def _on_alarm(self, number: int, frame: object) -> None:
        if self._in_pass:
            raise Hurry

    def _note(self, text: str) -> None:
        # a terminal that is gone is no reason to leave the run alone
        with contextlib.suppress(OSError, ValueError):
            self.out.note(text)

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.out.record(kind, data)
            sys.stdout.flush()

    # the beginning

    def _begin(self) -> bool:
        """Start the first attempt, take up a running one, or go on after an earlier end.

        True when there is nothing to do: it ended well while nobody watched. Raises ConfigError, StoreError,
        ActionFailed and Unobservable; nothing was started then.
        """
        store, scheduler, name = self.watchdog.store, self.watchdog.scheduler, self.spec.name
        attempts = self._read_attempts() or self._found()
        if not attempts:
            self.watchdog.start(self.spec)
            return False
        busy = self._under_way()
        job = scheduler.job(self.spec, attempts)
        if job.state == "pending" and not busy:
            # written down and not started: the crash came in between. Starting it twice starts it once
            scheduler.submit(self.spec, attempts[-1])
        elif job.state != "ended":
            if self.fresh:
                raise ConfigError(f"{name} still runs: end it before you start afresh, or give --name")
            self._note(f"attempt {job.attempt} of {name} is {job.state}: watching it")
            self._relay.follow(scheduler.log_path(attempts[-1]), tail=True)
        elif self.fresh:
            self._start_fresh(attempts, busy)
        elif busy:
            self._note(f"going on with the restart of {name}")
        elif job.exit_code == 0:
            if store.cursor("reported").get("attempt") != job.attempt:
                return True
            self._note(f"{name} ended well before: starting it anew")
            self._start_fresh(attempts, [])
        else:
            self._note(f"{name} ended before ({how_it_ended(job)}): restarting it")
            self.watchdog.request(manual_restart(name, job.attempt, time.time()))
        return False

    def _found(self) -> tuple[Attempt, ...]:
        """Attempts that left folders and are in no state: the state was lost, the runs may go on."""
        found: tuple[Attempt, ...] = self.watchdog.scheduler.found(self.spec.name)
        if found:
            with self.watchdog.store.transaction():
                for attempt in found:
                    self.watchdog.store.put_attempt(attempt)
            self._note(f"the state of {self.spec.name} was lost; {len(found)} earlier attempts were found")
        self._attempts = found
        return found

    def _start_fresh(self, attempts: tuple[Attempt, ...], instead_of: list[ActionRow]) -> None:
        now = time.time()
        number = attempts[-1].number + 1
        attempt = Attempt(self.spec.name, number, f"fresh{int(now * 1000):x}", started_at=now)
        with self.watchdog.store.transaction():
            for row in instead_of:
                gone = Outcome(row.action.id, False, "given up for a fresh start", now - row.time, now)
                self.watchdog.store.finish_action(gone, now)
            self.watchdog.store.put_attempt(attempt)
        self.watchdog.scheduler.submit(self.spec, attempt)

    def _read_attempts(self) -> tuple[Attempt, ...]:
        self._attempts = tuple(self.watchdog.store.attempts(self.spec.name))
        return self._attempts

    def _under_way(self) -> list[ActionRow]:
        rows = [r for r in self.watchdog.store.actions(time.time()) if r.state in ("planned", "running")]
        return [r for r in rows if r.action.target.run == self.spec.name]

    # the middle

    def _pass(self) -> bool | None:
        """One pass; True while an action is under way, None when the run is over."""
        self._in_pass = True
        try:
            result = self.watchdog.once()
            attempts, mine = self._read_attempts(), self._under_way()
            paused = bool(self.watchdog.paused(time.time()))
        except StoreError as exc:
            # nothing was decided and nothing done; the command goes on unwatched until the store is back
            self._trouble(str(exc))
            return self._unwritten()
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not leave the command unwatched
            return self._fault(exc)
        finally:
            self._in_pass = False
        self._troubled, self._faults, self._unwritten_since = "", 0, 0.0
        job = next((j for j in result.jobs if j.run == self.spec.name), None)
        if attempts:
            self._relay.follow(self.watchdog.scheduler.log_path(attempts[-1]))
        self._tell(result, job)
        if job is None or job.state != "ended" or job.attempt != attempts[-1].number:
            return bool(mine) or job is None or job.state != "running"
        if mine or result.outcomes:
            return True
        if job.exit_code != 0 and self._seen_ended != job.attempt:
            # the checks judge by what is written down: after one more pass they have seen this end too
            self._seen_ended = job.attempt
            return True
        if paused and job.exit_code != 0:
            if not self._paused:
                self._note(f"{self.spec.name} ended while everything is paused: waiting for the pause to end")
            self._paused = True
            return False
        return None

    def _trouble(self, text: str) -> None:
        """Said once, not with every pass."""
        if text != self._troubled:
            self._note(text)
        self._troubled = text

    def _unwritten(self) -> bool | None:
        """A full disk may stay full: what cannot be written down must not keep an ended command waiting."""
        job = self._job()
        if job.state != "ended":
            return False
        now = time.monotonic()
        if not self._unwritten_since:
            self._unwritten_since = now
        well = job.exit_code == 0
        patience = GOOD_END_PATIENCE_SECONDS if well else BAD_END_PATIENCE_SECONDS
        return None if now - self._unwritten_since >= patience else False

    def _fault(self, exc: Exception) -> bool | None:
        """A pass broke. The next one may not; but one that always breaks must not outlive the command."""
        self._faults += 1
        where = traceback.extract_tb(exc.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"
        self._trouble(f"a fault in clustertools itself: {type(exc).__name__}: {exc} ({place}); trying again")
        return None if self._faults >= FAULTS and self._job().state == "ended" else False

    def _tell(self, result: Pass, job: Job | None) -> None:
        if self.out.json:
            seen = {"attempt": job.attempt, "state": job.state} if job else {}
            self._record("pass", {"sentence": result.sentence, "status": result.status.name, **seen})
            return
        with contextlib.suppress(OSError, ValueError):
            self.out.detail(result.sentence)
        for said in result.steps if not self.out.verbose else ():
            self._note(said)
        if self._relay.broken:
            self._note(f"the output is passed on no longer ({self._relay.broken}); the run goes on")
            self._relay.broken = ""

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.signal and (left := end - time.monotonic()) > 0:
            time.sleep(min(SLICE_SECONDS, left))

    # the end

    def _job(self) -> Job:
        """The newest attempt, or what is left to say of it when it cannot be looked at."""
        with contextlib.suppress(StoreError):
            self._read_attempts()
        try:
            job: Job = self.watchdog.scheduler.job(self.spec, self._attempts)
        except Unobservable as exc:
            self._note(str(exc))
            return Job(self.spec.name, self.spec.name, "unknown", attempts=self._attempts)
        return job

    def _stop(self) -> int:
        """Somebody asked us to end: end the command first, then go."""
        self._note(f"signal {self.signal}: stopping {self.spec.name}")
        scheduler, began, asked = self.watchdog.scheduler, time.monotonic(), False
        why = f"clustertools: signal {self.signal}"
        while True:
            job = self._job()
            left = scheduler.leftovers(self.spec, job) if job.attempts else []
            waited = time.monotonic() - began
            # one that is written down and not started yet has nothing to end; the next run starts it
            unborn = job.state == "pending" and waited > UNBORN_SECONDS
            if not left and (not job.attempts or job.state == "ended" or unborn):
                break
            if waited > self.spec.grace_seconds + KILL_SECONDS:
                self._note(f"processes {left} of {self.spec.name} are still there: look at them by hand")
                break
            force = waited > self.spec.grace_seconds or self._signals > 1
            if force or not asked:
                # asked once: many programs take a second SIGTERM for "at once", and lose what they save
                asked = True
                try:
                    scheduler.cancel(self.spec, job, why, force=force)
                except ActionFailed as exc:
                    self._note(str(exc))
            time.sleep(SLICE_SECONDS)
        self._relay.finish(lambda: time.monotonic() - began > self.spec.grace_seconds + KILL_SECONDS)
        code = 128 + self.signal
        self._record_end(code, job)
        return code

    def _end(self) -> int:
        """The command has ended for good: say how."""
        job, name = self._job(), self.spec.name
        for attempt in self._attempts[-1:]:
            self._relay.follow(self.watchdog.scheduler.log_path(attempt))
        self._relay.finish(lambda: bool(self.signal))
        count = len(self._attempts)
        lost = "" if count == 1 else f" after {count} attempts"
        code = 0 if job.exit_code == 0 else 2
        if code == 0:
            self._note(f"{name} ended well{lost}")
        else:
            self._note(f"{name} ended badly{lost}: {how_it_ended(job)}{self._why_not()}")
            self._note(f"look: `clustertools timeline {name}`")
        self._record_end(code, job)
        with contextlib.suppress(StoreError), self.watchdog.store.transaction():
            self.watchdog.store.put_cursor("reported", "", {"attempt": job.attempt})
        return code

    def _why_not(self) -> str:
        """Why it was not started again, as far as a guard said so about this attempt."""
        if self._troubled:
            return f"; not restarted: {self._troubled}"
        with contextlib.suppress(StoreError):
            rows = self.watchdog.store.actions()
            mine = [r for r in rows if r.action.kind == "restart" and r.action.target.run == self.spec.name]
            last = max(mine, key=lambda r: (r.time, r.state == "blocked"), default=None)
            if last is not None and last.state == "blocked":
                return f"; not restarted: {last.action.blocked}"
            if last is not None and last.state == "failed" and last.outcome:
                return f"; not restarted: {last.outcome.detail}"
        return ""

    def _record_end(self, code: int, job: Job) -> None:
        if self.out.json:
            how = how_it_ended(job) if job.state == "ended" else job.state
            data = {"run": self.spec.name, "exit_code": code, "how": how, "attempts": len(self._attempts)}
            self._record("end", data)


def manual_restart(run_name: str, number: int, now: float) -> Action:
    """The action by which a person restarts attempt `number`; its id is its own, so it is done once."""
    return Action(
        f"person@{now:.3f}/restart:{run_name}#{number}", "restart", Subject(run=run_name),
        "asked by a person", "", f"restart {run_name} from its last verified checkpoint", planned_at=now,
    )  # fmt: skip
