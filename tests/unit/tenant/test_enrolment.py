import base64
from dataclasses import replace

import msgspec
import pytest

from keylime.hashes import HashAlgorithm
from keylime.identifiers import AgentId
from keylime.messages.agent import QuoteReply
from keylime.messages.registrar import RegisteredAgent
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import DATA_PCR, PcrValues, data_pcr_value
from keylime_tenant.arguments import Arguments
from keylime_tenant.config import Address, AllowedAlgorithms
from keylime_tenant.enrolment import Candidate, add_request, check_identity, contact_remark, make_candidate
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.payload import NOTHING, encrypted
from keylime_tenant.policies import PolicyDocuments, compose
from tests.fakes.scripted_agent import ScriptedAgent
from tests.fakes.software_ak import AK_ATTRIBUTES, SoftwareAk

AGENT = AgentId("node1")
NONCE = "a1B2c3D4e5F6g7H8i9J0"
ACCEPTED = AllowedAlgorithms(
    hashes=("sha512", "sha384", "sha256"),
    encryption=("ecc", "rsa"),
    signing=("ecdsa", "ecschnorr", "rsassa", "rsapss"),
)


@pytest.fixture(scope="module")
def agent() -> ScriptedAgent:
    return ScriptedAgent("node1", None)


def record_of(agent: ScriptedAgent, **changes: object) -> RegisteredAgent:
    fields: dict[str, object] = {
        "agent_id": agent.agent_id,
        "ek_tpm": "AAAA",
        "aik_tpm": base64.b64encode(agent.ak.tpm2b_public).decode(),
        "ip": "192.0.2.7",
        "port": 9002,
        "mtls_cert": "-----BEGIN CERTIFICATE-----\n...",
        "regcount": 1,
    }
    return msgspec.convert({**fields, **changes}, RegisteredAgent)


def candidate_of(agent: ScriptedAgent, arguments: Arguments | None = None) -> Candidate:
    return make_candidate(AGENT, record_of(agent), arguments or Arguments())


def reply_of(agent: ScriptedAgent, nonce: str = NONCE, **changes: object) -> QuoteReply:
    return msgspec.convert({**agent.identity_quote(nonce), **changes}, QuoteReply)


def test_a_fresh_quote_by_the_registered_key_vouches_for_the_payload_key(agent: ScriptedAgent) -> None:
    assert check_identity(candidate_of(agent), reply_of(agent), NONCE, ACCEPTED) == agent.pubkey


def quote_of(agent: ScriptedAgent, *others: int, without: bool = False) -> str:
    bank = agent.hash_alg
    values = {index: bytes(bank.size) for index in others}
    if not without:
        values[DATA_PCR] = data_pcr_value(bank, agent.pubkey)
    return agent.ak.quote(NONCE.encode(), PcrValues(bank, values))


def test_agents_of_the_field_may_quote_more_than_the_data_pcr(agent: ScriptedAgent) -> None:
    for others in ((0,), (0, 1, 7, 10)):
        reply = reply_of(agent, quote=quote_of(agent, *others))
        assert check_identity(candidate_of(agent), reply, NONCE, ACCEPTED) == agent.pubkey
    with pytest.raises(AgentRejected, match="not valid"):
        check_identity(
            candidate_of(agent), reply_of(agent, quote=quote_of(agent, 0, without=True)), NONCE, ACCEPTED
        )


def test_a_quote_over_another_nonce_is_refused(agent: ScriptedAgent) -> None:
    with pytest.raises(AgentRejected, match="nonce"):
        check_identity(candidate_of(agent), reply_of(agent, "otherNonce1234567890"), NONCE, ACCEPTED)


def test_a_quote_by_another_key_than_the_registered_one_is_refused(agent: ScriptedAgent) -> None:
    other = replace(candidate_of(agent), ak=candidate_of(ScriptedAgent("node1", None)).ak)
    with pytest.raises(AgentRejected, match="identity quote of agent node1 is not valid"):
        check_identity(other, reply_of(agent), NONCE, ACCEPTED)


def test_a_payload_key_that_was_swapped_after_the_quote_is_refused(agent: ScriptedAgent) -> None:
    other = ScriptedAgent("node1", None)
    with pytest.raises(AgentRejected, match="PCR 16 of agent node1 is not bound"):
        check_identity(candidate_of(agent), reply_of(agent, pubkey=other.pubkey), NONCE, ACCEPTED)


