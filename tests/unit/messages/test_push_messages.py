import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedMessage
from keylime.messages import push_attestation, push_document, push_evidence, push_session
from keylime.messages.push_evidence import (
    CertificationKey,
    CollectedLog,
    CollectedQuote,
    LogCapabilities,
    LogData,
    LogOffer,
    LogParameters,
    LogRequest,
    QuoteCapabilities,
    QuoteData,
    QuoteOffer,
    QuoteParameters,
    QuoteRequest,
    ReceivedLog,
    ReceivedQuote,
)

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"
TIME = "2026-11-22T18:04:09.842016+00:00"

words = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 1 << 40)
keys = st.builds(
    CertificationKey,
    key_class=words,
    key_size=counts,
    key_algorithm=words,
    server_identifier=words,
    local_identifier=words,
    public=words,
    allowable_signature_schemes=st.none() | st.lists(words, max_size=3),
    allowable_hash_algorithms=st.none() | st.lists(words, max_size=3),
)
quote_capabilities = st.builds(
    QuoteCapabilities,
    component_version=words,
    evidence_version=st.none() | words,
    signature_schemes=st.lists(words, max_size=3),
    hash_algorithms=st.lists(words, max_size=3),
    available_subjects=st.dictionaries(words, st.lists(counts, max_size=4), max_size=3),
    certification_keys=st.lists(keys, max_size=2),
)
log_capabilities = st.builds(
    LogCapabilities,
    evidence_version=st.just(msgspec.UNSET) | words,
    entry_count=st.just(msgspec.UNSET) | counts,
    supports_partial_access=st.booleans(),
    appendable=st.booleans(),
    formats=st.lists(words, max_size=2),
)
quote_parameters = st.builds(
    QuoteParameters,
    signature_scheme=words,
    challenge=words,
    hash_algorithm=words,
    selected_subjects=st.dictionaries(words, st.none() | st.lists(counts, max_size=4), max_size=3),
    certification_key=keys,
)
log_parameters = st.builds(LogParameters, starting_offset=st.just(msgspec.UNSET) | counts, format=words)
logs = st.sampled_from([push_evidence.UEFI_LOG, push_evidence.IMA_LOG, push_evidence.OS_LOG])
quote_data = st.builds(QuoteData, subject_data=words, message=words, signature=words)
log_data = st.builds(LogData, entry_count=st.just(msgspec.UNSET) | counts, entries=words)
offers = st.lists(
    st.builds(QuoteOffer, capabilities=quote_capabilities)
    | st.builds(LogOffer, evidence_type=logs, capabilities=log_capabilities),
    max_size=3,
)
asked = st.lists(
    st.builds(QuoteRequest, chosen_parameters=quote_parameters)
    | st.builds(LogRequest, evidence_type=logs, chosen_parameters=log_parameters),
    max_size=3,
)
collected = st.lists(
    st.builds(CollectedQuote, data=quote_data) | st.builds(CollectedLog, evidence_type=logs, data=log_data),
    max_size=3,
)
received = st.lists(
    st.builds(ReceivedQuote, capabilities=quote_capabilities, chosen_parameters=quote_parameters)
    | st.builds(
        ReceivedLog,
        evidence_type=logs,
        capabilities=log_capabilities,
        chosen_parameters=log_parameters,
        data=log_data,
    ),
    max_size=3,
)


def raw_items(resource: push_document.ReceivedResource, name: str) -> list[msgspec.Raw]:
    items = push_document.attributes_as(resource.attributes, name, list[msgspec.Raw])
    assert items is not None
    return items


@given(offers, words)
def test_what_an_agent_offers_arrives(offered: list[push_evidence.Offer], boot_time: str) -> None:
    body = push_document.encode_document(push_attestation.negotiation_document(offered, boot_time))
    resource = push_document.parse_request(body)
    assert resource.type == "attestation"
    items = raw_items(resource, "evidence_supported")
    kinds = [push_evidence.kind_of(item) for item in items]
    assert all(kind.is_known for kind in kinds)
    assert [push_evidence.offer_of(*pair) for pair in zip(items, kinds, strict=True)] == offered
    info = push_document.attributes_as(resource.attributes, "system_info", push_attestation.SystemInfo)
    assert info == push_attestation.SystemInfo(boot_time)


