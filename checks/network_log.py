"""What the kernel log says of network adapters: modules, links, firmware, queues, and the way to the GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.kernel_groups import Group, Rule, Rules, follow

HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    """How long an event of each kind counts after its last repetition."""

    #: A driver repeats these each second to each minute while they last.
    state_seconds: float = HOUR
    #: An adapter that failed once: a day, so that no job of the morning starts on last night's fault.
    adapter_seconds: float = 24 * HOUR
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


# mlx5 lines that say nothing of health are in none of the shapes: a command ACCESS_REG that fails is how a
# restricted function answers each reading of its counters (leptonai/gpud issues 1164 and 1167)
RULES: Rules = {
    "nic-hot": Rule(
        "NicModuleHot", Status.WARNING, Remedy.INSPECT, "state_seconds",
        "the module or cable in a port is too hot", "nic@",
    ),
    "nic-module": Rule(
        "NicModuleError", Status.WARNING, Remedy.INSPECT, "adapter_seconds",
        "the adapter refuses the module or cable in a port", "nic@",
    ),
    "nic-unplugged": Rule(
        "NicCableUnplugged", Status.WARNING, Remedy.INSPECT, "adapter_seconds",
        "a cable was pulled, or its module died", "nic@", ends="nic-plugged", only_after_end=True,
    ),
    # no answer from its firmware, or the firmware's own word: nothing goes through it, and no job may start
    "nic-health": Rule(
        "NicHealthFailed", Status.CRITICAL, Remedy.REBOOT_NODE, "adapter_seconds",
        "a network adapter's firmware failed", "nic@", ends="nic-recovered",
    ),
    # NVIDIA/NVSentinel counts it as fatal; by itself it may also be one late command on a busy adapter
    "nic-command": Rule(
        "NicCommandTimeout", Status.WARNING, Remedy.REBOOT_NODE, "adapter_seconds",
        "a network adapter did not answer its driver's command", "nic@",
    ),
    "nic-transmit": Rule(
        "NicTransmitTimeout", Status.WARNING, Remedy.INSPECT, "state_seconds",
        "an interface could not send: its queue stood still", "nic@",
    ),
    "carrier-lost": Rule(
        "NetCarrierLost", Status.WARNING, Remedy.INSPECT, "adapter_seconds",
        "an interface lost its link and has not got it back", "nic@", ends="carrier-back",
        only_after_end=True,
    ),
    # the kernel repeats it every 10 s; node-problem-detector asks for three
    "netdevice-stuck": Rule(
        "NetdeviceStuck", Status.WARNING, Remedy.REBOOT_NODE, "state_seconds",
        "an interface cannot be removed, and with it no container or namespace ends", least=3,
    ),
    "peermem": Rule(
        "PeermemInvalidContext", Status.WARNING, Remedy.RESTART_APP, "state_seconds",
        "the way from the network into GPU memory (nvidia-peermem) met a context that was gone",
    ),
}  # fmt: skip


def _finding(ctx: Context, group: Group) -> Finding:
    rule = RULES[group.kind]  # type: ignore[index]
    say = ctx.critical if rule.status is Status.CRITICAL else ctx.warning
    # while it stands it is reported again on each look, so that it ends by silence
    return say(
        rule.code, group.part, group.summary(rule), time=group.last_time, evidence=group.evidence,
        remedy=rule.remedy,
    )  # fmt: skip


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={rule.code: rule.meaning for rule in RULES.values()},
)
def network_log(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the kernel wrote about network adapters since the last look, and what of it stands.

    A port that never had a cable, or an interface that never had a link on this boot, is none that lost it.
    That lines were lost is told by `host_kernel`, which reads the same log.
    """
    followed = follow(ctx.host, ctx.past, RULES, ctx.limits)
    ctx.remember.update(followed.memory)
    for group in followed.groups:
        yield _finding(ctx, group)
