"""Which files a checkpoint must have, by the layout it is in, and what proves that the save reached its end.

    layout_of("checkpoint-500", entries)       # "hf-trainer"
    problems(layout, step, entries, verified)  # [] or what is missing, each with the reason

Most layouts name their own parts (a `.metadata`, an index, a rank count); where none does, `lacks` compares
with the next older checkpoint. Layouts are as written by Megatron-LM, PyTorch's distributed checkpoint,
DeepSpeed, Transformers, Lightning, NeMo, OLMo, torchtitan, fairseq and verl.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from clustertools.sources.checkpoint_cache import FileCache
from clustertools.sources.checkpoint_deepspeed import deepspeed_problems, is_deepspeed
from clustertools.sources.checkpoint_dimensions import DIMENSION, dimension_gaps
from clustertools.sources.checkpoint_files import (
    FileReport,
    Look,
    Segment,
    Torn,
    checksum,
    safetensors_header,
)
from clustertools.sources.checkpoint_layouts import Entry, is_weights
from clustertools.sources.checkpoint_pickle import HostilePickle, Stub, TornPickle, read_pickle
from clustertools.sources.checkpoint_problem import Problem, Verified, few


def layout_of(name: str, entries: Sequence[Entry]) -> str:
    """The layout of a checkpoint folder, in the word that reports use."""
    names = {e.name for e in entries}
    bases = {e.base for e in entries}
    top = {n.partition("/")[0] for n in names}
    if "metadata.json" in names and (".metadata" in names or _any_ending(names, ".distcp")):
        return "megatron-dist"
    if "metadata.json" in names and _any_ending(names, "/.zarray"):
        return "zarr"
    if any(t.startswith("mp_rank_") and "/" in n for n in names for t in (n.partition("/")[0],)):
        return "megatron"
    if any("/" not in n and is_deepspeed(n) for n in names):
        return "deepspeed"
    if "trainer_state.json" not in names and any(re.fullmatch(r"random_states_\d+\.pkl", n) for n in names):
        return "accelerate"
    if names & _HF_NAMES and (re.fullmatch(r".*checkpoint-\d+.*", name) or "trainer_state.json" in names):
        return "hf-trainer"
    if "model_and_optim/.metadata" in names or ".metadata.json" in names or {"train", "model"} <= top:
        return "olmo"
    if re.fullmatch(r"step\d+-unsharded", name):
        return "olmo"
    if "weights" in top and "context" in top:
        return "nemo"
    if "meta.pt" in names and (".metadata" in names or _any_ending(names, ".distcp")):
        return "lightning"
    if any(re.fullmatch(r"model_world_size_\d+_rank_\d+\.pt", b) for b in bases):
        return "verl"
    if "checkpoint_metadata.json" in names or any(DIMENSION.search(b) for b in bases):
        return "nanotron"
    if ".metadata" in bases or _any_ending(names, ".distcp"):
        return "dcp"
    return "directory"


_HF_NAMES = frozenset(
    "trainer_state.json training_args.bin config.json model.safetensors model.safetensors.index.json "
    "adapter_config.json adapter_model.safetensors pytorch_model.bin pytorch_model.bin.index.json "
    "optimizer.pt scheduler.pt".split()
)


def _any_ending(names: Iterable[str], ending: str) -> bool:
    return any(n.endswith(ending) for n in names)


def problems(
    name: str, layout: str, step: int | None, entries: Sequence[Entry], verified: Verified
) -> list[Problem]:
    """What is missing by the rules of the layout and by the numbers in the files' names."""
    if layout == "zarr":
        # Megatron-LM's former format: one folder a tensor, chunks without checksums; nothing says how many
        return [Problem("unknown", "is in the format zarr, which cannot be verified here")]
    found: list[Problem] = []
    if not any(is_weights(e.name) for e in entries):
        found.append(Problem("incomplete", "it holds no weights yet"))
    found += _indexes(entries)
    found += _index_present(entries)
    found += shard_gaps(entries)
    found += _metadata_present(layout, name.endswith(".ckpt"), entries)
    found += _inner_tracker(entries)
    if layout == "megatron":
        found += _model_parallel(entries)
    elif layout == "hf-trainer":
        found += _trainer_state(step, entries)
    elif layout == "olmo":
        found += _olmo(entries)
    elif layout == "nanotron":
        found += dimension_gaps(entries)
    for folder in sorted({e.folder for e in entries if is_deepspeed(e.base)}):
        found += deepspeed_problems(folder, entries, verified)
    return found


