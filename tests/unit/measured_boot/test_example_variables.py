"""What the `example` policy demands of UEFI variables: Secure Boot's switch and keys, and what shim adds."""

import struct
import uuid

import pytest

from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    SHIM_LOCK,
    X509_SIGNATURES,
    parse_variable,
)
from tests.fakes.event_logs import Record, record, variable
from tests.fakes.measured_boot import (
    Records,
    after,
    boot,
    edit,
    grub_records,
    named,
    no_secure_boot,
    reasons,
    reference_state,
    with_variable,
    without,
)

AUTHORITY = EventType.EFI_VARIABLE_AUTHORITY
SHA1_SIGNATURES = uuid.UUID("826ca512-cf10-4ac9-b187-be01496631bd")
OWNER = uuid.UUID(int=0)
OTHER_KEY = {"SignatureOwner": str(OWNER), "SignatureData": "0x" + "ab" * 32}


def signature_list(kind: uuid.UUID, *data: bytes) -> bytes:
    body = b"".join(OWNER.bytes_le + item for item in data)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), 0, 16 + len(data[0])) + body


def value_of(name: str) -> bytes:
    (event,) = filter(named(name), grub_records())
    return parse_variable(event.data).value


def authority(guid: uuid.UUID, name: str, value: bytes) -> Record:
    return record(7, AUTHORITY, variable(guid.bytes_le, name, value))


GOOD_DB, GOOD_DBX = value_of("db"), value_of("dbx")
CERTIFICATE = b"\x30\x82\0\1x"
VENDOR_PAIR = OWNER.bytes_le + CERTIFICATE


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (without(named("SecureBoot")), "not measured: SecureBoot"),
        (without(named("dbx")), "not measured: dbx"),
        (with_variable("SecureBoot", GLOBAL_VARIABLE, b"\0"), "SecureBoot is off"),
        (with_variable("SecureBoot", GLOBAL_VARIABLE, b""), "SecureBoot is off"),
        (with_variable("SecureBoot", IMAGE_SECURITY, b"\1"), "variable 'SecureBoot' is not expected"),
        (edit(grub_records(), named("PK"), lambda item: item.with_data(b"x")), "PCR 7: not a variable"),
        (with_variable("PK", GLOBAL_VARIABLE, b""), "PK has no signature list"),
        (with_variable("PK", GLOBAL_VARIABLE, b"garbage"), "PK has no signature list"),
        (with_variable("PK", GLOBAL_VARIABLE, signature_list(X509_SIGNATURES, b"x")), "PK has 1 keys"),
        (with_variable("KEK", GLOBAL_VARIABLE, signature_list(SHA256_SIGNATURES, b"x")), "KEK has 1 keys"),
        (with_variable("db", IMAGE_SECURITY, signature_list(X509_SIGNATURES, b"test key")), "db has 1 keys"),
        (
            with_variable("db", IMAGE_SECURITY, signature_list(SHA1_SIGNATURES, bytes(20)) + GOOD_DB),
            "db has 1 keys",
        ),
        (with_variable("dbx", IMAGE_SECURITY, b""), "dbx lacks 1 hashes"),
        (with_variable("dbx", IMAGE_SECURITY, b"garbage"), "dbx has no signature lists"),
        (
            with_variable("dbx", IMAGE_SECURITY, signature_list(SHA256_SIGNATURES, bytes(32))),
            "lacks 1 hashes",
        ),
        (after(named("PK"), *filter(named("PK"), grub_records())), "PK is measured more than once"),
        (
            [*without(named("KEK")), *filter(named("KEK"), grub_records())],
            "KEK is measured after the separator",
        ),
        (
            [*grub_records(), *filter(named("SbatLevel", AUTHORITY), grub_records())],
            "'SbatLevel' more than once",
        ),
        ([*grub_records(), record(7, AUTHORITY, b"x")], "not a variable"),
        ([*grub_records(), authority(SHIM_LOCK, "Evil", b"")], "'Evil' is not"),
        ([*grub_records(), authority(SHIM_LOCK, "MokListTrusted", b"\2")], "neither on nor off"),
        ([*grub_records(), authority(IMAGE_SECURITY, "vendor_db", VENDOR_PAIR)], "vendor_db has keys"),
        ([*grub_records(), authority(IMAGE_SECURITY, "vendor_db", b"")], "has keys"),
    ],
)
def test_variables_that_differ_are_rejected_with_their_reason(records: Records, reason: str) -> None:
    assert reason in reasons(records, reference_state())


def test_a_vendor_db_of_listed_keys_is_accepted() -> None:
    key = {"SignatureOwner": str(OWNER), "SignatureData": f"0x{CERTIFICATE.hex()}"}
    records = [*grub_records(), authority(IMAGE_SECURITY, "vendor_db", VENDOR_PAIR)]
    assert boot(records, reference_state(vendor_db=[key])) == ()


@pytest.mark.parametrize(
    "more", [signature_list(SHA256_SIGNATURES, bytes(32)), signature_list(X509_SIGNATURES, b"revoked")]
)
def test_a_dbx_may_revoke_more_in_further_lists(more: bytes) -> None:
    assert boot(with_variable("dbx", IMAGE_SECURITY, GOOD_DBX + more), reference_state()) == ()


def test_an_empty_dbx_is_accepted_where_nothing_is_to_be_revoked() -> None:
    records = with_variable("dbx", IMAGE_SECURITY, b"")
    assert boot(records, reference_state(dbx=[])) == ()
    assert boot(records, reference_state()) != ()


def test_without_secure_boot_empty_key_lists_allow_any_keys() -> None:
    records, refstate = no_secure_boot()
    assert boot(records, {**refstate, "pk": [], "kek": [], "db": [], "dbx": []}) == ()
    assert "PK has 1 keys" in reasons(records, {**refstate, "pk": [OTHER_KEY]})
    assert "lacks 1 hashes" in reasons(records, {**refstate, "dbx": [OTHER_KEY]})


def test_without_secure_boot_the_variables_may_be_missing_empty_or_late() -> None:
    records, refstate = no_secure_boot()
    refstate = {**refstate, "pk": [], "kek": [], "db": [], "dbx": []}
    empty = edit(
        records,
        named("dbx"),
        lambda item: item.with_data(variable(IMAGE_SECURITY.bytes_le, "dbx", b"")),
    )
    (kek,) = filter(named("KEK"), records)
    others = [item for item in records if item is not kek]
    assert boot(empty, refstate) == ()
    assert boot(others, refstate) == ()
    assert boot([*others, kek], refstate) == ()
