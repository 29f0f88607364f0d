"""Configuration: layers, origins, units, and every mistake with its file, line and advice."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools import config
from clustertools.config import Loaded, load, read_secret, validate_limits
from clustertools.config_sample import SAMPLE
from clustertools.errors import ConfigError
from clustertools.model import Status

Load = Callable[..., Loaded]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """`write("policy: {mode: ask}")` is a config file with that text."""

    def write_file(text: str | bytes, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


@pytest.fixture
def loads(write: Callable[[str], Path], tmp_path: Path) -> Load:
    """`loads("policy: {mode: ask}", "policy.mode=act")`: a file of that text and overrides, nothing else."""

    def load_text(text: str | bytes, *overrides: str) -> Loaded:
        return load([write(text)], overrides, etc=tmp_path / "none", environ={})

    return load_text


@pytest.fixture
def problems(loads: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Everything that is said about a text, without the folder of the test."""

    def told(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            loads(text, *overrides)
        return [p.replace(f"{tmp_path}/", "") for p in caught.value.problems]

    return told


# --- layers and origins


def test_nothing_configured_is_all_defaults(tmp_path: Path) -> None:
    loaded = load(etc=tmp_path, environ={})
    assert loaded.config == config.Config()
    assert loaded.config.policy.mode == "observe"
    assert loaded.files == ()
    assert set(loaded.origins.values()) == {"default"}


def test_later_layers_win_and_each_value_knows_its_origin(write: Any, tmp_path: Path) -> None:
    main = write("cluster: one\npolicy:\n  mode: ask\n  flap_window: 10m\n", "etc/config.yaml")
    write("policy: {flap_window: 20m}\ncluster: two\n", "etc/config.d/20-b.yaml")
    write("cluster: three\n", "etc/config.d/10-a.yaml")
    write("nonsense: true\n", "etc/config.d/30-c.yaml.rpmsave")
    mine = write("policy:\n  budgets:\n    restarts_per_hour: 1\n")
    loaded = load(
        overrides=["policy.mode=act"], etc=tmp_path / "etc", environ={"CLUSTERTOOLS_CONFIG": str(mine)}
    )
    assert loaded.config.cluster == "two"
    assert loaded.config.policy.flap_window_seconds == 1200
    assert loaded.config.policy.mode == "act"
    assert loaded.config.policy.budgets.restarts_per_hour == 1
    etc = tmp_path / "etc"
    assert loaded.origins["policy.mode"] == "-o"
    assert loaded.origins["policy.flap_window"] == f"{etc}/config.d/20-b.yaml:1"
    assert loaded.origins["cluster"] == f"{etc}/config.d/20-b.yaml:2"
    assert loaded.origins["policy.budgets.restarts_per_hour"] == f"{mine}:3"
    assert loaded.origins["policy.budgets.per_node_per_day"] == "default"
    assert loaded.files == tuple(
        str(p) for p in (main, etc / "config.d/10-a.yaml", etc / "config.d/20-b.yaml", mine)
    )


def test_named_files_replace_the_one_of_the_environment(write: Any, tmp_path: Path) -> None:
    named = write("cluster: named", "named.yaml")
    environ = {"CLUSTERTOOLS_CONFIG": str(write("cluster: environment", "environment.yaml"))}
    assert load([named], etc=tmp_path / "none", environ=environ).config.cluster == "named"
    assert load(etc=tmp_path / "none", environ=environ).config.cluster == "environment"


def test_lists_are_replaced_and_mappings_merged(write: Any, tmp_path: Path) -> None:
    a = write("jobs: {x: {log: [a, b], user: u}, y: {user: v}}", "a.yaml")
    b = write("jobs: {x: {log: c}}", "b.yaml")
    jobs = load([a, b], etc=tmp_path / "none", environ={}).config.jobs
    assert jobs["x"].log == ("c",)
    assert (jobs["x"].user, jobs["y"].user) == ("u", "v")


def test_a_section_with_everything_commented_out_changes_nothing(write: Any, tmp_path: Path) -> None:
    a = write("policy: {mode: ask}\nchecks:\n", "a.yaml")
    b = write("policy:\n  # mode: act\nnode_classes:\n", "b.yaml")
    loaded = load([a, b], etc=tmp_path / "none", environ={})
    assert loaded.config.policy.mode == "ask"
    assert loaded.config.checks == {}
    assert loaded.origins["checks"] == "default"


def test_a_layer_need_not_repeat_what_an_earlier_one_said(write: Any, tmp_path: Path) -> None:
    a = write("sinks: {s: {kind: slack, channel: one, token_env: A}}", "a.yaml")
    b = write("sinks: {s: {channel: two}}", "b.yaml")
    assert load([a, b], etc=tmp_path / "none", environ={}).config.sinks["s"].channel == "two"


def test_a_mistake_is_told_even_where_a_later_layer_hides_it(write: Any, tmp_path: Path) -> None:
    a = write("policy:\n  mode: akt\n", "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: policy\.mode: expected one of observe, ask, act"):
        load([a], ["policy.mode=act"], etc=tmp_path / "none", environ={})


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("policy.flap_window=1h30m", ("policy", "flap_window_seconds"), 5400.0),
        ("policy.circuit_breaker.fraction=0.5", ("policy", "circuit_breaker", "fraction"), 0.5),
        ("site_checks=[/a, /b]", ("site_checks",), ("/a", "/b")),
        ('cluster="true"', ("cluster",), "true"),
        ("cluster=", ("cluster",), None),
    ],
)
def test_overrides(loads: Load, override: str, path: tuple[str, ...], value: Any) -> None:
    if value is None:
        with pytest.raises(ConfigError, match="-o cluster: cluster: has no value"):
            loads("", override)
        return
    result: Any = loads("", override).config
    for name in path:
        result = getattr(result, name)
    assert result == value


