import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.templates import (
    DIGEST_SIZES,
    TEMPLATES,
    Field,
    Template,
    pack_fields,
    parse_digest,
    show_fields,
    template_named,
    unpack_fields,
)


@pytest.mark.parametrize(
    ("template", "fields", "template_hash"),
    [
        (
            "ima",
            "6f66d1d8e2fffcc12dfcb78c04b81fe5b8bbae4e /usr/bin/kmod",
            "d7026dc672344d3ee372217bdbc7395947788671",
        ),
        (
            "ima-ng",
            "sha1:bc026ae66d81713e4e852465e980784dc96651f8 /usr/lib/systemd/systemd",
            "7936eb315fb4e74b99e7d461bc5c96049e1ee092",
        ),
        (
            "ima-sig",
            "sha256:e4cb9f5709c88376b5fc3743cd88e76b9aae8f3d992d845678de5215edb31216 boot_aggregate ",
            "0c8a706a75a5689c1e168f0a573a3cbec33061b5",
        ),
        (
            "ima-ng",
            "sha256:96d7fae8adb7286a419a88f78c13d35fb782d63df654b7db56f154765698b754 /data",
            "80255d9c7dad91ef5f21b18560a47642d6f4d653",
        ),
    ],
)
def test_template_data_hash_to_the_kernels_column(template: str, fields: str, template_hash: str) -> None:
    data = pack_fields(TEMPLATES[template], fields.encode())
    assert HashAlgorithm.SHA1.digest(data).hex() == template_hash


def unpacked(template: Template, data: bytes) -> bytes:
    """The printed fields of these template data."""
    return show_fields(template, unpack_fields(template, data))


def test_evm_sig_has_the_layout_of_the_kernel() -> None:
    digest, signature = bytes(range(32)), b"\x05\x02\x04sig"
    fields = (
        f"sha256:{digest.hex()} /bin/true {signature.hex()} security.ima|security.selinux "
        "1000000020000000 aabb 1000 100 33261"
    )
    sized = [
        b"sha256:\0" + digest,
        b"/bin/true\0",
        signature,
        b"security.ima|security.selinux\0",
        bytes.fromhex("1000000020000000"),
        b"\xaa\xbb",
        struct.pack("<I", 1000),
        struct.pack("<I", 100),
        struct.pack("<H", 33261),
    ]
    expected = b"".join(struct.pack("<I", len(part)) + part for part in sized)
    assert pack_fields(TEMPLATES["evm-sig"], fields.encode()) == expected
    assert unpacked(TEMPLATES["evm-sig"], expected) == fields.encode()


def test_modsig_without_an_appended_signature_contributes_empty_fields() -> None:
    fields = b"sha1:" + b"ab" * 20 + b" /m.ko   "
    data = pack_fields(TEMPLATES["ima-modsig"], fields)
    assert data.endswith(b"\x06\0\0\0/m.ko\0" + b"\0\0\0\0" * 3)
    assert unpacked(TEMPLATES["ima-modsig"], data) == fields


def test_an_appended_signature_contributes_its_digest_and_itself() -> None:
    fields = b"sha1:" + b"ab" * 20 + b" /m.ko  sha256:" + b"cd" * 32 + b" 3082"
    data = pack_fields(TEMPLATES["ima-modsig"], fields)
    assert data.endswith(
        struct.pack("<II", 0, 40) + b"sha256:\0" + b"\xcd" * 32 + struct.pack("<I", 2) + b"\x30\x82"
    )
    assert unpacked(TEMPLATES["ima-modsig"], data) == fields


@pytest.mark.parametrize("size", [16, 20])
def test_the_name_of_template_ima_is_padded_and_its_digest_has_no_length(size: int) -> None:
    longest = b"/" + b"x" * 254
    data = pack_fields(TEMPLATES["ima"], b"ab" * size + b" " + longest)
    assert data == b"\xab" * size + longest + b"\0"
    assert unpack_fields(TEMPLATES["ima"], data) == (b"\xab" * size, longest)


def test_numbers_may_be_zero_and_as_large_as_their_field() -> None:
    start = "sha256:" + "ab" * 32 + " /x     "
    data = pack_fields(TEMPLATES["evm-sig"], f"{start}0 4294967295 65535".encode())
    assert data.endswith(struct.pack("<IIIIIH", 4, 0, 4, 0xFFFFFFFF, 2, 0xFFFF))


