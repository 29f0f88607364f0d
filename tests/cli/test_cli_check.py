"""`clustertools check` on recorded hosts: exit codes, memory, config, deadlines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools import check as checking
from clustertools import checks as installed_checks
from clustertools.cli import main, node_memory
from clustertools.errors import Unobservable, Unparsable

HOSTS = Path(__file__).parent.parent / "hosts"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of site checks, a config that names it, and a memory that is not this machine's."""
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "site.yaml").write_text(f"site_checks: [{folder}]\n")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    yield folder
    # what one process imports stays; the next test must not find these checks
    installed_checks.__path__.remove(str(folder))
    for path in folder.glob("*.py"):
        checking._registry.pop(path.stem, None)
        sys.modules.pop(f"clustertools.checks.{path.stem}", None)


@pytest.fixture
def host(tmp_path: Path) -> str:
    folder = tmp_path / "host"
    (folder / "files").mkdir(parents=True)
    (folder / "host.yaml").write_text("name: n1\ntime: 1000.0\nexpect: {level: 5}\n")
    return str(folder)


COUNTING = '''
from dataclasses import dataclass
from clustertools.check import check

@dataclass(frozen=True)
class Limits:
    top: float = 100

@check(stages={"prolog"}, limits=Limits, codes={"SiteHigh": "too high"})
def site_count(ctx):
    """Counts how often it was run."""
    count = ctx.past.get("count", 0) + 1
    ctx.remember["count"] = count
    yield ctx.reading("site_level", ctx.expect.get("level", -1))
    yield ctx.reading("site_count_total", count)
    if count > ctx.limits.top:
        yield ctx.critical("SiteHigh", "", f"{count} runs (limit {ctx.limits.top:g})")
'''


def with_site(site: Path) -> tuple[str, str]:
    # a recording is judged without this machine's config, unless one is named
    return "--config", f"{site}.yaml"


def read(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def values(verdict: dict) -> dict[str, float]:
    return {r["name"]: r["value"] for r in verdict["readings"]}


@pytest.mark.parametrize(("name", "code"), [("h100-healthy", 0), ("h100-dbe-gpu3", 2), ("h100-nvml-hang", 3)])
def test_the_exit_code_is_the_worst_status(name, code, capsys):
    assert main(["check", "gpu_ecc", "--host", str(HOSTS / name)]) == code
    assert "gpu_ecc" in capsys.readouterr().out


def test_every_format_names_the_fault(capsys):
    for form in ("text", "json", "nagios", "npd", "junit"):
        code = main(["check", "gpu_ecc", "--host", str(HOSTS / "h100-dbe-gpu3"), "--format", form])
        assert code == (1 if form == "npd" else 2)
        assert "gpu@0000:5d:00.0" in capsys.readouterr().out


def test_a_name_that_does_not_exist_is_wrong_usage(capsys):
    assert main(["check", "gpu_eccc", "--host", str(HOSTS / "h100-healthy")]) == 3
    assert "did you mean gpu_ecc" in capsys.readouterr().err


def test_a_recording_that_does_not_exist(tmp_path, capsys):
    assert main(["check", "--host", str(tmp_path / "nowhere")]) == 3
    assert "a recorded host needs this file" in capsys.readouterr().err


def test_job_checks_are_left_out_unless_asked(capsys):
    main(["check", "--list", "--host", str(HOSTS / "h100-healthy")])
    plain = capsys.readouterr().out.split()
    main(["check", "--list", "--stage", "job", "--host", str(HOSTS / "h100-healthy")])
    jobs = capsys.readouterr().out.split()
    assert "gpu_ecc" in plain
    assert "job_exit" in jobs
    assert not set(plain) & set(jobs)


def test_a_check_without_memory_is_repeatable(site, host, capsys):
    (site / "site_count.py").write_text(COUNTING)
    for _ in range(2):
        assert main(["check", "site_count", "--host", host, "--json", *with_site(site)]) == 0
    first, second = read(capsys)
    assert values(first) == values(second) == {"site_level": 5, "site_count_total": 1}


def test_memory_is_kept_only_when_asked(site, host, tmp_path, capsys):
    (site / "site_count.py").write_text(COUNTING)
    for _ in range(3):
        assert main(["check", "site_count", "--host", host, "--json", "--remember", *with_site(site)]) == 0
    assert [values(v)["site_count_total"] for v in read(capsys)] == [1, 2, 3]
    assert [p.name for p in (tmp_path / "run").iterdir()] == [node_memory.NAME]


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", '{"version": 9, "checks": {}}', '{"version":1,"checks":{"a":1}}', "\x00"]
)
def test_a_broken_memory_is_told_and_ignored(site, host, tmp_path, capsys, broken):
    (site / "site_count.py").write_text(COUNTING)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / node_memory.NAME).write_text(broken)
    assert main(["check", "site_count", "--host", host, "--json", "--remember", *with_site(site)]) == 0
    captured = capsys.readouterr()
    assert "beginning with an empty memory" in captured.err
    assert values(json.loads(captured.out))["site_count_total"] == 1
    assert node_memory.load(tmp_path / "run" / node_memory.NAME) == {"site_count": {"count": 1}}


