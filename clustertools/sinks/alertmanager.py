"""Alertmanager's API v2: every open incident is an alert, sent again and again while it is open.

An alert carries the time at which Alertmanager shall call it over by itself, so that its `resolve_timeout`
does not matter: four times the gap between our last two passes, as Prometheus does it. When we die the alerts
end with us, and the dead man's switch tells that we did. Its own routes, groups, silences and inhibitions
decide who hears of it.

Source: prometheus.io/docs/alerting/latest/alerts_api; prometheus/prometheus, rules/alerting.go (the factor).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from clustertools.errors import ConfigError
from clustertools.model import Incident
from clustertools.sinks import SinkRule, hears
from clustertools.sinks.http import Service
from clustertools.sinks.secret import Secret, may_carry_secrets
from clustertools.sinks.standing import Standing
from clustertools.text import plain

#: Nothing is sent more often than this while nothing changed; Prometheus' --rules.alert.resend-delay.
RESEND_SECONDS = 60.0
_GAPS = 4
#: A gap longer than this was a watchdog that did not run.
_LONGEST_GAP_SECONDS = 3600.0
_MOST_IN_ONE = 500


class AlertmanagerSink:
    """Keeps one Alertmanager up to date. `rule` says which incidents it hears of. Raises ConfigError."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "alertmanager",
        rule: SinkRule | None = None,
        token: Secret | None = None,
        service: Service | None = None,
    ) -> None:
        if token and not may_carry_secrets(url):
            raise ConfigError(f"sink {name}: url must begin with https://, the token travels with each call")
        self.name = name
        self._url = f"{url.rstrip('/')}/api/v2/alerts"
        self._rule = rule or SinkRule()
        self._token = token
        self._service = service or Service("Alertmanager")

    def keep_up(self, standing: Standing, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        """Post what is open and what ended. `memory`: the alerts that it was told of, and when."""
        now = standing.now
        told: Mapping[str, Any] = memory.get("told", {})
        alerts = {
            key: _labels(incident)
            for key, incident in standing.open.items()
            # whoever heard of it goes on hearing, or a silence here would read as its end there
            if key in told
            or (key not in standing.quiet and hears(self._rule, incident.finding.status, [key]))
        }
        over = {k: t for k, t in told.items() if k not in alerts or alerts[k] != t["labels"]}
        gap = now - float(memory.get("at", now))
        is_news = bool(over) or any(key not in told for key in alerts)
        if 0 <= gap < RESEND_SECONDS and not is_news and memory:
            return memory
        until = now + _GAPS * min(max(gap, RESEND_SECONDS), _LONGEST_GAP_SECONDS)
        after = {
            key: {"labels": labels, "since": incident.opened_at or now, "notes": _notes(incident)}
            for key, labels in alerts.items()
            for incident in (standing.open[key],)
        }
        bodies = [_body(t, now) for t in over.values()] + [_body(t, until) for t in after.values()]
        token = self._token.read() if self._token else ""
        for begin in range(0, len(bodies), _MOST_IN_ONE):
            self._service.send(self._url, bodies[begin : begin + _MOST_IN_ONE], token=token)
        return {"at": now, "told": after}


def _body(told: Mapping[str, Any], until: float) -> dict[str, Any]:
    return {
        "labels": told["labels"],
        "annotations": told["notes"],
        "startsAt": _time(float(told["since"])),
        "endsAt": _time(until),
    }


def _labels(incident: Incident) -> dict[str, str]:
    """What identifies the alert. An empty label is none to Alertmanager, and left out."""
    finding, subject = incident.finding, incident.finding.subject
    labels = {
        "alertname": finding.code,
        "severity": finding.status.name.lower(),
        "cluster": subject.cluster,
        "node": subject.node,
        "part": subject.part,
        "run": subject.run,
        "source": "clustertools",
    }
    return {name: plain(value, 200) for name, value in labels.items() if plain(value, 200)}


def _notes(incident: Incident) -> dict[str, str]:
    finding = incident.finding
    notes = {
        "summary": finding.summary,
        "key": incident.key,
        "nodes": ", ".join(finding.nodes[:50]),
        "because_of": incident.explained_by,
    }
    notes = {name: plain(value) for name, value in notes.items() if value}
    if incident.observed:
        notes["observed"] = "nothing is done for it"
    if finding.evidence:
        notes["evidence"] = "\n".join(plain(line) for line in finding.evidence[:5])
    return notes


def _time(seconds: float) -> str:
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