def test_the_binding_covers_the_key_text_to_its_last_newline(agent: ScriptedAgent) -> None:
    with pytest.raises(AgentRejected, match="PCR 16"):
        check_identity(candidate_of(agent), reply_of(agent, pubkey=agent.pubkey.rstrip()), NONCE, ACCEPTED)


def test_a_quote_without_the_payload_key_is_refused(agent: ScriptedAgent) -> None:
    with pytest.raises(AgentRejected, match="without its payload key"):
        check_identity(candidate_of(agent), reply_of(agent, pubkey=None), NONCE, ACCEPTED)


def test_what_is_no_quote_at_all_is_refused(agent: ScriptedAgent) -> None:
    for changes in ({"quote": "rAAAA"}, {"hash_alg": "md5"}):
        with pytest.raises(AgentRejected, match="not valid"):
            check_identity(candidate_of(agent), reply_of(agent, **changes), NONCE, ACCEPTED)


def test_a_bank_that_is_not_accepted_is_named_with_the_option() -> None:
    weak = ScriptedAgent("node1", None, hash_alg=HashAlgorithm.SHA1)
    with pytest.raises(AgentRejected, match="unaccepted hash algorithm sha1"):
        check_identity(candidate_of(weak), reply_of(weak), NONCE, ACCEPTED)
    tolerant = replace(ACCEPTED, hashes=("sha1", "sha256"))
    assert check_identity(candidate_of(weak), reply_of(weak), NONCE, tolerant) == weak.pubkey


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("encryption", replace(ACCEPTED, encryption=("rsa",))),
        ("signing", replace(ACCEPTED, signing=("rsassa",))),
    ],
)
def test_a_key_of_a_kind_that_is_not_accepted_is_refused(
    agent: ScriptedAgent, kind: str, accepted: AllowedAlgorithms
) -> None:
    with pytest.raises(AgentRejected, match=f"unaccepted {kind} algorithm"):
        check_identity(candidate_of(agent), reply_of(agent), NONCE, accepted)


def test_a_claimed_algorithm_does_not_hide_the_real_one() -> None:
    rsa = ScriptedAgent("node1", None, ak=SoftwareAk.generate("rsa3072", SignatureScheme.RSASSA))
    reply = reply_of(rsa, enc_alg="rsa", sign_alg="rsassa")
    with pytest.raises(AgentRejected, match="unaccepted encryption algorithm rsa3072"):
        check_identity(candidate_of(rsa), reply, NONCE, ACCEPTED)


@pytest.mark.parametrize("enc_alg", ["ecc", "ecc256"])
def test_both_names_of_a_key_type_are_accepted(agent: ScriptedAgent, enc_alg: str) -> None:
    assert check_identity(candidate_of(agent), reply_of(agent, enc_alg=enc_alg), NONCE, ACCEPTED)


def test_an_unrestricted_attestation_key_is_refused_before_anybody_is_asked() -> None:
    loose = ScriptedAgent("node1", None)
    loose.ak = replace(loose.ak, attributes=AK_ATTRIBUTES & ~0x00010000)
    with pytest.raises(AgentRejected, match="restricted"):
        candidate_of(loose)


@pytest.mark.parametrize("aik_tpm", ["", "!", "AAAA", "é"])
def test_a_registered_key_that_is_garbage_is_refused(agent: ScriptedAgent, aik_tpm: str) -> None:
    with pytest.raises(AgentRejected, match="registered AK of agent node1"):
        make_candidate(AGENT, record_of(agent, aik_tpm=aik_tpm), Arguments())


def test_a_record_about_another_agent_is_refused(agent: ScriptedAgent) -> None:
    with pytest.raises(AgentRejected, match="answered about 'node2'"):
        make_candidate(AGENT, record_of(agent, agent_id="node2"), Arguments())


def test_an_agent_without_certificate_or_address_cannot_be_added(agent: ScriptedAgent) -> None:
    with pytest.raises(CommandFailed, match="without a certificate"):
        make_candidate(AGENT, record_of(agent, mtls_cert=None), Arguments())
    with pytest.raises(CommandFailed, match="give -t and -tp"):
        make_candidate(AGENT, record_of(agent, ip=None), Arguments())


@pytest.mark.parametrize("host", ["a/b", "a?x", "u@h", "a b", "a#", "-x", "", "[::1]/"])
def test_an_address_that_would_change_the_url_is_refused(agent: ScriptedAgent, host: str) -> None:
    with pytest.raises(CommandFailed, match="give -t and -tp"):
        make_candidate(AGENT, record_of(agent, ip=host), Arguments())


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(agent: ScriptedAgent, port: int) -> None:
    with pytest.raises(CommandFailed, match="give -t and -tp"):
        make_candidate(AGENT, record_of(agent, port=port), Arguments())


