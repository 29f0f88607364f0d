"""`record`: this machine's answers as a folder, redacted; with `--run` a support bundle of one run."""

from __future__ import annotations

import os
import platform
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustertools import check as checking
from clustertools.check import Check
from clustertools.cli.frame import Duration, Output, common, examples
from clustertools.errors import ClustertoolsError, ConfigError
from clustertools.host import LocalHost, RecordedHost, dump_yaml
from clustertools.model import Job, Verdict, from_data, to_data
from clustertools.recorder import Recorder, scrubbed
from clustertools.redact import Redactor
from clustertools.sources.processes import RANK_VARIABLES

if TYPE_CHECKING:
    from clustertools.cli.bundle import RunFacts

#: A name of these is also a word of some log: taking it out everywhere would break the log's lines.
_NO_NAME = re.compile(r"[A-Za-z]+")


@click.command(
    epilog=examples(
        "clustertools record /tmp/gpu-017 gpu_xid gpu_ecc",
        "clustertools check --host /tmp/gpu-017      the same answers, without the machine",
        "clustertools record /tmp/case-1 --run pretrain-7 --moments 3 --every 60s",
        "clustertools replay /tmp/case-1             what the watchdog makes of these moments",
    )
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("names", nargs=-1)
@click.option("--stage", type=click.Choice(sorted(checking.STAGES)), default="watch", show_default=True)
@click.option("--keep-names", is_flag=True, help="Leave the names of users, hosts and jobs in.")
@click.option("--what", default="", help="What is wrong with this machine, in a sentence.")
@click.option("--run", "run_name", default="", help="Also this run: its job, logs, checkpoints and history.")
@click.option("--log", "logs", multiple=True, help="A log of the run, when its watchdog does not know it.")
@click.option("--checkpoints", default="", help="The run's checkpoint folder, when it is not known.")
@click.option("--moments", type=click.IntRange(1, 100), default=1, show_default=True, help="How many looks.")
@click.option("--every", type=Duration(), default=30.0, help="Time between two looks [30s].")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the watchdog's state.")
@common
def record(folder: Path, names: tuple[str, ...], out: Output, **options: Any) -> None:
    """Run checks here and write down every answer they got, redacted, as a host for tests.

    With --run the folder is a support bundle: it also holds what is known of that run. DIR must not exist or
    be empty. Review it before you pass it on: names that stand in no known field are not recognised.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; recordings are not overwritten")
    if options["moments"] > 1 and not options["run_name"]:
        raise ConfigError("--moments needs --run: the timeline of a recording is that of a run")
    recording = _Recording(folder, names, options)
    recording.look(out)
    written = recording.save()
    changed = recording.differences()
    kinds = dict(sorted(recording.redact.counts.items()))
    if out.json:
        out.record(
            "recording",
            {
                "folder": str(folder), "files": [str(p) for p in written], "redacted": kinds,
                "bytes": sum(p.stat().st_size for p in written), "changed": changed,
            },
        )  # fmt: skip
        return
    for path in written:
        out.line(f"{path.stat().st_size:>10,}  {path}")
    told = ", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "nothing"
    size = sum(p.stat().st_size for p in written)
    out.line(f"\n{len(written)} files, {size / 1e6:.1f} MB; redacted: {told}")
    for name, how in changed.items():
        out.line(f"{name} answers differently on the recording: {how}")
    for remark in recording.remarks:
        out.line(remark)
    out.line(f"Review every file in {folder} before you pass it on: only known forms were redacted.")


class _Recording:
    """One call of `record`: what was looked at, and the folder that comes of it."""

    def __init__(self, folder: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        found = checking.discover()
        self.folder = folder
        self.options = options
        self.remarks: list[str] = []
        self.local = LocalHost()
        self.run: str = options["run_name"]
        self.checks = checking.select(names, options["stage"], found)
        self.job_checks: list[Check] = []
        if self.run:
            given = [c for c in self.checks if "job" in c.stages]
            self.job_checks = given or checking.select((), "job", found)
            self.checks = [c for c in self.checks if "job" not in c.stages]
        self.facts: RunFacts | None = None
        self.moments: list[tuple[Recorder, Any]] = []
        self.verdicts: list[Verdict] = []
        people = (os.environ.get(n, "") for n in ("USER", "LOGNAME", "SUDO_USER"))
        plain = bool(_NO_NAME.fullmatch(self.run))
        self.redact = Redactor.of(
            self.local, users=people, jobs=() if plain else [self.run], job_names=True,
            keep_names=options["keep_names"],
        )  # fmt: skip
        if plain and not options["keep_names"]:
            self.remarks.append(f"the run's name, {self.run!r}, is a plain word and was left in")

    def look(self, out: Output) -> None:
        """Every moment in its turn. Raises ConfigError, StoreError."""
        if not self.run:
            recorder = Recorder(self.local, self.folder, keep_variables=RANK_VARIABLES)
            self.verdicts = [checking.run(c, recorder) for c in self.checks]
            self.moments = [(recorder, None)]
            return
        from clustertools.cli import bundle

        facts = bundle.run_facts(
            self.run, self.options["state"], [os.path.abspath(p) for p in self.options["logs"]],
            os.path.abspath(self.options["checkpoints"]) if self.options["checkpoints"] else "",
        )  # fmt: skip
        self.facts = facts
        if facts.job is None:
            self.remarks.append(f"the job of {self.run} could not be looked at: {facts.why}")
        host = bundle.Tails(self.local, bundle.log_paths(facts))
        past: dict[str, Mapping[str, Any]] = {}
        for number in range(self.options["moments"]):
            if number:
                out.note(f"moment {number} of {self.options['moments']} is recorded")
                time.sleep(self.options["every"])
                facts = facts.look()
            recorder = Recorder(host, self.folder, keep_variables=RANK_VARIABLES)
            verdicts = bundle.look(recorder, self.checks, self.job_checks, facts.job, past)
            self.verdicts = self.verdicts or verdicts
            self.moments.append((recorder, facts))

    def save(self) -> list[Path]:
        """Write the folder; the files written."""
        provenance = f"recorded live on Linux {platform.release()} with `clustertools record`"
        about: dict[str, Any] = {
            "what": self.options["what"] or "recorded live, not yet described",
            "node_class": "",
            "checks": [c.name for c in self.checks],
            "expect_codes": sorted({code for v in self.verdicts for code in v.codes}),
            "expect_unknown": sorted({v.check for v in self.verdicts if v.blind}),
            "provenance": provenance,
        }
        written = self.moments[0][0].save(about, self.redact)
        _empty_identities(written)
        if self.facts is not None:
            from clustertools.cli import bundle

            data = bundle.run_data(
                self.facts, [*self.checks, *self.job_checks], self.moments, self.options["every"],
                about["what"], provenance,
            )  # fmt: skip
            written.append(dump_yaml(self.folder / "run.yaml", scrubbed(data, self.redact)))
            path = self.folder / "history.jsonl"
            path.write_text(
                bundle.json_lines(bundle.history(self.facts), self.redact), encoding="utf-8", errors="replace"
            )
            written.append(path)
        return written

    def differences(self) -> dict[str, str]:
        """Checks that judge the recording otherwise than the machine: the redaction took too much."""
        changed = {}
        host = RecordedHost(self.folder)
        job = self.moments[0][1].job if self.facts is not None else None
        if job is not None:
            job = from_data(Job, scrubbed(to_data(job), self.redact))
        live = {v.check: v for v in self.verdicts}
        for check in (*self.checks, *self.job_checks):
            before = live.get(check.name)
            if before is None:
                continue
            after = checking.run(check, host, job=job if check in self.job_checks else None)
            if (after.status, after.codes) != (before.status, before.codes):
                why = f" ({after.blind})" if after.blind else ""
                changed[check.name] = f"{after.status.name}, was {before.status.name}{why}"
        if self.facts is not None:
            changed |= self._replayed()
        return changed

    def _replayed(self) -> dict[str, str]:
        from clustertools.replay import replay

        try:
            told = replay(self.folder, checks=checking.discover())
        except ClustertoolsError as exc:
            return {"replay": str(exc)}
        kinds = Counter(t.kind for t in told.transitions)
        what = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no incident"
        self.remarks.append(f"`clustertools replay {self.folder}` drives {told.passes} passes: {what}")
        return {}


def _empty_identities(written: Sequence[Path]) -> None:
    """Files whose whole content is a serial number or an asset tag have no field name to go by."""
    # /sys/class/dmi/id/product_serial, .../board_asset_tag
    for path in written:
        if re.search(r"(serial|asset_tag|_uuid)$", path.name) and path.read_text(errors="replace").strip():
            path.write_text("REDACTED\n", encoding="utf-8")
