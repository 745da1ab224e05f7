"""Operators find every failure id that the code can produce in docs/failures.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
CATALOGUE = (ROOT / "docs" / "failures.md").read_text("utf-8")
_FULL = re.compile(r'f?"((?:ima|measured_boot|pcr_validation)\.[a-z0-9_.{}-]+)"', re.IGNORECASE)
_OPTIONS = ("ima.dm_policy", "ima.ignored_keyrings", "ima.log_hash_alg")  # fields of a policy
_QUOTE = re.compile(r'quote_finding\(\s*"([a-z_]+)"|\("(invalid_[a-z]+_alg)", ')


def produced() -> set[str]:
    """The ids in the sources of the core, a variable part cut off."""
    ids: set[str] = set()
    for path in (*(ROOT / "keylime").rglob("*.py"), *(ROOT / "verifier").rglob("*.py")):
        text = path.read_text("utf-8")
        ids.update(found.split("{")[0] for found in _FULL.findall(text))
        ids.update(f"qoute_validation.{one or other}" for one, other in _QUOTE.findall(text))
    return {name for name in ids if not name.startswith(_OPTIONS)}


def test_the_sources_are_really_searched() -> None:
    assert {"ima.pcr_mismatch", "measured_boot.policy_", "qoute_validation.no_pubkey"} <= produced()
    assert len(produced()) > 15


def test_every_id_is_explained() -> None:
    unexplained = []
    for name in produced():
        component, _, event = name.rpartition(".")
        if name not in CATALOGUE and not (f"`{component}." in CATALOGUE and f"`.{event}" in CATALOGUE):
            unexplained.append(name)
    assert not unexplained
