import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.hashes import HashAlgorithm
from keylime.http.server import HttpError
from keylime_agent.queries import IntegrityQuery, parse_challenge, parse_identity_query, parse_integrity_query
from keylime_agent.quoting import QuoteAlgorithms

GOOD = {"nonce": "0YkqCoOGTUKHwBO8oeBa", "mask": "0x408000", "partial": "0", "ima_ml_entry": "7"}


def test_an_integrity_challenge_is_read_as_peers_send_it() -> None:
    assert parse_integrity_query(GOOD) == IntegrityQuery(b"0YkqCoOGTUKHwBO8oeBa", 0x408000, True, 7)
    assert parse_integrity_query(GOOD | {"partial": "1", "mask": "F"}).mask == 15
    assert not parse_integrity_query(GOOD | {"partial": "1"}).with_pubkey


@pytest.mark.parametrize("entry", ["", "-1", "x", "1e3", "٣", "9" * 40])
def test_an_unreadable_entry_means_the_whole_list(entry: str) -> None:
    assert parse_integrity_query(GOOD | {"ima_ml_entry": entry}).ima_entry == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nonce": "a b"}, "nonce should be strictly alphanumeric: a b"),
        ({"nonce": ""}, "nonce should be strictly alphanumeric: "),
        ({"nonce": "a" * 65}, f"Nonce is too long (max size 64): {'a' * 65}"),
        ({"mask": "0x-1"}, "mask should be strictly alphanumeric: 0x-1"),
        ({"mask": "xyz"}, "mask should be a hex encoded 32-bit integer: xyz"),
        ({"mask": "0x123456789"}, "mask should be a hex encoded 32-bit integer: 0x123456789"),
        ({"partial": "2"}, "uri must contain key 'partial' and value '0' or '1'"),
    ],
)
def test_wrong_parameters_are_answered_in_words_that_clients_know(change: dict[str, str], text: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_integrity_query(GOOD | change)
    assert (caught.value.code, caught.value.status) == (400, text)


@pytest.mark.parametrize("name", ["nonce", "mask", "partial"])
def test_a_missing_parameter_is_named(name: str) -> None:
    with pytest.raises(HttpError, match=name):
        parse_integrity_query({key: value for key, value in GOOD.items() if key != name})


@given(st.dictionaries(st.sampled_from(list(GOOD)), st.text(max_size=80)))
def test_any_query_gives_a_challenge_or_400(query: dict[str, str]) -> None:
    try:
        parsed = parse_integrity_query(query)
    except HttpError as refusal:
        code = refusal.code
    else:
        code = 400
        assert 0 <= parsed.mask < 1 << 32
        assert 0 < len(parsed.nonce) <= 64
    assert code == 400


def test_identity_and_key_challenges_have_their_own_words() -> None:
    assert parse_identity_query({"nonce": "abc"}) == b"abc"
    with pytest.raises(HttpError, match="Parameters should be strictly alphanumeric"):
        parse_identity_query({"nonce": "a%"})
    assert parse_challenge({"challenge": "abc"}) == "abc"
    with pytest.raises(HttpError, match="No challenge provided"):
        parse_challenge({})
    with pytest.raises(HttpError, match="Parameters should be strictly alphanumeric"):
        parse_challenge({"challenge": "a;b"})


@pytest.mark.parametrize(
    ("label", "version", "expected"),
    [
        ("rsa2048", "2.4", "rsa"),
        ("ecc256", "2.1", "ecc"),
        ("rsa2048", "2.5", "rsa2048"),
        ("ecc256", "2.6", "ecc256"),
        ("ecc384", "2.1", "ecc384"),
    ],
)
def test_key_kinds_are_spelled_as_the_version_has_them(label: str, version: str, expected: str) -> None:
    assert QuoteAlgorithms(HashAlgorithm.SHA256, label, "ecdsa").encryption_for(version) == expected
