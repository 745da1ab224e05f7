"""Policies signed with keys that do not leave their device: SoftHSM behind PKCS#11, and a software TPM."""

import base64
import contextlib
import datetime
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.documents.dsse import PolicySigner, verify_envelope
from keylime.errors import ConfigError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.messages.verifier import FindingSummary
from keylime.signing_keys import signing_key
from keylime.token_keys import open_tpm_key, parse_address, token_key
from keylime_policy.messages import Messages
from keylime_policy.signing import sign_runtime_policy
from keylime_policy.signing_order import Backend, SigningOrder
from keylime_tenant.approval import Proposal, propose, request_of
from keylime_tenant.payload_sources import read_file
from tests.fakes.swtpm import SoftwareTpm

NOW = datetime.datetime(2026, 2, 3, tzinfo=datetime.UTC)
MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so")
MODULE = next((path for path in MODULES if os.path.exists(path)), "")
PIN = "6789"
TOKEN = "our token"  # noqa: S105 - its name

needs_token = pytest.mark.skipif(
    not MODULE or not shutil.which("softhsm2-util"), reason="SoftHSM is not installed"
)


def sign(directory: Path, key: str, backend: Backend = Backend.ECDSA) -> bytes:
    """The signed policy."""
    policy, output = directory / "policy.json", directory / "signed.json"
    policy.write_text(EMPTY_POLICY)
    order = SigningOrder(
        policy=str(policy),
        output=str(output),
        key_file=key,
        new_key_file="",
        backend=backend,
        certificate_file=str(directory / "crt") if backend is Backend.X509 else None,
        public_key_file=str(directory / "public.pem"),
    )
    sign_runtime_policy(order, Messages("test"), NOW)
    return output.read_bytes()


