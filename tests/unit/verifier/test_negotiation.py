"""What is asked for of what an agent offers, and what is wrong with an offer."""

from typing import Any

import msgspec
import pytest

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.ima.runtime_policy import parse_runtime_policy
from keylime.messages.push_evidence import LogParameters, QuoteParameters, ReceivedQuote
from keylime.tpm.keys import SignatureScheme
from keylime_verifier.pushing.negotiation import Chosen, choose, read_offer
from keylime_verifier.pushing.problems import Unacceptable
from tests.evidence import reference
from tests.fakes.attesting_agent import policy_of
from tests.fakes.pushing_machine import b64, name_of
from tests.fakes.software_ak import SoftwareAk

ECC = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
RSA = SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)
CHALLENGE = bytes(range(16))
BOOTED = 1_800_000_000
FRESH = Checkpoint.fresh()
POLICY = parse_runtime_policy(policy_of({"boot_aggregate": b"the boot"}))


def offer_of(ak: SoftwareAk, entries: int = 3) -> dict[str, Any]:
    """The attributes that an agent of the field sends."""
    is_rsa = ak is RSA
    key = {
        "key_algorithm": "rsa" if is_rsa else "ecc",
        "key_class": "asymmetric",
        "key_size": 2048 if is_rsa else 256,
        "server_identifier": "ak",
        "local_identifier": name_of(ak).hex(),
        "public": b64(ak.tpm2b_public[2:]),
    }
    quote = {
        "component_version": "2.0",
        "hash_algorithms": ["sha1", "sha256"],
        "signature_schemes": ["rsassa", "rsapss", "ecdsa"],
        "available_subjects": {"sha1": list(range(24)), "sha256": list(range(24))},
        "certification_keys": [key],
    }
    log = {
        "entry_count": entries,
        "supports_partial_access": True,
        "appendable": True,
        "formats": ["text/plain"],
    }
    return {
        "evidence_supported": [
            {"evidence_class": "certification", "evidence_type": "tpm_quote", "capabilities": quote},
            {"evidence_class": "log", "evidence_type": "ima_log", "capabilities": log},
        ],
        "system_info": {"boot_time": BOOTED},
    }


def chosen_of(attributes: dict[str, Any], ak: SoftwareAk = ECC, checkpoint: Checkpoint = FRESH) -> Chosen:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in attributes.items()}
    held_to = reference(ak.tpm2b_public, runtime_policy=POLICY)
    return choose(read_offer(raw), held_to, checkpoint, CHALLENGE)


def problems_of(attributes: dict[str, Any], checkpoint: Checkpoint = FRESH) -> dict[str, str]:
    """By their pointers, below the attributes."""
    with pytest.raises(Unacceptable) as refused:
        chosen_of(attributes, checkpoint=checkpoint)
    return {one.pointer.removeprefix("/data/attributes/"): one.detail for one in refused.value.problems}


@pytest.mark.parametrize("ak", [ECC, RSA], ids=["ecc", "rsa"])
def test_the_key_is_known_by_either_form_of_its_public_area(ak: SoftwareAk) -> None:
    for public in (ak.tpm2b_public, ak.tpm2b_public[2:]):
        attributes = offer_of(ak)
        other = {**attributes["evidence_supported"][0]["capabilities"]["certification_keys"][0]}
        other |= {"public": b64(b"another key"), "local_identifier": "000b00"}
        keys = attributes["evidence_supported"][0]["capabilities"]["certification_keys"]
        keys[0]["public"] = b64(public)
        keys.insert(0, other)
        quote = chosen_of(attributes, ak).items[0]
        assert isinstance(quote, ReceivedQuote)
        asked: QuoteParameters = quote.chosen_parameters
        assert asked.certification_key.public == b64(public)
        assert (asked.hash_algorithm, asked.signature_scheme) == ("sha256", ak.scheme.label)
        assert asked.selected_subjects == {"sha1": None, "sha256": [10]}, "PCR 16 means nothing here"


@pytest.mark.parametrize(
    ("changes", "pointer", "text"),
    [
        ({"key_class": "public"}, "/0/key_class", "must be 'asymmetric' or 'symmetric'"),
        ({"key_algorithm": None}, "/0/key_algorithm", "is required"),
        ({"key_algorithm": "dsa"}, "/0/key_algorithm", "must be compatible with a given signature schemes"),
        (
            {"server_identifier": None, "local_identifier": None, "public": None},
            "/0",
            "must have one of 'server_identifier', 'local_identifier' and 'public'",
        ),
    ],
)
def test_keys_that_nobody_can_use(changes: dict[str, object], pointer: str, text: str) -> None:
    attributes = offer_of(ECC)
    keys = attributes["evidence_supported"][0]["capabilities"]["certification_keys"]
    keys[0] = {name: value for name, value in {**keys[0], **changes}.items() if value is not None}
    path = f"evidence/0/capabilities/certification_keys{pointer}"
    assert problems_of(attributes) == {path: f"Attribute 'evidence' {text}."}


def test_a_key_must_fit_a_scheme_of_its_item() -> None:
    attributes = offer_of(ECC)
    attributes["evidence_supported"][0]["capabilities"]["signature_schemes"] = ["rsassa"]
    (pointer,) = problems_of(attributes)
    assert pointer == "evidence/0/capabilities/certification_keys/0/key_algorithm"


def test_banks_have_an_algorithm() -> None:
    attributes = offer_of(ECC)
    attributes["evidence_supported"][0]["capabilities"]["hash_algorithms"] = ["sha256"]
    (pointer,) = problems_of(attributes)
    assert pointer == "evidence/0/capabilities/available_subjects"


def test_a_log_that_is_read_in_parts_has_a_length() -> None:
    attributes = offer_of(ECC)
    del attributes["evidence_supported"][1]["capabilities"]["entry_count"]
    assert problems_of(attributes) == {
        "evidence/1/capabilities/entry_count": "Attribute 'evidence' is required."
    }


def proven(entries: int) -> Checkpoint:
    """So many entries of the list are proven in this boot."""
    boot = BootSession(reset_count=1, restart_count=0, clock=1, boottime=BOOTED)
    ima = msgspec.structs.replace(FRESH.ima, next_entry=entries, anchored=True, bank="sha256", pcr=bytes(32))
    return msgspec.structs.replace(FRESH, boot=boot, ima=ima, ima_policy=POLICY.content_hash)


@pytest.mark.parametrize(
    ("told", "entry"),
    [
        (BOOTED, 2),
        (BOOTED + 5, 2),  # clocks are set by some seconds
        (BOOTED - 5, 2),
        (BOOTED + 6, 0),
        (BOOTED - 6, 0),
        (BOOTED - 10**8, 0),  # the machine began with a clock far ahead: no reason to wait for its next boot
        ("2027-01-15T08:00:00Z", 2),
        (str(BOOTED), 2),
    ],
)
def test_another_time_of_the_boot_has_the_whole_list_asked_for(told: object, entry: int) -> None:
    attributes = {**offer_of(ECC), "system_info": {"boot_time": told}}
    chosen = chosen_of(attributes, checkpoint=proven(2))
    assert chosen.ima_entry == entry
    assert isinstance(chosen.items[1].chosen_parameters, LogParameters)
    assert chosen.items[1].chosen_parameters.starting_offset == entry


def test_a_list_that_is_shorter_than_what_was_proven_is_none() -> None:
    assert problems_of(offer_of(ECC, entries=3), proven(4)) == {
        "evidence/1/capabilities/entry_count": "Attribute 'evidence' must be greater than or equal to the "
        "calculated starting offset of '4'."
    }
