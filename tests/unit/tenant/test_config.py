from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime_tenant.config import Address, PeerRetries, pointless_algorithms


def retries(*, interval_s: float = 2, exponential: bool = True, max_retries: int = 5) -> PeerRetries:
    """By default as shipped."""
    return PeerRetries(interval_s=interval_s, exponential=exponential, max_retries=max_retries, limit_s=60)


def pauses(patience: PeerRetries, took_s: float) -> list[float]:
    """What is waited between tries each of which takes `took_s`."""
    found: list[float] = []
    while (pause := patience.pause(len(found) + 1, took_s, took_s * (len(found) + 1))) is not None:
        found.append(pause)
    return found


@pytest.mark.parametrize(
    ("patience", "delays"),
    [
        (retries(), [2, 4, 8, 16, 32]),
        (retries(exponential=False, max_retries=3), [2, 2, 2]),
        (retries(interval_s=1.2, max_retries=3), [1.2, 1.44, 1.728]),
        (retries(interval_s=0.5, max_retries=2), [0.5, 0.5]),
        (retries(max_retries=0), []),
    ],
)
def test_waits_grow_as_the_options_say(patience: PeerRetries, delays: list[float]) -> None:
    assert pauses(patience, took_s=0) == pytest.approx(delays)


@pytest.mark.parametrize(
    ("took_s", "delays"),
    [
        (1, [1, 3, 7, 15, 31]),
        (10, [0, 0, 0, 6, 22]),  # a connect_timeout: 88 s in all
        (12, [0, 0, 0, 4]),  # after five tries patience has ended
        (60, []),  # a request_timeout
    ],
)
def test_what_tries_take_is_part_of_the_waits_and_ends_them(took_s: float, delays: list[float]) -> None:
    assert pauses(retries(), took_s) == pytest.approx(delays)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("accept_tpm_signing_algs", "ecschnorr, ecdsa", "ecschnorr"),
        ("accept_tpm_hash_algs", "sha256, sha1", "SHA-1"),
        ("accept_tpm_signing_algs", "ecdsa", None),
        ("accept_tpm_signing_algs", "ecdsa, ecschnorr, rsassa, rsapss", None),  # as it is shipped
        ("accept_tpm_hash_algs", "sha512, sha384, sha256", None),
    ],
)
def test_words_that_let_nobody_in_are_warned_of(
    tmp_path: Path, option: str, value: str, words: str | None
) -> None:
    environ = {"KEYLIME_DIR": str(tmp_path), f"KEYLIME_TENANT_{option.upper()}": value}
    warnings = pointless_algorithms(load_settings("tenant", environ=environ))
    assert len(warnings) == (words is not None)
    assert all(option in warning and str(words) in warning for warning in warnings)


def test_ipv6_addresses_are_bracketed_in_urls() -> None:
    assert Address("2001:db8::1", 8881).url() == "https://[2001:db8::1]:8881"
    assert Address("cv.example", 8881).url() == "https://cv.example:8881"
