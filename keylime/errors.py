"""The exceptions callers tell apart, one class for each different reaction."""


class KeylimeError(Exception):
    """Root of all errors raised on purpose; its text is fit for an operator and holds no secret."""


class ConfigError(KeylimeError):
    """An option, file or flag that cannot be used; names it and the remedy. Ends the program in one line."""


class MalformedMessage(KeylimeError):
    """A wire body that does not have its documented shape; names the field. Answered with 400."""


class MalformedEvidence(KeylimeError):
    """Bytes from a TPM, kernel or firmware that are not what they claim to be: a finding, never trust."""


class UnsuitableKey(KeylimeError):
    """A TPM key whose public area lacks what its role demands; names the attribute."""


class PolicyError(KeylimeError):
    """A policy that cannot be used; names the policy, and the line or field. Answered with 400."""


class ServiceUnavailable(KeylimeError):
    """Something that this service needs does not answer; trying again makes sense. Answered with 503.

    `public` is what a peer is told; the error's own text is for operators.
    """

    public = "The service is not available, try again later"


class PeerUnreachable(KeylimeError):
    """No usable answer from a peer (connection, TLS, time-out, server trouble); trying again makes sense."""


class PeerRefused(KeylimeError):
    """A peer answered and said no; `code` is the HTTP status, `status` the text of its envelope."""

    def __init__(self, code: int, status: str) -> None:
        super().__init__(f"{code} {status}")
        self.code = code
        self.status = status


class TpmError(KeylimeError):
    """The TPM refused a command or cannot be reached; names the command."""


class CredentialError(KeylimeError):
    """Key material (share, tag, ciphertext, signature) that does not fit; never says what would have."""
