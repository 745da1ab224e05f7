import hashlib

import pytest

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import ima_ng_line, parse_line, split_lines, violation_line
from keylime.ima.replay import ExtendMode, extend_value, modes_of, replay
from keylime.ima.templates import FileDigest
from tests.captures import Stage, stages

CASES = [(stage, bank) for stage in stages() for bank in stage.banks]


@pytest.mark.parametrize(("stage", "bank"), CASES, ids=[f"{s.capture}/{s.name}/{b}" for s, b in CASES])
def test_every_captured_list_replays_to_the_pcr_10_of_every_bank(stage: Stage, bank: str) -> None:
    entries = [parse_line(line) for line in split_lines(stage.ascii_list)]
    mode = ExtendMode(stage.pcr10_extension(bank))
    algorithm = HashAlgorithm.from_label(bank)
    assert replay(entries, algorithm, mode=mode) == stage.pcrs(bank)[10]
    half = replay(entries[:50], algorithm, mode=mode)
    assert replay(entries[50:], algorithm, half, mode) == stage.pcrs(bank)[10]


def test_a_violation_extends_all_ones_in_every_mode() -> None:
    entry = parse_line(violation_line("/opt/lab/state.txt"))
    for bank in (HashAlgorithm.SHA1, HashAlgorithm.SHA384):
        for mode in modes_of(bank):
            assert extend_value(entry, bank, mode) == b"\xff" * bank.size


def test_an_entry_extends_the_hash_of_its_template_data() -> None:
    line = parse_line(ima_ng_line(FileDigest("sha1", b"\xab" * 20), "/x"))
    assert replay([], HashAlgorithm.SHA256) == bytes(32)
    once = replay([line], HashAlgorithm.SHA256)
    assert once == hashlib.sha256(bytes(32) + hashlib.sha256(line.template_data).digest()).digest()
    padded = replay([line], HashAlgorithm.SHA256, mode=ExtendMode.PADDED_SHA1)
    assert (
        padded
        == hashlib.sha256(bytes(32) + HashAlgorithm.SHA1.digest(line.template_data) + bytes(12)).digest()
    )


@pytest.mark.skipif("sm3" not in hashlib.algorithms_available, reason="the crypto library has no SM3")
def test_an_sm3_bank_extends_by_sm3() -> None:
    entry = parse_line(ima_ng_line(FileDigest("sha256", b"\xab" * 32), "/x"))
    digest = hashlib.new("sm3", entry.template_data).digest()
    assert replay([entry], HashAlgorithm.SM3_256) == hashlib.new("sm3", bytes(32) + digest).digest()