def test_flags_override_the_registered_address_and_the_verifier_may_have_its_own(
    agent: ScriptedAgent,
) -> None:
    registered = candidate_of(agent)
    assert registered.contact == registered.verifier_contact == Address("192.0.2.7", 9002)
    given = candidate_of(agent, Arguments(agent_ip="10.0.0.1", agent_port=99, cv_targethost="10.9.9.9"))
    assert given.contact == Address("10.0.0.1", 99)
    assert given.verifier_contact == Address("10.9.9.9", 99)


def test_the_verifier_gets_the_key_that_was_checked_and_the_documented_blanks(agent: ScriptedAgent) -> None:
    candidate = candidate_of(agent)
    request = add_request(
        candidate,
        version="2.5",
        policies=compose(Arguments(), PolicyDocuments()),
        delivery=NOTHING,
        accepted=ACCEPTED,
        verifier=Address("127.0.0.1", 8881),
    )
    body = msgspec.to_builtins(request)
    assert base64.b64decode(body["ak_tpm"]) == candidate.ak.tpm2b_public
    blanks = {
        "v": None,
        "runtime_policy": "",
        "runtime_policy_name": "",
        "runtime_policy_key": "",
        "mb_policy": None,
        "mb_policy_name": "",
        "metadata": "{}",
        "revocation_key": "",
        "ima_sign_verification_keys": "",
        "tpm_policy": '{"mask": "0x0"}',
    }
    assert {name: body[name] for name in blanks} == blanks


def test_the_verifier_gets_v_and_never_k_or_u(agent: ScriptedAgent) -> None:
    delivery = encrypted(b"secret payload")
    assert delivery.key is not None
    request = add_request(
        candidate_of(agent),
        version="2.5",
        policies=compose(Arguments(), PolicyDocuments()),
        delivery=delivery,
        accepted=ACCEPTED,
        verifier=Address("127.0.0.1", 8881),
    )
    text = msgspec.json.encode(request).decode()
    assert request.v == base64.b64encode(delivery.key.v).decode()
    assert base64.b64encode(delivery.key.k).decode() not in text
    assert base64.b64encode(delivery.key.u).decode() not in text
    assert "secret payload" not in repr(delivery)


def test_an_address_that_leads_the_verifier_to_itself_is_remarked_on(agent: ScriptedAgent) -> None:
    record = record_of(agent, ip="127.0.0.1")
    remark = contact_remark(make_candidate(AGENT, record, Arguments()))
    assert remark is not None
    assert "127.0.0.1:9002" in remark
    assert "-t, or set [agent] contact_ip" in remark
    assert contact_remark(make_candidate(AGENT, record, Arguments(agent_ip="192.0.2.7"))) is None
    assert contact_remark(make_candidate(AGENT, record, Arguments(cv_targethost="192.0.2.7"))) is None
    assert contact_remark(candidate_of(agent)) is None


@pytest.mark.parametrize(
    ("registered", "asked", "arguments", "contact"),
    [
        # The registered address leads back to whoever uses it; the verifier knows a better one.
        ("127.0.0.1", Address("192.0.2.7", 9003), Arguments(), Address("192.0.2.7", 9003)),
        ("127.0.0.1", Address("192.0.2.7", 9003), Arguments(agent_port=9004), Address("192.0.2.7", 9004)),
        ("127.0.0.1", Address("192.0.2.7", 9003), Arguments(agent_ip="::1"), Address("::1", 9002)),
        ("127.0.0.1", Address("127.0.0.1", 9003), Arguments(), Address("127.0.0.1", 9002)),
        ("127.0.0.1", None, Arguments(), Address("127.0.0.1", 9002)),
        # It may have moved, and the verifier may reach it by another way than we do.
        ("192.0.2.7", Address("192.0.2.6", 9002), Arguments(), Address("192.0.2.7", 9002)),
    ],
)
def test_an_agent_that_registered_loopback_is_looked_for_where_the_verifier_finds_it(
    agent: ScriptedAgent, registered: str, asked: Address | None, arguments: Arguments, contact: Address
) -> None:
    candidate = make_candidate(AGENT, record_of(agent, ip=registered), arguments, asked_at=asked)
    assert candidate.contact == candidate.verifier_contact == contact
