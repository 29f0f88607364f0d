"""`clustertools run -- COMMAND`: one machine, no scheduler, the same watchdog."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.errors import ConfigError, StoreError, Unobservable
from clustertools.model import Action, Attempt, Job, Subject
from clustertools.schedulers import RESUME_KINDS, RunSpec

#: How often the command's output is passed on, and signals are looked at, between two passes.
SLICE_SECONDS = 0.1


class Duration(click.ParamType[float]):
    """`90s`, `5m`, `2h`: a number with its unit."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        # 1.5h
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write for example 30s, 5m or 2h", param, ctx)
        return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


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
@click.option("--restarts", type=int, default=3, help="Restarts without a new step before giving up [3].")
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
    spec = RunSpec(
        name=name, command=command, cwd=os.getcwd(), log_paths=_absolute(options["logs"]),
        metrics_path=_absolute((options["metrics"],))[0] if options["metrics"] else "",
        checkpoint_dir=_absolute((options["checkpoints"],))[0] if options["checkpoints"] else "",
        total_steps=options["steps"], resume=options["resume"], resume_variable=options["resume_variable"],
        deep_verify=not options["shallow"], grace_seconds=options["grace"],
    )  # fmt: skip
    watchdog = local_watchdog(spec, options, color=out.color, json=out.json)
    return Supervision(watchdog, spec, out, options["interval"], options["fresh"]).run()


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(os.path.abspath(path) for path in paths)


def _default_name(command: tuple[str, ...]) -> str:
    """The name of the script, else of the program."""
    script = next((w for w in command[1:] if w.endswith((".py", ".sh"))), command[0])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(script).stem).strip("-.") or "run"


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
        self._relay = Relay(lambda: self._log_path(), None if out.json else sys.stdout.buffer)

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._begin()
        while True:
            if self.signal:
                return self._stop()
            busy = self._pass()
            if busy is None:
                return self._end()
            self._wait(0.5 if busy else self.interval_seconds)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = number

    def _begin(self) -> None:
        """Start the first attempt, take up a running one, or go on after an earlier end."""
        store, scheduler = self.watchdog.store, self.watchdog.scheduler
        attempts = tuple(store.attempts(self.spec.name))
        if not attempts or (len(attempts) == 1 and scheduler.job(self.spec, attempts).state == "pending"):
            self.watchdog.start(self.spec)
            return
        job = scheduler.job(self.spec, attempts)
        if job.state != "ended":
            self.out.note(f"attempt {job.attempt} of {self.spec.name} is {job.state}: watching it")
            return
        under_way = [r for r in store.actions() if r.state in ("planned", "running")]
        if any(r.action.target.run == self.spec.name for r in under_way):
            self.out.note(f"going on with the restart of {self.spec.name}")
        elif job.exit_code == 0 or self.fresh:
            self._start_fresh(attempts)
        else:
            self.out.note(
                f"{self.spec.name} ended before ({job.exit_reason or job.exit_code}): restarting it"
            )
            self.watchdog.request(manual_restart(self.spec.name, job.attempt, time.time()))

    def _start_fresh(self, attempts: tuple[Attempt, ...]) -> None:
        now = time.time()
        number = attempts[-1].number + 1
        attempt = Attempt(self.spec.name, number, f"fresh{int(now * 1000):x}", started_at=now)
        with self.watchdog.store.transaction():
            self.watchdog.store.put_attempt(attempt)
        self.watchdog.scheduler.submit(self.spec, attempt)

    def _pass(self) -> bool | None:
        """One pass; True while an action is under way, None when the run is over."""
        try:
            result = self.watchdog.once()
        except StoreError as exc:
            # nothing was decided and nothing done; the command goes on unwatched until the store is back
            self.out.note(str(exc))
            return False
        self._relay.pass_on()
        if self.out.json:
            self.out.record("pass", {"sentence": result.sentence, "status": result.status.name})
        else:
            self.out.detail(result.sentence)
            for said in result.steps if not self.out.verbose else ():
                self.out.note(said)
        job = next((j for j in result.jobs if j.run == self.spec.name), None)
        under_way = [r for r in self.watchdog.store.actions() if r.state in ("planned", "running")]
        mine = [r for r in under_way if r.action.target.run == self.spec.name]
        if job is not None and job.state == "ended" and not mine and not result.outcomes:
            return None
        return bool(mine) or job is None or job.state != "running"

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.signal and (left := end - time.monotonic()) > 0:
            time.sleep(min(SLICE_SECONDS, left))
            self._relay.pass_on()

    def _job(self) -> Job:
        store = self.watchdog.store
        job: Job = self.watchdog.scheduler.job(self.spec, tuple(store.attempts(self.spec.name)))
        return job

    def _log_path(self) -> Path | None:
        attempts = self.watchdog.store.attempts(self.spec.name)
        return self.watchdog.scheduler.log_path(attempts[-1]) if attempts else None

    def _stop(self) -> int:
        """Somebody asked us to end: end the command first, then go."""
        self.out.note(f"signal {self.signal}: stopping {self.spec.name}")
        scheduler, began = self.watchdog.scheduler, time.monotonic()
        limit = self.spec.grace_seconds + 10
        while (waited := time.monotonic() - began) < limit:
            try:
                job = self._job()
            except Unobservable as exc:
                self.out.note(str(exc))
                break
            if job.state == "ended" and not scheduler.leftovers(self.spec, job):
                break
            force = waited > self.spec.grace_seconds
            scheduler.cancel(self.spec, job, f"clustertools: signal {self.signal}", force=force)
            time.sleep(SLICE_SECONDS)
        self._relay.pass_on()
        return 130 if self.signal == signal.SIGINT else 128 + self.signal

    def _end(self) -> int:
        job = self._job()
        self._relay.pass_on()
        attempts = self.watchdog.store.attempts(self.spec.name)
        lost = "" if len(attempts) == 1 else f" after {len(attempts)} attempts"
        if job.exit_code == 0:
            self.out.note(f"{self.spec.name} ended well{lost}")
            return 0
        how = job.exit_reason or f"exit code {job.exit_code}"
        self.out.note(
            f"{self.spec.name} ended badly{lost}: {how}; see `clustertools timeline {self.spec.name}`"
        )
        return 2


def manual_restart(run_name: str, number: int, now: float) -> Action:
    """The action by which a person restarts attempt `number`; its id is its own, so it is done once."""
    return Action(
        f"person@{now:.3f}/restart:{run_name}#{number}", "restart", Subject(run=run_name),
        "asked by a person", "", f"restart {run_name} from its last verified checkpoint", planned_at=now,
    )  # fmt: skip


class Relay:
    """Passes on what the command printed, as it comes, whichever attempt is the current one."""

    def __init__(self, path: Callable[[], Path | None], target: BinaryIO | None) -> None:
        self._path = path
        self._target = target
        self._offsets: dict[Path, int] = {}

    def pass_on(self) -> None:
        path = self._path() if self._target else None
        if path is None or self._target is None:
            return
        try:
            with open(path, "rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read(1 << 20)
        except OSError:
            return  # not written yet
        self._offsets[path] = self._offsets.get(path, 0) + len(data)
        if data:
            self._target.write(data)
            self._target.flush()
