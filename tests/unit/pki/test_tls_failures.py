"""Whose certificate a TLS failure is due to, in OpenSSL's words of several versions."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keylime.pki.lifetimes import CertificateFile, Holder, Lifetime
from keylime.pki.tls_failures import Side, explain, own_fault

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
YEAR = Lifetime(START, START + timedelta(days=365))
CLIENT = CertificateFile(Holder.CLIENT, Path("/cv_ca/client-cert.crt"), YEAR, authority=Path("/cv_ca"))
CA = CertificateFile(Holder.AUTHORITY, Path("/cv_ca/cacert.crt"), YEAR, authority=Path("/cv_ca"))
EXPIRED_ALERTS = (
    "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired (_ssl.c:2580)",
    "[SSL: SSL/TLS_ALERT_CERTIFICATE_EXPIRED] ssl/tls alert certificate expired (_ssl.c:2580)",
)
BAD = "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate (_ssl.c:2580)"
UNKNOWN_CA = "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)"
VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
HAS_EXPIRED = f"{VERIFY}certificate has expired (_ssl.c:992)"
NOT_YET = f"{VERIFY}certificate is not yet valid (_ssl.c:992)"
NO_ISSUER = f"{VERIFY}unable to get local issuer certificate (_ssl.c:992)"


def after(days: float) -> datetime:
    return START + timedelta(days=days)


@pytest.mark.parametrize("reason", [*EXPIRED_ALERTS, UNKNOWN_CA, "Server disconnected", "Connection reset"])
def test_whatever_fails_with_an_ended_certificate_of_ours_is_our_fault(reason: str) -> None:
    said = own_fault(reason, CLIENT, after(366))
    assert said is not None
    assert "client certificate /cv_ca/client-cert.crt ended on 2027-11-29" in said
    assert "`keylime_ca -c renew -n client" in said
    assert "timedatectl" in str(own_fault(reason, CLIENT, after(-1)))
    assert own_fault(reason, None, after(366)) is None
    assert own_fault(HAS_EXPIRED, CLIENT, after(366)) is None  # what we refuse is the peer's


@pytest.mark.parametrize("reason", [*EXPIRED_ALERTS, BAD])
@pytest.mark.parametrize(
    ("days", "is_ours"), [(0.5, True), (364.5, True), (100, False), (1.5, False), (363, False)]
)
def test_a_peers_word_about_our_dates_counts_only_near_them(reason: str, days: float, is_ours: bool) -> None:
    """Else a machine that has something to hide would never be missed."""
    assert (own_fault(reason, CLIENT, after(days)) is not None) is is_ours
    assert own_fault("Connection reset by peer", CLIENT, after(days)) is None
    assert own_fault(UNKNOWN_CA, CLIENT, after(days)) is None


@pytest.mark.parametrize(
    ("reason", "side", "days", "peer", "expected"),
    [
        (EXPIRED_ALERTS[0], Side(CLIENT), 100, None, "check the clocks of both machines"),
        (
            UNKNOWN_CA,
            Side(CLIENT),
            100,
            None,
            "does not trust the CA of the client certificate /cv_ca/",
        ),
        (
            HAS_EXPIRED,
            Side(CLIENT, [CA]),
            100,
            None,
            "the peer's certificate ended, and here it is 2027",
        ),
        (HAS_EXPIRED, Side(None, [CA]), 100, YEAR, "the peer's certificate ended on 2027-11-29 12:00 UTC"),
        (HAS_EXPIRED, Side(None, [CA]), 400, None, "the trusted CA /cv_ca/cacert.crt ended on 2027-11-29"),
        (HAS_EXPIRED, Side(None, [CA]), 400, YEAR, "the peer's certificate ended on 2027-11-29"),
        (NOT_YET, Side(None, [CA]), 5, None, "the peer's certificate is not valid yet, and here it is"),
        (NOT_YET, Side(None, [CA]), -1, None, "the trusted CA /cv_ca/cacert.crt is not valid before"),
        (NO_ISSUER, Side(None, [CA]), 5, None, "not trusted here (/cv_ca/cacert.crt)"),
        (NO_ISSUER, Side(), 5, None, "not trusted here (no file)"),
    ],
)
def test_it_is_said_whose_certificate_which_file_which_date(
    reason: str, side: Side, days: float, peer: Lifetime | None, expected: str
) -> None:
    assert expected in str(explain(reason, side, after(days), peer))


def test_who_speaks_no_tls_is_told_from_a_certificate_that_is_wrong() -> None:
    reason, ended = "[SSL: WRONG_VERSION_NUMBER] wrong version number", 400
    assert explain(reason, Side(CLIENT, [CA]), after(ended)) == "whoever listens there does not speak TLS"
    assert own_fault(reason, CLIENT, after(ended)) is None
    assert explain("", Side(), after(5)) is None