@given(asked)
def test_what_a_verifier_asks_for_arrives(items: list[push_evidence.Asked]) -> None:
    attributes = push_attestation.RequestedAttributes(
        evidence_requested=items,
        system_info=push_attestation.SystemInfo(TIME),
        capabilities_received_at=TIME,
        challenges_expire_at=TIME,
    )
    path = push_attestation.attestation_path(AGENT, 7)
    document = push_attestation.attestation_document(
        attributes, path, push_attestation.collection_path(AGENT)
    )
    body = push_document.encode_document(document)
    assert push_attestation.parse_requested(body) == items
    read = json.loads(body)
    assert read["data"]["links"] == {"self": f"/v3.0/agents/{AGENT}/attestations/7"}
    assert read["links"] == {"self": f"/v3.0/agents/{AGENT}/attestations"}
    assert read["jsonapi"] == {"version": "1.1"}
    assert "id" not in read["data"]
    assert "meta" not in read


@given(collected)
def test_what_an_agent_has_collected_arrives(items: list[push_evidence.Collected]) -> None:
    resource = push_document.parse_request(
        push_document.encode_document(push_attestation.evidence_document(items))
    )
    assert push_evidence.collected_items(raw_items(resource, "evidence_collected")) == items


@given(received, st.integers(0, 1 << 31))
def test_what_a_verifier_shows_arrives(items: list[push_evidence.Received], seconds: int) -> None:
    attributes = push_attestation.AttestationAttributes(
        stage="evaluating_evidence",
        evidence=items,
        system_info=push_attestation.SystemInfo(TIME),
        capabilities_received_at=TIME,
        evidence_received_at=TIME,
    )
    document = push_attestation.attestation_document(
        attributes, "/there", "/here", push_attestation.Pace(seconds)
    )
    body = push_document.encode_document(document)
    assert push_attestation.parse_shown(body) == items
    assert push_attestation.parse_pace(body) == seconds
    assert "evaluation" not in json.loads(body)["data"]["attributes"]


def test_an_agent_that_could_collect_nothing_says_so() -> None:
    resource = push_document.parse_request(
        push_document.encode_document(push_attestation.nothing_collected())
    )
    assert resource.type == "error"
    assert raw_items(resource, "evidence_collected") == []


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_proof_arrives(message: bytes, signature: bytes) -> None:
    body = push_document.encode_document(push_session.proof_document("one", AGENT, message, signature))
    resource = push_document.parse_request(body)
    assert resource.id == "one"
    assert push_session.agent_id_of(resource) == AGENT
    proof = push_session.proof_of(resource)
    assert push_document.decode_binary(proof.message) == message
    assert push_document.decode_binary(proof.signature) == signature


def test_a_challenge_is_asked_for_and_arrives() -> None:
    resource = push_document.parse_request(push_document.encode_document(push_session.open_document(AGENT)))
    assert push_session.agent_id_of(resource) == AGENT
    assert push_session.offers_pop(resource)
    attributes = push_session.ChallengeAttributes(
        agent_id=AGENT,
        authentication_requested=[
            push_session.RequestedProof(
                chosen_parameters=push_session.SessionChallenge(push_document.encode_binary(bytes(16)))
            )
        ],
        created_at=TIME,
        challenges_expire_at=TIME,
    )
    body = push_document.encode_document(push_session.session_document("one", attributes))
    assert push_session.parse_challenge(body) == ("one", bytes(16), attributes)