def test_an_override_reaches_names_with_dots(loads: Load) -> None:
    loaded = loads("", 'jobs."llama.70b".user=alice')
    assert loaded.config.jobs["llama.70b"].user == "alice"
    assert loaded.origins['jobs."llama.70b".user'] == "-o"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy.mode", "-o policy.mode: not of the form path.to.key=value, as in policy.mode=ask"),
        ("policy..mode=ask", "-o policy..mode: not of the form path.to.key=value, as in policy.mode=ask"),
        ("policy.mod=ask", "-o policy.mod: policy.mod: unknown key; did you mean mode?"),
        ("policy.mode=[ask", "-o policy.mode: not YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "policy.flap_window=300",
            "-o policy.flap_window: policy.flap_window: 300 has no unit; write 300s or 5m",
        ),
        (
            ".".join("a" * 50) + "=1",
            "-o a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a....: more than 20 levels deep",
        ),
    ],
)
def test_wrong_overrides(problems: Any, override: str, said: str) -> None:
    assert problems("", override)[0].startswith(said)


# --- every kind of mistake


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster: a\npolcy: {}\n", "c.yaml:2: polcy: unknown key; did you mean policy?"),
        ("policy:\n  zzz: 1\n", "c.yaml:2: policy.zzz: unknown key; known are mode, per_playbook, budgets, "
         "circuit_breaker, earned, flap_window, pause_file, commands"),
        ("checks:\n  gpu_ecc:\n    interval_seconds: 5m\n", "c.yaml:3: checks.gpu_ecc.interval_seconds: "
         "unknown key; write interval, with the unit in its value (a duration, such as 90s, 5m or 1h30m)"),
        ("policy:\n\n  flap_window: 300\n",
         "c.yaml:3: policy.flap_window: 300 has no unit; write 300s or 5m"),
        ("checks: {a: {interval: 0s}}", "c.yaml:1: checks.a.interval: must be at least 1s, not 0s"),
        ("checks: {a: {confirm: 0}}", "c.yaml:1: checks.a.confirm: must be at least 1, not 0"),
        ("policy: {circuit_breaker: {fraction: 10}}",
         "c.yaml:1: policy.circuit_breaker.fraction: must be at most 1, not 10"),
        ("jobs:\n  x:\n    total_steps: many\n",
         "c.yaml:3: jobs.x.total_steps: expected a whole number, not 'many'"),
        ("jobs: {x: {total_steps: 1.5}}", "c.yaml:1: jobs.x.total_steps: expected a whole number, not '1.5'"),
        ("jobs: {x: {total_steps: 010}}", "c.yaml:1: jobs.x.total_steps: expected a whole number, not '010'"),
        ("jobs: {x: {hang: {factor: .inf}}}", "c.yaml:1: jobs.x.hang.factor: expected a number, not '.inf'"),
        ("jobs: {x: {hang: {factor: 1e999}}}",
         "c.yaml:1: jobs.x.hang.factor: expected a number, not '1e999'"),
        ("checks: {a: {enabled: maybe}}", "c.yaml:1: checks.a.enabled: expected true or false, not 'maybe'"),
        ("cluster: true\n", 'c.yaml:1: cluster: expected text, not true; write "true" if that is the text'),
        ("cluster: [a]\n", "c.yaml:1: cluster: expected text, not a list"),
        ("cluster:\n", "c.yaml:1: cluster: has no value; write one or remove the key"),
        ("policy: observe\n", "c.yaml:1: policy: expected a mapping (key: value), not 'observe'"),
        ("jobs: {x: {log: {a: b}}}", "c.yaml:1: jobs.x.log: expected a list, not a mapping"),
        ("policy:\n  mode: acts\n",
         "c.yaml:2: policy.mode: expected one of observe, ask, act, not 'acts'; did you mean act?"),
        ("sinks:\n  s: {kind: terminal, min_status: LOUD}\n", "c.yaml:2: sinks.s.min_status: expected one of "
         "OK, SKIPPED, WARNING, UNKNOWN, CRITICAL, not 'LOUD'"),
        ("sinks:\n  s:\n    channel: x\n", "c.yaml:2: sinks.s: kind is missing: what is there"),
        ("node_classes:\n  h100:\n    gpu_count: 8\n", "c.yaml:2: node_classes.h100: nodes is missing: "
         "the nodes of this class, as a node set: gpu-[001-128]"),
        ("node_classes:\n  h100:\n    nodes: gpu-[001-128\n",
         "c.yaml:3: node_classes.h100.nodes: not a node set; write one such as gpu-[001-128]"),
        ("node_classes: {a: {nodes: n1, gpu_memory: 80Gb}}", "c.yaml:1: node_classes.a.gpu_memory: '80Gb' "
         "is not a size (b is bits, B is bytes); write 80GB or 80GiB"),
        ("node_classes: {a: {nodes: n1, ib_rate: 400GB/s}}", "c.yaml:1: node_classes.a.ib_rate: '400GB/s' "
         "is not a rate in bits (b is bits, B is bytes); write 400Gb/s"),
        ("node_classes: {a: {nodes: n1, expect: {scratch_bytes: 3T}}}",
         "c.yaml:1: node_classes.a.expect.scratch_bytes: '3T' is not a size; write 3TB or 3TiB"),
        ("cluster: a\npolicy: {}\ncluster: b\n", "c.yaml:3: cluster: written twice; the first is on line 1"),
        ("policy:\n\tmode: ask\n", "c.yaml:2: a tab character; indent with spaces"),
        ("- a\n- b\n", "c.yaml:1: expected a mapping (key: value), not a list"),
        ("just words\n", "c.yaml:1: expected a mapping (key: value), not 'just words'"),
        ("a: b: c\n", "c.yaml:1: not YAML: a second ':' on the line, or wrong indentation; "
         "put text that holds ': ' in quotes"),
        ("cluster: [a\npolicy: {}\n", "c.yaml:2: not YAML: expected ',' or ']', but got ':' "
         "(while parsing a flow sequence, begun on line 1)"),
        ("cluster: a\n---\ncluster: b\n",
         "c.yaml:2: a second document begins here; one file holds one document"),
        ("cluster: *nobody\n", "c.yaml:1: not YAML: found undefined alias 'nobody'"),
        ("cluster: a\n? [x]\n: 1\n", "c.yaml:2: a key must be one plain word"),
        ("cluster: a\n? ''\n: 1\n", "c.yaml:2: a key must be one plain word"),
        ("jobs:\n  x: {resume: {kind: env}}\n", "c.yaml:2: jobs.x.resume: resume by env needs a name"),
        ("jobs: {x: {resume: {kind: env, name: A-B}}}",
         "c.yaml:1: jobs.x.resume.name: 'A-B' is not the name of an environment variable"),
        ("jobs: {x: {command: [python, t.py], resume: {kind: placeholder, name: CKPT}}}",
         "c.yaml:1: jobs.x.resume.name: 'CKPT' does not occur in the command"),
        ("sinks:\n  s: {kind: slack, channel: c}\n", "c.yaml:2: sinks.s: a sink of the kind slack needs "
         "token_file or token_env or webhook_file or webhook_env"),
        ("sinks:\n  s: {kind: slack, token_env: A}\n",
         "c.yaml:2: sinks.s: a Slack token needs a channel as well"),
        ("sinks: {s: {kind: pagerduty, token_env: A, token_file: /t}}",
         "c.yaml:1: sinks.s.token_env: token_file is set too; keep one of them"),
        ("sinks: {s: {kind: alertmanager}}", "c.yaml:1: sinks.s: a sink of the kind alertmanager needs url"),
        ("sinks: {s: {kind: alertmanager, url: 'alertmanager:9093'}}",
         "c.yaml:1: sinks.s.url: must begin with http:// or https://"),
        ("sinks: {s: {kind: metrics}}", "c.yaml:1: sinks.s: a sink of the kind metrics needs path"),
        ("sinks: {s: {kind: slak}}", "c.yaml:1: sinks.s.kind: expected one of terminal, slack, webhook, "
         "pagerduty, alertmanager, mail, deadman, metrics, not 'slak'; did you mean slack?"),
    ],
)  # fmt: skip
def test_mistakes(problems: Any, text: str, said: str) -> None:
    assert problems(text) == [said]


