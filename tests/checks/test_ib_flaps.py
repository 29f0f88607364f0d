"""Links that drop, flap, come back; and what a link does that nobody may be woken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.model import Status
from clustertools.sources.link_history import advance
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.rdma import RdmaHost


class Watch:
    """Looks at a host each minute with what the check remembered."""

    def __init__(self, run, host):
        self.run, self.host, self.memory = run, host, {}

    def look(self, minutes=1):
        for _ in range(minutes):
            verdict = self.run("ib_flaps", host=self.host, past=self.memory)
            self.memory = verdict.memory
            self.host.time += 60
        return verdict


def downed(host, device, count):
    host.set(device, counters__link_downed=str(count))


def told(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_steady(run):
    watch = Watch(run, RdmaHost())
    assert watch.look(5).status is Status.OK
    assert run("ib_flaps", host=MemoryHost()).status is Status.SKIPPED


@pytest.mark.parametrize("counted", [True, False])
def test_a_drop(run, counted):
    host = RdmaHost()
    watch = Watch(run, host)
    watch.look()
    host.down("mlx5_2")
    if counted:
        downed(host, "mlx5_2", 2)
    assert watch.look(4).status is Status.OK  # seen down for 3 minutes
    assert told(watch.look()) == {("IbLinkDropped", "mlx5_2/1", Status.CRITICAL)}
    host.up("mlx5_2")
    assert told(watch.look()) == {("IbLinkDropped", "mlx5_2/1", Status.WARNING)}
    assert told(watch.look(9)) == {("IbLinkDropped", "mlx5_2/1", Status.WARNING)}
    assert watch.look().status is Status.OK


def test_a_link_that_tries_again_is_no_drop(run):
    host = RdmaHost()
    watch = Watch(run, host)
    watch.look()
    host.down("mlx5_2")
    for count in range(2, 12):
        downed(host, "mlx5_2", count)
        verdict = watch.look()
    assert {f.code for f in verdict.findings} == {"IbLinkFlapping"}


@pytest.mark.slow
def test_flaps_between_the_looks(run):
    host = RdmaHost()
    watch = Watch(run, host)
    watch.look()
    downed(host, "mlx5_5", 3)
    assert watch.look().status is Status.OK  # two returns
    downed(host, "mlx5_5", 4)
    assert told(watch.look()) == {("IbLinkFlapping", "mlx5_5/1", Status.WARNING)}
    assert watch.look(11 * 60).codes == {"IbLinkFlapping"}
    assert watch.look(70).status is Status.OK


def test_flaps_that_were_seen(run):
    host = RdmaHost()
    watch = Watch(run, host)
    watch.look()
    for _ in range(3):
        host.down("mlx5_5")
        watch.look(2)
        host.up("mlx5_5")
        verdict = watch.look()
    assert told(verdict) == {("IbLinkFlapping", "mlx5_5/1", Status.WARNING)}


def test_seen_and_counted_is_one_and_the_same(run):
    host = RdmaHost()
    watch = Watch(run, host)
    watch.look()
    for count in (2, 3):
        host.down("mlx5_5")
        downed(host, "mlx5_5", count)
        watch.look(2)
        host.up("mlx5_5")
        downed(host, "mlx5_5", count)
        assert watch.look().status is Status.OK
    assert len(watch.memory["links"]["mlx5_5/1"]["returns"]) == 2


def test_never_up_and_reboot(run):
    host = RdmaHost()
    host.down("mlx5_7")
    watch = Watch(run, host)
    assert watch.look(30).status is Status.OK
    host.down("mlx5_6")
    watch.look(3)
    host.boot_id = "boot-2"
    assert watch.look(30).status is Status.OK


def test_counters_that_were_cleared(run):
    host = RdmaHost()
    downed(host, "mlx5_0", 200)
    watch = Watch(run, host)
    watch.look()
    downed(host, "mlx5_0", 0)
    assert watch.look(2).status is Status.OK
    downed(host, "mlx5_0", 200)
    watch = Watch(run, host)
    watch.look()
    downed(host, "mlx5_0", 5)  # cleared, and five times down since
    assert watch.look().codes == {"IbLinkFlapping"}


def test_ethernet_counts_the_carrier(run):
    host = RdmaHost(link_layer="Ethernet")
    watch = Watch(run, host)
    watch.look()
    host.files["/sys/class/net/net3/carrier_down_count"] = "4\n"
    assert told(watch.look()) == {("IbLinkFlapping", "mlx5_3/1", Status.WARNING)}
    host.files["/sys/class/net/net3/carrier_down_count"] = refused("EIO")
    assert watch.look().status is Status.UNKNOWN
    host.files["/sys/class/net/net3/carrier_down_count"] = "?"
    assert watch.look().status is Status.UNKNOWN
    del host.files["/sys/class/net/net3/carrier_down_count"]  # an old kernel
    assert watch.look().status is Status.WARNING  # what was seen stays so for its window


def test_a_device_that_is_away_for_a_while_keeps_its_history(run):
    host = RdmaHost(2)
    watch = Watch(run, host)
    watch.look()
    kept = dict(host.files)
    host.remove("/sys/class/infiniband/mlx5_1")
    watch.look()
    host.files = kept
    host.down("mlx5_1")
    watch.look(4)
    assert watch.look().codes == {"IbLinkDropped"}


@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 300), st.integers(1, 4000)), max_size=60))
def test_a_history_is_bounded_and_honest(looks):
    history, now, ever_up = None, 0.0, False
    for up, downs, seconds in looks:
        now += seconds
        ever_up = ever_up or up
        history = advance(history, up=up, downs=downs, now=now, drop_seconds=240, window_seconds=43200)
        assert len(history["returns"]) <= 50
        assert all(now - 43200 < time <= now for time in history["returns"])
        assert not (history["dropped"] and (up or not ever_up))
        assert history["since"] <= now
