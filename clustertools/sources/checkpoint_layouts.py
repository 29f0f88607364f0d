"""What in a folder is a checkpoint: names, steps, files that belong together, marks of an unfinished save.

    for candidate in candidates("/data/run7/checkpoints"): candidate.step, candidate.files()

Looks at names and sizes only; whether the files are whole is the business of `checkpoint_files`, and which
files a layout must have that of `checkpoint_rules`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

#: What a save writes numbers into. A file with another ending is carried along, never judged.
WEIGHT_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".distcp", ".pkl", ".pickle", ".npz")
#: `.bin` is also how token files are called; these are the names that Transformers and PEFT give.
_BIN = re.compile(
    r"(pytorch_model|adapter_model|model|optimizer|training_args|diffusion_pytorch_model).*\.bin"
)
#: Set aside or kept by our own actions (`clustertools.actions.tracker`): no longer part of the run.
OURS = (".refused-by-clustertools", ".before-clustertools-")
#: More than any checkpoint has; a guard against pointing the tool at a home folder.
FILES_CAP = 200_000
DEPTH_CAP = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its place, its name within the checkpoint, and what tells whether it changed."""

    path: str
    name: str
    size_bytes: int
    mtime_ns: int
    inode: int

    @property
    def mtime(self) -> float:
        return self.mtime_ns / 1e9

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The part of the name before the last slash, with it; empty at the top."""
        return self.name[: len(self.name) - len(self.base)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that looks like a checkpoint: a folder, a file, or files that belong together.

    `unfinished` names the mark that says the save has not ended; empty for none. `whole_folder`: it is the
    folder itself that was asked about. `members` are its files where it is no folder, below `root` ("": all
    in one folder), `lost` the names of those that should be there; `family` is their name without the step.
    """

    path: str
    name: str
    step: int | None
    mtime: float
    is_dir: bool
    unfinished: str = ""
    whole_folder: bool = False
    members: tuple[str, ...] = field(default=())
    root: str = ""
    family: str = ""
    lost: tuple[str, ...] = ()

    def files(self) -> list[Entry]:
        """Every file of it, by name; those that vanish meanwhile are left out. Raises OSError."""
        if self.is_dir:
            return sorted(_walk(self.path, "", 0, [0]), key=lambda e: e.name)
        names = {p: os.path.relpath(p, self.root) if self.root else os.path.basename(p) for p in self.members}
        entries = [_entry(path, names.get(path, self.name)) for path in self.members or (self.path,)]
        return [e for e in entries if e is not None]


def is_weights(name: str) -> bool:
    """Whether a file of this name holds what training needs to go on."""
    base = name.rpartition("/")[2]
    return base.endswith(WEIGHT_ENDINGS) or _BIN.fullmatch(base) is not None


def _entry(path: str, name: str) -> Entry | None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return None
    return Entry(path, name, info.st_size, info.st_mtime_ns, info.st_ino)


def _walk(folder: str, prefix: str, depth: int, seen: list[int]) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            seen[0] += 1
            if seen[0] > FILES_CAP:
                raise OSError(f"more than {FILES_CAP} files in it")
            if any(mark in item.name for mark in OURS):
                continue
            if item.is_dir(follow_symlinks=False):
                if depth < DEPTH_CAP:
                    yield from _walk(item.path, f"{prefix}{item.name}/", depth + 1, seen)
            elif (entry := _entry(item.path, prefix + item.name)) is not None:
                yield entry


# "iter_0001000", "global_step500", "step-100", "epoch=3-step=1000.ckpt", "checkpoint_12_5000_updates"
_STEP_WORD = re.compile(
    r"(?:^|[^a-z])(?:global_?step|step|iter|iteration|update|updates)s?[=_-]?0*(\d+)", re.I
)
# fairseq: "checkpoint_3_5000.pt" is epoch 3, update 5000
_EPOCH_UPDATE = re.compile(r"checkpoint_\d+_(\d+)(?!\d)")
# "checkpoint-500", "ckpt_100.pt", "model_100.pth", "optim-00100.pt"
_NUMBERED = re.compile(
    r"(?:^|[^a-z])(?:checkpoint|ckpt|model|optim|optimizer|state|weights)[-_]0*(\d+)(?!\d|-of-)", re.I
)
# nanotron: "1000"
_BARE = re.compile(r"0*(\d+)")
#: A longer number is a date or a hash.
_STEP_DIGITS = 12


def step_of(name: str) -> int | None:
    """The training step in a checkpoint's name, or None: `epoch_5.pt` and `ckpt.pt` tell none."""
    stem = re.sub(r"\.(pt|pth|ckpt|bin|safetensors|pkl|pickle|npz)$", "", name)
    found = _STEP_WORD.findall(stem) or _EPOCH_UPDATE.findall(stem) or _NUMBERED.findall(stem)
    if not found and (bare := _BARE.fullmatch(stem)):
        found = [bare[1]]
    if not found or len(found[-1]) > _STEP_DIGITS:
        return None
    return int(found[-1])


