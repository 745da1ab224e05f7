"""What the crypto library says about other people's certificates is nobody's business here."""

import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from keylime.pki.library_warnings import ignore_library_warnings
from tests.fakes.tls_material import WithSerial0, self_signed
from tests.fakes.vendor_certificates import Parts, ca_certificate, common_name

ROOT = Path(__file__).parents[3]
READERS_OF_CERTIFICATES = [
    "agent/keylime_agent/preparation.py",
    "registrar/keylime_registrar/main.py",
    "tenant/keylime_policy/messages.py",
    "tenant/keylime_tenant/ca/program.py",
    "tenant/keylime_tenant/main.py",
    "verifier/keylime_verifier/main.py",
    "verifier/keylime_verifier/verification/evidence_worker.py",
]


@pytest.mark.parametrize("path", READERS_OF_CERTIFICATES)
def test_every_program_that_reads_certificates_begins_with_it(path: str) -> None:
    assert "    ignore_library_warnings()\n" in (ROOT / path).read_text("utf-8")


def test_odd_certificates_are_read_without_a_word_and_our_own_faults_are_still_told() -> None:
    made = self_signed("odd")
    unnumbered = WithSerial0(made.certificate, made.key).der
    long = ca_certificate(Parts(subject=common_name(b"n" * 300)))

    def read_both() -> None:
        _ = x509.load_der_x509_certificate(unnumbered).serial_number
        _ = x509.load_der_x509_certificate(long).subject

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read_both()
        assert {warning.category for warning in told} == {CryptographyDeprecationWarning, UserWarning}
        told.clear()
        ignore_library_warnings()
        read_both()
        assert told == []
        warnings.warn("a function of ours", DeprecationWarning, stacklevel=1)
        assert [str(warning.message) for warning in told] == ["a function of ours"]
