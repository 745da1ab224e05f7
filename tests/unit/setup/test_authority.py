import pytest
import trustme
from cryptography import x509

from keylime.errors import CredentialError
from keylime.setup.authority import authority_of, fingerprint, is_authority, same_fingerprint

ROOT = trustme.CA()
MIDDLE = ROOT.create_child_ca()


def of(pem: trustme.Blob) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.bytes())


LEAF = [of(pem) for pem in MIDDLE.issue_cert("control.example").cert_chain_pems]
ANCHOR = of(ROOT.cert_pem)


def test_a_chain_ends_in_its_authority() -> None:
    assert authority_of([*LEAF, ANCHOR]) == ANCHOR
    assert is_authority(ANCHOR)


@pytest.mark.parametrize("chain", [[], LEAF[:1], LEAF])
def test_without_its_authority_there_is_nothing_to_trust(chain: list[x509.Certificate]) -> None:
    with pytest.raises(CredentialError, match="does not send"):
        authority_of(chain)


def test_an_authority_of_others_at_the_end_is_noticed() -> None:
    for foreign in (of(trustme.CA().cert_pem), LEAF[0]):
        with pytest.raises(CredentialError, match="do not vouch"):
            authority_of([*LEAF, foreign])


def test_a_certificate_of_its_own_is_no_authority() -> None:
    assert not is_authority(LEAF[0])
    assert not is_authority(LEAF[1])


def test_fingerprints_are_compared_however_they_are_written() -> None:
    shown = fingerprint(ANCHOR)
    assert len(shown) == 95
    for other in (shown.lower(), shown.replace(":", ""), f"SHA256:{shown}", shown.replace(":", " ")):
        assert same_fingerprint(shown, other)
    assert not same_fingerprint(shown, shown[:-2] + ("00" if not shown.endswith("00") else "01"))
    assert not same_fingerprint("", "")
    assert not same_fingerprint(shown[:59], shown[:59])