# "step_100.pt.tmp", "step_100.pt.tmp.4711", "step100-tmp" (OLMo), "tmp-checkpoint-500" (Transformers 4.37)
_TEMPORARY = re.compile(
    r"(?P<before>tmp[-_.])?(?P<base>.+?)(?P<after>[._-]tmp([._-]\w+)?|\.(part|partial|incomplete|writing))?"
)


def temporary(name: str) -> tuple[str, str]:
    """(name that the save will have, mark of an unfinished save); the mark is empty for a finished one."""
    # iter_0000100_0_local.dirty.pt: NVIDIA Resiliency Extension, local checkpoints
    if ".dirty." in name:
        return name.replace(".dirty.", "."), ".dirty."
    match = _TEMPORARY.fullmatch(name)
    if match is None or not (match["before"] or match["after"]):
        return name, ""
    return match["base"], match["before"] or match["after"]


# parts of one save: "-model_part-0-shard3", "_rank_7", "-00001-of-00004", and the words for what a part holds
_PART = re.compile(
    r"[-_.]?(?:world_size_\d+_)?(?:model_part|mp_rank|rank|shard|part)[-_]?\d+|-\d+-of-\d+"
    r"|(?:^|(?<=[-_.]))(?:model|optimizer|optim|opt|scheduler|sched|scaler|rng|trainer|extra|ema)(?=[-_.]|$)",
    re.I,
)
#: A folder that has one of these is a checkpoint itself.
_OWN_MARKS = frozenset(
    (".metadata", "trainer_state.json", "model.safetensors", "model.safetensors.index.json")
)
# a name that only a checkpoint has, so that an empty folder of that name is one that was not finished
_CHECKPOINT_FOLDER = re.compile(r"(iter_|global_step|checkpoint[-_]|ckpt[-_]|step[-_]?|epoch=)\d.*")
_UNFINISHED = "-unfinished"


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    path: str
    is_dir: bool
    mtime: float


def candidates(folder: str) -> list[Candidate]:
    """What looks like a checkpoint in `folder`, in no particular order. Raises OSError.

    Links to something in the same folder (`latest`, `last.ckpt`) are trackers, not checkpoints. A folder
    without numbered ones that is a checkpoint itself gives itself.
    """
    items = [item for item in _items(folder) if not any(mark in item.name for mark in OURS)]
    names = {item.name for item in items}
    unfinished = {n.removesuffix(_UNFINISHED) for n in names if n.endswith(_UNFINISHED)}
    found: list[Candidate] = []
    groups: dict[tuple[str, int | None, str], list[_Item]] = {}
    for item in items:
        if item.name.startswith(".") or item.name.endswith(_UNFINISHED):
            continue
        base, mark = temporary(item.name)
        if not mark and {item.name, re.sub(r"\.(ckpt|nemo)$", "", item.name)} & unfinished:
            # NeMo keeps a marker file beside the checkpoint while it is written
            mark = _UNFINISHED
        if item.is_dir:
            if _is_candidate_folder(base, item.path):
                found.append(Candidate(item.path, item.name, step_of(base), item.mtime, True, mark))
        elif is_weights(base):
            key = (_PART.sub("", base), step_of(base), mark)
            groups.setdefault(key, []).append(item)
    by_rank = _by_rank(folder, items, unfinished)
    if by_rank:
        return by_rank
    waits = _not_committed(folder, names)
    found = [replace(c, unfinished=c.unfinished or waits(c.step)) for c in found]
    if all(c.step is None for c in found) and all(step is None for _, step, _ in groups):
        whole = _whole_folder(folder, names, groups)
        if whole is not None:
            return [whole]
    found += [
        _grouped(base, step, mark or waits(step), group) for (base, step, mark), group in groups.items()
    ]
    return found


# mp_rank_00/NAME--step=100.ckpt of NeMo 1; 0/iter_0000100_0_local.pt of NVIDIA's resiliency extension
_RANK_FOLDER = re.compile(r"(?:tp_rank_\d+_pp_rank_\d+|mp_rank_\d+|\d+)")
_LOCAL = re.compile(r"(?P<iteration>iter_\d{7})_\d+_local\.pt")


