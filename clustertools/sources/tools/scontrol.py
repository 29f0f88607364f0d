"""`scontrol show job`, `show node` and `show partition` of Slurm, also with -o, -d, and by --json.

Records of `Key=Value` (slurm's src/api/{job,node,partition}_info.c). Values may hold blanks and equal signs,
so only keys that Slurm writes begin a new one, and each only once in a record.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools import slurm_values as values

KIND = "scontrol"

FIELDS = {
    "jobs[].job_id": "of the job, or of the one array task",
    "jobs[].array_job_id": "of the array that it belongs to; null outside one",
    "jobs[].array_task": "its task or tasks in the array: 3, or 1-3",
    "jobs[].name": "job name",
    "jobs[].user": "who submitted it",
    "jobs[].account": "account that pays; null without accounting",
    "jobs[].partition": "partition",
    "jobs[].state": "RUNNING, PENDING, COMPLETING ...",
    "jobs[].reason": "why it waits or ended so; null when there is none",
    "jobs[].nodes": "its nodes, as a node set",
    "jobs[].excluded_nodes": "nodes that it must not get",
    "jobs[].batch_host": "the node of the batch script",
    "jobs[].node_count": "nodes that it has or wants",
    "jobs[].exit_code": "of the batch script, when it ended",
    "jobs[].signal": "that ended it; 0: none",
    "jobs[].restarts": "times it was requeued",
    "jobs[].requeue": "whether it may be requeued",
    "jobs[].elapsed_seconds": "run time so far",
    "jobs[].time_limit_seconds": "null: without limit",
    "jobs[].submit_time": "ISO; local to the cluster in text, UTC (Z) in JSON",
    "jobs[].start_time": "as submit_time",
    "jobs[].end_time": "as submit_time",
    "jobs[].command": "the batch script",
    "jobs[].work_dir": "its working directory",
    "jobs[].stdout": "file of the standard output",
    "jobs[].stderr": "file of the standard error",
    "jobs[].fields": "all of the record by Slurm's own keys, as text (not in JSON)",
    "nodes[].name": "node name",
    "nodes[].states[]": "its state and the flags beside it: IDLE, DRAIN ...",
    "nodes[].reason": "why it is drained or down, without who and when",
    "nodes[].reason_by": "who set it",
    "nodes[].reason_time": "when it was set, ISO",
    "nodes[].gres": "generic resources as configured: gpu:h100:8",
    "nodes[].cpus": "CPUs",
    "nodes[].cpus_allocated": "CPUs in use by jobs",
    "nodes[].memory_mib": "memory as configured",
    "nodes[].partitions[]": "partitions that it is in",
    "nodes[].version": "of its slurmd",
    "nodes[].boot_time": "ISO, as above",
    "nodes[].fields": "as of a job",
    "partitions[].name": "partition",
    "partitions[].state": "UP, DOWN, DRAIN, INACTIVE",
    "partitions[].nodes": "its nodes, as a node set",
    "partitions[].node_count": "how many they are",
    "partitions[].is_default": "whether jobs go there that name none",
    "partitions[].max_time_seconds": "null: without limit",
    "partitions[].fields": "as of a job",
}

_FIRST = {"JobId": "jobs", "NodeName": "nodes", "PartitionName": "partitions"}
#: The keys of all versions from 20.11 to 25.05.
_KEYS = frozenset(
    (
        # job
        "JobId ArrayJobId ArrayTaskId ArrayTaskThrottle HetJobId HetJobOffset HetJobIdSet JobName "
        "UserId GroupId MCS_label Priority Nice Account QOS WCKey JobState Reason FailedNode "
        "Dependency Requeue Restarts BatchFlag Reboot ExitCode DerivedExitCode RunTime TimeLimit "
        "TimeMin SubmitTime EligibleTime AccrueTime StartTime EndTime Deadline CrontabSpec "
        "PreemptEligibleTime PreemptTime SuspendTime SecsPreSuspend LastSchedEval Scheduler "
        "Partition AllocNode:Sid ReqNodeList ExcNodeList NodeList SchedNodeList BatchHost "
        "StepMgrEnabled NumNodes NumCPUs NumTasks CPUs/Task ReqB:S:C:T TRES ReqTRES AllocTRES "
        "Socks/Node NtasksPerN:B:S:C CoreSpec ThreadSpec JOB_GRES Nodes CPU_IDs Mem GRES "
        "MinCPUsNode MinMemoryNode MinMemoryCPU MinTmpDiskNode Features DelayBoot Reservation "
        "OverSubscribe Contiguous Licenses Network Command WorkDir StdErr StdIn StdOut Power "
        "Comment AdminComment SystemComment Container ContainerID TresPerNode TresPerJob "
        "TresPerTask TresPerSocket TresBind TresFreq CpusPerTres MemPerTres NtasksPerTRES "
        "MailUser MailType BurstBuffer BurstBufferState Switches Extra ClusterFeatures Prefer "
        "BatchFeatures SLUID SegmentSize SiblingJobs Origin OriginCluster LicensesAlloc ResvPorts "
        "BlockID "
        # node
        "NodeName Arch CoresPerSocket CPUAlloc CPUEfctv CPUTot CPULoad AvailableFeatures "
        "ActiveFeatures Gres GresDrain GresUsed NodeAddr NodeHostName Port Version OS RealMemory "
        "AllocMem FreeMem Sockets Boards CoreSpecCount CPUSpecList MemSpecLimit State "
        "ThreadsPerCore TmpDisk Weight Owner Partitions NextState BootTime SlurmdStartTime "
        "LastBusyTime ResumeAfterTime CfgTRES CapWatts CurrentWatts AveWatts LowestJoules "
        "ConsumedJoules ExtSensorsJoules ExtSensorsWatts ExtSensorsTemp InstanceId InstanceType "
        "ReservationName Topology CertFlags Parameters GPUSpec "
        # partition
        "PartitionName AllowGroups AllowAccounts AllowQos DenyAccounts DenyQos AllocNodes Default "
        "QoS DefaultTime DisableRootJobs ExclusiveUser ExclusiveTopo GraceTime Hidden MaxNodes "
        "MaxTime MinNodes LLN MaxCPUsPerNode MaxCPUsPerSocket PriorityJobFactor PriorityTier "
        "RootOnly ReqResv OverTimeLimit PreemptMode TotalCPUs TotalNodes SelectTypeParameters "
        "JobDefaults DefMemPerNode DefMemPerCPU MaxMemPerNode MaxMemPerCPU TRESBillingWeights "
        "NodeSets AllowedNodes Alternate ResumeTimeout SuspendTimeout SuspendTime PowerDownOnIdle "
    ).split()
)
# JobId=1 JobName=train:a=b        ReqB:S:C:T=0:0:*:*        CPUs/Task=1
_KEY = re.compile(r"(?:^|(?<=\s))([A-Za-z][A-Za-z0-9_:/]*)=")
# bad gpu 3 [xid 79] = x [root@2026-11-21T14:05:16]
_WHO = re.compile(r"(.*?)(?: ?\[([^\[\]@]+)@([0-9T:-]+)\])?", re.DOTALL)


def recognise(text: str) -> bool:
    """Whether the first record begins as one of Slurm's; or it is the JSON of a scontrol."""
    if re.match(
        r"\s*(JobId=\d+ (.* )?JobName=|(Job|Heterogeneous)|JobId=\d|NodeName=\S+ |PartitionName=\S)", text
    ):
        return bool(re.match(r"\s*(JobId|NodeName|PartitionName)=", text))
    return values.is_document(text, "partitions") or (
        values.is_document(text, "nodes") and '"scontrol"' in text[:4000]
    )


