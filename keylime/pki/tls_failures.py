"""What a failed TLS connection is due to: whose certificate, which file, which date, and what to type.

Pure: OpenSSL's words, the certificates in use and the time come in as values.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from keylime.pki.lifetimes import CertificateFile, Lifetime, remark, when

# A peer's clock may differ from ours: near its dates it may know better that our certificate is invalid.
# Beyond that its word alone does not count, or a machine could hide behind it that has something to hide.
_TOLERANCE = timedelta(days=1)
_ALERT = re.compile(r"\[SSL: \S*ALERT_(\w+)\]")
# Alerts of RFC 8446, 6.2 about dates: OpenSSL sends the second for a certificate that is not valid yet.
_DATES = frozenset({"CERTIFICATE_EXPIRED", "BAD_CERTIFICATE"})
_VERIFY_FAILED = "CERTIFICATE_VERIFY_FAILED"


@dataclass(frozen=True, slots=True)
class Side:
    """The certificates of one side of a connection: its own, and those it trusts."""

    own: CertificateFile | None = None
    trusted: Sequence[CertificateFile] = ()


def is_about_dates(reason: str) -> bool:
    """Whether we have refused the peer's certificate, or its CA's, because of the dates in it."""
    said = reason.lower()
    return _VERIFY_FAILED in reason and ("has expired" in said or "not yet valid" in said)


def is_no_tls(reason: str) -> bool:
    """Whether the other side answered with something else than TLS, plain HTTP for instance."""
    said = reason.lower().replace("_", " ")
    return "wrong version number" in said or "record layer failure" in said or "http request" in said


def own_fault(reason: str, own: CertificateFile | None, now: datetime) -> str | None:
    """What is wrong with our own certificate, if that is why a handshake or connection failed; else None.

    `reason` is what the TLS library, or the system, said after the connection was made.
    """
    if own is None or _VERIFY_FAILED in reason or is_no_tls(reason):  # that is the peer's
        return None
    if not own.lifetime.validity(now).is_usable:
        return remark(own, now)
    life = own.lifetime
    is_near = now + _TOLERANCE >= life.ends or now - _TOLERANCE < life.begins
    if is_near and _alert(reason) in _DATES:
        return f"the peer does not accept the {own}, valid from {when(life.begins)} to {when(life.ends)}"
    return None


def explain(reason: str, side: Side, now: datetime, peer: Lifetime | None = None) -> str | None:
    """The cause and the remedy of a failure as seen here, None where OpenSSL's words are all there is.

    `peer` are the dates of the other side's certificate, where it could be asked for.
    """
    if is_no_tls(reason):
        return "whoever listens there does not speak TLS"
    if (ours := own_fault(reason, side.own, now)) is not None:
        return ours
    if _VERIFY_FAILED in reason:
        return _explain_refusal_of_peer(reason, side, now, peer)
    alert = _alert(reason)
    if alert == "CERTIFICATE_EXPIRED" and side.own is not None:
        return (
            f"the peer says that the {side.own} has ended, but it is valid until "
            f"{when(side.own.lifetime.ends)}: check the clocks of both machines (timedatectl), and the dates "
            "of the CA that the peer trusts"
        )
    if alert == "UNKNOWN_CA" and side.own is not None:
        return (
            f"the peer does not trust the CA of the {side.own}: copy that CA's cacert.crt to the peer, for "
            "its trusted_client_ca (a server) or trusted_server_ca (a client)"
        )
    if alert == "CERTIFICATE_REQUIRED":
        return "the peer demands a client certificate, and none was shown"
    return None


def _explain_refusal_of_peer(reason: str, side: Side, now: datetime, peer: Lifetime | None) -> str | None:
    said = reason.lower()
    for trusted in side.trusted if is_about_dates(reason) else ():
        if not trusted.lifetime.validity(now).is_usable and (peer is None or peer.validity(now).is_usable):
            return remark(trusted, now)
    if "has expired" in said:
        ended = "" if peer is None else f" on {when(peer.ends)}"
        return (
            f"the peer's certificate ended{ended}, and here it is {when(now)}: renew it there "
            "(`keylime_ca -c renew` where its CA is), or check the clock here (timedatectl)"
        )
    if "not yet valid" in said:
        begins = "" if peer is None else f" before {when(peer.begins)}"
        return (
            f"the peer's certificate is not valid{begins or ' yet'}, and here it is {when(now)}: check the "
            "clocks of both machines (timedatectl)"
        )
    if "unable to get local issuer" in said or "self-signed" in said or "self signed" in said:
        files = ", ".join(dict.fromkeys(str(one.path) for one in side.trusted)) or "no file"
        return (
            f"the peer's certificate is from a CA that is not trusted here ({files}): copy the cacert.crt of "
            "the peer's CA there"
        )
    return None


def _alert(reason: str) -> str | None:
    found = _ALERT.search(reason)
    return None if found is None else found[1]
