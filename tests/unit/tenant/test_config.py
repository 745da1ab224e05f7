from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime_tenant.config import Address, PeerRetries, pointless_algorithms


@pytest.mark.parametrize(
    ("patience", "delays"),
    [
        (PeerRetries(interval_s=2, exponential=True, max_retries=5), [2, 4, 8, 16, 32]),
        (PeerRetries(interval_s=2, exponential=False, max_retries=3), [2, 2, 2]),
        (PeerRetries(interval_s=1.2, exponential=True, max_retries=3), [1.2, 1.44, 1.728]),
        (PeerRetries(interval_s=0.5, exponential=True, max_retries=2), [0.5, 0.5]),
        (PeerRetries(interval_s=2, exponential=True, max_retries=0), []),
    ],
)
def test_waits_grow_as_the_options_say(patience: PeerRetries, delays: list[float]) -> None:
    assert list(patience.delays()) == pytest.approx(delays)


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
