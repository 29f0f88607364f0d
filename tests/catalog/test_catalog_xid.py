"""The catalogue is whole, keeps its sources' disagreements, and lets a site have its own policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustertools import catalog
from clustertools.errors import ConfigError
from clustertools.model import Remedy, Status
from clustertools.sources.kernel import parse_nvlink5

SOURCES = {"nvidia_catalogue", "gpud", "gcm", "azure", "imbue", "aws", "dcgm", "k8s_plugin", "nvsentinel"}
#: Codes on which the sources read for the catalogue disagree.
DISPUTED = [
    13, 31, 43, 32, 38, 44, 45, 54, 61, 65, 73, 81, 122, 123, 124, 125, 63, 64, 68, 69, 92, 94, 95, 109, 110,
    119, 120, 140, 121, 136, 137, 143, *range(144, 151), 154,
]  # fmt: skip


def test_every_code_up_to_the_newest_is_there_once() -> None:
    codes = [entry.code for entry in catalog.xids()]
    assert codes == list(range(1, 174))


def test_no_code_is_written_down_twice() -> None:
    for key, name in (("xids", "xid.yaml"), ("sxids", "sxid.yaml")):
        codes = [code for code, _ in catalog._rows(Path(catalog.__file__).parent / name, key)]
        assert len(codes) == len(set(codes))


@pytest.mark.parametrize("entry", catalog.xids(), ids=lambda entry: str(entry.code))
def test_a_row_is_complete(entry: catalog.XidEntry) -> None:
    assert entry.name[0].isupper()
    assert entry.name.isalnum()
    assert entry.meaning
    assert entry.why
    assert set(entry.sources) == SOURCES
    assert all(entry.sources.values())
    assert entry.status in (Status.OK, Status.WARNING, Status.CRITICAL)
    assert entry.clears in ("recovery", "reboot", "manual") or float(entry.clears) > 0
    assert all(1 <= code <= 173 and code != entry.code for code in entry.follows)
    # a critical finding without advice leaves the person on call alone
    assert entry.status is not Status.CRITICAL or entry.remedy is not Remedy.NONE


@pytest.mark.parametrize("code", DISPUTED)
def test_a_disagreement_of_the_sources_is_kept_and_told(code: int) -> None:
    assert catalog.xid(code).disagreement
    assert catalog.xid(code).disagreement in catalog.explain_xid(code)


@pytest.mark.parametrize(
    ("code", "name", "status", "remedy"),
    [
        (79, "XidGpuLost", Status.CRITICAL, Remedy.REBOOT_NODE),
        (48, "XidEccUncorrectable", Status.CRITICAL, Remedy.RESET_GPU),
        (64, "XidRemapFailed", Status.CRITICAL, Remedy.RESET_GPU),
        (119, "XidGspTimeout", Status.CRITICAL, Remedy.RESET_GPU),
        (63, "XidRemapRecorded", Status.WARNING, Remedy.DRAIN_AND_RESET),
        (94, "XidContainedMemory", Status.WARNING, Remedy.RESTART_APP),
        (31, "XidMmuFault", Status.WARNING, Remedy.RESTART_APP),
        (45, "XidChannelTornDown", Status.OK, Remedy.NONE),
    ],
)
def test_our_policy(code: int, name: str, status: Status, remedy: Remedy) -> None:
    entry = catalog.xid(code)
    assert (entry.finding_code, entry.status, entry.remedy) == (name, status, remedy)


def test_a_code_that_nobody_knows_is_a_warning() -> None:
    entry = catalog.xid(4711)
    assert entry.finding_code == "XidUnknown"
    assert entry.status is Status.WARNING
    assert "not in the catalogue" in catalog.explain_xid(4711)


def test_finding_codes_cover_every_row() -> None:
    codes = catalog.finding_codes()
    assert {entry.finding_code for entry in catalog.xids()} | {"XidUnknown"} == set(codes)
    assert codes["XidGpuLost"].startswith("Xid 79: ")
    assert "9-10" in codes["XidUnused"]


def test_explain_names_every_source() -> None:
    text = catalog.explain_xid(79)
    assert "fell off" in text
    assert "reboot-node" in text
    assert all(source in text for source in SOURCES)


def test_a_site_overrides_policy_and_it_shows(tmp_path: Path) -> None:
    site = tmp_path / "xid.yaml"
    site.write_text(
        "xids:\n"
        "- code: 31\n  name: Other\n  policy: {status: critical, clears: 2d}\n  why: our users never err\n"
        "- code: 900\n  name: New\n  meaning: from a driver of tomorrow\n"
    )
    entries = catalog.load_xids((str(site),))
    assert entries[31].status is Status.CRITICAL
    assert entries[31].clears == 2 * 86400.0
    assert entries[31].remedy is Remedy.RESTART_APP  # untouched
    assert entries[31].name == "MmuFault"  # the finding's code is stable for ever
    assert entries[31].why == "our users never err"
    assert str(site) in entries[31].origin
    assert entries[900].finding_code == "XidNew"
    assert entries[79].origin == "clustertools"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("- code: 31\n  policy: {status: fatal}", "status 'fatal' must be one of"),
        ("- code: 31\n  policy: {remedy: pray}", "'pray' is not a valid Remedy"),
        ("- code: 31\n  policy: {clears: later}", "clears 'later'"),
        ("- code: 31\n  policy: {until: 6h}", "policy has no until"),
        ("- code: 31\n  sources: {gpud: nothing}", "cannot be set by a site"),
        ("- code: thirty", "needs `code`"),
        ("- [31]", "needs `code`"),
        ("- code: {", "not YAML"),
    ],
)
def test_a_wrong_site_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    site = tmp_path / "xid.yaml"
    site.write_text(f"xids:\n{row}\n")
    with pytest.raises(ConfigError) as caught:
        catalog.load_xids((str(site),))
    assert said in str(caught.value)
    assert str(site) in str(caught.value)


def test_a_missing_site_file_is_no_error() -> None:
    assert catalog.load_xids(("/nonexistent/xid.yaml",)).keys() == catalog.load_xids(()).keys()


@pytest.mark.parametrize(
    ("vocabulary", "word", "remedy"),
    [
        ("nvml", "GPU Reset Required", Remedy.RESET_GPU),
        ("nvml", "NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET", Remedy.DRAIN_AND_RESET),
        ("nvml", "None", Remedy.NONE),
        ("nvml", 2, Remedy.REBOOT_NODE),
        ("nvml", "OS Reboot", Remedy.REBOOT_NODE),
        ("dcgm", "DCGM_ERROR_ISOLATE", Remedy.REPLACE),
        ("dcgm", "monitor", Remedy.NONE),
        ("nvidia_catalogue", "RESTART_BM", Remedy.REBOOT_NODE),
        ("nvidia_catalogue", "CONTACT_SUPPORT", Remedy.INSPECT),
        ("nvsentinel", "COMPONENT_RESET", Remedy.RESET_GPU),
        ("gpud", "REBOOT_SYSTEM", Remedy.REBOOT_NODE),
        ("aws", "RESET", Remedy.RESET_GPU),
    ],
)
def test_words_of_others(vocabulary: str, word: str | int, remedy: Remedy) -> None:
    assert catalog.remedy_from(vocabulary, word) is remedy


def test_an_unknown_word_is_never_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="Exorcise"):
        catalog.remedy_from("nvml", "Exorcise GPU")


def test_every_vocabulary_reaches_a_remedy_for_each_of_its_words() -> None:
    table = catalog.vocabularies()
    assert set(table) == {"nvml", "dcgm", "nvidia_catalogue", "nvsentinel", "gpud", "aws"}
    for vocabulary, words in table.items():
        for word, remedy in words.items():
            assert catalog.remedy_from(vocabulary, word) is remedy


def test_sxid_classes() -> None:
    assert catalog.sxid(23001).kind == "always-fatal"
    assert catalog.sxid(23001).status is Status.CRITICAL
    assert catalog.sxid(20034).kind == "potentially-fatal"
    assert catalog.sxid(11012).status is Status.OK
    assert catalog.sxid(20009).status is Status.WARNING
    assert catalog.sxid(99999).kind == "unknown"
    for code in (11004, 12028, 19084, 12030, 10001, 10003):
        assert catalog.sxid(code).disagreement
    assert all(entry.sources["gpud"] and entry.meaning for entry in catalog.sxids())
    assert len(catalog.sxids()) == 92


def test_nvlink5_rules() -> None:
    def rule(*asked: object) -> str:
        found = catalog.nvlink5_rule(*asked)  # type: ignore[arg-type]
        return found.now if found else "none"

    assert rule(144, "SAW_MVB", 0x2, 0) == "reset"
    assert rule(144, "SAW_MVB", 0x4, 0) == "ignore"
    assert rule(145, "RLW_REMAP", 0x4, 0) == "follow-154"
    assert rule(146, "TLW_RX_PIPE1", 0x4, 0) == "reset"
    assert rule(149, "NETIR_LINK_EVT", 0, 33) == "peer"
    assert rule(149, "NETIR_LINK_DOWN", 0, 4) == "inspect"
    assert rule(149, "NETIR_LINK_DOWN", 0, 63) == "none"
    assert rule(150, "MSE_WATCHDOG", 0, 0) == "reset"
    peer = catalog.nvlink5_rule(149, "NETIR_LINK_DOWN", 0, 32)
    assert peer is not None
    assert peer.look_at == "the peer device"


def test_no_reason_ends_twice() -> None:
    # explain adds the full stop
    assert not [entry.code for entry in catalog.xids() if entry.why.endswith(".")]


#: Every rule of the decode sheet: unit, its code in the low 10 and 7 bits of the first word (two layouts),
#: and (sub-code, error status, what to do). From leptonai/gpud catalog_generated.go (2026-08), in our words.
SHEET = [
    (
        144,
        "SAW_MVB",
        0x21,
        0x1,
        [
            (0, 0x1, "ignore"),
            (0, 0x2, "reset"),
            (0, 0x4, "ignore"),
            (0, 0x8, "ignore"),
            (0, 0x10, "reset"),
            (0, 0x20, "ignore"),
        ],
    ),
    (145, "RLW_CTRL", 0x62, 0x3, [(0, 0x80000000, "ignore")]),
    (
        145,
        "RLW_REMAP",
        0x82,
        0x4,
        [
            (0, 0x1, "follow-154"),
            (0, 0x2, "follow-154"),
            (0, 0x4, "follow-154"),
            (0, 0x8, "follow-154"),
            (0, 0x10, "follow-154"),
            (0, 0x20, "follow-154"),
            (0, 0x40, "reset"),
            (0, 0x80, "reset"),
            (0, 0x100, "ignore"),
            (0, 0x200, "ignore"),
            (0, 0x80000000, "ignore"),
        ],
    ),
    (145, "RLW_RSPCOL", 0xA2, 0x5, [(0, 0x1, "ignore"), (0, 0x2, "reset"), (0, 0x80000000, "ignore")]),
    (
        145,
        "RLW_RXPIPE",
        0xC2,
        0x6,
        [
            (0, 0x1, "ignore"),
            (0, 0x2, "ignore"),
            (0, 0x4, "ignore"),
            (0, 0x8, "ignore"),
            (0, 0x80000000, "ignore"),
        ],
    ),
    (
        145,
        "RLW_SRC_TRACK",
        0xE2,
        0x7,
        [
            (0, 0x1, "reset"),
            (0, 0x2, "ignore"),
            (0, 0x4, "follow-154"),
            (0, 0x8, "follow-154"),
            (0, 0x10, "reset"),
            (0, 0x20, "reset"),
            (0, 0x80000000, "ignore"),
        ],
    ),
    (
        145,
        "RLW_TAGSTATE",
        0x102,
        0x8,
        [
            (0, 0x1, "ignore"),
            (0, 0x2, "reset"),
            (0, 0x10000, "ignore"),
            (0, 0x20000, "reset"),
            (0, 0x100000, "reset"),
            (0, 0x80000000, "ignore"),
        ],
    ),
    (
        146,
        "TLW_CTRL",
        0x123,
        0x9,
        [(0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x4, "reset"), (0, 0x80000000, "ignore")],
    ),
    (
        146,
        "TLW_RX/TLW_RX_PIPE0",
        0x143,
        0xA,
        [(0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x4, "reset"), (0, 0x80000000, "ignore")],
    ),
    (
        146,
        "TLW_RX/TLW_RX_PIPE1",
        0x143,
        0xB,
        [(0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x4, "reset"), (0, 0x80000000, "ignore")],
    ),
    (
        146,
        "TLW_TX/TLW_TX_PIPE0",
        0x163,
        0xC,
        [(0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x4, "reset"), (0, 0x80000000, "ignore")],
    ),
    (
        146,
        "TLW_TX/TLW_TX_PIPE1",
        0x163,
        0xD,
        [(0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x4, "reset"), (0, 0x80000000, "ignore")],
    ),
    (147, "TREX", 0x184, 0xE, [(0, 0x1, "ignore"), (0, 0x80000000, "ignore")]),
    (148, "NVLPW_CTRL/NVLPW", 0x5, 0xF, [(0, 0x80000000, "ignore")]),
    (149, "NETIR/NETIR_INT", 0x6, 0x18, [(0, 0x0, "drain")]),
    (
        149,
        "NETIR_BER_EVENT",
        0x226,
        0x13,
        [(0, 0x0, "ignore"), (0, 0x1, "ignore"), (0, 0x2, "ignore"), (0, 0x3, "ignore")],
    ),
    (
        149,
        "NETIR_LINK_EVT/NETIR_LINK_DOWN",
        0x1C6,
        0x11,
        [
            (0, 0x0, "drain"),
            (1, 0x0, "drain"),
            (2, 0x0, "drain"),
            (4, 0x0, "inspect"),
            (10, 0x0, "inspect"),
            (15, 0x0, "drain"),
            (16, 0x0, "drain"),
            (17, 0x0, "drain"),
            (18, 0x0, "drain"),
            (21, 0x0, "peer"),
            (22, 0x0, "drain"),
            (32, 0x0, "peer"),
            (33, 0x0, "peer"),
            (34, 0x0, "peer"),
            (35, 0x0, "peer"),
            (36, 0x0, "peer"),
            (37, 0x0, "peer"),
            (38, 0x0, "ignore"),
            (40, 0x0, "ignore"),
            (42, 0x0, "drain"),
            (43, 0x0, "drain"),
        ],
    ),
    (
        149,
        "NETIR_MFDE_EVENT",
        0x246,
        0x14,
        [(0, 0x1, "reset"), (0, 0x3, "ignore"), (0, 0x4, "reset"), (0, 0x5, "reset"), (0, 0x7, "reset")],
    ),
    (150, "MSE_WATCHDOG", 0x0, 0x0, [(0, 0x0, "reset")]),
]
RULES = [(code, unit, old, new, *rule) for code, unit, old, new, rules in SHEET for rule in rules]


def test_the_sheet_has_ninety_four_rules() -> None:
    assert len(RULES) == 94
    by_name = sum(
        len(row["units"]) * (len(row.get("status", {})) + len(row.get("sub_code", {})))
        for row in catalog._document(Path(catalog.__file__).parent / "nvlink5.yaml")["rules"]
    )
    # TLW_RX, TLW_TX, NVLPW_CTRL, NETIR and NETIR_LINK_EVT are second names of units
    assert by_name == 94 + 4 + 4 + 1 + 1 + 21


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("code", "unit", "old", "new", "sub", "status", "now"), RULES)
def test_a_line_of_each_rule(
    code: int, unit: str, old: int, new: int, sub: int, status: int, now: str, layout: int
) -> None:
    """By the name in the line, and by the bits of either layout where the name is new."""
    word = sub << 20 | (old, new)[layout]
    for name in (unit, "XYZ_FROM_TOMORROW"):
        line = f"{name} Nonfatal XC0 i0 Link 14 (0x{word:08x} 0x{status:08x} 0x00000000 0x00000000 0x0 0x0)"
        said = parse_nvlink5(line)
        assert said is not None
        assert (said.sub_code, said.error_status, said.intrinfo) == (sub, status, word)
        rule = catalog.nvlink5_rule(code, said.unit, said.error_status, said.sub_code, said.intrinfo)
        assert rule is not None
        assert rule.now == now


def test_a_first_word_that_names_no_unit() -> None:
    assert catalog.nvlink5_rule(149, "NEW", 0, 0, 0x3FF) is None
    assert catalog.nvlink5_rule(149, "NEW", 0, 0) is None


@pytest.mark.parametrize(
    ("registers", "verdicts"),
    [
        ((0x0,) * 7, set()),
        ((1 << 0 | 1 << 23 | 1 << 30, 0, 0, 0, 0, 0, 0), {"ignore"}),
        ((1 << 1 | 1 << 20, 0, 0, 0, 0, 0, 0), {"secondary"}),
        ((1 << 4, 0, 0, 0, 0, 0, 0), {"hardware"}),
        ((1 << 8 | 1 << 28, 0, 0, 0, 0, 0, 0), {"connection"}),
        ((1 << 22, 0, 1 << 13, 0, 0, 0, 0), {"connection", "unexpected"}),
        ((0, 0, 1 << 6, 1 << 18, 0, 0, 0), {"hardware", "secondary"}),
        ((0, 0, 0, 0, 1 << 29, 0, 0), {"watch"}),
        ((0, 0xFFFFFFFF, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF), set()),  # words that nobody decodes
        ((1 << 31, 0, 0, 0, 0, 0, 0), {"unexpected"}),
        ((1 << 4,), {"hardware"}),
    ],
)
def test_bits_of_xid_74(registers: tuple[int, ...], verdicts: set[str]) -> None:
    assert {bits.verdict for bits in catalog.nvlink74(registers)} == verdicts


def test_no_bit_is_in_two_rows() -> None:
    rows = catalog._document(Path(catalog.__file__).parent / "nvlink74.yaml")["bits"]
    bits = [(row["register"], bit) for row in rows for bit in row["bits"]]
    assert len(bits) == len(set(bits))