# distributed checkpoints: __<rank>_<n>.distcp, then .metadata by rename. torch/distributed/checkpoint
METADATA = re.compile(r"(__\d+)?\.metadata")


def _metadata_present(layout: str, is_lightning: bool, entries: Sequence[Entry]) -> list[Problem]:
    """Folders with parts of a distributed checkpoint and without the file that is written last."""
    names = {e.name for e in entries}
    with_parts = {e.folder for e in entries if e.base.endswith(".distcp")}
    with_index = {e.folder for e in entries if METADATA.fullmatch(e.base)}
    found = [
        Problem("incomplete", f"{folder}.metadata, which is written last, is missing")
        for folder in sorted(with_parts - with_index)
    ]
    # Megatron-LM writes common.pt only in its own distributed format, which ends with metadata.json; NeMo
    # keeps such a folder in `weights`
    found += [
        Problem("incomplete", f"{folder}metadata.json, which is written last, is missing")
        for folder in sorted(with_parts | with_index)
        if folder + "common.pt" in names and folder + "metadata.json" not in names
    ]
    # Lightning's FSDP strategy writes meta.pt after the distributed checkpoint
    if layout == "dcp" and is_lightning and "meta.pt" not in names:
        found.append(Problem("incomplete", "meta.pt, which is written last, is missing"))
    return found


@dataclass(frozen=True, slots=True)
class Division:
    """How a `.metadata` divides the files beside it: segments by relative path."""

    parts: Mapping[str, tuple[Segment, ...]]


def read_division(entry: Entry, look: Look) -> Division:
    """The files that a distributed checkpoint's `.metadata` names. Raises Torn, HostilePickle or OSError."""
    with open(entry.path, "rb") as file:
        try:
            root = read_pickle(file, allow=look.allow).root
        except TornPickle as exc:
            raise Torn(str(exc)) from exc
    storage = root.get("storage_data") if isinstance(root, (Stub, dict)) else None
    tensors = root.get("state_dict_metadata") if isinstance(root, (Stub, dict)) else None
    if not isinstance(storage, dict):
        raise Torn("names no files")
    tensors = tensors if isinstance(tensors, dict) else {}
    parts: dict[str, list[Segment]] = defaultdict(list)
    chunks: dict[str, int] = defaultdict(int)
    for index, info in storage.items():
        name = str(index.get("fqn", "")) if isinstance(index, Stub) else str(index)
        path, offset, length = (
            (info.get("relative_path"), info.get("offset"), info.get("length"))
            if isinstance(info, Stub)
            else (None, None, None)
        )
        if not (isinstance(path, str) and type(offset) is int and type(length) is int):
            raise Torn(f"does not say where {name[:80]} lies")
        outside = path not in parts and (os.path.isabs(path) or ".." in path.split("/"))
        if outside or offset < 0 or length < 0:
            raise HostilePickle(f"it points outside the checkpoint ({path[:80]})")
        about = tensors.get(name)
        is_tensor = isinstance(about, Stub) and about.label.endswith("TensorStorageMetadata")
        transformed = isinstance(info, Stub) and bool(info.get("transform_descriptors"))
        parts[path].append(Segment(offset, length, name, is_tensor, not transformed))
        chunks[name] += 1
    for name, about in tensors.items():
        if isinstance(about, Stub):
            _check_coverage(str(name), about, chunks[str(name)])
    return Division({path: tuple(segments) for path, segments in parts.items()})


