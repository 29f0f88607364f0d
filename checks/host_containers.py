"""The container runtime and the kubelet, where they are in use, answer on their sockets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.endpoints import probe
from clustertools.sources.processes import programs

#: Daemon, as the kernel names it -> what to ask. The paths are each project's default.
_DAEMONS = {
    "containerd": ("grpc:/run/containerd/containerd.sock",),
    "crio": ("grpc:/run/crio/crio.sock",),
    "dockerd": ("docker:/run/docker.sock",),
    # --healthz-port of the kubelet, default 10248, on 127.0.0.1
    "kubelet": ("http:127.0.0.1:10248/healthz",),
}


@dataclass(frozen=True)
class Limits:
    # node-problem-detector's health checker gives crictl and the kubelet 10 s; a runtime at work takes one
    answer_seconds: float = 5.0


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    codes={"ContainerRuntimeSilent": "the container runtime or the kubelet runs and does not answer"},
    # a runtime that unpacks an image may pause
    confirm=3,
    needs={"root"},
    timeout_seconds=15,
)
def host_containers(ctx: Context) -> Iterator[Finding | Reading]:
    """containerd, CRI-O, Docker and the kubelet: those that run are asked, and must answer in time.

    A daemon that does not run is not asked: whether it should is `expect["services"]` of `host_services`.
    Docker's and containerd's sockets are root's alone.
    """
    running = programs(ctx.host)
    asked = [name for name in _DAEMONS if name in running]
    if not asked:
        raise ctx.skip("no container runtime runs here")
    what = {place: name for name in asked for place in _DAEMONS[name]}
    for answer in probe(ctx.host, what, deadline_seconds=ctx.limits.answer_seconds):
        name = what[answer.what]
        if answer.denied:
            ctx.unseen(f"only root may ask {name}")
        elif "No such file" in answer.error or ("refused" in answer.error and name == "kubelet"):
            ctx.note(f"{name} runs, but not with its usual address {answer.what.partition(':')[2]}")
        elif answer.error:
            yield ctx.warning(
                "ContainerRuntimeSilent", name, f"{name} runs and does not answer: {answer.error}",
                evidence=(answer.what,), remedy=Remedy.INSPECT,
            )  # fmt: skip
        else:
            yield ctx.reading("container_runtime_answer_seconds", answer.elapsed_seconds, name)
