"""One file of a checkpoint: cut anywhere, holed, hostile or garbage, it is never called good."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.sources.checkpoint_files import Look, verify_file
from clustertools.sources.checkpoint_pickle import HostilePickle, read_pickle
from tests.checkpoint_builders import hostile, index, safetensors, torch_zip

DEEP = Look(deep=True)
SMALL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_whole_archive_is_good_and_tells_its_step(tmp_path: Path) -> None:
    report = verify_file(str(torch_zip(tmp_path / "ckpt.pt", iter_num=2000)), look=DEEP)
    assert (report.verdict, report.step, report.kind) == ("good", 2000, "torch zip")


def test_archive_cut_anywhere_is_never_good(tmp_path: Path) -> None:
    whole = torch_zip(tmp_path / "whole.pt", 64).read_bytes()
    cut = tmp_path / "model.pt"
    # every length through the index and the end records, each seventh through the tensors
    sizes = {*range(0, len(whole), 7), *range(250), *range(len(whole) - 450, len(whole))}
    cut.write_bytes(whole)
    for size in sorted(sizes, reverse=True):
        os.truncate(cut, size)
        report = verify_file(str(cut))
        assert report.verdict == "torn", (size, report)
        assert report.reason.startswith("model.pt: ")


def test_archive_cut_at_an_archive_inside_it_is_torn(tmp_path: Path) -> None:
    """zipfile would find the inner archive's end record and open the torn file."""
    inner = torch_zip(tmp_path / "inner.pt", 16).read_bytes()
    outer = tmp_path / "outer.pt"
    with zipfile.ZipFile(outer, "w") as out:
        out.writestr("a/data.pkl", index({}))
        out.writestr("a/data/0", inner)
        out.writestr("a/version", "3\n")
    whole = outer.read_bytes()
    outer.write_bytes(whole[: whole.index(inner) + len(inner)])
    assert zipfile.is_zipfile(outer)
    assert verify_file(str(outer)).verdict == "torn"


def test_reason_says_how_much_was_expected(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "step_300.pt", 25_000)
    path.write_bytes(path.read_bytes()[:50_000])
    reason = verify_file(str(path)).reason
    assert "step_300.pt: zip central directory missing" in reason
    assert "index names 200.0 kB" in reason
    assert "50.0 kB on disk" in reason


def test_hole_is_found_by_the_deep_look_only(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "model.pt", 4096)
    data = bytearray(path.read_bytes())
    at = data.index(b"archive/data/1") + 200
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)
    assert verify_file(str(path)).verdict == "good"
    deep = verify_file(str(path), look=DEEP)
    assert deep.verdict == "torn"
    assert "archive/data/1: CRC-32" in deep.reason


