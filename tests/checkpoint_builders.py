"""Writes checkpoints of every kind without PyTorch: for the fast tests."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

AN_HOUR = 3600.0


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _tensor(key: str, count: int) -> bytes:
    # _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks), as torch.save writes it
    storage = b"(" + _text("storage") + _global("torch", "FloatStorage")
    storage += _text(key) + _text("cpu") + _number(count) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = b"(" + _number(count) + b"t(" + _number(1) + b"t"
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + b"K\0"
        + shape
        + b"\x89"
        + hooks
        + b"tR"
    )


def index(storages: dict[str, int], extra: bytes = b"", **numbers: int) -> bytes:
    """A data.pkl: a dictionary of `numbers` and one float tensor for each key and element count."""
    body = b"".join(_text(k) + _number(v) for k, v in numbers.items())
    body += b"".join(_text(f"w{k}") + _tensor(k, n) for k, n in storages.items())
    return b"\x80\x02}(" + body + extra + b"u."


def torch_zip(
    path: Path, count: int = 256, *, extra: bytes = b"", age: float = AN_HOUR, **numbers: int
) -> Path:
    """A torch.save archive with two tensors of `count` floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", index({"0": count, "1": count}, extra, **numbers))
        out.writestr("archive/byteorder", "little")
        for key in "01":
            out.writestr(f"archive/data/{key}", os.urandom(4 * count))
        out.writestr("archive/version", "3\n")
    return aged(path, age)


def aged(path: Path, age: float = AN_HOUR) -> Path:
    """The same file or folder, with everything in it last changed `age` seconds ago."""
    then = time.time() - age
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(each, (then, then))
    return path


def hostile(marker: Path) -> bytes:
    """A pickle that creates `marker` when somebody loads it."""

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{marker}'",)

    return pickle.dumps({"step": 1, "model": Payload()}, 2)


def safetensors(path: Path, tensors: dict[str, int] | None = None, age: float = AN_HOUR) -> Path:
    """One file with float tensors of so many elements each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, count in (tensors or {"a": 64, "b": 32}).items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + os.urandom(at))
    return aged(path, age)


def hf_checkpoint(folder: Path, step: int, age: float = AN_HOUR) -> Path:
    """checkpoint-<step> as Transformers' Trainer leaves it, with two shards and an index."""
    where = folder / f"checkpoint-{step}"
    shards = {f"model-0000{n}-of-00002.safetensors": {f"t{n}": 64} for n in (1, 2)}
    for name, tensors in shards.items():
        safetensors(where / name, tensors)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (where / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 512}, "weight_map": weight_map})
    )
    (where / "config.json").write_text("{}")
    torch_zip(where / "optimizer.pt")
    torch_zip(where / "scheduler.pt", 4)
    for rank in range(4):
        torch_zip(where / f"rng_state_{rank}.pth", 8)
    (where / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    return aged(where, age)


def megatron_checkpoint(
    folder: Path, step: int, tensor: int = 2, pipeline: int = 2, age: float = AN_HOUR
) -> Path:
    """iter_<step> in Megatron-LM's older layout, one folder for each model-parallel rank."""
    where = folder / f"iter_{step:07d}"
    for t in range(tensor):
        for p in range(pipeline):
            for name in ("model_optim_rng.pt", "distrib_optim.pt"):
                torch_zip(where / f"mp_rank_{t:02d}_{p:03d}" / name, 16, iteration=step)
    return aged(where, age)


def deepspeed_checkpoint(
    folder: Path, step: int, ranks: int = 4, told: int | None = None, age: float = AN_HOUR
) -> Path:
    """global_step<step> of DeepSpeed's ZeRO stage 1 or 2."""
    where = folder / f"global_step{step}"
    numbers = {"global_steps": step, **({"dp_world_size": told} if told else {})}
    torch_zip(where / "mp_rank_00_model_states.pt", 16, **numbers)
    for rank in range(ranks):
        torch_zip(where / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", 16)
    return aged(where, age)


def folder_of(where: Path, files: str, age: float = AN_HOUR) -> Path:
    """A checkpoint made of the named files, by their endings; `{0..3}` stands for each of the numbers."""
    for name in _unfolded(files.split()):
        path = where / name
        if name.endswith(".safetensors"):
            safetensors(path, {"w": 32})
        elif name.endswith((".pt", ".pth", ".ckpt", ".bin")):
            torch_zip(path, 8)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    return aged(where, age)


def _unfolded(names: list[str]) -> list[str]:
    found = []
    for name in names:
        match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        if match is None:
            found.append(name)
            continue
        for number in range(int(match[1]), int(match[2]) + 1):
            text = str(number).zfill(len(match[1]))
            found += _unfolded([name[: match.start()] + text + name[match.end() :]])
    return found


def distributed_checkpoint(where: Path, files: dict[str, int], age: float = AN_HOUR) -> Path:
    """A `.metadata` as torch.distributed.checkpoint writes it, and the parts that it names."""
    where.mkdir(parents=True, exist_ok=True)
    body = b"\x80\x02" + _global("torch.distributed.checkpoint.metadata", "Metadata") + b")\x81}("
    body += _text("state_dict_metadata") + b"}" + _text("storage_data") + b"}("
    for number, (name, count) in enumerate(files.items()):
        torch_zip(where / name, count)
        index = _text("fqn") + _text(f"w{number}") + _text("offset") + b"N" + _text("index") + b"N"
        key = _global("torch.distributed.checkpoint.metadata", "MetadataIndex") + b")\x81}(" + index + b"ub"
        info = _text("relative_path") + _text(name) + _text("offset") + _number(0)
        info += _text("length") + _number((where / name).stat().st_size)
        stored = (
            _global("torch.distributed.checkpoint.filesystem", "_StorageInfo") + b")\x81}(" + info + b"ub"
        )
        body += key + stored
    (where / ".metadata").write_bytes(body + b"uub.")
    return aged(where, age)
