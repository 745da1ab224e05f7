import pytest

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_line, split_lines, violation_line
from keylime.ima.replay import replay
from keylime_agent.ima_emulator import extended_entries
from tests.captures import VM_DEBIAN12

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
LIST = VM_DEBIAN12 / "direct-ima-ng" / "s3-violations" / "ascii_runtime_measurements"
ENTRIES = [parse_line(line) for line in split_lines(LIST.read_bytes())]


@pytest.mark.parametrize("count", [0, 1, len(ENTRIES) // 2, len(ENTRIES)])
def test_what_the_pcr_already_holds_is_not_extended_again(count: int) -> None:
    pcrs = {bank: replay(ENTRIES[:count], bank) for bank in (SHA1, SHA256)}
    assert extended_entries(ENTRIES, pcrs) == count


def test_a_pcr_that_holds_something_else_is_an_error() -> None:
    with pytest.raises(MalformedEvidence, match="PCR 10 does not hold a beginning"):
        extended_entries(ENTRIES, {SHA256: b"\x01" * 32})
    other = [parse_line(violation_line("/x"))]
    with pytest.raises(MalformedEvidence):
        extended_entries(ENTRIES, {SHA256: replay(other, SHA256)})
    with pytest.raises(MalformedEvidence):  # banks that disagree
        extended_entries(ENTRIES, {SHA256: replay(ENTRIES[:1], SHA256), SHA1: replay(ENTRIES[:2], SHA1)})
