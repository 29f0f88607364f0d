"""Config written out again: `show`, the sample and the JSON Schema agree with what `load` reads."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustertools import config, config_shape
from clustertools.config import Loaded, load
from clustertools.config_sample import SAMPLE
from clustertools.config_show import schema, show
from clustertools.errors import ConfigError

Load = Callable[..., Loaded]


@pytest.fixture
def loads(tmp_path: Path) -> Load:
    """`loads("policy: {mode: ask}", "policy.mode=act")`: a file of that text and overrides, nothing else."""

    def load_text(text: str, *overrides: str) -> Loaded:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load([path], overrides, etc=tmp_path / "none", environ={})

    return load_text


@dataclass(frozen=True)
class Limits:
    uncorrected: int = 0
    max_age_seconds: float = 60.0


@dataclass(frozen=True)
class Declared:
    limits: type = Limits


CHECKS = {"gpu_ecc": Declared()}


def test_what_is_shown_loads_again(loads: Load) -> None:
    loaded = loads(SAMPLE, "policy.mode=ask", "jobs.pretrain.hang.factor=2.5")
    for text in (show(loaded), show(loaded, origin=True)):
        assert loads(text).config == loaded.config


def test_origins_are_shown(loads: Load, tmp_path: Path) -> None:
    shown = show(loads("cluster: a\n", "policy.mode=ask"), origin=True)
    assert f"cluster: a  # {tmp_path}/c.yaml:1\n" in shown
    assert "  mode: ask  # -o\n" in shown
    assert "  flap_window: 30m  # default\n" in shown


@settings(max_examples=100, deadline=None)
@example("\x85")
@example("a\n b: c\u2028")
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_text_survives_being_shown(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "shown.yaml"
    path.write_text(json.dumps({"cluster": text, "jobs": {"a": {"log": [text]}}}), encoding="utf-8")
    try:
        loaded = load([path], etc="/nonexistent", environ={})
    except ConfigError:
        return
    path.write_text(show(loaded, origin=True), encoding="utf-8")
    assert load([path], etc="/nonexistent", environ={}).config == loaded.config


def _records(kind: Any) -> set[type]:
    inner = {r for arg in typing.get_args(kind) for r in _records(arg)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return {kind} | {r for s in config_shape.slots(kind).values() for r in _records(s.kind)}
    return inner


def test_the_sample_loads_and_has_every_key(loads: Load) -> None:
    loaded = loads(SAMPLE)
    assert loaded.config.jobs["pretrain"].hang.factor == 5
    records = _records(config.Config)
    assert len(records) == 15
    missing = {
        key for record in records for key in config_shape.slots(record) if not re.search(rf"\b{key}:", SAMPLE)
    }
    assert missing == set()


def test_the_sample_states_the_defaults_of_policy(loads: Load) -> None:
    policy = loads(SAMPLE).config.policy
    assert dataclasses.replace(policy, pause_file="", commands={}) == config.PolicyConfig()


def _fits(value: Any, rule: Mapping[str, Any]) -> bool:
    """As much of JSON Schema as the schema uses."""
    if "anyOf" in rule:
        return any(_fits(value, r) for r in rule["anyOf"])
    if "enum" in rule:
        return value in rule["enum"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
             "boolean": bool, "null": type(None)}  # fmt: skip
    wanted = rule.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, kinds[w]) for w in wanted):
        return False
    if isinstance(value, dict):
        more = rule.get("additionalProperties", True)
        forms = rule.get("patternProperties", {})
        rules = {
            k: rule.get("properties", {}).get(k)
            or next((r for f, r in forms.items() if re.search(f, k)), more)
            for k in value
        }
        if any(r is False or (r is not True and not _fits(value[k], r)) for k, r in rules.items()):
            return False
        return set(rule.get("required", ())) <= set(value)
    if isinstance(value, list):
        return all(_fits(v, rule.get("items", {})) for v in value)
    if isinstance(value, (int, float)):
        return rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf)
    return not isinstance(value, str) or bool(re.search(rule.get("pattern", ""), value))


def test_the_schema_agrees_with_load(loads: Load) -> None:
    rule = json.loads(json.dumps(schema(CHECKS)))
    assert _fits(yaml.safe_load(SAMPLE), rule)
    for wrong in (
        "polcy: {}", "policy: {flap_window: 300}", "policy: {mode: acts}", "checks: {gpu_ec: {}}",
        "checks: {gpu_ecc: {limits: {max_age_seconds: 5m}}}", "node_classes: {a: {gpu_count: 8}}",
        "policy: {circuit_breaker: {fraction: 10}}",
    ):  # fmt: skip
        assert not _fits(yaml.safe_load(wrong), rule), wrong
    assert rule["properties"]["policy"]["properties"]["flap_window"]["default"] == "30m"
    assert "observe" in rule["properties"]["policy"]["properties"]["mode"]["description"]
