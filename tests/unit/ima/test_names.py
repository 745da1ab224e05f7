"""Names of any bytes have a text of their own, and lists with such names can be sent."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.names import has_escapes, list_text, name_bytes, name_text

DIGEST = b"sha256:" + b"ab" * 32
ESCAPES = st.lists(
    st.sampled_from(
        [b"\\", b"\\351", b"\\134", b"\\377", b"\\400", b"\xe9", b"\xff", b"a", b"\xc3\xa9", b"1"]
    )
).map(b"".join)


def ima_ng(name: bytes) -> bytes:
    """The line of a file with a name of any bytes, its template hash computed as the kernel does."""
    data = b"\x28\0\0\0sha256:\0" + b"\xab" * 32 + (len(name) + 1).to_bytes(4, "little") + name + b"\0"
    return b"10 %s ima-ng %s %s" % (HashAlgorithm.SHA1.digest(data).hex().encode(), DIGEST, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"/usr/bin/a", "/usr/bin/a"),
        ("/usr/bin/ä".encode(), "/usr/bin/ä"),
        (b"/caf\xe9", r"/caf\351"),
        (rb"/dev-disk-by\x2duuid", r"/dev-disk-by\x2duuid"),
        (rb"/a\b", r"/a\b"),
        (rb"/caf\351", r"/caf\134351"),
        (rb"/caf\134351", r"/caf\134134351"),
        (b"\xed\xb3\xa9", r"\355\263\251"),
    ],
)
def test_only_what_is_not_text_is_escaped(name: bytes, text: str) -> None:
    assert name_text(name) == text


@given(st.binary() | ESCAPES)
def test_i12_no_two_names_have_the_same_text(name: bytes) -> None:
    assert name_bytes(name_text(name).encode()) == name
    json.dumps(name_text(name)).encode()


@given(st.text().map(str.encode) | ESCAPES)
def test_what_has_no_escapes_stands_for_itself(name: bytes) -> None:
    assert has_escapes(name) == (name_bytes(name) != name)


@given((st.binary() | ESCAPES).filter(lambda name: not set(b"\0\n") & set(name)))
@example(b"/caf\xe9\\351")
@example(b"/cr\r")
@example(b"/\xe9\r")
@example(rb"/caf\351")
def test_an_entry_that_was_sent_as_text_means_what_the_kernel_measured(name: bytes) -> None:
    sent = list_text(ima_ng(b"boot_aggregate") + b"\n" + ima_ng(name) + b"\n").encode()
    entry = parse_line(split_lines(sent)[1])
    assert entry.name == name_text(name)
    assert HashAlgorithm.SHA1.digest(entry.template_data) == entry.template_hash
    assert entry == parse_line(ima_ng(name))
