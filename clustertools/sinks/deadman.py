"""A dead man's switch: called after a pass that could see everything, so that its silence means something.

It is for services that raise an alarm when they are not called for a while (healthchecks.io, Dead Man's
Snitch, Uptime Kuma, an own one). Not while any check could not look the last time that it was due,
not even one that only observes: a heartbeat that goes on while nobody sees anything is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from clustertools.errors import ConfigError
from clustertools.sinks.http import Service
from clustertools.sinks.secret import Secret
from clustertools.sinks.standing import Standing

#: Not called more often: such services count in minutes, and some limit how often they are called.
EVERY_SECONDS = 60.0


class DeadManSink:
    """Calls one address, which is mostly a secret. Raises ConfigError."""

    def __init__(
        self,
        *,
        name: str = "deadman",
        url: str = "",
        address: Secret | None = None,
        method: Literal["GET", "POST"] = "GET",
        service: Service | None = None,
    ) -> None:
        if bool(url) == bool(address):
            raise ConfigError(f"sink {name}: give exactly one of url, webhook_file and webhook_env")
        self.name = name
        self._url = url
        self._address = address
        self._method = method
        self._service = service or Service(f"the dead man's switch {name}")

    def keep_up(self, standing: Standing, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call it when the pass was complete and the last call is a minute old. Raises DeliveryFailed."""
        # half a second, so that passes a minute apart do not call every second time
        is_early = 0 <= standing.now - float(memory.get("at", -1e9)) < EVERY_SECONDS - 0.5
        if is_early or not standing.complete():
            return memory
        url = self._address.address() if self._address else self._url
        self._service.send(url, method=self._method)
        return {"at": standing.now}
