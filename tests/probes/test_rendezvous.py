"""What an error text means, and at whom it points. The texts are those of gloo, NCCL and CUDA."""

from __future__ import annotations

import pytest

from clustertools.measurement import Ending
from clustertools.probes.rendezvous import complaint, known_complaint

NODES = {"n1": "10.77.0.1", "n2": "10.77.0.2", "n20": "10.77.0.20"}


@pytest.mark.parametrize(
    ("text", "ending", "blamed", "words"),
    [
        (
            "[/x/gloo/transport/tcp/pair.cc:537] Read error [10.77.0.2]:8622: Connection reset by peer.",
            Ending.CRASH, ["n2"], "a peer closed the connection",
        ),
        (
            "[/x/gloo/transport/tcp/pair.cc:598] Connection closed by peer [::ffff:10.77.0.20]:42103",
            Ending.CRASH, ["n20"], "a peer closed the connection",
        ),
        (
            "NCCL error in: ProcessGroupNCCL.cpp:1395, remote process exited or there was a network error, "
            "NCCL version 2.27.5\nncclRemoteError: A call failed possibly due to a network error.\n"
            "Last error:\nsocketProgress: Connection closed by remote peer n2<50324>",
            Ending.CRASH, ["n2"], "a peer closed the connection",
        ),
        (
            "Gloo failed with [/x/pair.cc:144] no error: connect [10.77.0.1]:1: Connection refused",
            Ending.CRASH, ["n1"], "a peer could not be reached",
        ),
        ("Timed out waiting 30000ms for recv operation to complete", Ending.CRASH, [], "gave up waiting"),
        ("CUDA error: uncorrectable ECC error encountered", Ending.CRASH, ["n1"], "the GPU or its driver"),
        (
            "CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of 79.1 GiB",
            Ending.COULD_NOT_RUN, [], "not enough memory",
        ),
        ("something new\nits last line", Ending.CRASH, [], "its last line"),
        ("", Ending.CRASH, [], "said nothing"),
    ],
)  # fmt: skip
def test_complaint(text, ending, blamed, words):
    report = complaint(text, NODES, "n1" if blamed != ["n1"] or "CUDA" in text else "n2")
    assert (report.ending, report.blamed) == (ending, blamed)
    assert words in report.detail


def test_a_loopback_that_all_share_names_nobody():
    text = "Read error [127.0.0.1]:8622: Connection reset by peer"
    assert complaint(text, {"n1": "127.0.0.1", "n2": "127.0.0.1"}, "n1").blamed == []


def test_what_is_not_known_is_not_guessed():
    assert known_complaint("Segmentation fault", NODES, "n1") is None
