"""Saves what will be gone after a kill, from all nodes of a job: stacks, GPUs, kernel lines, logs, dumps.

    evidence(host, job, folder, looker=looker, how="auto")      name -> its first line, or why it is not there

It changes nothing of the job. Only the ranks of one that is about to be ended are asked for dumps of
PyTorch's flight recorder.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clustertools.actions import Progress, Scene, StepFunction
from clustertools.actions.evidence_folder import EvidenceFolder
from clustertools.errors import ClustertoolsError
from clustertools.host import Host
from clustertools.model import Action, Job, RankState, from_data, to_data
from clustertools.sources import flight_recorder, kernel
from clustertools.sources.job_look import JobLook, Looker, LookOrder, LookRequest, NodeLook, look
from clustertools.sources.rank_files import BringsFiles, JobFiles
from clustertools.sources.stacks import Stack, fold, rank_set, render

#: One folder of evidence may not fill the state disk.
LOG_TAIL_BYTES = 256 << 10
KERNEL_LINES = 2000
#: Of torchrun's files beside the logs.
MOST_BESIDE = 40
_JOB_ID = re.compile(r"\d{1,10}(?:[_+]\d{1,10})?")

How = Literal["auto", "ssh", "srun", "none"]


def evidence(
    host: Host,
    job: Job | None,
    folder: Path,
    *,
    looker: Looker | None = None,
    how: How = "auto",
    because: str = "",
    ask_dumps: bool = True,
) -> dict[str, str]:
    """Write everything that can still be seen into `folder`; file name -> what it holds or why it is empty.

    Without a `looker` only this machine is looked at. What cannot be looked at is said in `missing.txt` and
    stops nothing. Done again, it adds what is new. Raises ActionFailed when the folder cannot be written.
    """  # fmt: skip
    with EvidenceFolder(folder, host.now(), because) as saved:
        order = _order(job, how)
        if order is not None:
            _nodes(host, order, looker, saved, ask_dumps=ask_dumps)
        if job and job.state != "pending":
            for number, path in enumerate((*job.log_paths, job.metrics_path)):
                if path:
                    _save(saved, f"log-{number}-{_safe(Path(path).name)}", path, partial(_tail, host, path))
            _beside_the_logs(host, job, saved)
        if job and not job.pids and _JOB_ID.fullmatch(job.id):
            _save(saved, "slurm-job.txt", "scontrol show job", partial(_record, host, job.id))
        if looker is None or job is None or job.pids:
            _save(saved, "kernel.txt", "the kernel log of this machine", partial(_kernel, host))
        return saved.told


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """What flight recorders said: the ranks' states, of how many ranks, and where each of them lives."""

    states: tuple[RankState, ...] = ()
    world_size: int = 0
    rank_nodes: Mapping[int, str] = dataclasses.field(default_factory=dict)


