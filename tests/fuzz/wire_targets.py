"""Fuzz targets for what strangers and peers send: messages, identifiers, certificates, payloads."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.appraisal.evidence import AgentAnswer
from keylime.errors import CredentialError, MalformedEvidence, MalformedMessage, UnusableAnswer
from keylime.http.answer_parser import AnswerParser
from keylime.identifiers import parse_agent_id
from keylime.ima.measurement_list import split_lines
from keylime.messages import agent, envelope, registrar, revocation, verifier, versions
from keylime.payload.archive import PayloadRefused, pack_archive, read_archive
from keylime.payload.encryption import decrypt_payload, encrypt_payload
from keylime.payload.keys import parse_auth_tag
from keylime.pki.agent_certificate import read_agent_certificate
from keylime.pki.der import read_certificate, read_pem_certificates
from keylime.pki.ek import check_ek_certificate, trust_store
from keylime.revocation.signing import verify_revocation
from keylime.revocation.zmtp import (
    GREETING,
    ProtocolViolation,
    SubscriberSession,
    command_frame,
    message_frame,
    property_of,
)
from keylime.tpm.keys import parse_endorsement_key
from keylime_tenant.ca.cabinet import CabinetError, read_cabinet
from tests.captures import CA_DIRECTORY, DATA, IMA_KEYS_DIRECTORY, captures
from tests.fakes.cabinets import cabinet
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
SUBSCRIBER_READY = command_frame(b"READY", property_of(b"Socket-Type", b"SUB"))
_MOST_FILES, _MOST_BYTES = 100, 1 << 20
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
    envelope.parse_body(envelope.parse_envelope(data).results, agent.QuoteReply)


def _http_answer(data: bytes) -> None:
    """However it is cut, it is the same answer."""
    whole = AnswerParser(_MOST_BYTES)
    bit_by_bit = AnswerParser(_MOST_BYTES)
    if not whole.feed(data):
        whole.end()
    for at in range(len(data)):
        if bit_by_bit.feed(data[at : at + 1]):
            break
    else:
        bit_by_bit.end()
    assert (whole.is_complete, whole.status, whole.body) == (
        bit_by_bit.is_complete,
        bit_by_bit.status,
        bit_by_bit.body,
    )


def _http_answer_seeds() -> Iterator[bytes]:
    for body in (b"", _BODIES[0]):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        yield b"HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\n%b" % body
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\n{\r\n1\r\n}\r\n0\r\nA: b\r\n\r\n"


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


def _agent_certificate(data: bytes) -> None:
    found = read_agent_certificate(data)
    assert found.public_key in found.der
    assert read_agent_certificate(found.pem.encode()) == found


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


def _cabinet(data: bytes) -> None:
    files = list(read_cabinet(data, most_files=_MOST_FILES, most_bytes=_MOST_BYTES))
    assert len(files) <= _MOST_FILES
    assert sum(len(content) for _, content in files) <= _MOST_BYTES


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


def _cabinet_seeds() -> Iterator[bytes]:
    yield (DATA / "cabinets" / "makers.cab").read_bytes()
    yield cabinet([("a", b"b" * 100), ("c", b"")], compressed=False, reserve=4)


def _archive_seeds() -> Iterator[bytes]:
    yield pack_archive({"autorun.sh": b"#!/bin/sh\n", "dir/file": b"x"})
    yield pack_archive({})


def _subscriber(data: bytes) -> None:
    for start in (b"", GREETING + SUBSCRIBER_READY):
        session = SubscriberSession()
        try:
            session.receive(start + data)
        except ProtocolViolation:
            continue
        session.wants(b"{}")


def _quote(data: bytes) -> None:
    parsed = AgentAnswer.from_wire(envelope.parse_envelope(data).results)
    if parsed.ima_list is not None:
        cut = [line for lines in parsed.ima_list.slices() for line in lines]
        whole = split_lines(parsed.ima_list.content())
        assert cut == ([] if whole == [b""] else whole)


def _quote_seeds() -> Iterator[bytes]:
    fields = '"quote":"r","hash_alg":"sha256","enc_alg":"ecc256","sign_alg":"ecdsa"'
    for text in ("", "10 a\\n", "\\n\\n10 \\u00e9 \\ud83d\\ude00\\\\n\\n"):
        yield f'{{"code":200,"results":{{{fields},"ima_measurement_list":"{text}"}}}}'.encode()


TARGETS: Targets = {
    "subscriber": Target(
        _subscriber,
        (),
        lambda: (
            GREETING + SUBSCRIBER_READY + message_frame(b"\x01"),
            message_frame(b"\x01{") + message_frame(b"\x00{"),
            command_frame(b"PING", b"\0\0context") + command_frame(b"SUBSCRIBE", b""),
        ),
    ),
    "quote": Target(_quote, (MalformedMessage, MalformedEvidence), _quote_seeds),
    "message": Target(_message, (MalformedMessage,), _message_seeds),
    "answer": together(
        Target(_answer, (MalformedMessage,), lambda: _BODIES),
        Target(_http_answer, (UnusableAnswer,), _http_answer_seeds),
    ),
    "agent-id": Target(
        _agent_id, (MalformedMessage,), lambda: (b"d432fbb3-d2f1-4a97-9ef7-75bd81c00000", b"host-1.example")
    ),
    "certificate": together(
        Target(_certificate, (MalformedEvidence,), _certificate_seeds),
        Target(_ek_certificate, (), _certificate_seeds),
        Target(_agent_certificate, (CredentialError,), _certificate_seeds),
    ),
    "pem": Target(
        _pem,
        (MalformedEvidence,),
        lambda: (path.read_bytes() for path in sorted(CA_DIRECTORY.glob("*.pem"))),
    ),
    "archive": together(
        Target(_archive, (PayloadRefused,), _archive_seeds),
        Target(_cabinet, (CabinetError,), _cabinet_seeds),
    ),
    "payload": Target(_payload, (CredentialError,), lambda: (_SEALED.encode(),)),
    "auth-tag": Target(_auth_tag, (MalformedMessage, CredentialError), lambda: (b"ab" * 48,)),
    "revocation": Target(_revocation, (CredentialError,), lambda: (b"{}\0" + base64.b64encode(bytes(384)),)),
}