@pytest.mark.parametrize("token", [msgspec.UNSET, "secret"])
@pytest.mark.parametrize("ends", [msgspec.UNSET, None, TIME])
def test_the_verdict_on_a_proof_arrives(
    token: str | msgspec.UnsetType, ends: str | msgspec.UnsetType | None
) -> None:
    attributes = push_session.VerdictAttributes(
        agent_id=AGENT,
        evaluation="pass" if token else "fail",
        token=token,
        authentication=[],
        created_at=TIME,
        challenges_expire_at=TIME,
        response_received_at=TIME,
        token_expires_at=ends,
    )
    body = push_document.encode_document(push_session.session_document("one", attributes))
    assert push_session.parse_verdict(body) == attributes
    read = json.loads(body)["data"]["attributes"]
    assert ("token" in read) is isinstance(token, str)
    assert ("token_expires_at" in read) is (ends is not msgspec.UNSET)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"data": {"attributes": {"a": 1}}}',
        b'{"data": {"type": "session"}}',
        b'{"data": {"type": "session", "attributes": {}}}',
        b'{"data": {"type": "session", "attributes": {"agent_id": null}}}',
        b'{"data": {"type": "session", "attributes": {"agent_id": "a", "-": 1}}}',
        b'{"data": {"type": "session", "attributes": {"a": 1}, "other": 1}}',
        b'{"data": {"type": "session", "attributes": {"a": 1}}, "other": 1}',
        b'{"data": {"type": 1, "attributes": {"a": 1}}}',
    ],
)
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        push_document.parse_request(body)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for parse in (
        push_document.parse_request,
        push_session.parse_challenge,
        push_session.parse_verdict,
        push_attestation.parse_requested,
        push_attestation.parse_pace,
        push_attestation.parse_shown,
    ):
        with pytest.raises(MalformedMessage):
            parse(body)
    assert push_document.parse_errors(body) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["agent_id", "authentication_supported", "authentication_provided"]),
    json_values.filter(lambda value: value is not None),
)
def test_a_session_request_with_any_values_is_read_or_lacks_something(name: str, value: object) -> None:
    body = json.dumps({"data": {"type": "session", "attributes": {name: value}}}).encode()
    resource = push_document.parse_request(body)
    assert isinstance(push_session.agent_id_of(resource), str | None)
    assert push_session.offers_pop(resource) in (True, False)
    assert isinstance(push_session.proof_of(resource), push_session.ProofData)


@given(json_values, st.sampled_from(["certification", "log", "LOG", "other"]), words)
def test_an_item_with_any_values_is_read_or_refused(value: object, evidence_class: str, kind: str) -> None:
    item = msgspec.Raw(
        json.dumps(
            {
                "evidence_class": evidence_class,
                "evidence_type": kind,
                "capabilities": value,
                "data": value,
                "chosen_parameters": value,
            }
        ).encode()
    )
    try:
        push_evidence.offer_of(item, push_evidence.kind_of(item))
        push_evidence.collected_items([item])
    except MalformedMessage:
        pass


def test_errors_are_read() -> None:
    document = push_document.error_document(429, "premature_attestation", "too early", "/here")
    body = push_document.encode_document(document)
    assert push_document.parse_errors(body) == document.errors
    assert json.loads(body)["errors"] == [
        {"status": "429", "code": "premature_attestation", "detail": "too early"}
    ]
    several = push_document.error_document(
        422, "invalid_resource_data", "unused", "/here", ("/data/a", "one"), ("/data/b", "two")
    )
    assert [(error.source, error.detail) for error in several.errors] == [
        (push_document.ErrorSource("/data/a"), "one"),
        (push_document.ErrorSource("/data/b"), "two"),
    ]


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T10:00:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T12:00:00+02:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        ("1700000000.5", datetime.fromtimestamp(1700000000.5, UTC)),
    ],
)
def test_times_are_read(value: str | int, moment: datetime) -> None:
    assert push_document.parse_time(value) == moment


@pytest.mark.parametrize("value", ["", "now", "1e400", float("inf"), float("nan"), 1e300, "9" * 400])
def test_other_times_are_refused(value: str | float) -> None:
    with pytest.raises(MalformedMessage):
        push_document.parse_time(value)


@given(st.datetimes(timezones=st.just(timezone(timedelta(hours=3)))))
def test_a_time_is_written_as_it_is_read(moment: datetime) -> None:
    try:
        text = push_document.format_time(moment)
    except OverflowError:  # the first hours of the calendar have no UTC
        return
    assert text.endswith("+00:00")
    assert "." in text
    assert push_document.parse_time(text) == moment


def test_binary_values_are_base64_or_hex() -> None:
    assert push_document.decode_binary("AAEC") == bytes([0, 1, 2])
    assert push_document.decode_binary("000102") == bytes([0, 1, 2])
    assert push_document.decode_binary("0x00010203") == bytes([0, 1, 2, 3])


@pytest.mark.parametrize("text", ["0x001", "äöü", "AAE", "A===", "zz"])
def test_other_binary_values_are_refused(text: str) -> None:
    with pytest.raises(MalformedMessage, match="Base64 or hex"):
        push_document.decode_binary(text)
