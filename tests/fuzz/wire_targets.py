"""Fuzz targets for what strangers and peers send: messages, identifiers, certificates, payloads."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import CredentialError, MalformedEvidence, MalformedMessage
from keylime.identifiers import parse_agent_id
from keylime.messages import agent, envelope, registrar, revocation, verifier, versions
from keylime.payload.bundle import (
    PayloadRefused,
    decrypt_payload,
    encrypt_payload,
    pack_archive,
    read_archive,
)
from keylime.payload.keys import parse_auth_tag
from keylime.pki.der import read_certificate, read_pem_certificates
from keylime.pki.ek import check_ek_certificate, trust_store
from keylime.revocation.signing import verify_revocation
from keylime.tpm.keys import parse_endorsement_key
from tests.captures import CA_DIRECTORY, DATA, IMA_KEYS_DIRECTORY, captures
from tests.fuzz.target import Target, Targets, text_of, together

_KINDS: tuple[type[msgspec.Struct], ...] = (
    envelope.Envelope,
    agent.QuoteReply,
    agent.PublicKeyReply,
    agent.UKeyRequest,
    agent.VKeyRequest,
    agent.KeyVerification,
    agent.AgentInfo,
    registrar.RegisterRequest,
    registrar.RegisterReply,
    registrar.ActivateRequest,
    registrar.RegisteredAgents,
    registrar.RegisteredAgent,
    revocation.RevocationMessage,
    revocation.SignedRevocation,
    verifier.AddAgentRequest,
    verifier.AgentStatus,
    verifier.VerifierAgents,
    verifier.RuntimePolicyRequest,
    verifier.MeasuredBootPolicyRequest,
    versions.ServerVersions,
    versions.AgentVersions,
)
_BODIES = (
    b'{"code": 200, "status": "Success", "results": {"quote": "r", "boottime": 0}}',
    b'{"quote": "r", "hash_alg": "sha256", "enc_alg": "rsa", "sign_alg": "rsassa", "pubkey": null}',
    b'{"ekcert": null, "ek_tpm": "AAA=", "aik_tpm": "AAA=", "mtls_cert": "x", "ip": "1.2.3.4", "port": 1}',
    b'{"v": "", "cloudagent_ip": "::1", "cloudagent_port": 9002, "tpm_policy": "{}", "metadata": "{}"}',
    b'{"msg": "{}", "signature": "AAAA"}',
    b'{"auth_tag": "00", "encrypted_key": "AA==", "payload": null}',
    b'{"supported_versions": ["1.0", "2.1"], "current_version": "2.1"}',
)
_K = bytes(range(32))
_PLAIN = b"a payload"
_SEALED = encrypt_payload(_K, _PLAIN)
_EK = parse_endorsement_key(captures()[0].ek_public("rsa")).public_key
_STORE = trust_store(
    [item for path in sorted(CA_DIRECTORY.glob("*.pem")) for item in read_pem_certificates(path.read_bytes())]
)
_NOW = datetime(2026, 6, 1, tzinfo=UTC)
_GENUINE = {read_certificate(one.ek_certificate).signed_bytes for one in captures()}
_CERTIFICATE = (DATA / "ca-7.14.3" / "RevocationNotifier-cert.crt").read_bytes()


def _message(data: bytes) -> None:
    kind = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    message = envelope.parse_body(data[1:], kind)
    assert envelope.parse_body(msgspec.json.encode(message), kind) == message


def _answer(data: bytes) -> None:
    envelope.parse_results(data, agent.QuoteReply)


def _agent_id(data: bytes) -> None:
    agent_id = parse_agent_id(text_of(data))
    assert agent_id == text_of(data)
    assert not set(agent_id) & set("/\\%\0\r\n\t <>'\"")
    assert agent_id not in (".", "..")


def _certificate(data: bytes) -> None:
    tolerant = read_certificate(data)
    again = read_certificate(tolerant.certificate.public_bytes(Encoding.DER))
    assert again.certificate == tolerant.certificate
    assert not again.normalised


def _ek_certificate(data: bytes) -> None:
    if check_ek_certificate(data, _EK, _STORE, _NOW).trusted:
        assert read_certificate(data).signed_bytes in _GENUINE, "only the vendor can have signed it"


def _pem(data: bytes) -> None:
    assert read_pem_certificates(data)


def _archive(data: bytes) -> None:
    for path, content in read_archive(data):
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        assert len(content) <= 16 << 20


def _payload(data: bytes) -> None:
    # Trailing and leading white space is all that may differ.
    assert decrypt_payload(_K, text_of(data)) == _PLAIN


def _auth_tag(data: bytes) -> None:
    parse_auth_tag(text_of(data))


def _revocation(data: bytes) -> None:
    message, _, signature = text_of(data).partition("\0")
    verify_revocation(revocation.SignedRevocation(message, signature), _CERTIFICATE)
    raise AssertionError("nobody signed this")


def _message_seeds() -> Iterator[bytes]:
    return (bytes([number]) + body for number in range(len(_KINDS)) for body in _BODIES)


def _certificate_seeds() -> Iterator[bytes]:
    for one in captures():
        yield one.ek_certificate
    for path in sorted(IMA_KEYS_DIRECTORY.glob("*.crt.der")):
        yield path.read_bytes()


def _archive_seeds() -> Iterator[bytes]:
    yield pack_archive({"autorun.sh": b"#!/bin/sh\n", "dir/file": b"x"})
    yield pack_archive({})


TARGETS: Targets = {
    "message": Target(_message, (MalformedMessage,), _message_seeds),
    "answer": Target(_answer, (MalformedMessage,), lambda: _BODIES),
    "agent-id": Target(
        _agent_id, (MalformedMessage,), lambda: (b"d432fbb3-d2f1-4a97-9ef7-75bd81c00000", b"host-1.example")
    ),
    "certificate": together(
        Target(_certificate, (MalformedEvidence,), _certificate_seeds),
        Target(_ek_certificate, (), _certificate_seeds),
    ),
    "pem": Target(
        _pem,
        (MalformedEvidence,),
        lambda: (path.read_bytes() for path in sorted(CA_DIRECTORY.glob("*.pem"))),
    ),
    "archive": Target(_archive, (PayloadRefused,), _archive_seeds),
    "payload": Target(_payload, (CredentialError,), lambda: (_SEALED.encode(),)),
    "auth-tag": Target(_auth_tag, (MalformedMessage, CredentialError), lambda: (b"ab" * 48,)),
    "revocation": Target(_revocation, (CredentialError,), lambda: (b"{}\0" + base64.b64encode(bytes(384)),)),
}