def test_all_mistakes_of_all_layers_at_once(write: Any, tmp_path: Path) -> None:
    write("cluster: [1]\n", "etc/config.yaml")
    write("policy: {mode: x}\n", "etc/config.d/a.yaml")
    write("broken: [\n", "etc/config.d/b.yaml")
    write("", "etc/config.d/c.yml")
    with pytest.raises(ConfigError) as caught:
        load(
            [tmp_path / "absent.yaml", write("checks: {a: {interval: 1}}\njobs: 7\n")],
            ["nonsense", "policy.budgets.restarts_per_hour=-1"],
            etc=tmp_path / "etc", environ={},
        )  # fmt: skip
    told = [p.replace(f"{tmp_path}/", "") for p in caught.value.problems]
    assert sorted(p.split(": ")[0] for p in told) == [
        "-o nonsense", "-o policy.budgets.restarts_per_hour", "absent.yaml", "c.yaml:1", "c.yaml:2",
        "etc/config.d/a.yaml:1", "etc/config.d/b.yaml:2", "etc/config.d/c.yml", "etc/config.yaml:1",
    ]  # fmt: skip
    assert "absent.yaml: no such file" in told
    assert "etc/config.d/c.yml: would not be read; name it c.yaml" in told


def test_files_that_cannot_be_read(write: Any, tmp_path: Path) -> None:
    (tmp_path / "etc" / "config.d" / "folder.yaml").mkdir(parents=True)
    (tmp_path / "etc" / "config.d" / "gone.yaml").symlink_to("nowhere")
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError) as caught:
        load([loop], etc=tmp_path / "etc", environ={"CLUSTERTOOLS_CONFIG": str(tmp_path / "unused")})
    told = [p.replace(f"{tmp_path}/", "") for p in caught.value.problems]
    assert told == [
        "etc/config.d/folder.yaml: cannot be read: Is a directory",
        "etc/config.d/gone.yaml: no such file",
        "loop.yaml: cannot be read: Too many levels of symbolic links",
    ]
    with pytest.raises(ConfigError, match="absent: no such file"):
        load(etc=tmp_path / "none", environ={"CLUSTERTOOLS_CONFIG": str(tmp_path / "absent")})


