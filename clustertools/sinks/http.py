"""One HTTP request to a service: TLS verified, a deadline, no redirects, and what its answer means.

Proxies are taken from the environment (http_proxy, https_proxy, no_proxy), as urllib does. A redirect is
never followed: the address and what is sent to it may be secrets, and who is redirected to is nobody's choice
here. The environment's SSL_CERT_FILE, or `ca_file`, names a private certificate authority.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clustertools.errors import DeliveryFailed
from clustertools.sinks.in_time import in_time
from clustertools.sinks.secret import hide
from clustertools.text import plain

TIMEOUT_SECONDS = 10.0
#: A server that asks to slow down and does not say for how long; and the longest that it may ask for.
RETRY_AFTER_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
#: An answer beyond this is somebody's web page.
_MOST_BYTES = 1 << 16
#: Statuses of a request that may go through later, besides 5xx (RFC 9110, RFC 8470, RFC 6585).
_PASSING = frozenset({408, 425, 429})
#: What urllib and the reading of an answer raise. A timeout is an OSError.
_TRANSPORT = (OSError, http.client.HTTPException, ValueError, LookupError)


@dataclass(frozen=True)
class Service:
    """Somebody who takes requests: `what` it is called in errors, and how it is reached."""

    what: str
    timeout_seconds: float = TIMEOUT_SECONDS
    ca_file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, url: str, body: Any = None, *, token: str = "", hidden: str = "", method: str = "") -> str:
        """Send `body` as JSON (None: no body, a GET) and return the text of a good answer.

        `token` goes into the Authorization header; `hidden` is a secret within the body. Raises
        DeliveryFailed: permanent when the service refused what was sent, with its own wish when it asked to
        slow down. Neither the address nor a secret is in its text.
        """
        data = None if body is None else json.dumps(body, ensure_ascii=True).encode("ascii")
        headers = {"User-Agent": "clustertools", "Accept": "*/*", **self.headers}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        method = method or ("GET" if data is None else "POST")
        try:
            request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - see _opener
            # the resolver, a proxy and the answer may each take their time
            status, text, said = in_time(
                lambda: _exchange(_opener(self.ca_file), request, self.timeout_seconds),
                3 * self.timeout_seconds,
                self.what,
            )
        except _TRANSPORT as exc:
            raise self._unreachable(exc, url, token, hidden) from None
        if 200 <= status < 300:
            return text
        raise self._refused(status, hide(text, url, token, hidden), said)

    def _unreachable(self, exc: Exception, *secrets: str) -> DeliveryFailed:
        reason = getattr(exc, "reason", exc) if isinstance(exc, OSError) else exc
        if isinstance(reason, TimeoutError):
            return DeliveryFailed(f"{self.what} did not answer in time")
        if isinstance(reason, ssl.SSLCertVerificationError):
            words = f"its certificate was not accepted: {reason.verify_message}"
        elif isinstance(reason, OSError):
            words = reason.strerror or str(reason) or type(reason).__name__
        else:
            words = f"{type(reason).__name__}: {reason}"
        return DeliveryFailed(f"could not reach {self.what}: {plain(hide(words, *secrets), 200)}")

    def _refused(self, status: int, text: str, headers: Mapping[str, str]) -> DeliveryFailed:
        said = f": {plain(text, 200)}" if text.strip() else ""
        if status == 429:
            return DeliveryFailed(
                f"{self.what} asked us to slow down", retry_after_seconds=retry_after(headers)
            )
        if status >= 500 or status in _PASSING:
            wait = retry_after(headers) if headers.get("retry-after") else None
            return DeliveryFailed(
                f"{self.what} has trouble: HTTP status {status}{said}", retry_after_seconds=wait
            )
        if 300 <= status < 400:
            host = urllib.parse.urlsplit(headers.get("location", "")).hostname or "another address"
            return DeliveryFailed(
                f"{self.what} redirects to {plain(host, 100)} (HTTP status {status}), which is not followed: "
                "put the address that it means into the config",
                permanent=True,
            )
        return DeliveryFailed(f"{self.what} refused it: HTTP status {status}{said}", permanent=True)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, in whole seconds; bounded, and 30 where it says nothing."""
    value = headers.get("retry-after", "")
    # "30"; the other form, a date, trusts two clocks
    if not re.fullmatch(r"[0-9]{1,9}", value):
        return RETRY_AFTER_SECONDS
    return min(max(float(value), 1.0), LONGEST_RETRY_AFTER_SECONDS)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener(ca_file: str) -> urllib.request.OpenerDirector:
    """Only http and https: urllib would open file: and ftp: addresses as well."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=tls(ca_file)),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def tls(ca_file: str) -> ssl.SSLContext:
    """The system's authorities, or only that of `ca_file`. Raises OSError when it cannot be read."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _exchange(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout_seconds: float
) -> tuple[int, str, dict[str, str]]:
    try:
        answer = opener.open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as exc:
        answer = exc
    with answer:
        headers = {str(k).lower(): str(v) for k, v in answer.headers.items()}
        text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        return int(answer.status), text, headers
