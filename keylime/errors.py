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

    `public` is what a peer is told, `outcome` what has become of its request, when that is known to matter;
    the error's own text is for operators.
    """

    public = "The service is not available, try again later"
    outcome: str | None = None


class PeerUnreachable(KeylimeError):
    """No usable answer from a peer (connection, TLS, time-out, server trouble); trying again makes sense."""

    is_explained = False  # whether the text holds the remedy


class OwnCertificateFailed(PeerUnreachable):
    """Our own certificate has ended, or is not valid yet, and the peer does not accept it.

    That is a defect of ours, says nothing about the peer, and is mended here.
    """


class UnusableAnswer(PeerUnreachable):
    """A peer is there and answers, but with nothing that can be used: too much, no HTTP, trouble of its own.

    Trying again may help, and whoever does not care about the difference does just that.
    """


class WrongPeerKey(PeerUnreachable):
    """Whoever answers does not hold the key that the peer is known by: it proves nothing, is told nothing.

    The peer may be back at any time, and whoever does not care about the difference tries again.
    """


class WrongServerCertificate(PeerUnreachable):
    """A service shows a certificate of a CA that is trusted, but not one that it may have."""


class AnswerPutOff(KeylimeError):
    """A peer's answer of `size` bytes cannot be read now for want of memory; its sender has done no wrong."""

    def __init__(self, size: int) -> None:
        super().__init__(f"there is no room for an answer of {size} bytes now")
        self.size = size


class PeerRefused(KeylimeError):
    """A peer answered and said no; `code` is the HTTP status, `status` the text of its envelope."""

    def __init__(self, code: int, status: str) -> None:
        super().__init__(f"{code} {status}")
        self.code = code
        self.status = status


class TpmError(KeylimeError):
    """The TPM refused a command or cannot be reached; names the command."""


class TpmLost(TpmError):
    """The connection to the TPM, or a key in it, is gone; opening it again may bring them back."""


class CredentialError(KeylimeError):
    """Key material (share, tag, ciphertext, signature) that does not fit; never says what would have."""
