"""Dumps of PyTorch's flight recorder: real ones of four gloo ranks, damaged ones, and hostile ones.

tests/lab/record_flight_recorder.py made those in tests/sources/flight_recorder, with PyTorch 2.13.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.model import RankState
from clustertools.sources.flight_recorder import MOST_BYTES, Dump, read_dump, summary

DUMPS = Path(__file__).parent / "flight_recorder"


def dumps(kind: str, *ranks: int) -> list[Dump]:
    return [read_dump((DUMPS / kind / f"rank{rank}").read_bytes(), rank) for rank in ranks or range(4)]


def nccl() -> dict[str, Any]:
    """As NCCL's recorder writes it: states are right, and sends have a sequence of theirs."""
    frames = [
        {"name": "recv", "filename": "/opt/lib/torch/distributed/distributed_c10d.py", "line": 2},
        {"name": "forward", "filename": "/home/user/pipe.py", "line": 41},
    ]
    entry = {
        "pg_id": 1, "process_group": ("8", "mesh_pp"), "collective_seq_id": 0, "p2p_seq_id": 7, "op_id": 7,
        "profiling_name": "nccl:recv 0<-1", "input_sizes": [[2, 4]], "input_dtypes": ["BFloat16"],
        "state": "started", "retired": False, "is_p2p": True, "frames": frames, "time_created_ns": 5 * 10**9,
    }  # fmt: skip
    done = {**entry, "state": "completed", "p2p_seq_id": 6}
    status = {"last_enqueued_collective": 9, "last_started_collective": 9, "last_completed_collective": 8}
    return {
        "version": "2.10", "pg_config": {}, "comm_lib_version": "2.27.5",
        "pg_status": {0: status, 1: status, 2: status}, "entries": [done, entry],
    }  # fmt: skip


def test_the_rank_that_stalls_is_behind():
    said = dumps("stall")
    assert said[2].states == (RankState(2, "default_pg (0)", 5, 5),)
    assert said[0].states == (RankState(0, "default_pg (0)", 6, 5), RankState(0, "tp (1)", 5, 5))
    assert [one.operation for one in said[0].pending] == ["all_reduce"]
    assert said[2].pending == ()
    assert summary(said, 4) == [
        "rank 2 is behind in default_pg (0): enqueued 5 collectives, the foremost 6",
        "ranks 0-1,3 not done with all_reduce, number 6 of default_pg (0), "
        "called in main (record_flight_recorder.py:47)",
    ]


def test_the_rank_that_calls_something_else_is_named():
    assert summary(dumps("mismatch"), 4)[0] == (
        "the ranks do not agree on collective 6 of default_pg (0): "
        "rank 2 broadcast [1000] Float, ranks 0-1,3 all_reduce [1000] Float"
    )


def test_ranks_without_a_dump_are_told():
    assert summary(dumps("stall", 0, 1), 4)[-1] == "no dump of ranks 2-3"
    assert summary([], 4) == []


def test_sizes_that_differ_are_told_where_they_must_not():
    first, second = dumps("stall", 0, 1)
    other = second.pending[0].__class__(**{**_fields(second.pending[0]), "sizes": "[500] Float"})
    said = summary([first, Dump(1, "2.10", second.states, (other,))])
    assert any("rank 0 all_reduce [1000] Float, rank 1 all_reduce [500] Float" in line for line in said)
    free = [
        Dump(d.rank, "2.10", (), (p.__class__(**{**_fields(p), "operation": "all_to_all"}),))
        for d, p in ((first, first.pending[0]), (second, other))
    ]
    assert not any("do not agree" in line for line in summary(free))


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_the_json_form_says_the_same():
    of_json = read_dump((DUMPS / "stall" / "rank2.json").read_bytes(), 2)
    assert of_json.states == dumps("stall", 2)[0].states


def test_nccl_has_states_and_sequences_of_sends():
    read = read_dump(pickle.dumps(nccl(), protocol=2), 3)
    (one,) = read.pending
    assert (one.operation, one.sequence, one.is_p2p, one.state) == ("recv 0<-1", 7, True, "started")
    assert (one.where, one.sizes, one.time) == ("forward (pipe.py:41)", "[2, 4] BFloat16", 5.0)
    # a group of which no entry tells the name cannot be compared with that of other ranks
    assert [state.group for state in read.states] == ["default_pg (0)", "mesh_pp (8)"]


class Order:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_dump_that_is_a_program_is_refused_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    for call in ((os.mkdir, (str(mark),)), (eval, (f"open({str(mark)!r}, 'w')",))):
        with pytest.raises(Unparsable, match="it names"):
            read_dump(pickle.dumps({**nccl(), "entries": [Order(*call)]}, protocol=protocol), 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"{",
        b"{" * 200_000,
        b'{"version": "2.10", "entries": ' + b"[" * 200_000,
        b"\x80\x02" + b"(" * 500_000 + b".",
        # an index for which pickle in C would reserve 16 GB
        b"\x80\x02]r\xff\xff\xff\x3f.",
        b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x.",
        b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b"x.",
        b"\x82\x01.",
        b"Pname\n.",
        b"x" * (MOST_BYTES + 1),
        (DUMPS / "stall" / "rank0").read_bytes()[:-1],
        (DUMPS / "stall" / "rank0").read_bytes()[:900],
        pickle.dumps([]),
        pickle.dumps({**nccl(), "version": "3.0"}),
        pickle.dumps({**nccl(), "version": 2}),
        pickle.dumps({**nccl(), "pg_status": {0: {"last_enqueued_collective": 1.5}}}),
        pickle.dumps({**nccl(), "pg_status": {0: {}}}),
        pickle.dumps({**nccl(), "entries": [{}]}),
        pickle.dumps({**nccl(), "entries": [{**nccl()["entries"][1], "p2p_seq_id": 1 << 70}]}),
        pickle.dumps({**nccl(), "entries": [{**nccl()["entries"][1], "process_group": ("a",)}]}),
    ],
    ids=lambda data: str(data[:24]),
)
def test_what_is_no_dump_is_unparsable(data):
    began = time.monotonic()
    with pytest.raises(Unparsable):
        read_dump(data, 0)
    assert time.monotonic() - began < 20


def test_no_word_of_a_dump_reaches_a_terminal_as_it_is():
    entry = {
        **nccl()["entries"][1],
        "profiling_name": "nccl:\x1b[2Jrecv\n" + "x" * 9999,
        "process_group": ("\x07", ""),
    }
    read = read_dump(pickle.dumps({**nccl(), "entries": [entry]}), 0)
    assert read.pending[0].operation.startswith("recv x")
    assert len(read.pending[0].operation) <= 120
    assert read.pending[0].group == ""


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_dump_is_read_or_unparsable(data):
    whole = bytearray((DUMPS / "stall" / "rank2").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Unparsable):
        read_dump(bytes(whole), 2)
