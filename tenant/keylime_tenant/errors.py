"""What a tenant command fails with, beyond the errors of the core."""

from keylime.errors import KeylimeError


class CommandFailed(KeylimeError):
    """A command that could not be carried out; the text says why and what to do. The tenant exits with 1."""


class AgentRejected(CommandFailed):
    """The agent's identity was not accepted: nothing was sent to it or to the verifier."""


class Unjudged(CommandFailed):
    """An agent that has neither passed nor failed yet; the tenant exits with 3."""


class OlderRelease(CommandFailed):
    """A service of an older release that does not know what it is asked for."""


class PutOff(CommandFailed):
    """A service cannot answer just now (503): the same question may be answered in a moment."""
