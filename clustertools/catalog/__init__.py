"""What NVIDIA's Xid and SXid codes mean, what we do about them, and what every other source says.

    xid(79).remedy                       # Remedy.REBOOT_NODE
    explain_xid(48)                      # plain text for a person
    remedy_from("nvml", "GPU Reset Required")

The facts lie beside this file as YAML; a site overrides the policy in /etc/clustertools/xid.yaml.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustertools.errors import ConfigError
from clustertools.model import Clears, Remedy, Status

#: Beside this file, which may lie in an archive: read by `packaged_text`, not opened.
_FOLDER = Path(__file__).parent
#: Rows of a site; the last one wins.
SITE_XIDS = ("/etc/clustertools/xid.yaml",)
#: The finding code of an Xid that no row names.
UNKNOWN_NAME = "Unknown"

_STATUSES = {"critical": Status.CRITICAL, "warning": Status.WARNING, "ignore": Status.OK}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class XidEntry:
    """One Xid. `status` OK means: no finding of its own. `origin` names the files that the policy is from."""

    code: int
    name: str
    meaning: str
    status: Status
    remedy: Remedy
    clears: Clears
    why: str
    sources: Mapping[str, str]
    disagreement: str = ""
    follows: tuple[int, ...] = ()
    origin: str = "clustertools"

    @property
    def finding_code(self) -> str:
        """`XidGpuLost`; several Xids of one family share it."""
        return f"Xid{self.name}"


@dataclass(frozen=True, slots=True)
class SxidEntry:
    """One SXid of an NVSwitch. `kind` is its class in NVIDIA's guide."""

    code: int
    meaning: str
    kind: str
    status: Status
    remedy: Remedy
    clears: Clears
    why: str
    sources: Mapping[str, str]
    disagreement: str = ""


@dataclass(frozen=True, slots=True)
class Nvlink5Rule:
    """What the catalogue says of one unit and error: what to do now, and what to look at."""

    now: str
    look_at: str


def load_xids(site_paths: tuple[str, ...] = SITE_XIDS) -> Mapping[int, XidEntry]:
    """Every known Xid by its code, with the site's policy laid over ours.

    A site file has a list `xids` of rows with `code` (or `codes`) and any of `policy` and `why`; for a code
    that we do not know also `name` and `meaning`. Raises ConfigError naming file and row when a row is wrong.
    """
    rows = dict(_rows(_FOLDER / "xid.yaml", "xids"))
    problems: list[str] = []
    for path in site_paths:
        if not Path(path).exists():
            continue
        for code, row in _rows(Path(path), "xids"):
            wrong = set(row) - {"code", "codes", "name", "meaning", "policy", "why", "follows"}
            if wrong:
                problems.append(f"{path}: Xid {code}: {', '.join(sorted(wrong))} cannot be set by a site")
                continue
            known = rows.get(
                code, {"name": UNKNOWN_NAME, "meaning": "a code that the catalogue does not hold"}
            )
            policy = {**known.get("policy", _POLICY_OF_UNKNOWN), **(row.get("policy") or {})}
            origin = f"{known.get('origin', 'clustertools')}, {path}"
            # the name makes the finding's code, which is stable for ever
            name = known["name"] if code in rows else row.get("name", known["name"])
            rows[code] = {**known, **row, "name": name, "policy": policy, "origin": origin}
    entries = {}
    unless_named = _document(_FOLDER / "xid.yaml").get("unless_named", {})
    for code, row in rows.items():
        try:
            entries[code] = _xid_entry(code, row, unless_named)
        except (KeyError, TypeError, ValueError) as exc:
            problems.append(f"{row.get('origin', 'xid.yaml')}: Xid {code}: {_said(exc)}")
    if problems:
        raise ConfigError(*problems)
    return entries


_POLICY_OF_UNKNOWN = {"status": "warning", "remedy": "inspect", "clears": "6h"}


@functools.cache
def _xids() -> Mapping[int, XidEntry]:
    return load_xids()


def xid(code: int) -> XidEntry:
    """What is known of an Xid. A code that no row names is a warning called Unknown."""
    known = _xids().get(code)
    if known is not None:
        return known
    return _xid_entry(
        code,
        {
            "name": UNKNOWN_NAME,
            "meaning": f"Xid {code} is not in the catalogue",
            "policy": _POLICY_OF_UNKNOWN,
            "why": "a code that nobody has described yet; the kernel line says more",
            "sources": {},
        },
        {},
    )


def xids() -> tuple[XidEntry, ...]:
    """Every Xid of the catalogue, by code."""
    return tuple(entry for _, entry in sorted(_xids().items()))


def finding_codes() -> dict[str, str]:
    """`XidGpuLost` and its kin, each with one sentence: what a check of Xids may yield."""
    told: dict[str, tuple[list[int], str]] = {}
    for entry in xids():
        numbers, _ = told.setdefault(entry.finding_code, ([], entry.meaning))
        numbers.append(entry.code)
    codes = {name: f"Xid {_folded(numbers)}: {meaning}" for name, (numbers, meaning) in told.items()}
    codes.setdefault(f"Xid{UNKNOWN_NAME}", "an Xid that the catalogue does not hold")
    return codes


