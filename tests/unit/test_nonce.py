"""Nonces have the length and the characters that TPMs and agents take, each as likely as any other."""

import string
from collections import Counter

import pytest

from keylime.nonce import new_nonce, random_text

ALPHABET = string.ascii_letters + string.digits
TEXTS, LENGTH = 62, 2000


@pytest.mark.parametrize("length", [0, 1, 2, 19, 20, 21, 64, 4096])
def test_a_text_has_its_length_and_characters_of_the_alphabet(length: int) -> None:
    text = random_text(length)
    assert len(text) == length
    assert set(text) <= set(ALPHABET)


def test_no_nonce_comes_twice() -> None:
    assert len({new_nonce() for _ in range(1000)}) == 1000
    assert len(new_nonce()) == 20


def test_each_character_is_as_likely_as_any_other() -> None:
    counts = Counter("".join(random_text(LENGTH) for _ in range(TEXTS)))
    assert set(counts) == set(ALPHABET)
    # 2000 of each are expected, give or take 45: nine times as much happens to nobody.
    assert max(abs(count - LENGTH) for count in counts.values()) < 400


def test_characters_do_not_depend_on_their_place() -> None:
    firsts = Counter(random_text(3)[place] for _ in range(6200) for place in (0, 2))
    # 200 of each are expected, give or take 14.
    assert max(abs(firsts[one] - 200) for one in ALPHABET) < 126
