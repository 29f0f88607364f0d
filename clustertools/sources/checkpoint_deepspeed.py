"""Which files a checkpoint of DeepSpeed must have: ZeRO 0 to 3, pipeline stages, experts, universal.

    mp_rank_00_model_states.pt                         ZeRO 0 to 2
    zero_pp_rank_<D>_mp_rank_<MM>_model_states.pt      ZeRO 3
    [bf16_]zero_pp_rank_<D>_mp_rank_<MM>_optim_states.pt
    layer_<NN>-model_<MM>-model_states.pt              pipeline stages
    layer_<L>_expert_<E>_mp_rank_<MM>_model_states.pt, expp_rank_<E>_mp_rank_<MM>_optim_states.pt    experts
    zero/<parameter>/{fp32,exp_avg,exp_avg_sq}.pt      universal

As written by deepspeed/runtime/engine.py, pipe/module.py and checkpoint/ds_to_universal.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from clustertools.sources.checkpoint_layouts import Entry
from clustertools.sources.checkpoint_problem import Problem, Verified, few

_MODEL_STATES = re.compile(r"(?:zero_pp_rank_(?P<data>\d+)_)?mp_rank_(?P<model>\d+)_model_states\.pt")
_OPTIM = re.compile(r"(?:\w+_)?zero_pp_rank_(?P<data>\d+)_mp_rank_(?P<model>\d+)_optim_states\.pt")
_LAYER = re.compile(r"layer_(?P<layer>\d+)-model_(?P<model>\d+)-model_states\.pt")
_EXPERT = re.compile(
    r"(?:layer_(?P<layer>\d+)_)?expert_(?P<expert>\d+)_mp_rank_(?P<model>\d+)_model_states\.pt"
)
_EXPERT_OPTIM = re.compile(r"expp_rank_(?P<expert>\d+)_mp_rank_(?P<model>\d+)_optim_states\.pt")
_PATTERNS = (_MODEL_STATES, _OPTIM, _LAYER, _EXPERT, _EXPERT_OPTIM)


def is_deepspeed(base: str) -> bool:
    """Whether a file of this name is a part of DeepSpeed's."""
    return any(pattern.fullmatch(base) for pattern in _PATTERNS)


def deepspeed_problems(folder: str, entries: Sequence[Entry], verified: Verified) -> list[Problem]:
    """What is missing among the files of `folder` ("" or with a slash at its end)."""
    mine = [e.base for e in entries if e.folder == folder]
    return [
        *_data_parallel(mine, verified),
        *_grid(mine, _LAYER, ("layer", "model"), "layer_{}-model_{}-model_states.pt"),
        *_experts(mine),
        *_universal(folder, entries),
    ]


def _data_parallel(names: Sequence[str], verified: Verified) -> list[Problem]:
    """Data-parallel ranks run from 0 without a gap, as many for each model-parallel rank.

    How many there must be, the model states say themselves (`dp_world_size`). ZeRO-3 from a universal
    checkpoint may write only rank 0's model states (DeepSpeed issue 7546).
    """
    optim: dict[str, set[int]] = defaultdict(set)
    stage3: dict[str, set[int]] = defaultdict(set)
    plain: set[int] = set()
    for name in names:
        if match := _OPTIM.fullmatch(name):
            optim[match["model"]].add(int(match["data"]))
        elif match := _MODEL_STATES.fullmatch(name):
            if match["data"] is None:
                plain.add(int(match["model"]))
            else:
                stage3[match["model"]].add(int(match["data"]))
    if not plain and not stage3:
        return [Problem("incomplete", "the model states (mp_rank_*_model_states.pt) are missing")]
    found = []
    if lost := sorted(set(range(max(plain, default=-1) + 1)) - plain):
        found.append(Problem("incomplete", f"mp_rank_{lost[0]:02d}_model_states.pt is missing"))
    if lost_optim := sorted({f"{n:02d}" for n in plain} - optim.keys()) if optim else []:
        found.append(
            Problem("incomplete", f"zero_pp_rank_*_mp_rank_{lost_optim[0]}_optim_states.pt are missing")
        )
    ranks = [numbers for group in (optim, stage3) for numbers in group.values()]
    wanted = max([max(n) + 1 for n in ranks] + [(verified.fact("dp_world_size") or 0) if optim else 0])
    for kind, group in (("optim_states", optim), ("model_states", stage3)):
        for model, numbers in sorted(group.items()):
            if kind == "model_states" and numbers == {0}:
                continue
            if len(numbers) < wanted:
                lost_rank = next(n for n in range(wanted) if n not in numbers)
                have = f"only {len(numbers)} of {wanted} data-parallel ranks are there"
                name = f"zero_pp_rank_{lost_rank}_mp_rank_{model}_{kind}.pt"
                found.append(Problem("incomplete", f"{name} is missing: {have}"))
    return found


def _grid(names: Sequence[str], pattern: re.Pattern[str], axes: tuple[str, str], form: str) -> list[Problem]:
    """Every number of the first axis that is there must have every number of the second that is there.

    Numbers of layers have gaps in healthy checkpoints: layers without parameters are not saved.
    """
    held: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if match := pattern.fullmatch(name):
            held[match[axes[0]] or ""].add(match[axes[1]])
    every: set[str] = set().union(*held.values()) if held else set()
    return [
        Problem("incomplete", f"{form.format(first, sorted(every - seconds)[0])} is missing")
        for first, seconds in sorted(held.items())
        if every - seconds
    ]


def _experts(names: Sequence[str]) -> list[Problem]:
    """Experts run from 0 without a gap, the same ones in each layer; so do their optimizers' ranks."""
    found = []
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    optim: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := _EXPERT.fullmatch(name):
            layers[match["layer"] or "", match["model"]].add(int(match["expert"]))
        elif match := _EXPERT_OPTIM.fullmatch(name):
            optim[match["model"]].add(int(match["expert"]))
    lost = _gaps({f"layer_{layer}_expert_{{}}_mp_rank_{rank}": n for (layer, rank), n in layers.items()})
    if lost:
        found.append(Problem("incomplete", f"{few([f'{n}_model_states.pt' for n in lost])} is missing"))
    lost = _gaps({f"expp_rank_{{}}_mp_rank_{rank}": n for rank, n in optim.items()})
    if lost:
        found.append(Problem("incomplete", f"{few([f'{n}_optim_states.pt' for n in lost])} is missing"))
    return found


def _gaps(groups: Mapping[str, set[int]]) -> list[str]:
    wanted = max((max(n) + 1 for n in groups.values()), default=0)
    return [form.format(n) for form, held in sorted(groups.items()) for n in range(wanted) if n not in held]


def _universal(folder: str, entries: Sequence[Entry]) -> list[Problem]:
    """Each parameter has its weights, and what the optimizer keeps for the others."""
    held: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.folder.startswith(f"{folder}zero/") and entry.base.endswith(".pt"):
            held[entry.folder].add(entry.base)
    # zero/optimizer_state.pt is no parameter's
    held.pop(f"{folder}zero/", None)
    lost = [f"{place}fp32.pt" for place, files in sorted(held.items()) if "fp32.pt" not in files]
    return [Problem("incomplete", f"{few(lost)} is missing")] if lost else []
