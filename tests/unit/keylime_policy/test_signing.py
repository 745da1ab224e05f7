"""Signed policies: with a given key and a new one, bare and with a certificate."""

import datetime
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from keylime.documents.dsse import verify_envelope
from keylime.errors import ConfigError, CredentialError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime_policy.messages import Messages
from keylime_policy.signing import sign_runtime_policy
from keylime_policy.signing_order import Backend, SigningOrder

NOW = datetime.datetime(2026, 2, 3, tzinfo=datetime.UTC)
TEXT = EMPTY_POLICY.replace(", ", ",  ")  # not as any program would write it


def sign(directory: Path, text: str = TEXT, **changes: object) -> Path:
    """The signed policy, with a new key unless `changes` say otherwise."""
    policy, output = directory / "policy.json", directory / "signed.json"
    policy.write_text(text)
    fields: dict[str, object] = {
        "policy": str(policy),
        "output": str(output),
        "key_file": None,
        "new_key_file": str(directory / "new.pem"),
        "backend": Backend.ECDSA,
        "certificate_file": None,
        **changes,
    }
    sign_runtime_policy(SigningOrder(**fields), Messages("test"), NOW)  # type: ignore[arg-type]
    return output


def key_file(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> str:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    return str(path)


def test_a_new_key_is_private_and_signs_the_very_bytes(tmp_path: Path) -> None:
    signed = sign(tmp_path)
    assert stat.S_IMODE((tmp_path / "new.pem").stat().st_mode) == 0o600
    public = (tmp_path / "new.pem.pub").read_bytes()
    assert verify_envelope(signed.read_bytes(), public) == TEXT.encode()
    (tmp_path / "new.pem").unlink()
    (tmp_path / "new.pem.pub").unlink()
    sign(tmp_path)
    with pytest.raises(CredentialError):
        verify_envelope(signed.read_bytes(), public)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_a_given_key_signs_and_nothing_else_is_written(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    path = key_file(tmp_path / "key", ec.generate_private_key(curve))
    envelope = json.loads(sign(tmp_path, key_file=path).read_text())
    assert envelope["payloadType"] == "application/vnd.keylime+json"
    assert {file.name for file in tmp_path.iterdir()} == {"policy.json", "signed.json", "key"}


def test_a_certificate_travels_with_the_signature(tmp_path: Path) -> None:
    certificate = tmp_path / "signer.crt"
    signed = sign(tmp_path, backend=Backend.X509, certificate_file=str(certificate)).read_bytes()
    assert verify_envelope(signed, None) == TEXT.encode()
    assert verify_envelope(signed, certificate.read_bytes()) == TEXT.encode()


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("new.pem", "new.pem.pub"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(ConfigError, match="exists already"):
            sign(tmp_path)
        assert {(tmp_path / name).read_text()} == {"precious"}
        (tmp_path / name).unlink()
        assert not (tmp_path / "new.pem").exists()


def test_keys_that_cannot_sign_are_refused(tmp_path: Path) -> None:
    keys = {
        "expected|another": key_file(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)),
        "encrypted": key_file(tmp_path / "locked", ec.generate_private_key(ec.SECP256R1()), b"secret"),
        "no private key": str(Path(__file__)),
    }
    for reason, path in keys.items():
        with pytest.raises(ConfigError, match=reason):
            sign(tmp_path, key_file=path)


def test_only_valid_unsigned_policies_are_signed(tmp_path: Path) -> None:
    signed = sign(tmp_path).read_text()
    key = str(tmp_path / "new.pem")
    with pytest.raises(ConfigError, match="is signed already"):
        sign(tmp_path, signed, key_file=key)
    with pytest.raises(ConfigError, match=r"policy\.json: .*meta"):
        sign(tmp_path, "{}", key_file=key)
    sign(tmp_path, "{}", key_file=key, validate=False)
