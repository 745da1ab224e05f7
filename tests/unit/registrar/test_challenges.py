"""Secrets of challenges: the same for the same, another for anything else."""

import dataclasses
import re
from typing import Any

import pytest

from keylime.identifiers import AgentId
from keylime_registrar.challenges import ChallengeKey, derive_secret, submission_digest
from keylime_registrar.identity import Registration

KEY = ChallengeKey(1, bytes(range(32)))
FULL = Registration(
    agent_id=AgentId("agent"),
    ek_tpm=b"ek",
    aik_tpm=b"ak",
    ekcert=b"ekcert",
    iak_tpm=b"iak",
    iak_cert=b"iak certificate",
    idevid_tpm=b"idevid",
    idevid_cert=b"idevid certificate",
    ip="10.0.0.1",
    port=9002,
    mtls_cert="pem",
)


def secret(key: ChallengeKey = KEY, salt: bytes = b"salt", registration: Registration = FULL) -> bytes:
    return derive_secret(key, salt, submission_digest(registration))


def test_r10_a_secret_is_32_letters_and_digits_and_comes_again_for_the_same_alone() -> None:
    assert re.fullmatch(rb"[A-Za-z0-9]{32}", secret())
    assert secret() == secret()
    assert secret(salt=b"other") != secret()
    assert secret(key=ChallengeKey(1, bytes(32))) != secret()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Registration)])
def test_r22_whatever_a_registration_says_makes_its_secret_another(name: str) -> None:
    value: Any = getattr(FULL, name)
    if name not in ("agent_id", "ek_tpm", "aik_tpm"):
        missing: Any = {name: None}
        assert secret(registration=dataclasses.replace(FULL, **missing)) != secret()
    changed: Any = {name: value + 1 if isinstance(value, int) else value + value[:1]}
    assert secret(registration=dataclasses.replace(FULL, **changed)) != secret()


def test_what_moves_from_one_field_to_the_next_is_another_submission() -> None:
    moved = dataclasses.replace(FULL, ek_tpm=b"eka", aik_tpm=b"k")
    assert submission_digest(moved) != submission_digest(FULL)
    one = dataclasses.replace(FULL, iak_tpm=b"x", iak_cert=None)
    other = dataclasses.replace(FULL, iak_tpm=None, iak_cert=b"x")
    assert submission_digest(one) != submission_digest(other)


def test_r9_a_key_does_not_show_its_secret() -> None:
    assert "secret" not in repr(KEY)
    assert str(KEY.secret) not in str(KEY)


def test_letters_are_evenly_spread() -> None:
    counts: dict[int, int] = {}
    for number in range(600):
        for letter in derive_secret(KEY, number.to_bytes(2), b""):
            counts[letter] = counts.get(letter, 0) + 1
    assert len(counts) == 62
    assert max(counts.values()) < 1.4 * 600 * 32 / 62
