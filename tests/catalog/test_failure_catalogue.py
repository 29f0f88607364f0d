"""The catalogue of failure lines: each row knows its own example, and a site lays its rows over ours."""

from __future__ import annotations

import pytest

from clustertools.catalog import failures, xids
from clustertools.errors import ConfigError
from clustertools.model import Status

ROWS = failures.signatures()


@pytest.mark.parametrize(
    ("row", "example"), [(row, e) for row in ROWS for e in row.examples], ids=lambda v: getattr(v, "name", "")
)
def test_each_example_is_named_by_its_own_row(row, example):
    found = failures.match(example)
    assert found is not None
    assert found.name == row.name
    assert any(anchor in example for anchor in failures.anchors())


@pytest.mark.parametrize(
    ("row", "line"),
    [(row, line) for row in ROWS for line in row.unlike],
    ids=lambda v: getattr(v, "name", ""),
)
def test_a_line_that_looks_alike_is_another(row, line):
    found = failures.match(line)
    assert found is None or found.name != row.name


def test_names_are_unique_and_every_row_is_whole():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60
    for row in ROWS:
        assert row.examples, row.name
        assert row.meaning[:1].islower() or row.meaning.startswith(("NCCL", "Slurm", "Megatron", "NVIDIA")), (
            row.name
        )
        assert row.role != "cascade" or row.advice == "none", row.name
        # who is guilty is never told by a symptom, nor by an error of the run's own code
        assert not row.blames or (row.role == "root" and row.kind not in ("user", "environment")), row.name


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            ("same", "stop", "stop", "stop"),
        ),
        (
            "RuntimeError: CUDA error: an illegal memory access was encountered",
            ("same", "same", "exclude", "stop"),
        ),
        ("Memory cgroup out of memory: Killed process 1 (python)", ("same", "same", "exclude", "stop")),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", ("exclude",) * 4),
        ("ModuleNotFoundError: No module named 'x'", ("stop",) * 4),
        ("OSError: [Errno 28] No space left on device", ("wait",) * 4),
        (
            "RuntimeError: Detected mismatch between collectives on ranks. Rank 0",
            ("same", "stop", "stop", "stop"),
        ),
    ],
)
def test_advice_depends_on_when_and_where(line, advice):
    row = failures.match(line)
    assert row is not None
    assert advice == (
        row.advice_for(early=False, same_node=0, other_node=0),
        row.advice_for(early=True, same_node=0, other_node=0),
        row.advice_for(early=False, same_node=1, other_node=0),
        row.advice_for(early=False, same_node=0, other_node=1),
    )


def test_xids_are_classed_as_in_their_own_catalogue():
    line = "NVRM: Xid (PCI:0000:3b:00): {}, pid=1234, name=python, x"
    named = {entry.code: failures.match(line.format(entry.code)) for entry in xids()}
    critical = {entry.code for entry in xids() if entry.status is Status.CRITICAL}
    assert {code for code, row in named.items() if row is not None and row.advice == "exclude"} == critical


def test_a_site_adds_a_row_before_ours_and_overrides_fields(tmp_path):
    (tmp_path / "ours.yaml").write_text(
        "failures:\n"
        "- {name: SiteFault, pattern: 'E42: .* broken', anchors: ['E42'], role: root, advice: exclude,\n"
        "   kind: hardware, blames: 0.8, meaning: our fault, source: site, examples: ['E42: is broken']}\n"
        "- {name: StorageFault, advice: same}\n"
    )
    rows = failures.load(str(tmp_path))
    assert rows[0].name == "SiteFault"
    changed = next(row for row in rows if row.name == "StorageFault")
    assert (changed.advice, changed.origin) == ("same", str(tmp_path / "ours.yaml"))
    assert len(rows) == len(ROWS) + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- nonsense", "a list of rows"),
        ("failures: [{name: Odd}]", "failure Odd: needs"),
        ("failures: [{name: StorageFault, advice: maybe}]", "'maybe' is not one of same, exclude"),
        ("failures: [{name: StorageFault, pattern: '('}]", "failure StorageFault: missing )"),
        ("failures: [{name: StorageFault, pattern: 'x{9}'}]", "is in its example"),
        ("failures: [{name: StorageFault, colour: red}]", "colour is not known"),
        ("failures: [", "not YAML"),
    ],
)
def test_a_wrong_site_file_is_told_with_its_path(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml") as raised:
        failures.load(str(tmp_path))
    assert said in str(raised.value)