def _check_coverage(name: str, about: Stub, stored: int) -> None:
    """A tensor's chunks must cover it, as PyTorch itself demands when it plans a save.

    torch/distributed/checkpoint/default_planner.py, `_validate_global_plan`: equal volumes.
    """
    pieces, size = about.get("chunks"), about.get("size")
    if not isinstance(pieces, list) or not _are_sizes(size):
        return
    sizes = [p.get("sizes") for p in pieces if isinstance(p, Stub)]
    if len(sizes) != len(pieces) or not all(_are_sizes(s) for s in sizes):
        return
    if stored < len(pieces):
        raise Torn(f"{name[:80]} has {len(pieces)} chunks and only {stored} of them are stored")
    if sum(prod(s) for s in sizes) < prod(size):
        raise Torn(f"the chunks of {name[:80]} do not cover it")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(type(n) is int and n >= 0 for n in value)


# Transformers and others: an index that maps every tensor to the shard that holds it


def _indexes(entries: Sequence[Entry]) -> list[Problem]:
    by_name = {e.name: e for e in entries}
    found: list[Problem] = []
    for entry in entries:
        if not entry.base.endswith(".index.json"):
            continue
        try:
            with open(entry.path, "rb") as file:
                shards = json.loads(file.read())["weight_map"]
            wanted: dict[str, set[str]] = defaultdict(set)
            for tensor, shard in shards.items():
                wanted[str(shard)].add(tensor)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found.append(Problem("torn", f"{entry.name}: has no whole weight_map"))
            continue
        missing = [s for s in sorted(wanted) if entry.folder + s not in by_name]
        if missing:
            found.append(Problem("incomplete", f"{entry.name} names {few(missing)}, which is missing"))
        found += _absent_tensors(entry, wanted, by_name)
    return found


# written by Transformers before their index
_INDEXED = re.compile(r"(?P<stem>model|pytorch_model|adapter_model)-\d+-of-(?P<total>\d+)\.(safetensors|bin)")


def _index_present(entries: Sequence[Entry]) -> list[Problem]:
    """Shards of Transformers without the index by which they are loaded."""
    with_index = {e.folder for e in entries if e.base.endswith(".index.json")}
    found = {
        e.folder: f"{e.folder}{match['stem']}.*.index.json, which is written after the shards, is missing"
        for e in entries
        if (match := _INDEXED.fullmatch(e.base)) and int(match["total"]) > 1 and e.folder not in with_index
    }
    return [Problem("incomplete", reason) for reason in found.values()]


def _absent_tensors(
    index: Entry, wanted: Mapping[str, set[str]], by_name: Mapping[str, Entry]
) -> list[Problem]:
    found = []
    for shard, tensors in sorted(wanted.items()):
        entry = by_name.get(index.folder + shard)
        if entry is None or not shard.endswith(".safetensors"):
            continue
        try:
            with open(entry.path, "rb") as file:
                held = safetensors_header(file, entry.size_bytes)[0]
        except Torn:
            continue  # verify_file says so already, with the reason
        if lost := sorted(tensors - held.keys()):
            found.append(Problem("torn", f"{entry.name}: does not hold {few(lost)}, which the index names"))
    return found


# "model-00001-of-00004.safetensors", "model_world_size_8_rank_3.pt", "rank7.pt", "checkpoint-shard3.pt"
_OF = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<after>.*)")
_WORLD = re.compile(r"(?P<before>.*world_size_(?P<total>\d+)_rank_)(?P<number>\d+)(?P<after>.*)")
_RANK = re.compile(
    r"(?P<before>.*(?:rank|shard|part)[-_]?)(?P<number>\d+)(?P<after>(?!.*(?:rank|shard|part)).*)"
)


