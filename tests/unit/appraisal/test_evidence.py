import base64
import hashlib

from keylime.appraisal.evidence import AgentAnswer, Evidence, RawBootLog, parse_evidence, quote_finding
from keylime.hashes import HashAlgorithm
from tests.captures import capture
from tests.evidence import captured_reply

STAGE = capture("direct-efistub").stage("s1-clean")


def test_a_finding_about_a_quote_tells_what_was_done_and_what_went_wrong() -> None:
    plain, caused = quote_finding("no_pubkey", "no key"), quote_finding("x", "Check", error="why")
    assert (plain.context, plain.explanation) == ({"message": "no key"}, "no key")
    assert caused.context == {"message": "Check", "error": "why"}
    assert caused.explanation == "Check: why"
    assert not plain.recoverable
    assert not caused.recoverable


def test_a_captured_answer_is_read_in_full() -> None:
    reply = captured_reply(STAGE, "ecdsa", "sha1")
    evidence = parse_evidence(AgentAnswer.of(reply))
    assert isinstance(evidence, Evidence)
    assert evidence.bank is HashAlgorithm.SHA1
    assert (evidence.declared_encryption, evidence.declared_signing) == ("ecc256", "ecdsa")
    assert evidence.ima_list is not None
    assert evidence.ima_list.content() == STAGE.ascii_list
    log = base64.b64decode(reply.mb_measurement_list or "")
    assert evidence.boot_log == RawBootLog(log, hashlib.sha256(log).hexdigest())
