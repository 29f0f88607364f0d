from __future__ import annotations

from clustertools.fleet import Answer, Fate
from clustertools.fleet.folded import group, lines, printable, progress, summary
from clustertools.host import Completed


def done(node: str, stdout: str = "", code: int = 0, stderr: str = "", truncated: bool = False) -> Answer:
    return Answer(node, Fate.COMPLETED, Completed(("x",), code, stdout, stderr, 0.1, truncated))


def lost(node: str, fate: Fate, reason: str, said: str = "") -> Answer:
    return Answer(node, fate, None, reason, said)


def test_the_usual_answer_first_the_odd_ones_next_to_the_prompt():
    answers = [
        lost("n9", Fate.UNREACHABLE, "Connection refused"),
        done("n7", "5.15\n"),
        *(done(f"n{i}", "6.1\n") for i in range(1, 6)),
        done("n8", "", 2, "no such file\n"),
        done("n6", "a\nb\n"),
    ]
    groups = group(answers)
    assert lines(groups) == [
        "n[1-5] (5): 6.1",
        "n6 (1):",
        "  a",
        "  b",
        "n7 (1): 5.15",
        "n8 (1) exit code 2: no such file",
        "n9 (1) unreachable: Connection refused",
    ]
    assert summary(groups, 3.25) == "9 nodes: 7 fine, 1 failed, 1 unreachable, in 3.2 s"


def test_the_same_trouble_with_other_addresses_and_keys_is_told_once():
    text = "its host key changed: it shows ed25519 SHA256:{} ... `ssh-keyscan -p 22 10.0.0.{}`"
    answers = [lost(f"n{i}", Fate.HOST_KEY, text.format("ab+/" * i, i)) for i in range(1, 4)]
    answers.append(lost("n4", Fate.HOST_KEY, "its host key ed25519 SHA256:xyz is not known"))
    told = lines(group(answers))
    assert len(told) == 2
    assert told[0].startswith("n[1-3] (3) host-key: its host key changed")
    assert told[0].endswith("(here: n1)")


def test_nodes_in_trouble_are_apart_by_what_they_said():
    told = lines(group([lost("n1", Fate.TIMEOUT, "late", "x"), lost("n2", Fate.TIMEOUT, "late", "y")]))
    assert told == ["n1 (1) timeout:", "  late", "  x", "n2 (1) timeout:", "  late", "  y"]


def test_silence_and_signals_have_words():
    assert lines(group([done("n1"), done("n2", "", -9), done("n3", "", 1)])) == [
        "n1 (1): no output",
        "n2 (1) signal 9: it said nothing",
        "n3 (1) exit code 1: it said nothing",
    ]


def test_long_output_is_cut_and_said_so():
    told = lines(group([done("n1", "".join(f"{i}\n" for i in range(500)), truncated=True)]))
    assert told[-2:] == ["  … and 300 lines more (--json has them)", "  … and more, which was not kept"]


def test_what_a_node_prints_does_not_reach_the_terminal_as_a_command():
    (told,) = lines(group([done("n1", "\x1b]0;owned\x07ok\x1b[2J \u202edlo")]))
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert printable("GPU   0\tA100") == "GPU   0 A100"
    assert len(printable("x" * 10_000)) == 1000


def test_progress_estimates_and_never_beyond_the_deadline():
    assert progress(0, 0, 200, 3.0, 60.0) == "0 of 200 nodes, 3 s, at most 57 s to go"
    assert progress(100, 2, 200, 10.0) == "100 of 200 nodes, 2 bad, 10 s, about 10 s to go"
    assert progress(1, 0, 200, 10.0, 60.0).endswith("about 50 s to go")
    assert progress(200, 0, 200, 10.0, 60.0) == "200 of 200 nodes, 10 s"