def recorded(folder: Path) -> Recorded:
    """What the flight recorders' dumps in that folder said; nothing where there is none that can be read."""
    try:
        data = json.loads((folder / "flight-recorder.json").read_text(encoding="utf-8"))
        dumps = [from_data(flight_recorder.Dump, one) for one in data["dumps"]]
        nodes = {int(rank): str(node) for rank, node in data.get("nodes", {}).items()}
        return Recorded(tuple(s for dump in dumps for s in dump.states), int(data["world_size"]), nodes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Recorded()


def _save(saved: EvidenceFolder, name: str, source: str, gather: Callable[[], str]) -> None:
    try:
        saved.add(name, gather(), source, is_log=name.startswith(("log-", "beside-")))
    except ClustertoolsError as exc:
        saved.miss(name, str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever breaks here, the run must be restarted all the same
        saved.miss(name, f"the look itself failed: {type(exc).__name__}: {exc}")


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-100:]


# the nodes


def _order(job: Job | None, how: How) -> LookOrder | None:
    """The look at the job's nodes; None where it has no processes to look for."""
    if job is None or job.state == "pending" or not (job.pids or _JOB_ID.fullmatch(job.id)):
        return None
    request = LookRequest("" if job.pids else job.id, job.run, job.pids, kernel_since=job.started_at)
    return LookOrder(request, job.nodes, how)


def _nodes(
    host: Host, order: LookOrder, looker: Looker | None, saved: EvidenceFolder, *, ask_dumps: bool
) -> None:
    """What the nodes show, and what their ranks left there, side by side."""
    run = order.request.run
    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(
            lambda: looker.look([order])[run] if looker else JobLook((look(host, order.request),))
        )
        bringing = (
            pool.submit(looker.bring, order, ask_dumps=ask_dumps) if isinstance(looker, BringsFiles) else None
        )
        try:
            seen = looking.result()
        except Exception as exc:  # noqa: BLE001 - what is saved of the logs counts even so
            seen = JobLook((), {"the nodes": f"the look itself failed: {type(exc).__name__}: {exc}"})
        try:
            files = bringing.result() if bringing else JobFiles()
        except Exception as exc:  # noqa: BLE001 - as above
            files = JobFiles(unseen={"the nodes": f"the look itself failed: {type(exc).__name__}: {exc}"})
    _looks(seen, saved)
    _files(files, saved)


def _looks(seen: JobLook, saved: EvidenceFolder) -> None:
    source = ", ".join(one.node for one in seen.nodes)
    for node, why in seen.unseen.items():
        saved.miss(f"look at {node}", why)
    for one in seen.nodes:
        for why in one.unseen:
            saved.miss(f"{one.node}: {why.partition(':')[0]}", why)
    if any(one.stacks for one in seen.nodes):
        saved.add("stacks.txt", _stacks(seen), source)
    else:
        saved.miss("stacks.txt", "no stack could be seen")
    if seen.nodes:
        inside = {one.node: to_data(one.processes) for one in seen.nodes}
        saved.add("processes.json", json.dumps(inside, indent=1), source)
        saved.add("nodes.json", json.dumps([_about(one) for one in seen.nodes], indent=1), source)
    lines = [f"{one.node} {line}" for one in seen.nodes for line in one.kernel]
    if lines:
        saved.add("kernel-nodes.txt", "\n".join(lines), source)


def _stacks(seen: JobLook) -> str:
    """The stacks of all ranks, folded by rank set, the odd ones first; then which rank is where."""
    found = [stack for one in seen.nodes for stack in one.stacks]
    nameless = any(stack.rank < 0 for stack in found)
    text = render(fold(_by_pid(stack) for stack in found))
    text += "\n\n(no process names its rank: these are numbers of processes)\n" if nameless else "\n\n"
    for one in seen.nodes:
        ranks = [int(rank) for rank in one.ranks]
        text += f"{one.node}: {f'ranks {rank_set(ranks)}' if ranks else 'no rank'}\n"
        text += "".join(f"{one.node}: {why}\n" for why in one.unseen)
    return text + "".join(f"{node}: not seen: {why}\n" for node, why in seen.unseen.items())


def _by_pid(stack: Stack) -> Stack:
    return dataclasses.replace(stack, rank=stack.pid) if stack.rank < 0 else stack


def _about(one: NodeLook) -> dict[str, Any]:
    left_out = ("processes", "stacks", "kernel")
    return {key: value for key, value in to_data(one).items() if key not in left_out}


def _files(brought: JobFiles, saved: EvidenceFolder) -> None:
    for node, why in brought.unseen.items():
        saved.miss(f"files of {node}", why)
    for node, about in brought.gathered.items():
        for number, why in enumerate(about.unseen):
            saved.miss(f"files of {node} ({number})", why)
    dumps = [dump for about in brought.gathered.values() for dump in about.dumps]
    world = max((about.world_size for about in brought.gathered.values()), default=0)
    if dumps:
        nodes = {str(d.rank): node for node, about in brought.gathered.items() for d in about.dumps}
        data = json.dumps({"world_size": world, "nodes": nodes, "dumps": to_data(dumps)}, indent=1)
        said = "\n".join(flight_recorder.summary(dumps, world)) or "all ranks are at the same place"
        saved.add("flight-recorder.txt", said, f"{len(dumps)} dumps")
        saved.add("flight-recorder.json", data, f"{len(dumps)} dumps")
    for node, files in brought.files.items():
        for file in files:
            saved.add(f"{_safe(node)}-{_safe(file.name)}", file.data, f"{node}:{file.path}")


# the head


def _tail(host: Host, path: str) -> str:
    size = host.stat(path).size_bytes
    return host.read(path, max(0, size - LOG_TAIL_BYTES), LOG_TAIL_BYTES)


def _beside_the_logs(host: Host, job: Job, saved: EvidenceFolder) -> None:
    """torchrun's own files where --log-dir is beside the job's log, or that folder itself."""
    found: dict[str, float] = {}
    for folder in dict.fromkeys(str(Path(path).parent) for path in job.log_paths if path.startswith("/")):
        for below in ("*", "*/*"):
            for name in ("error.json", "stderr.log"):
                try:
                    for path in host.glob(f"{glob.escape(folder)}/{below}/attempt_*/*/{name}"):
                        found[path] = host.stat(path).mtime
                except ClustertoolsError as exc:
                    saved.miss(f"beside the logs in {folder}", str(exc))
    fresh = [path for path, changed in found.items() if changed >= job.started_at]
    newest = sorted(fresh, key=lambda path: found[path], reverse=True)
    for path in newest[:MOST_BESIDE]:
        name = "beside-" + "-".join(_safe(part) for part in Path(path).parts[-4:])
        _save(saved, name, path, partial(_tail, host, path))
    if len(newest) > MOST_BESIDE:
        saved.miss("beside the logs", f"{len(newest)} files, the newest {MOST_BESIDE} are kept")


def _record(host: Host, job_id: str) -> str:
    return host.run("scontrol", "--details", "show", "job", job_id).check().stdout


def _kernel(host: Host) -> str:
    lines = kernel.read_kernel_log(host, "").lines[-KERNEL_LINES:]
    return "\n".join(f"{line.time:.6f} {line.text}" for line in lines)


def _capture(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    told = evidence(
        scene.host, scene.job, scene.evidence_folder, looker=scene.looker,
        how=scene.spec.look if scene.spec else "auto", because=action.because,
        ask_dumps=False,
    )  # fmt: skip
    seen = [name for name, text in told.items() if not text.startswith("not seen")]
    return Progress(
        "", {"folder": str(scene.evidence_folder)}, f"saved {', '.join(seen)} in {scene.evidence_folder}"
    )


STEPS: Mapping[str, StepFunction] = {"capture": _capture}