def _by_rank(folder: str, items: Sequence[_Item], unfinished: set[str]) -> list[Candidate]:
    """Checkpoints that are spread over a folder for each rank, each with the files of many steps."""
    ranks = [i for i in items if i.is_dir and _RANK_FOLDER.fullmatch(i.name)]
    files: dict[tuple[str, str], dict[str, _Item]] = {}
    for rank in ranks:
        try:
            inside = _items(rank.path)
        except (FileNotFoundError, PermissionError):
            continue  # taken away meanwhile, or none that is ours to read
        for item in inside:
            base, mark = temporary(item.name)
            if local := _LOCAL.fullmatch(base):
                base = local["iteration"]
            elif item.is_dir or rank.name.isdigit() or not base.endswith(".ckpt"):
                continue  # a numbered folder with anything else is a checkpoint by itself, as of nanotron
            if base.removesuffix(".ckpt") in unfinished:
                mark = _UNFINISHED
            files.setdefault((base, mark), {})[rank.name] = item
    found = []
    for (base, mark), held in sorted(files.items()):
        paths = tuple(item.path for item in held.values())
        lost = sorted({r.name for r in ranks} - held.keys())
        found.append(
            Candidate(
                paths[0], base, step_of(base), max(i.mtime for i in held.values()), False, mark,
                members=paths, root=folder, family="by rank", lost=tuple(f"{n}/{base}" for n in lost),
            )
        )  # fmt: skip
    return found


# ._dlrover_ckpt_stage/100.done/: each rank leaves a file there; rank 0 removes the folder after it has
# written the tracker. dlrover/python/elastic_agent/torch/ckpt_saver.py, commit_checkpoint
_STAGE = "._dlrover_ckpt_stage"


def _not_committed(folder: str, names: set[str]) -> Callable[[int | None], str]:
    """Tells the mark of a save that DLRover has not committed, by its step; empty for all others."""
    waiting: set[str] = set()
    if _STAGE in names:
        with contextlib.suppress(FileNotFoundError):
            waiting = {n.removesuffix(".done") for n in os.listdir(os.path.join(folder, _STAGE))}
        with contextlib.suppress(OSError), open(os.path.join(folder, "dlrover_latest.txt"), "rb") as file:
            waiting.discard(file.read(64).decode("utf-8", "replace").strip())
    return lambda step: _STAGE if str(step) in waiting else ""


def _items(folder: str) -> list[_Item]:
    here = os.path.realpath(folder)
    items = []
    with os.scandir(folder) as found:
        for item in found:
            if item.is_symlink() and os.path.dirname(os.path.realpath(item.path)) == here:
                continue
            try:
                info = item.stat()
            except FileNotFoundError:
                continue
            items.append(_Item(item.name, item.path, item.is_dir(), info.st_mtime))
    return sorted(items, key=lambda i: i.name)


def _is_candidate_folder(name: str, path: str) -> bool:
    if _CHECKPOINT_FOLDER.fullmatch(name) or name == "release":
        return True
    # another folder counts when it holds something of a checkpoint, at its top or one below
    try:
        return any(
            name in _OWN_MARKS or is_weights(name) or name.startswith("mp_rank_") for name in _top_names(path)
        )
    except PermissionError:
        # neither its name nor its content says that it is one
        return False


def _top_names(path: str) -> Iterator[str]:
    with os.scandir(path) as found:
        items = list(found)
    yield from (item.name for item in items)
    for item in items[:200]:
        if item.is_dir(follow_symlinks=False):
            yield from os.listdir(item.path)


def _whole_folder(
    folder: str, names: set[str], groups: dict[tuple[str, int | None, str], list[_Item]]
) -> Candidate | None:
    parts = any(n.endswith((".distcp", "_model_states.pt")) or n.startswith("mp_rank_") for n in names)
    # model.pt beside optim.pt: one checkpoint in two files
    several = any(len(group) > 1 for group in groups.values())
    if not (parts or several or names & _OWN_MARKS):
        return None
    path = folder.rstrip("/") or "/"
    name = os.path.basename(os.path.abspath(path))
    return Candidate(path, name, step_of(name), os.stat(path).st_mtime, True, whole_folder=True)


def _grouped(base: str, step: int | None, mark: str, group: list[_Item]) -> Candidate:
    family = base if step is None else re.sub(rf"(?<!\d)0*{step}(?!\d)", "#", base)
    first = next((i for i in group if "model" in i.name), group[0])
    return Candidate(
        first.path, first.name, step, max(i.mtime for i in group), False, mark,
        members=tuple(i.path for i in group) if len(group) > 1 else (), family=family,
    )  # fmt: skip


def newest_first(found: list[Candidate]) -> list[Candidate]:
    """By step where every one tells it, else by time."""
    if all(c.step is not None for c in found):
        return sorted(found, key=lambda c: (c.step or 0, not c.unfinished, c.mtime), reverse=True)
    return sorted(found, key=lambda c: (c.mtime, c.step or 0), reverse=True)