def shard_gaps(entries: Sequence[Entry]) -> list[Problem]:
    """Numbered parts of which one is missing, by the total in the names or by a gap in the numbers."""
    groups: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for entry in entries:
        if not is_weights(entry.name) or is_deepspeed(entry.base) or DIMENSION.search(entry.base):
            continue
        match = _OF.fullmatch(entry.base) or _WORLD.fullmatch(entry.base) or _RANK.fullmatch(entry.base)
        if match:
            total = match.groupdict().get("total") or ""
            place = f"{entry.folder}{match['before']}", match["after"], total
            groups[place].add(int(match["number"]))
    found = []
    for (before, after, total), numbers in sorted(groups.items()):
        if total and len(numbers) < int(total):
            found.append(
                Problem("incomplete", f"only {len(numbers)} of {int(total)} parts {before}*{after} are there")
            )
        elif not total and (lost := _gap(numbers)) is not None:
            found.append(Problem("incomplete", f"part {before}{lost}{after} is missing"))
    return found


def _gap(numbers: set[int]) -> int | None:
    """The first number missing; equal strides from the first are no gap (one file for each node)."""
    ordered = sorted(numbers)
    if ordered[0] > 1:
        return 0 if len(ordered) > 1 else None
    if len(ordered) < 2:
        return None
    stride = min(b - a for a, b in itertools.pairwise(ordered))
    expected = range(ordered[0], ordered[-1] + 1, stride)
    return next((n for n in expected if n not in numbers), None)


# Megatron-LM: mp_rank_<tensor 2 digits>[_<pipeline 3>][_<expert 3>]. megatron/training/checkpointing.py
_MP_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(?:_(\d{3}))?")


def _model_parallel(entries: Sequence[Entry]) -> list[Problem]:
    files: dict[tuple[int, ...], set[str]] = defaultdict(set)
    names: dict[tuple[int, ...], str] = {}
    for entry in entries:
        top, _, rest = entry.name.partition("/")
        if match := _MP_RANK.fullmatch(top):
            place = tuple(int(n) for n in match.groups() if n is not None)
            files[place].add(rest)
            names[place] = top
    found = []
    every = set().union(*files.values()) if files else set()
    # under pipeline parallelism all ranks save files of the same names
    for place, held in sorted(files.items()):
        if lost := sorted(f for f in every - held if is_weights(f)):
            found.append(Problem("incomplete", f"{names[place]}/{lost[0]} is missing, other ranks have it"))
    if files and len({len(p) for p in files}) == 1:
        sizes = [max(p[axis] for p in files) + 1 for axis in range(len(next(iter(files))))]
        if prod(sizes) > len(files):
            shape = " x ".join(str(n) for n in sizes)
            found.append(
                Problem(
                    "incomplete", f"only {len(files)} of {shape} model-parallel ranks (mp_rank_*) are there"
                )
            )
    return found


def _inner_tracker(entries: Sequence[Entry]) -> list[Problem]:
    """Trainer with DeepSpeed inside: `latest` names a folder beside it, and DeepSpeed resumes from that."""
    found = []
    for entry in entries:
        if entry.base != "latest" or not os.path.isfile(entry.path):
            continue
        with open(entry.path, "rb") as file:
            tag = file.read(256).decode("utf-8", "replace").strip()
        if not tag:
            found.append(Problem("torn", f"{entry.name}: is empty"))
        elif not any(e.name.startswith(f"{entry.folder}{tag}/") for e in entries):
            found.append(Problem("incomplete", f"{entry.name} names {tag[:60]!r}, which is not there"))
    return found