# --- secrets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sinks:\n  s:\n    kind: slack\n    token: xoxb-1-HUSH\n",
         "c.yaml:4: sinks.s.token: a secret does not belong in config; write token_file or token_env"),
        ("sinks: {s: {kind: webhook, webhook_url: https://HUSH}}",
         "c.yaml:1: sinks.s.webhook_url: a secret does not belong in config; write webhook_file or "
         "webhook_env"),
        ("node_classes: {a: {nodes: n, expect: {bmc_password: HUSH}}}", "c.yaml:1: node_classes.a.expect."
         "bmc_password: a secret does not belong in config; write token_file or token_env"),
        ("sinks: {s: {kind: slack, channel: c, token_file: xoxb-HUSH}}",
         "c.yaml:1: sinks.s.token_file: must be the full path of a file, beginning with /"),
        ("sinks: {s: {kind: pagerduty, token_env: e93fHUSH}}",
         "c.yaml:1: sinks.s.token_env: must be the name of an environment variable, in capitals"),
        ("sinks: {s: {kind: deadman, url: 'https://me:HUSH@example.org'}}",
         "c.yaml:1: sinks.s.url: this address is a secret; write webhook_file or webhook_env"),
        ("sinks: {s: {kind: webhook, url: 'https://hooks.slack.com/services/HUSH'}}",
         "c.yaml:1: sinks.s.url: this address is a secret; write webhook_file or webhook_env"),
    ],
)  # fmt: skip
def test_secrets_are_refused_and_never_repeated(problems: Any, text: str, said: str) -> None:
    told = problems(text)
    assert said in told
    assert "HUSH" not in "\n".join(told)