def read(text: str) -> dict[str, Any]:
    """The records by what they are of. Raises Unparsable where there is none, or for a line without a key."""
    if text.lstrip()[:1] == "{":
        return _from_json(text)
    told: dict[str, Any] = {"jobs": [], "nodes": [], "partitions": []}
    record: dict[str, str] = {}
    for line in text.splitlines():
        pairs = _pairs(line, record)
        if pairs and pairs[0][0] in _FIRST:
            record = {}
            pairs = _pairs(line, record)
            told[_FIRST[pairs[0][0]]].append(record)
        elif line.strip() and (not pairs or not record):
            raise Unparsable("scontrol: a line without a key that Slurm has", line)
        for key, value in pairs:
            record.setdefault(key, value)
    if not any(told.values()):
        raise Unparsable("scontrol: no record of a job, a node or a partition", text)
    return {
        "jobs": [_job(found) for found in told["jobs"]],
        "nodes": [_node(found) for found in told["nodes"]],
        "partitions": [_partition(found) for found in told["partitions"]],
    }


def _pairs(line: str, record: dict[str, str]) -> list[tuple[str, str]]:
    """The keys and values of one line; a key that the record has already is a part of a value."""
    starts: list[re.Match[str]] = []
    taken = set(record)
    for match in _KEY.finditer(line):
        # with -d a job has a line "Nodes=n1 CPU_IDs=0 Mem=100 GRES=" for each of its nodes
        if match[1] in _KEYS and (match[1] not in taken or match[1] in ("Nodes", "CPU_IDs", "Mem", "GRES")):
            starts.append(match)
            taken.add(match[1])
    if not starts or line[: starts[0].start()].strip():
        first = re.match(r"\s*(JobId|NodeName|PartitionName)=", line)
        return _pairs(line, {}) if first and record else []
    ends = [match.start() for match in starts[1:]] + [len(line)]
    return [(match[1], line[match.end() : end].strip()) for match, end in zip(starts, ends, strict=True)]


