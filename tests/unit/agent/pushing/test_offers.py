import base64
from dataclasses import replace

import msgspec
import pytest

from keylime.errors import MalformedMessage
from keylime.hashes import HashAlgorithm
from keylime.messages.push_evidence import CertificationKey, QuoteOffer, QuoteParameters
from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import PcrSelection
from keylime_agent.pushing.offers import CannotShow, Facts, boot_time_text, offers, quote_selection
from tests.fakes.software_ak import SoftwareAk

SHA256 = HashAlgorithm.SHA256
KEY = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
AK = parse_attestation_key(KEY.tpm2b_public)
FACTS = Facts(
    ak=AK,
    bank=SHA256,
    key_identifier="ak",
    boot_log_version="2.1",
    boot_events=37,
    ima_entries=3,
    has_os_log=True,
)


def test_all_that_there_is_is_offered_in_the_words_of_the_protocol() -> None:
    quote, boot, ima, system = msgspec.json.decode(msgspec.json.encode(offers(FACTS)))
    key = quote["capabilities"].pop("certification_keys")[0]
    quote["capabilities"].pop("evidence_version", None)
    assert quote["capabilities"] == {
        "component_version": "2.0",
        "signature_schemes": ["ecdsa"],
        "hash_algorithms": ["sha256"],
        "available_subjects": {"sha256": list(range(24))},
    }
    assert base64.b64decode(key.pop("public")) == KEY.tpm2b_public[2:]
    assert key == {
        "key_class": "asymmetric",
        "key_algorithm": "ecc",
        "key_size": 256,
        "server_identifier": "ak",
        "local_identifier": AK.name.hex(),
        "allowable_signature_schemes": ["ecdsa"],
        "allowable_hash_algorithms": ["sha256"],
    }
    assert boot["capabilities"] == {
        "evidence_version": "2.1",
        "entry_count": 37,
        "supports_partial_access": False,
        "appendable": False,
        "formats": ["application/octet-stream"],
    }
    assert ima["capabilities"] == {
        "entry_count": 3,
        "supports_partial_access": True,
        "appendable": True,
        "formats": ["text/plain"],
    }
    assert (system["evidence_class"], system["evidence_type"]) == ("log", "os_log")


def test_what_is_not_there_is_not_offered() -> None:
    (quote,) = offers(replace(FACTS, boot_events=None, ima_entries=None, has_os_log=False))
    assert isinstance(quote, QuoteOffer)


def test_a_boot_time_is_whole_seconds_of_utc() -> None:
    assert boot_time_text(1_700_000_000) == "2023-11-14T22:13:20Z"


ASKED = QuoteParameters(
    signature_scheme="ecdsa",
    challenge=base64.b64encode(bytes(16)).decode(),
    hash_algorithm="sha256",
    selected_subjects={"sha256": [10, 0], "sha1": None},
    certification_key=CertificationKey(key_class="asymmetric", key_size=256, local_identifier=AK.name.hex()),
)


def test_the_bank_of_the_keys_hash_is_quoted() -> None:
    assert quote_selection(ASKED, FACTS) == (PcrSelection(SHA256, frozenset({0, 10})), bytes(16))


@pytest.mark.parametrize(
    "change",
    [
        {"signature_scheme": "rsassa"},
        {"hash_algorithm": "sha384"},
        {"selected_subjects": {"sha256": None}},
        {"selected_subjects": {"sha1": [10]}},
        {"certification_key": CertificationKey(key_class="asymmetric", key_size=256, local_identifier="00")},
    ],
)
def test_what_this_machine_cannot_quote_is_not_quoted(change: dict[str, object]) -> None:
    with pytest.raises(CannotShow):
        quote_selection(msgspec.structs.replace(ASKED, **change), FACTS)


@pytest.mark.parametrize(
    "change",
    [
        {"challenge": ""},
        {"challenge": "A" * 400},
        {"challenge": "no base64"},
        {"selected_subjects": {"sha256": [24]}},
    ],
)
def test_what_makes_no_sense_is_malformed(change: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        quote_selection(msgspec.structs.replace(ASKED, **change), FACTS)