def test_a_secret_on_the_command_line_is_refused_and_not_repeated(problems: Any) -> None:
    told = problems("", "sinks.s.token=HUSH", "sinks.s.webhook_url=[HUSH")
    assert len(told) == 2
    assert all("does not belong in config" in p and "HUSH" not in p for p in told)


def test_a_job_may_be_called_token(loads: Load) -> None:
    assert "token" in loads("jobs: {token: {user: a}}").config.jobs


def test_read_secret(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("xoxb-HUSH\n")
    file.chmod(0o640)
    assert read_secret(str(file), "") == "xoxb-HUSH"
    assert read_secret("", "TOKEN", {"TOKEN": " abc\n"}) == "abc"
    assert read_secret("", "") == ""
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="everybody may read this secret; chmod o-r") as caught:
        read_secret(str(file), "")
    assert "HUSH" not in str(caught.value)
    file.chmod(0o600)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_secret(str(file), "")
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(str(tmp_path / "absent"), "")
    with pytest.raises(ConfigError, match="the environment variable TOKEN is not set"):
        read_secret("", "TOKEN", {})


# --- hostile and odd YAML


def test_python_tags_are_refused_and_run_nothing(problems: Any, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = (
        f"cluster: a\njobs: !!python/object/apply:os.mkdir [{marker}]\ncluster: !!python/name:os.getcwd ''\n"
    )
    told = problems(text)
    assert (
        "c.yaml:2: jobs: the tag !!python/object/apply:os.mkdir is not allowed; write a plain value" in told
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["jobs: !x {}", "cluster: !!binary aGk=", "jobs: !!set {a}", "cluster: !!timestamp 1"]
)
def test_other_tags_are_refused(problems: Any, text: str) -> None:
    assert "is not allowed; write a plain value" in problems(text)[0]


def test_billion_laughs(problems: Any) -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    began = time.monotonic()
    told = problems("\n".join(rows))
    assert any("more than 50000 values" in p for p in told)
    assert time.monotonic() - began < 5


def test_aliases_that_contain_themselves(problems: Any) -> None:
    assert "c.yaml:1: jobs.x: an alias that contains itself" in problems("jobs: &j {x: *j}")
    assert any("an alias that contains itself" in p for p in problems("jobs: &j\n  <<: *j\n"))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_ten_thousand_levels(problems: Any, opening: str) -> None:
    began = time.monotonic()
    assert problems(opening * 10_000)[0].startswith("c.yaml:1: ")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"cluster: a\nuser: \xff\n", "c.yaml:2: not UTF-8 text; save the file as UTF-8"),
        (b"cluster: a\n\x00\n", "c.yaml:2: the character U+0000 is not allowed in YAML"),
        (b'cluster: "\\UFFFFFFFF"', "c.yaml: not YAML: "),
        (b"#" * (1 << 20) + b"\n", "c.yaml: larger than 1 MiB, which no config needs"),
    ],
)
def test_bytes_that_are_no_config(problems: Any, raw: bytes, said: str) -> None:
    assert [p[: len(said)] for p in problems(raw)] == [said]


def test_yaml_that_people_write(loads: Load) -> None:
    assert loads(b"\xef\xbb\xbfcluster: a\r\n").config.cluster == "a"
    assert loads("# nothing\n").config == config.Config()
    assert loads("cluster: 007").config.cluster == "007"
    assert loads("cluster: no").config.cluster == "no"
    assert loads("cluster: 12:30").config.cluster == "12:30"
    assert loads("cluster: 2024-01-01").config.cluster == "2024-01-01"
    assert loads("checks: {a: {enabled: no}, b: {enabled: Off}}").config.check("a").enabled is False
    assert (
        loads("sinks: {s: {kind: terminal, min_status: critical}}").config.sinks["s"].min_status
        is Status.CRITICAL
    )
    assert loads("checks: {a: {interval: 1s}}").config.check("a").interval_seconds == 1
    assert loads("checks: {a: {interval: ~}}").config.check("a").interval_seconds is None


def test_anchors_and_merge_keys(loads: Load) -> None:
    jobs = loads(
        "jobs:\n  a: &base\n    user: alice\n    partition: large\n"
        "  b:\n    <<: *base\n    user: bob\n  c:\n    user: carol\n    <<: [*base]\n"
    ).config.jobs
    assert (jobs["b"].user, jobs["b"].partition) == ("bob", "large")
    assert (jobs["c"].user, jobs["c"].partition) == ("carol", "large")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("abc:- \n\t[]{}&*!|>'\"%@`#,?~0.<="), max_size=60))