def test_extended_attributes_without_names_contribute_an_empty_field() -> None:
    data = pack_fields(TEMPLATES["evm-sig"], b"sha256:" + b"ab" * 32 + b" /x     1 2 3")
    assert data.endswith(b"\3\0\0\0/x\0" + b"\0\0\0\0" * 4 + struct.pack("<IIIIIH", 4, 1, 4, 2, 2, 3))


def test_an_empty_name_still_has_its_terminator() -> None:
    assert pack_fields(TEMPLATES["ima-ng"], b"sha1:" + b"ab" * 20 + b" ").endswith(b"\1\0\0\0\0")


DIGEST = bytes(range(20))
SIZED_NAME = b"\x03\0\0\0/x\0"


@pytest.mark.parametrize(
    ("name", "fields", "data"),
    [
        ("d-ng|n-ng", "sha1:{} /x", b"\x1a\0\0\0sha1:\0" + DIGEST + SIZED_NAME),
        ("d|n", "{} /x", b"\x14\0\0\0" + DIGEST + SIZED_NAME),  # with lengths, unlike template ima
        ("d|n-ng|sig", "{} /x 0302", b"\x14\0\0\0" + DIGEST + SIZED_NAME + b"\2\0\0\0\3\2"),
        (
            "d-ngv2|n-ng|sig|iuid",
            "verity:sha1:{} /x  4294967295",
            b"\x21\0\0\0verity:sha1:\0" + DIGEST + SIZED_NAME + bytes(4) + b"\4\0\0\0" + b"\xff" * 4,
        ),
        (
            "d-ng|n-ng|imode|n",
            "sha1:{} /x 33261 /x",
            b"\x1a\0\0\0sha1:\0" + DIGEST + SIZED_NAME + b"\2\0\0\0\xed\x81" + SIZED_NAME,
        ),
    ],
)
def test_a_format_of_ones_own_has_the_fields_that_it_names(name: str, fields: str, data: bytes) -> None:
    template, text = template_named(name), fields.format(DIGEST.hex()).encode()
    assert template.name == name
    assert pack_fields(template, text) == data
    assert unpacked(template, data) == text


@pytest.mark.parametrize(
    "name",
    [
        "sig|d-ng|n-ng",
        "n-ng|d-ng",
        "d-modsig|n-ng",
        "d-ng|sig|n-ng",
        "d-ng",
        "n-ng|sig",
        "d-ng|n-ng|sig|sig",
        "d-ng||n-ng",
        "d-ng|n-ng|",
        "d-ng|n-ng|evil",
        "ima-new",
        "",
        "d-ng|n-ng" * 10_000,
    ],
)
def test_a_format_that_could_show_one_file_as_another_is_refused_with_the_remedy(name: str) -> None:
    remedy = r"is not supported.*: boot the machine with ima_template="
    with pytest.raises(MalformedEvidence, match=remedy) as error:
        template_named(name)
    assert len(str(error.value)) < 500