@pytest.fixture(autouse=True)
def no_error_is_left() -> Iterator[None]:
    """SoftHSM leaves errors in OpenSSL's queue, where the next TLS context of the process would find them."""
    yield
    authority = trustme.CA().cert_pem.bytes().decode()
    with contextlib.suppress(ssl.SSLError):  # whoever finds them clears them
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority)
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token with two keys of elliptic curves, one of them twice under its label, and one of RSA."""
    home = tmp_path_factory.mktemp("token")
    (home / "tokens").mkdir()
    configuration = home / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(configuration))
    subprocess.run(  # noqa: S603 - a program of the system
        [
            str(shutil.which("softhsm2-util")),
            *("--init-token", "--free", "--label", TOKEN, "--so-pin", "1234", "--pin", PIN),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with pkcs11.lib(MODULE).get_token(token_label=TOKEN).open(rw=True, user_pin=PIN) as session:
        for label, number, curve in (
            ("policy", 1, "secp256r1"),
            ("twice", 2, "secp384r1"),
            ("twice", 3, "secp256r1"),
        ):
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC,
                {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(curve)},
                local=True,
            )
            parameters.generate_keypair(store=True, label=label, id=bytes([number]))
        session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True, label="rsa")
    (home / "pin").write_text(f"{PIN}\n")
    yield home
    patch.undo()


@needs_token
@pytest.mark.parametrize("key", ["object=policy", "id=%02", "object=twice;id=%03"])
def test_a_key_in_a_token_signs(token: Path, tmp_path: Path, key: str) -> None:
    uri = f"pkcs11:token=our%20token;{key}?module-path={MODULE}&pin-source=file:{token}/pin"
    signed = sign(tmp_path, uri)
    assert verify_envelope(signed, (tmp_path / "public.pem").read_bytes()) == EMPTY_POLICY.encode()
    with token_key("--keyfile", uri, {}) as opened:
        public = opened.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert (tmp_path / "public.pem").read_bytes() == public


@needs_token
def test_what_is_wrong_with_a_token_is_one_line_without_the_pin(token: Path, tmp_path: Path) -> None:
    module = f"module-path={MODULE}"
    for uri, environ, reason in (
        ("pkcs11:token=our%20token", {}, "names no key"),
        ("pkcs11:object=policy;colour=red", {}, "'colour' is unknown"),
        ("pkcs11:object=policy", {}, r"what speaks to the token\? Give \?module-path"),
        ("pkcs11:object=policy?module-path=/nowhere.so", {"KEYLIME_POLICY_KEY_PIN": PIN}, "/nowhere.so"),
        (f"pkcs11:token=gone;object=policy?{module}", {"KEYLIME_POLICY_KEY_PIN": PIN}, "no such token"),
        (f"pkcs11:token=our%20token;object=policy?{module}&pin-value=9876", {}, "the PIN is wrong"),
        (f"pkcs11:token=our%20token;object=gone?{module}&pin-value={PIN}", {}, "has 0 private keys"),
        (f"pkcs11:token=our%20token;object=twice?{module}&pin-value={PIN}", {}, "has 2 private keys"),
        (f"pkcs11:token=our%20token;object=rsa?{module}&pin-value={PIN}", {}, "elliptic-curve keys"),
    ):
        with (
            pytest.raises(ConfigError, match=rf"^--keyfile pkcs11:.*{reason}") as caught,
            token_key("--keyfile", uri, environ),
        ):
            pass
        assert "9876" not in str(caught.value)
        assert PIN not in str(caught.value)
        assert "\n" not in str(caught.value)
    uri = f"pkcs11:token=our%20token;object=policy?{module}&pin-value={PIN}"
    with pytest.raises(ConfigError, match="certificates are made with keys in files only"):
        sign(tmp_path, uri, Backend.X509)


def approved() -> Proposal:
    """What `approve` stores when a file was found that no policy lists."""
    finding = FindingSummary(
        event_id="ima.validation.ima-ng.not_in_allowlist",
        severity="",
        explanation="",
        path="/opt/tool",
        observed="ab" * 32,
        rule="digests",
    )
    return propose(EMPTY_POLICY, [finding], only=(), force=False)


def holds(proposal: Proposal, key: PolicySigner) -> None:
    """The request stores what was proposed, signed by that key."""
    request = request_of(proposal, key)
    public = base64.b64decode(request.runtime_policy_key or "")
    envelope = base64.b64decode(request.runtime_policy)
    assert verify_envelope(envelope, public) == proposal.document.encode()


@needs_token
def test_what_is_approved_is_signed_by_a_key_in_a_token(token: Path) -> None:
    uri = f"pkcs11:token=our%20token;object=policy?module-path={MODULE}&pin-value={PIN}"
    with signing_key("--sign-key", uri, {}, read_file) as key:
        holds(approved(), key)
    with (
        pytest.raises(ConfigError, match=r"^--sign-key pkcs11:.*names no key"),
        signing_key("--sign-key", "pkcs11:token=our%20token", {}, read_file),
    ):
        pass


def test_the_parts_of_an_address_are_taken_out_of_their_writing() -> None:
    address = parse_address(
        "--keyfile", "pkcs11:token=a%3Bb;serial=%00x;object=k%20ey;id=%ff?pin-value=p%26w"
    )
    assert (address.token, address.serial, address.label) == ("a;b", b"\0x", "k ey")
    assert (address.key_id, address.pin_value, address.module) == (b"\xff", "p&w", None)


def test_a_key_of_a_tpm_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tss = pytest.importorskip("tpm2_pytss")
    tsskey = pytest.importorskip("tpm2_pytss.tsskey")
    with SoftwareTpm.manufactured(tmp_path / "tpm", with_ek_certificate=False) as tpm:
        monkeypatch.setenv("TCTI", tpm.tcti)
        monkeypatch.setenv("KEYLIME_POLICY_KEY_PIN", PIN)
        with tss.ESAPI(tpm.tcti) as esapi:
            key = tsskey.TSSPrivKey.create_ecc(esapi, password=PIN.encode())
            rsa = tsskey.TSSPrivKey.create_rsa(esapi)
        path, public = tmp_path / "key.pem", key.public.to_pem()
        path.write_bytes(key.to_pem())
        assert verify_envelope(sign(tmp_path, str(path)), public) == EMPTY_POLICY.encode()
        with signing_key("--sign-key", str(path), os.environ, read_file) as opened:
            holds(approved(), opened)
        monkeypatch.setenv("KEYLIME_POLICY_KEY_PIN", "wrong")
        with pytest.raises(ConfigError, match="the TPM does not sign with it"):
            sign(tmp_path, str(path))
        with pytest.raises(ConfigError, match="elliptic-curve keys"):
            open_tpm_key("--keyfile", "x", rsa.to_pem(), os.environ)
        with pytest.raises(ConfigError, match=r"^--keyfile x: the key of a TPM in it cannot be read"):
            open_tpm_key(
                "--keyfile",
                "x",
                b"-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n",
                {},
            )