@functools.cache
def _sxids() -> Mapping[int, SxidEntry]:
    path = _FOLDER / "sxid.yaml"
    document = _document(path)
    entries = {}
    for code, row in _rows(path, "sxids"):
        kind = document["classes"][row["class"]]
        status, remedy, clears = _policy(kind["policy"])
        entries[code] = SxidEntry(
            code, row["meaning"], row["class"], status, remedy, clears, kind["why"],
            {**document["unless_named"], **row["sources"]}, row.get("disagreement", ""),
        )  # fmt: skip
    return entries


def sxid(code: int) -> SxidEntry:
    """What is known of an SXid. A code that no row names is a warning of class `unknown`."""
    known = _sxids().get(code)
    if known is not None:
        return known
    return SxidEntry(
        code, f"SXid {code} is not in the catalogue", "unknown", Status.WARNING, Remedy.INSPECT, 6 * 3600.0,
        "a code that nobody has described yet; the driver's word in the line decides", {},
    )  # fmt: skip


def sxids() -> tuple[SxidEntry, ...]:
    """Every SXid of the catalogue, by code."""
    return tuple(entry for _, entry in sorted(_sxids().items()))


@functools.cache
def _nvlink5_rules() -> Mapping[tuple[int, str, str, int], Nvlink5Rule]:
    rules = {}
    for row in _document(_FOLDER / "nvlink5.yaml")["rules"]:
        for unit in row["units"]:
            for by in ("status", "sub_code"):
                for number, (now, look_at) in row.get(by, {}).items():
                    rules[(int(row["xid"]), str(unit), by, int(number))] = Nvlink5Rule(str(now), str(look_at))
    return rules


def nvlink5_rule(
    code: int, unit: str, error_status: int, sub_code: int, intrinfo: int | None = None
) -> Nvlink5Rule | None:
    """The rule for one Xid 144 to 150, by its unit and its error status or sub-code; None when none fits.

    A unit of a name that is not known is looked up by the low bits of `intrinfo`, the line's first word.
    """
    rules = _nvlink5_rules()
    units = [unit] if any(known[:2] == (code, unit) for known in rules) or intrinfo is None else []
    for name in units or _units_by_bits(code, intrinfo or 0):
        found = rules.get((code, name, "status", error_status)) or rules.get(
            (code, name, "sub_code", sub_code)
        )
        if found:
            return found
    return None


def _units_by_bits(code: int, intrinfo: int) -> list[str]:
    """The units that the first word may name, by the layout with more bits first."""
    layouts = [row for row in _document(_FOLDER / "nvlink5.yaml")["layouts"] if row["xid"] == code]
    old = [str(row["unit"]) for row in layouts if row["bits"][0] == intrinfo & 0x3FF]
    return old + [str(row["unit"]) for row in layouts if row["bits"][1] == intrinfo & 0x7F]


@dataclass(frozen=True, slots=True)
class NvlinkBits:
    """Bits of one register of an Xid 74 that are set and mean one thing; `verdict` as in nvlink74.yaml."""

    register: int
    bits: tuple[int, ...]
    verdict: str
    says: str
    repeated: str = ""

    def __str__(self) -> str:
        bits = ", ".join(map(str, self.bits))
        when = f" (report it when repeated {self.repeated})" if self.repeated else ""
        return f"REG{self.register} bit {bits}: {self.says}{when}"


def nvlink74(registers: Sequence[int]) -> tuple[NvlinkBits, ...]:
    """What the bits set in the registers of an Xid 74 mean; bits that no row names are `unexpected`."""
    found = []
    rows = _document(_FOLDER / "nvlink74.yaml")["bits"]
    for register in sorted({int(row["register"]) for row in rows}):
        word = registers[register] if register < len(registers) else 0
        left = {bit for bit in range(32) if word >> bit & 1}
        for row in rows:
            hit = left & set(row["bits"]) if row["register"] == register else set()
            if hit:
                left -= hit
                found.append(
                    NvlinkBits(
                        register, tuple(sorted(hit)), row["verdict"], row["says"], row.get("repeated", "")
                    )
                )
        if left:
            found.append(
                NvlinkBits(register, tuple(sorted(left)), "unexpected", "a bit that no source names")
            )
    return tuple(found)


@functools.cache
def _remedies() -> Mapping[tuple[str, str], Remedy]:
    table = {}
    for vocabulary, by_remedy in _document(_FOLDER / "remedies.yaml").items():
        for remedy, words in by_remedy.items():
            for word in words:
                table[(str(vocabulary), _plain(str(word)))] = Remedy(remedy)
    return table


def vocabularies() -> Mapping[str, Mapping[str, Remedy]]:
    """Every vocabulary with its words and our remedy for each."""
    table: dict[str, dict[str, Remedy]] = {}
    for (vocabulary, word), remedy in _remedies().items():
        table.setdefault(vocabulary, {})[word] = remedy
    return table


