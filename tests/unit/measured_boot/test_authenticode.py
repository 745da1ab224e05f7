import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.authenticode import authenticode_digest, pe_section
from tests.fakes.pe_images import pe_image

SECTIONS = {".linux": b"kernel", ".cmdline": b"quiet"}
IMAGE = pe_image(SECTIONS)
CHECKSUM, DIRECTORY = 64 + 24 + 64, 64 + 24 + 112 + 4 * 8


def test_the_digest_leaves_out_checksum_and_directory_of_signatures() -> None:
    """Computed here by hand: everything but the two places that signing changes."""
    expected = IMAGE[:CHECKSUM] + IMAGE[CHECKSUM + 4 : DIRECTORY] + IMAGE[DIRECTORY + 8 :]
    assert authenticode_digest(IMAGE) == hashlib.sha256(expected).digest()
    assert authenticode_digest(IMAGE, HashAlgorithm.SHA384) == hashlib.sha384(expected).digest()


def test_signing_an_image_does_not_change_it() -> None:
    signed = pe_image(SECTIONS, signature=b"PKCS#7 and so on", checksum=4711)
    assert authenticode_digest(signed) == authenticode_digest(IMAGE)


def test_any_other_byte_changes_it() -> None:
    for at in (2, 70, 0x3FF, 0x400, len(IMAGE) - 1):
        changed = IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]
        assert authenticode_digest(changed) != authenticode_digest(IMAGE)
    assert authenticode_digest(IMAGE + b"behind it") != authenticode_digest(IMAGE)


def test_sections_are_found_without_their_padding() -> None:
    assert pe_section(IMAGE, ".cmdline") == b"quiet"
    assert pe_section(IMAGE, ".initrd") is None


@pytest.mark.parametrize("image", [b"", b"MZ", b"\x7fELF" + bytes(200), IMAGE[:100], IMAGE[:0x410]])
def test_what_is_no_image_is_refused(image: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="PE image"):
        authenticode_digest(image)


@given(st.integers(0, len(IMAGE) - 1), st.binary(max_size=4), st.integers(0, len(IMAGE)))
@settings(max_examples=60)
def test_damaged_images_are_refused_or_hashed_but_never_crash(at: int, noise: bytes, size: int) -> None:
    damaged = (IMAGE[:at] + noise + IMAGE[at + len(noise) :])[:size]
    try:
        assert len(authenticode_digest(damaged)) == 32
    except MalformedEvidence:
        assert damaged != IMAGE