def _job(record: dict[str, str]) -> dict[str, Any]:
    code, signal = values.exit_code(record.get("ExitCode", ""))
    get = _getter(record)
    return {
        "job_id": values.count(record.get("JobId", "")),
        "array_job_id": values.count(record.get("ArrayJobId", "")), "array_task": get("ArrayTaskId"),
        "name": record.get("JobName", ""), "user": re.sub(r"\(\d+\)$", "", record.get("UserId", "")),
        "account": get("Account"), "partition": get("Partition"), "state": record.get("JobState", ""),
        "reason": get("Reason"), "nodes": get("NodeList"), "excluded_nodes": get("ExcNodeList"),
        "batch_host": get("BatchHost"), "node_count": values.count(record.get("NumNodes", "")),
        "exit_code": code, "signal": signal, "restarts": values.count(record.get("Restarts", "")),
        "requeue": {"1": True, "0": False}.get(record.get("Requeue", "")),
        "elapsed_seconds": values.seconds(record.get("RunTime", "")),
        "time_limit_seconds": values.seconds(record.get("TimeLimit", "")),
        "submit_time": get("SubmitTime"), "start_time": get("StartTime"),
        "end_time": get("EndTime"),
        "command": get("Command"), "work_dir": get("WorkDir"), "stdout": get("StdOut"),
        "stderr": get("StdErr"),
        "fields": record,
    }  # fmt: skip


def _node(record: dict[str, str]) -> dict[str, Any]:
    get = _getter(record)
    match = _WHO.fullmatch(record.get("Reason", ""))
    assert match is not None
    # IDLE+DRAIN, and "*" for one that does not answer
    state = record.get("State", "")
    states = re.sub(r"[*~#!%$@^-]+$", "", state).split("+")
    return {
        "name": record.get("NodeName", ""),
        "states": [*states, *(["NOT_RESPONDING"] if "*" in state else [])],
        "reason": values.text_or_none(match[1]), "reason_by": match[2], "reason_time": match[3],
        "gres": get("Gres"), "cpus": values.count(record.get("CPUTot", "")),
        "cpus_allocated": values.count(record.get("CPUAlloc", "")),
        "memory_mib": values.count(record.get("RealMemory", "")),
        "partitions": (get("Partitions") or "").split(",") if get("Partitions") else [],
        "version": get("Version"), "boot_time": get("BootTime"), "fields": record,
    }  # fmt: skip


def _partition(record: dict[str, str]) -> dict[str, Any]:
    get = _getter(record)
    return {
        "name": record.get("PartitionName", ""), "state": get("State"), "nodes": get("Nodes"),
        "node_count": values.count(record.get("TotalNodes", "")),
        "is_default": record.get("Default") == "YES",
        "max_time_seconds": values.seconds(record.get("MaxTime", "")), "fields": record,
    }  # fmt: skip