def test_storage_of_another_size_than_the_index_says(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a/data.pkl", index({"0": 100}))
        out.writestr("a/data/0", bytes(399))
        out.writestr("a/version", "3\n")
    assert "holds 399 bytes where data.pkl names 400" in verify_file(str(path)).reason


@pytest.mark.parametrize("lost", ["a/data/0", "a/version", "a/data.pkl"])
def test_archive_without_one_of_its_records(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as out:
        for name, data in {"a/data.pkl": index({"0": 2}), "a/data/0": bytes(8), "a/version": b"3\n"}.items():
            if name != lost:
                out.writestr(name, data)
    assert verify_file(str(path)).verdict == "torn"


@given(data=st.data())
@SMALL
def test_damaged_files_never_raise_and_damage_is_found_deep(tmp_path: Path, data: st.DataObject) -> None:
    whole = torch_zip(tmp_path / "whole.pt", 32).read_bytes()
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(broken[: data.draw(st.integers(0, len(broken)))])
    quick, deep = verify_file(str(path)), verify_file(str(path), look=DEEP)
    assert not (quick.verdict == "torn" and deep.verdict == "good")
    if path.stat().st_size < len(whole):
        assert quick.verdict != "good"


@given(content=st.binary(max_size=400), name=st.sampled_from(["a.pt", "a.safetensors", "a.json", "a.pkl"]))
@SMALL
def test_garbage_never_raises(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    for head in (b"", b"\x80\x02", b"PK\x03\x04", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")):
        path.write_bytes(head + content)
        verify_file(str(path), look=DEEP)


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickles_are_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    payload = pickle.dumps(pickle.loads(b"\x80\x02}."), protocol)
    assert verify_file(_written(tmp_path / "ok.pkl", payload)).verdict in ("good", "unknown")
    evil = hostile(marker)
    for name, data in {"plain.pkl": evil, "legacy.bin": evil}.items():
        assert verify_file(_written(tmp_path / name, data)).verdict == "hostile"
    path = tmp_path / "zip.pt"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a/data.pkl", evil)
        out.writestr("a/version", "3\n")
    report = verify_file(str(path))
    assert report.verdict == "hostile"
    assert "system" in report.reason
    # a cut file is looked into as well, to tell how much is missing
    path.write_bytes(path.read_bytes()[:-30])
    assert verify_file(str(path)).verdict == "hostile"
    assert not marker.exists()


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("importlib", "import_module"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.utils.cpp_extension", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("paramiko", "ProxyCommand"),
        ("pip._internal", "main"),
        ("collections", "OrderedDict.__class__"),
        ("transformers", "pipeline"),
        ("operator", "attrgetter"),
        ("runpy", "run_path"),
        ("webbrowser", "open"),
    ],
)
def test_calls_of_names_that_no_checkpoint_needs(module: str, name: str) -> None:
    called = b"\x80\x02" + b"c" + f"{module}\n{name}\n".encode() + b"X\x02\0\0\0id\x85R."
    with pytest.raises(HostilePickle, match=name.split(".")[0]):
        read_pickle(io.BytesIO(called))


@pytest.mark.parametrize("name", [b"subprocess\nPopen", b"code\nInteractiveConsole", b"torch\nClassType"])
def test_naming_alone_is_enough_for_what_no_checkpoint_needs(name: bytes) -> None:
    with pytest.raises(HostilePickle, match="no checkpoint needs"):
        read_pickle(io.BytesIO(b"\x80\x02c" + name + b"\n)\x81."))


def test_member_of_an_enum_by_name_is_data_and_never_called() -> None:
    """Python 3.11.0 to 3.11.3 pickle enums with getattr."""
    member = b"cbuiltins\ngetattr\nctransformers.trainer_utils\nIntervalStrategy\nX\x05\0\0\0STEPS\x86R"
    assert read_pickle(io.BytesIO(b"\x80\x02" + member + b".")).foreign == set()
    with pytest.raises(HostilePickle):
        read_pickle(io.BytesIO(b"\x80\x02" + member + b")R."))
    for owner in (b"X\x01\0\0\0a", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n"):
        with pytest.raises(HostilePickle):
            read_pickle(io.BytesIO(b"\x80\x02cbuiltins\ngetattr\n" + owner + b"X\x01\0\0\0b\x86R."))


def test_function_that_a_module_holds_is_named_not_called() -> None:
    read_pickle(io.BytesIO(b"\x80\x02ctorch.nn.functional\nrelu\n."))
    with pytest.raises(HostilePickle):
        read_pickle(io.BytesIO(b"\x80\x02ctorch.nn.functional\nrelu\n)R."))


def test_object_of_an_own_class_is_described_not_called() -> None:
    described = b"\x80\x02cmycompany.config\nConfig\n)\x81}X\x01\0\0\0aK\x01sb."
    read = read_pickle(io.BytesIO(described))
    assert read.foreign == {"mycompany.config.Config"}
    called = b"\x80\x02cmycompany.config\nColour\nK\x01\x85R."
    with pytest.raises(HostilePickle):
        read_pickle(io.BytesIO(called))
    assert read_pickle(io.BytesIO(called), allow=["mycompany"]).foreign == set()


def test_saved_file_inside_a_pickle_is_looked_into(tmp_path: Path) -> None:
    """`torch.storage._load_from_bytes` is torch.load without a guard, met in pickles of tensors."""
    marker = tmp_path / "ran"
    inner = hostile(marker)
    call = b"\x80\x04ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R."
    assert verify_file(_written(tmp_path / "a.pkl", call)).verdict == "hostile"
    assert not marker.exists()


def test_pickle_that_asks_for_a_huge_memo_ends(tmp_path: Path) -> None:
    nested = b"\x80\x04" + b"(" * 5000 + b"."
    assert verify_file(_written(tmp_path / "deep.pkl", nested)).verdict == "torn"


def test_pickles_cannot_change_the_stand_ins(tmp_path: Path) -> None:
    """BUILD on a class would set its attributes for every later file."""
    spoil = b"\x80\x02ccollections\nOrderedDict\n(N}X\x0c\0\0\0__setstate__K\x01stb."
    assert verify_file(_written(tmp_path / "a.pkl", spoil)).verdict in ("torn", "hostile")
    assert verify_file(str(torch_zip(tmp_path / "b.pt"))).verdict == "good"


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "trainer_state.json", "model.pkl"])
def test_empty_file_is_torn(tmp_path: Path, name: str) -> None:
    assert "is empty (0 bytes)" in verify_file(_written(tmp_path / name, b"")).reason


def test_zeros_are_torn_and_other_formats_unknown(tmp_path: Path) -> None:
    assert "never written" in verify_file(_written(tmp_path / "a.pt", bytes(5000))).reason
    assert verify_file(_written(tmp_path / "b.pt", b"GIF89a" + bytes(100))).verdict == "unknown"


def test_unreadable_file_is_unknown_not_torn(tmp_path: Path) -> None:
    assert verify_file(str(tmp_path / "gone.pt")).verdict == "unknown"
    assert verify_file(str(tmp_path)).verdict == "unknown"


def test_safetensors_by_header_and_size(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "model.safetensors")
    whole = path.read_bytes()
    assert verify_file(str(path)).verdict == "good"
    for size in range(len(whole) - 1, -1, -5):
        os.truncate(path, size)
        assert verify_file(str(path)).verdict == "torn", size
    path.write_bytes(whole + b"x")
    assert "follow its last tensor" in verify_file(str(path)).reason


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},
        {"a": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "data_offsets": [0, 12]}},
        {"a": [1]},
        [],
    ],
)
def test_safetensors_header_that_contradicts_itself(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(12)
    assert verify_file(_written(tmp_path / "m.safetensors", data)).verdict == "torn"


def test_safetensors_header_longer_than_the_format_allows(tmp_path: Path) -> None:
    data = struct.pack("<Q", 100_000_001) + b"{" + bytes(50)
    assert "more than the format allows" in verify_file(_written(tmp_path / "m.safetensors", data)).reason


def test_sparse_file_is_a_note_only(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "m.safetensors", {"a": 1 << 20})
    head = path.read_bytes()[:4096]
    size = path.stat().st_size
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)
    if os.stat(path).st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    report = verify_file(str(path))
    assert report.verdict == "good"
    assert "sparse" in report.note


def test_file_that_grows_while_it_is_read_is_in_progress(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "model.pt", 64)

    def grow() -> None:
        with open(path, "ab") as file:
            file.write(b"x")

    assert verify_file(str(path), look=Look(deep=True, tick=grow)).verdict == "in_progress"
