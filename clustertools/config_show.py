"""The effective config as YAML, and its shape as a JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from clustertools.config import Checkable, CheckConfig, Config, Loaded, path_of
from clustertools.config_lines import Dumper
from clustertools.config_shape import leaves
from clustertools.config_shape import schema as schema_of


def show(loaded: Loaded, origin: bool = False) -> str:
    """The effective config as YAML that loads again, with the origin of each value as a comment if wanted."""
    tree: dict[str, Any] = {}
    for keys, value in leaves(loaded.config):
        if value == "" and loaded.origins[path_of(keys)] == "default":
            continue  # not set, and nothing to learn from it
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = (value, loaded.origins[path_of(keys)])
    return "".join(_lines(tree, 0, origin))


def _lines(tree: Mapping[str, Any], depth: int, origin: bool) -> Iterable[str]:
    for key, value in tree.items():
        start = f"{'  ' * depth}{_yaml(key)}:"
        if isinstance(value, dict):
            yield f"{start}\n"
            yield from _lines(value, depth + 1, origin)
        else:
            yield f"{start} {_yaml(value[0])}{f'  # {value[1]}' if origin else ''}\n"


def _yaml(value: Any) -> str:
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def schema(checks: Mapping[str, Checkable] | None = None) -> dict[str, Any]:
    """A JSON Schema for editors; with `checks`, of the limits of each as well."""
    result = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "clustertools config",
        **schema_of(Config),
    }
    if checks is not None:
        known = {}
        for name, check in checks.items():
            known[name] = schema_of(CheckConfig)
            known[name]["properties"]["limits"] = schema_of(check.limits)
        result["properties"]["checks"] = {
            "type": "object",
            "properties": known,
            "patternProperties": {"^plugin_": schema_of(CheckConfig)},
            "additionalProperties": False,
        }
    return result
