"""What administrators are refused, whatever they asked over: the text is the answer, the kind says why."""

from keylime.errors import KeylimeError


class RequestRefused(KeylimeError):
    """A request that is not fulfilled. Nothing was changed."""


class NotThere(RequestRefused):
    """There is no such agent or policy."""


class UnknownPolicy(NotThere):
    """A policy that was to be replaced is not there."""


class InTheWay(RequestRefused):
    """Something exists already, is in use, or has changed meanwhile; the text says what."""


class NotApproved(RequestRefused):
    """A signature that must be there is missing or wrong."""


class StoredUnreadable(RequestRefused):
    """What is stored cannot be read: a defect of ours, or somebody has changed the database."""


class ChangingHands(RequestRefused):
    """Another process is just taking the agent over: the same request may succeed in a moment."""
