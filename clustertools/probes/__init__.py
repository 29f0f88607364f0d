"""Active tests of a node and of groups of nodes: small programs that run as children and give JSON.

`serve` is the program that the head starts on each node. It reads orders and answers each of them once; the
work is done by forked children with a deadline, so that a hung collective never wedges the conversation.

Every probe has a known answer, so that wrong data are told from slow. Tests, and only tests, may set
CLUSTERTOOLS_TEST_FAULT to `wrong@1`, `die@1`, `hang@1` or `slow@1` to have rank (or device) 1 misbehave; an
answer that was given under it says so in its evidence.
"""