def test_any_text_loads_or_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text)
    for files, overrides in (([path], []), ([], [f"cluster={text}"]), ([], [text])):
        with contextlib.suppress(ConfigError):
            load(files, overrides, etc="/nonexistent", environ={})


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 3000))
def test_a_damaged_sample_loads_or_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    raw = SAMPLE.encode()
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(raw[:at] + junk)
    with contextlib.suppress(ConfigError):
        load([path], etc="/nonexistent", environ={})


# --- limits of the checks


@dataclass(frozen=True)
class Limits:
    uncorrected: int = 0
    max_age_seconds: float = 60.0
    max_wait_seconds: int = 1
    max_celsius: float = 90.0
    ignore: tuple[str, ...] = ()
    per_code: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_celsius < 0:
            raise ValueError("max_celsius is below freezing")


@dataclass(frozen=True)
class Declared:
    limits: type = Limits


CHECKS = {"gpu_ecc": Declared(), "gpu_heat": Declared()}


def test_limits_are_the_defaults_with_what_config_says(loads: Load) -> None:
    loaded = loads("checks: {gpu_ecc: {limits: {max_age: 2m, max_wait: 1m, ignore: a, per_code: {79: 1}}}}")
    found = validate_limits(loaded, CHECKS)
    assert found["gpu_ecc"] == Limits(
        max_age_seconds=120.0, max_wait_seconds=60, ignore=("a",), per_code={79: 1.0}
    )
    assert found["gpu_heat"] == Limits()


def test_every_wrong_limit_and_name_at_once(loads: Load, tmp_path: Path) -> None:
    loaded = loads(
        "checks:\n  gpu_ec:\n    enabled: false\n  gpu_ecc:\n    limits:\n      uncorected: 1\n"
        "      max_age: 60\n      max_wait: 1500ms\n      per_code: {xid: 1}\n"
        "  gpu_heat:\n    limits:\n      max_celsius: -1\n"
        "policy:\n  per_playbook:\n    gpu-rest: act\n"
    )
    with pytest.raises(ConfigError) as caught:
        validate_limits(loaded, CHECKS, playbooks=["gpu-reset"])
    assert [p.replace(f"{tmp_path}/", "") for p in caught.value.problems] == [
        "c.yaml:2: checks.gpu_ec: there is no check of this name; did you mean gpu_ecc?",
        "c.yaml:15: policy.per_playbook.gpu-rest: there is no playbook of this name; did you mean gpu-reset?",
        "c.yaml:6: checks.gpu_ecc.limits.uncorected: unknown key; did you mean uncorrected?",
        "c.yaml:7: checks.gpu_ecc.limits.max_age: 60 has no unit; write 60s or 1m",
        "c.yaml:8: checks.gpu_ecc.limits.max_wait: '1500ms' is not a whole number of seconds",
        "c.yaml:9: checks.gpu_ecc.limits.per_code.xid: expected a whole number as key",
        "c.yaml:11: checks.gpu_heat.limits: max_celsius is below freezing",
    ]


def test_fields_that_would_share_a_key_keep_their_names(loads: Load) -> None:
    @dataclass(frozen=True)
    class Both:
        window_seconds: float = 1.0
        window_bytes: int = 1

    loaded = loads("checks: {a: {limits: {window_seconds: 5m, window_bytes: 1KiB}}}")
    # a class inside a function cannot resolve its own annotations from text
    Both.__annotations__.update(window_seconds=float, window_bytes=int)
    assert validate_limits(loaded, {"a": Declared(Both)})["a"] == Both(300.0, 1024)


def test_expectations_have_the_names_that_checks_ask_for(loads: Load) -> None:
    loaded = loads(
        "node_classes: {a: {nodes: n1, gpu_count: 8, memory: 2TiB, ib_rate: 400Gb/s, "
        "ecc: false, mounts: /home, expect: {scratch_bytes: 3TB}}}"
    )
    assert loaded.config.node_classes["a"].expectations() == {
        "gpu_count": 8, "memory_bytes": 2 << 40, "ib_rate_bits_per_second": 400 * 10**9,
        "scratch_bytes": 3 * 10**12, "ecc": False, "mounts": ("/home",),
    }  # fmt: skip
