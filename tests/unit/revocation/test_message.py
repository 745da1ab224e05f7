import json
from datetime import datetime

from keylime.findings.finding import Finding
from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.revocation.message import (
    RevocationKind,
    build_revocation,
    compact_document,
    delivery_key,
    encode_message,
)

FINDING = Finding(
    event_id="qoute_validation.quote_validation",
    context={"message": "Quote data validation", "error": "The nonce differs"},
    recoverable=False,
    explanation="",
)


def message(when: datetime = datetime(2026, 11, 2, 8, 5, 8)) -> RevocationMessage:  # noqa: DTZ001 - local time
    return build_revocation(
        RevocationKind.REVOCATION,
        agent_id="node1",
        ip="127.0.0.1",
        port=9002,
        tpm_policy='{"mask": "0x0"}',
        meta_data='{"cert_serial": 2}',
        finding=FINDING,
        severity_label="emergency",
        when=when,
    )


def test_the_text_is_that_of_peers_byte_for_byte() -> None:
    assert encode_message(message()) == (
        '{"type": "revocation", "ip": "127.0.0.1", "agent_id": "node1", "port": 9002, '
        '"tpm_policy": "{\\"mask\\": \\"0x0\\"}", "meta_data": "{\\"cert_serial\\": 2}", '
        '"event_time": "Mon Nov  2 08:05:08 2026", "event_id": "qoute_validation.quote_validation", '
        '"severity_label": "emergency", '
        '"context": "{\\"message\\": \\"Quote data validation\\", \\"error\\": \\"The nonce differs\\"}"}'
    )


def test_the_document_for_actions_is_compact_and_the_same() -> None:
    document = compact_document(message())
    for text in (b'"type":"revocation"', b'"agent_id":"node1"', b'"ip":"127.0.0.1"'):
        assert text in document
    assert json.loads(document) == json.loads(encode_message(message()))
    assert list(json.loads(document)) == sorted(json.loads(document))


def test_only_deliveries_of_the_same_message_have_the_same_key() -> None:
    first = SignedRevocation(encode_message(message()), "sig")
    again = SignedRevocation(first.msg, "another signature, as the salt is random")
    later = SignedRevocation(encode_message(message(datetime(2026, 11, 2, 8, 5, 9))), "sig")  # noqa: DTZ001
    assert delivery_key(first) == delivery_key(again)
    assert delivery_key(first) != delivery_key(later)