def remedy_from(vocabulary: str, word: str | int) -> Remedy:
    """Our remedy for another system's word: `remedy_from("dcgm", "ISOLATE")`.

    Vocabularies: nvml, dcgm, nvidia_catalogue, nvsentinel, gpud, aws. Prefixes such as
    NVML_GPU_RECOVERY_ACTION_ or DCGM_ERROR_ may stay. Raises ValueError for a word that is not known: a new
    word of a new driver must not be taken for "nothing to do".
    """
    plain = _plain(str(word))
    for prefix in ("nvml gpu recovery action ", "gpu recovery action ", "dcgm error ", "recommendedaction "):
        plain = plain.removeprefix(prefix)
    try:
        return _remedies()[(vocabulary, plain)]
    except KeyError:
        raise ValueError(f"{word!r} is not a word of {vocabulary} that is known") from None


def explain_xid(code: int) -> str:
    """Plain text about one Xid: meaning, our policy and why, every source's word, where they disagree."""
    entry = xid(code)
    does = {Status.OK: "no finding of its own", Status.WARNING: "warning", Status.CRITICAL: "critical"}
    lines = [
        f"Xid {code} ({entry.finding_code}): {entry.meaning}",
        f"Our policy: {does[entry.status]}; remedy {entry.remedy.value}; ends {_ends(entry.clears)}.",
        f"Why: {entry.why}.",
    ]
    if "," in entry.origin:
        lines.append(f"The policy was changed by {entry.origin.split(', ', 1)[1]}.")
    if entry.follows:
        lines.append(f"Often a consequence of Xid {', '.join(map(str, entry.follows))} on the same GPU.")
    if entry.sources:
        lines.append("What others say:")
        lines += [f"  {source:<16} {said}" for source, said in entry.sources.items()]
    if entry.disagreement:
        lines.append(f"Where they disagree: {entry.disagreement}")
    return "\n".join(lines)


def _ends(clears: Clears) -> str:
    words = {
        "recovery": "when it is no longer seen",
        "reboot": "with a reboot",
        "manual": "when a person says so",
    }
    if isinstance(clears, str):
        return words[clears]
    return f"{clears / 3600:g} h after the last one, or when a reset of the GPU or a driver load is seen"


def _xid_entry(code: int, row: Mapping[str, Any], unless_named: Mapping[str, str]) -> XidEntry:
    status, remedy, clears = _policy(row["policy"])
    sources = {**row.get("sources", {})}
    for source, said in unless_named.items():
        sources.setdefault(source, said)
    return XidEntry(
        code, row["name"], row["meaning"], status, remedy, clears, row.get("why", "no reason given"), sources,
        row.get("disagreement", ""), tuple(row.get("follows", ())), row.get("origin", "clustertools"),
    )  # fmt: skip


def _policy(policy: Mapping[str, Any]) -> tuple[Status, Remedy, Clears]:
    wrong = set(policy) - {"status", "remedy", "clears"}
    if wrong:
        raise ValueError(f"policy has no {', '.join(sorted(wrong))}; it has status, remedy and clears")
    if policy["status"] not in _STATUSES:
        raise ValueError(f"status {policy['status']!r} must be one of {', '.join(_STATUSES)}")
    return _STATUSES[policy["status"]], Remedy(policy["remedy"]), _clears(str(policy["clears"]))


def _clears(text: str) -> Clears:
    if text in ("recovery", "reboot", "manual"):
        return text  # type: ignore[return-value]
    # "6h", "90s"
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ValueError(f"clears {text!r} must be recovery, reboot, manual or a time such as 6h")
    return float(match[1]) * _SECONDS[match[2]]


def _rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(code, row) for each code of the file; a row may stand for several. Raises ConfigError."""
    rows = _document(path).get(key) or []
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: {key} must be a list of rows")
    for number, row in enumerate(rows, 1):
        codes: list[Any] = (row.get("codes") or [row.get("code")]) if isinstance(row, dict) else [None]
        for code in codes:
            if not isinstance(code, int):
                raise ConfigError(
                    f"{path}: row {number} of {key} needs `code`, a number, or `codes`, a list of them"
                )
            yield code, row


def packaged_text(name: str) -> str:
    """The text of one file of this folder, also when clustertools runs from a zip archive. Raises OSError."""
    assert __spec__ is not None
    data: bytes = __spec__.loader.get_data(str(_FOLDER / name))  # type: ignore[union-attr]
    return data.decode("utf-8")


@functools.lru_cache(maxsize=8)
def _document(path: Path) -> dict[str, Any]:
    import yaml

    # the safe loaders build plain values only; the C twin reads the Xid table in about 15 ms
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = packaged_text(path.name) if path.parent == _FOLDER else path.read_text(encoding="utf-8")
        document = loader(text).get_single_data()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping")
    return document


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word).strip().lower()


def _said(exc: Exception) -> str:
    return f"needs {exc}" if isinstance(exc, KeyError) else str(exc)


def _folded(numbers: list[int]) -> str:
    """`1-7, 10`: short for a reader."""
    parts: list[str] = []
    start = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number == last + 1:
            last = number
            continue
        parts.append(str(start) if start == last else f"{start}-{last}")
        start = last = number
    return ", ".join(parts)
