"""What is read of an agent's answer before anything in it is decoded."""

import json

import msgspec
import pytest

from keylime.appraisal.evidence import AgentAnswer
from keylime.errors import MalformedMessage
from keylime.messages.agent import MAX_BOOT_LOG, MAX_FIELD, QuoteReply
from keylime.messages.envelope import MAX_STATUS, parse_envelope

FIELDS = {"quote": "rAA==", "hash_alg": "sha256", "enc_alg": "ecc256", "sign_alg": "ecdsa"}


def read(**fields: object) -> AgentAnswer:
    return AgentAnswer.from_wire(msgspec.Raw(json.dumps({**FIELDS, **fields}).encode()))


def test_an_answer_is_read_as_its_fields_but_for_the_list_which_stays_as_it_came() -> None:
    text = "10 \u00e4\n20\n"
    answer = read(boottime=7, ima_measurement_list=text, ima_measurement_list_entry=3, unknown=[1])
    assert answer.reply == QuoteReply(**FIELDS, boottime=7, ima_measurement_list_entry=3)
    assert answer.ima_list is not None
    assert answer.ima_list.content() == text.encode()
    assert read(ima_measurement_list=None).ima_list is None
    assert read().ima_list is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quote": 7}, "Expected `str`, got `int` - at `$.quote`"),
        ({"ima_measurement_list": 7}, "Expected `str | null`, got `int` - at `$.ima_measurement_list`"),
        ({"ima_measurement_list": ["x"]}, "Expected `str | null`, got `array` - at `$.ima_measurement_list`"),
        ({"boottime": "x"}, "Expected `int`, got `str` - at `$.boottime`"),
        ({"quote": "x" * MAX_FIELD}, f"a field of {MAX_FIELD + 2} bytes, at most {MAX_FIELD}"),
        ({"pubkey": ["x"] * MAX_FIELD}, "at `$.pubkey`"),
        ({"ima_measurement_list": [1] * MAX_FIELD}, "at `$.ima_measurement_list`"),
        ({"mb_measurement_list": "x" * MAX_BOOT_LOG}, "at `$.mb_measurement_list`"),
    ],
)
def test_n12_a_field_of_another_kind_or_size_is_malformed(fields: dict[str, object], message: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        read(**fields)
    assert message in str(caught.value)


def test_what_must_be_there_must_be_there() -> None:
    with pytest.raises(MalformedMessage, match="missing required field `quote`"):
        AgentAnswer.from_wire(msgspec.Raw(b"{}"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"code": "x", "status": ""}, "Expected `int`, got `str` - at `$.code`"),
        ({"code": 200, "status": "x" * MAX_STATUS}, "at `$.status`"),
        ({"status": ""}, "missing required field `code`"),
    ],
)
def test_n12_an_envelope_is_bounded_but_for_its_results(body: dict[str, object], message: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_envelope(json.dumps({**body, "results": "x" * 1_000_000}).encode())
    assert message in str(caught.value)
