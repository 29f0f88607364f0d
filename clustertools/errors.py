"""The errors of the house, as one tree.

ClustertoolsError
  ConfigError        wrong in config or on the command line; exit 3
  Unobservable       nobody could look; becomes UNKNOWN, never OK
    Absent           the file or the tool is not there
    Unreachable      the node did not answer
    Unparsable       the tool answered in a form that is not known; carries a sample
  NotApplicable      the question makes no sense here; becomes SKIPPED
  StoreError         the state cannot be read or written; nothing may act on it
  ActionFailed       a step ran and failed
  DeliveryFailed     a message did not arrive; permanent or worth another try
"""

from __future__ import annotations


class ClustertoolsError(Exception):
    """Base of every error that is raised on purpose."""


class ConfigError(ClustertoolsError):
    """Something a person wrote is wrong; `problems` holds every one of them, each a full sentence."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Unobservable(ClustertoolsError):
    """Nobody could look. Not evidence of health, and not evidence of a fault."""


class Absent(Unobservable):
    """The file or the tool does not exist here. Whether that is a fault is the caller's to say."""


class Unreachable(Unobservable):
    """The node did not answer."""


class Unparsable(Unobservable):
    """A tool answered, but not in a form that is known; `sample` is the text that was not understood."""

    def __init__(self, what: str, sample: str = "") -> None:
        shown = sample.strip().replace("\n", " ")[:160]
        super().__init__(f"{what}: {shown!r}" if shown else what)
        self.sample = sample


class LookNeeded(ClustertoolsError):
    """A check has to see the nodes of its job before it can say anything."""


class NotApplicable(ClustertoolsError):
    """The check does not apply to this machine; the text says why."""


class StoreError(ClustertoolsError):
    """The state store cannot be used. No action may be taken without it."""


class ActionFailed(ClustertoolsError):
    """A step was carried out and did not succeed."""


class DeliveryFailed(ClustertoolsError):
    """A message was not delivered. `permanent` means that trying again cannot help."""

    def __init__(
        self, text: str, *, permanent: bool = False, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.permanent = permanent
        self.retry_after_seconds = retry_after_seconds