def _getter(record: dict[str, str]) -> Any:
    return lambda key: values.text_or_none(record.get(key, ""))


def _from_json(text: str) -> dict[str, Any]:
    data = values.document(text, "scontrol", "jobs", "nodes", "partitions")
    try:
        return {
            "jobs": [json_job(job) for job in data.get("jobs", ())],
            "nodes": [json_node(node) for node in data.get("nodes", ())],
            "partitions": [_json_partition(one) for one in data.get("partitions", ())],
        }
    except (AttributeError, TypeError, ValueError, IndexError) as exc:
        raise Unparsable("scontrol: JSON of an unknown form", text) from exc


def json_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job as `squeue --json` and `scontrol show job --json` have it."""
    ended = job.get("exit_code")
    if isinstance(ended, dict):
        code = values.number(ended.get("return_code"))
        signal = values.number((ended.get("signal") or {}).get("id"))
    else:  # the status of wait(2)
        status = values.number(ended)
        code, signal = (None, None) if status is None else (int(status) >> 8, int(status) & 0x7F)
    limit = values.number(job.get("time_limit"))
    return {
        "job_id": _whole(job.get("job_id")), "array_job_id": _whole(job.get("array_job_id")) or None,
        "array_task": str(job.get("array_task_string") or "") or _text(_whole(job.get("array_task_id"))),
        "name": str(job.get("name", "")), "user": str(job.get("user_name", "")),
        "account": values.text_or_none(str(job.get("account") or "")), "partition": job.get("partition"),
        "state": values.words(job.get("job_state"))[0],
        "reason": values.text_or_none(str(job.get("state_reason") or "")), "nodes": job.get("nodes") or None,
        "excluded_nodes": job.get("excluded_nodes") or None, "batch_host": job.get("batch_host") or None,
        "node_count": _whole(job.get("node_count")), "exit_code": None if code is None else int(code),
        "signal": int(signal or 0), "restarts": _whole(job.get("restart_cnt")),
        "requeue": job.get("requeue"),
        "elapsed_seconds": None, "time_limit_seconds": None if limit is None else limit * 60,
        "submit_time": values.moment(job.get("submit_time")),
        "start_time": values.moment(job.get("start_time")),
        "end_time": values.moment(job.get("end_time")), "command": job.get("command") or None,
        "work_dir": job.get("current_working_directory"), "stdout": job.get("standard_output") or None,
        "stderr": job.get("standard_error") or None, "fields": {},
    }  # fmt: skip


def json_node(node: dict[str, Any]) -> dict[str, Any]:
    """A node as `sinfo --json` of old and `scontrol show node --json` have it."""
    states = [*values.words(node.get("state")), *(str(flag) for flag in node.get("state_flags", ()))]
    return {
        "name": str(node.get("name", "")), "states": states, "reason": str(node.get("reason") or "") or None,
        "reason_by": node.get("reason_set_by_user") or None,
        "reason_time": values.moment(node.get("reason_changed_at")), "gres": node.get("gres") or None,
        "cpus": _whole(node.get("cpus")), "cpus_allocated": _whole(node.get("alloc_cpus")),
        "memory_mib": _whole(node.get("real_memory")), "partitions": list(node.get("partitions") or ()),
        "version": node.get("version") or node.get("slurmd_version"),
        "boot_time": values.moment(node.get("boot_time")), "fields": {},
    }  # fmt: skip


def _json_partition(one: dict[str, Any]) -> dict[str, Any]:
    limit = values.number((one.get("maximums") or {}).get("time"))
    nodes = one.get("nodes") or {}
    return {
        "name": str(one.get("name", "")), "state": values.words((one.get("partition") or {}).get("state"))[0],
        "nodes": nodes.get("configured"), "node_count": _whole(nodes.get("total")), "is_default": None,
        "max_time_seconds": None if limit is None else limit * 60, "fields": {},
    }  # fmt: skip


def _whole(value: Any) -> int | None:
    found = values.number(value)
    return None if found is None else int(found)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)