def _trainer_state(step: int | None, entries: Sequence[Entry]) -> list[Problem]:
    """Transformers writes trainer_state.json last, and Trainer resumes from `global_step` in it."""
    entry = next((e for e in entries if e.name == "trainer_state.json"), None)
    if entry is None:
        return [Problem("incomplete", "trainer_state.json, which is written last, is missing")]
    try:
        with open(entry.path, "rb") as file:
            told = json.loads(file.read())["global_step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [Problem("torn", "trainer_state.json: holds no global_step")]
    if step is not None and told != step:
        return [Problem("torn", f"trainer_state.json: says global_step {told!r:.20}, the folder says {step}")]
    return []


def _olmo(entries: Sequence[Entry]) -> list[Problem]:
    """OLMo-core wants all three of these; OLMo v1 saves train, model and optim for each rank, or one of each
    (`step100-unsharded`).
    """
    names = {e.name for e in entries}
    if ".metadata.json" in names or "model_and_optim/.metadata" in names:
        wanted = (".metadata.json", "train/rank0.pt", "model_and_optim/.metadata")
        return [Problem("incomplete", f"{name} is missing") for name in wanted if name not in names]
    parts = ("model", "optim", "train")
    held_by = {part: any(e.base.rpartition(".")[0] == part for e in entries) for part in parts}
    if any(held_by.values()):
        return [
            Problem("incomplete", f"{part}.pt is missing") for part, there in held_by.items() if not there
        ]
    ranks = {
        part: {e.base for e in entries if e.folder == part + "/"} for part in ("train", "model", "optim")
    }
    every = set().union(*ranks.values())
    return [
        Problem("incomplete", f"{part}/{lost[0]} is missing, the other parts have it")
        for part, held in ranks.items()
        if held and (lost := sorted(every - held))
    ]


def check_integrity(entries: Sequence[Entry], look: Look, cache: FileCache | None = None) -> list[Problem]:
    """Megatron-LM's optional integrity.json: `{"algorithm": "sha256", "files": {name: digest}}`.

    That every file is there is always looked at, the digests only when deep. Raises OutOfTime.
    """
    entry = next((e for e in entries if e.name == "integrity.json"), None)
    if entry is None:
        return []
    try:
        with open(entry.path, "rb") as file:
            told = json.loads(file.read())
        algorithm, digests = str(told["algorithm"]), dict(told["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return [Problem("torn", "integrity.json: holds no list of files")]
    by_name = {e.name: e for e in entries}
    found = []
    for name, digest in sorted(digests.items()):
        held = by_name.get(name)
        if held is None:
            found.append(Problem("incomplete", f"{name}, named in integrity.json, is missing"))
        elif look.deep and isinstance(digest, str):
            real = _digest(held, algorithm, look, cache)
            if real and real != digest.lower():
                found.append(Problem("torn", f"{name}: its {algorithm} is not the one in integrity.json"))
    return found


def _digest(entry: Entry, algorithm: str, look: Look, cache: FileCache | None) -> str:
    """The file's digest, read once for as long as it does not change."""
    how = f"digest-{algorithm[:40]}"
    known = cache.find(entry, how) if cache else None
    if known is not None:
        return known.note
    real = checksum(entry.path, algorithm, look.tick)
    if cache:
        cache.keep(entry, how, FileReport(entry.name, "digest", "good", note=real))
    return real


# `.metadata` accounts for these, and random states: a run that was restarted on fewer nodes has fewer
_ACCOUNTED = re.compile(r".*(\.distcp|rng_state.*|random_states.*|random/.*)")
# the names themselves tell how many there must be, so that only their kind is compared
_COUNTED = re.compile(r"\d+-of-\d+|world_size_\d+_rank_\d+")


def roles(step: int | None, entries: Sequence[Entry]) -> frozenset[str]:
    """What each file of weights is for: its name without the step, to compare with another checkpoint's."""
    number = re.compile(rf"(?<!\d)0*{step}(?!\d)") if step is not None else None
    names = [
        _COUNTED.sub("*", e.name) for e in entries if is_weights(e.name) and not _ACCOUNTED.fullmatch(e.name)
    ]
    return frozenset(number.sub("#", n) if number else n for n in names)


def lacks(
    mine: frozenset[str], older: frozenset[str], older_name: str, *, ranks_known: bool = False
) -> list[Problem]:
    """What the next older checkpoint of the same layout has and this one has not.

    `ranks_known`: the checkpoint tells itself how many ranks it has, so optimizer states are not compared.
    """
    lost = sorted(n for n in older - mine if not (ranks_known and n.endswith("_optim_states.pt")))
    return [Problem("incomplete", f"{few(lost)} is missing, {older_name} has it")] if lost else []
