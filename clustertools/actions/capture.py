"""Saves what will be gone after a kill: stacks, process states, kernel lines, the tails of the logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clustertools.actions import Progress, Scene, StepFunction
from clustertools.errors import ActionFailed, ClustertoolsError
from clustertools.host import Host
from clustertools.model import Action, Job, to_data
from clustertools.sources import kernel, processes, stacks

#: One folder of evidence may not fill the state disk.
LOG_TAIL_BYTES = 256 << 10
KERNEL_LINES = 2000


def evidence(host: Host, job: Job | None, folder: Path) -> dict[str, str]:
    """Write everything that can still be seen into `folder`; file name -> what it holds or why it is empty.

    What cannot be looked at is said in `missing.txt` and stops nothing. Raises ActionFailed when the folder
    itself cannot be written.
    """
    told: dict[str, str] = {}
    try:
        # stacks, command lines and logs are for the owner's eyes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if job and job.pids:
            told |= _save(folder, "stacks.txt", lambda: _stacks(host, job))
            told |= _save(folder, "processes.json", lambda: _processes(host, job))
        if job and job.state != "pending":
            for number, path in enumerate((*job.log_paths, job.metrics_path)):
                if path:
                    name = f"log-{number}-{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(path).name)}"
                    told |= _save(folder, name, lambda path=path: _tail(host, path))  # type: ignore[misc]
        told |= _save(folder, "kernel.txt", lambda: _kernel(host))
        missing = [f"{name}: {text}" for name, text in told.items() if text.startswith("not seen")]
        (folder / "missing.txt").write_text("\n".join(missing), encoding="utf-8")
    except OSError as exc:
        raise ActionFailed(f"could not save the evidence in {folder}: {exc.strerror}") from exc
    return told


def _save(folder: Path, name: str, gather: Callable[[], str]) -> dict[str, str]:
    try:
        text = gather()
    except ClustertoolsError as exc:
        return {name: f"not seen: {exc}"}
    except Exception as exc:  # noqa: BLE001 - whatever breaks here, the run must be restarted all the same
        return {name: f"not seen: the look itself failed: {type(exc).__name__}: {exc}"}
    (folder / name).write_text(text, encoding="utf-8", errors="replace")
    return {name: text.splitlines()[0][:200] if text else "empty"}


def _stacks(host: Host, job: Job) -> str:
    by_rank = processes.ranks(host, job.pids)
    report = stacks.stacks(host, by_rank or dict(enumerate(job.pids)))
    text = stacks.render(stacks.fold(report.stacks))
    unseen = "".join(f"rank {rank}: not seen: {why}\n" for rank, why in sorted(report.unseen.items()))
    return f"{text}\n{unseen}"


def _processes(host: Host, job: Job) -> str:
    seen = processes.processes(host)
    inside = [to_data(seen[pid]) for pid in processes.tree(seen, job.pids) if pid in seen]
    return json.dumps(inside, indent=1)


def _tail(host: Host, path: str) -> str:
    size = host.stat(path).size_bytes
    return host.read(path, max(0, size - LOG_TAIL_BYTES), LOG_TAIL_BYTES)


def _kernel(host: Host) -> str:
    lines = kernel.read_kernel_log(host, "").lines[-KERNEL_LINES:]
    return "\n".join(f"{line.time:.6f} {line.text}" for line in lines)


def _capture(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    told = evidence(scene.host, scene.job, scene.evidence_folder)
    seen = [name for name, text in told.items() if not text.startswith("not seen")]
    return Progress(
        "", {"folder": str(scene.evidence_folder)}, f"saved {', '.join(seen)} in {scene.evidence_folder}"
    )


STEPS: Mapping[str, StepFunction] = {"capture": _capture}