def sized(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


NG = sized(b"sha1:\0" + bytes(20))
MANY_BYTES = 5000


@pytest.mark.parametrize(
    ("template", "data"),
    [
        ("ima", bytes(20)),
        ("ima", bytes(20) + b"/x".ljust(255, b"\0")),
        ("ima", bytes(20) + b"/x".ljust(257, b"\0")),
        ("ima", bytes(20) + b"/" * 256),
        ("ima-ng", b""),
        ("ima-ng", NG),
        ("ima-ng", NG + struct.pack("<I", 4) + b"/x\0"),
        ("ima-ng", NG + sized(b"/x")),
        ("ima-ng", NG + sized(b"/x\0") + b"\0"),
        ("ima-ng", sized(b"") + sized(b"/x\0")),
        ("ima-ng", sized(b"sha1:" + bytes(20)) + sized(b"/x\0")),
        ("ima-ng", sized(b"sha1:" + b"00" * 20) + sized(b"/x\0")),
        *(
            ("evm-sig", NG + sized(b"/x\0") + sized(b"") * 4 + numbers)
            for numbers in (
                sized(bytes(3)) + sized(bytes(4)) + sized(bytes(2)),
                sized(bytes(4)) + sized(bytes(5)) + sized(bytes(2)),
                sized(bytes(4)) + sized(bytes(4)) + sized(b"\xff" * MANY_BYTES),
            )
        ),
    ],
)
def test_template_data_that_do_not_have_the_layout_are_refused(template: str, data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        unpack_fields(TEMPLATES[template], data)


def test_verity_digests_carry_their_kind() -> None:
    digest = parse_digest(Field.DIGEST_NGV2, b"verity:sha256:" + b"ab" * 32)
    assert (digest.kind, digest.algorithm, digest.value) == ("verity", "sha256", b"\xab" * 32)
    data = pack_fields(TEMPLATES["ima-ngv2"], b"verity:sha256:" + b"ab" * 32 + b" /x")
    assert data == sized(b"verity:sha256:\0" + b"\xab" * 32) + sized(b"/x\0")


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima-ng", "sha256:" + "ab" * 31 + " /x"),  # one byte short
        ("ima-ng", "sha9:" + "ab" * 32 + " /x"),
        ("ima-ng", "ab" * 20 + " /x"),  # no algorithm
        ("ima-ng", " /x"),
        ("ima-ng", "ima:sha256:" + "ab" * 32 + " /x"),  # the digest of the v2 templates
        ("ima-ngv2", "ima:" + "ab" * 32 + " /x"),
        ("ima-ngv2", "ima:sha256:" + "ab" * 32 + ": /x"),
        ("ima-ngv2", "sha256:" + "ab" * 32 + " /x"),
        ("ima-ngv2", "other:sha256:" + "ab" * 32 + " /x"),
        ("ima-ng", "sha256:" + "AB" * 32 + " /x"),  # a second spelling of the same bytes
        ("ima-ng", "sha256:" + "ab" * 32),  # no name
        ("ima-ng", "sha256:" + "ab" * 32 + " /x\0y"),
        ("ima-sig", "sha256:" + "ab" * 32),  # no name
        ("ima-sig", "sha256:" + "ab" * 32 + " /x y "),
        ("ima-sig", "sha256:" + "ab" * 32 + " /x 030"),
        ("ima", "ab" * 32 + " /x"),
        ("ima", "ab" * 20 + " /" + "x" * 255),
        ("evm-sig", "sha256:" + "ab" * 32 + " /x     01 0 0"),  # a number with a leading zero
        ("evm-sig", "sha256:" + "ab" * 32 + " /x     0 0 65536"),  # does not fit into 16 bits
        *(
            ("evm-sig", "sha256:" + "ab" * 32 + f" /x     {number} 0 0")
            for number in ("", "+1", "1_0", "1\t", "-1", "4294967296", "9" * MANY_BYTES)
        ),
    ],
)
def test_fields_that_do_not_fit_their_template_are_refused(template: str, fields: str) -> None:
    with pytest.raises(MalformedEvidence):
        pack_fields(TEMPLATES[template], fields.encode())


def test_a_digest_algorithm_that_is_not_known_is_named() -> None:
    with pytest.raises(MalformedEvidence, match="'sha9' is not known"):
        parse_digest(Field.DIGEST_NG, b"sha9:" + b"ab" * 32)


FREE_FORMATS = ("d|n", "d-ng|n|sig", "d-ngv2|n-ng|buf", "d-ng|n-ng|iuid|d|n")


@given(st.sampled_from([*sorted(TEMPLATES), *FREE_FORMATS]), st.binary(max_size=400))
def test_any_template_data_are_understood_exactly_or_refused(name: str, data: bytes) -> None:
    template = template_named(name)
    try:
        values = unpack_fields(template, data)
    except MalformedEvidence:
        return
    assert pack_fields(template, show_fields(template, values)) == data


@given(
    st.sampled_from(sorted(DIGEST_SIZES)),
    st.text(st.characters(exclude_characters=" \n\0", exclude_categories=["Cs"]), max_size=60),
    st.binary(max_size=80),
)
def test_printed_fields_and_template_data_say_the_same(algorithm: str, name: str, signature: bytes) -> None:
    template = TEMPLATES["ima-sig"]
    digest = "5a" * DIGEST_SIZES[algorithm]
    fields = f"{algorithm}:{digest} {name} {signature.hex()}".encode()
    assert show_fields(template, unpack_fields(template, pack_fields(template, fields))) == fields