def test_memory_that_cannot_be_written_does_not_hide_the_answer(site, host, tmp_path, monkeypatch, capsys):
    (site / "site_count.py").write_text(COUNTING)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "file" / "below"))
    assert main(["check", "site_count", "--host", host, "--remember", *with_site(site)]) == 0
    captured = capsys.readouterr()
    assert "OK        site_count" in captured.out
    assert "clustertools: " in captured.err


def test_config_gives_limits_expectations_and_what_is_off(site, host, tmp_path, capsys):
    (site / "site_count.py").write_text(COUNTING)
    (site / "site_other.py").write_text(
        COUNTING.replace("site_count", "site_other").replace("SiteHigh", "SiteOther")
    )
    config = tmp_path / "c.yaml"
    config.write_text(
        f"cluster: c1\nsite_checks: [{site}]\n"
        "node_classes: {small: {nodes: 'n[1-3]', expect: {level: 9}}}\n"
        "checks: {site_count: {limits: {top: 0}}, site_other: {enabled: false}}\n"
    )
    (Path(host) / "host.yaml").write_text("name: n1\ntime: 1000.0\n")
    assert main(["check", "--stage", "prolog", "--host", host, "--config", str(config), "--json"]) == 2
    verdicts = {v["check"]: v for v in read(capsys)}
    assert verdicts["site_count"]["status"] == "CRITICAL"
    assert verdicts["site_count"]["subject"] == {
        "cluster": "c1",
        "node": "n1",
        "part": "",
        "job": "",
        "run": "",
    }
    assert values(verdicts["site_count"])["site_level"] == 9
    assert "site_other" not in verdicts


def test_wrong_config_is_exit_3_with_file_and_line(host, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("\n\npolcy: {}\n")
    assert main(["check", "gpu_ecc", "--host", host, "--config", str(tmp_path / "c.yaml")]) == 3
    assert "c.yaml:3" in capsys.readouterr().err


def test_what_did_not_start_in_time_is_unknown(host, capsys):
    assert main(["check", "gpu_ecc", "host_memory", "--host", host, "--json", "--timeout", "0"]) == 3
    verdicts = read(capsys)
    assert [v["status"] for v in verdicts] == ["UNKNOWN", "UNKNOWN"]
    assert all("not started" in v["blind"] for v in verdicts)


def test_where_the_memory_lies(tmp_path):
    assert node_memory.folder({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a")
    system = tmp_path / "run" / "clustertools"
    (tmp_path / "run").mkdir()
    assert node_memory.folder({}, system=str(system)) == system
    nowhere = "/proc/nothing/clustertools"
    assert node_memory.folder({"XDG_RUNTIME_DIR": "/run/user/7"}, system=nowhere) == Path(
        "/run/user/7/clustertools"
    )
    with pytest.raises(Unobservable, match="no place"):
        node_memory.folder({}, system=nowhere)


def test_memory_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / node_memory.NAME
    node_memory.save(path, {"x": {"n": 1}})
    with pytest.raises(Unobservable):
        node_memory.save(path, {"x": {"n": object()}})
    assert node_memory.load(path) == {"x": {"n": 1}}
    assert [p.name for p in path.parent.iterdir()] == [node_memory.NAME]
    path.write_text("no")
    with pytest.raises(Unparsable):
        node_memory.load(path)
