"""Which releases of Keylime an Alembic revision stands for. What is read is decided by the columns."""

VERIFIER_VERSION, REGISTRAR_VERSION = "alembic_version_cloud_verifier", "alembic_version_registrar"
"""The tables in which an old verifier and an old registrar note their revision."""

_RELEASES = {
    "eeb702f77d7d": "4.0",
    "a7a64155ab3a": "5.8.0 to 5.8.1",
    "cc2630851a1f": "6.0",
    "ae898986c6e9": "6.1.0",
    "f82c4252bc4f": "6.1.1",
    "f35cdd35eb83": "6.2.0",
    "c3842cc9ee69": "6.2.1",
    "63c30820fdc1": "6.3.0",
    "1ac1513ef2a1": "6.3.1 to 6.3.2",
    "bc3b6b551b0a": "6.4.0 to 6.4.2",
    "4089e1c79be9": "6.4.3",
    "a09cc94177f0": "6.5.0 to 6.5.2",
    "039322ea079b": "6.5.3",
    "8c0f8ded1f90": "6.6.0",
    "f838d3cdeead": "6.7.0 to 7.5.0",
    "21b5cb88fcdb": "7.6.0 to 7.7.0",
    "00766b7fd0c5": "7.8.0",
    "160f932fde5b": "7.9.0",
    "9d2f6fab52b1": "7.10.0 to 7.11.0",
    "330024be7bef": "7.12",
    "57b24ee21dfa": "7.13",
    "5a8b2c3d4e6f": "7.14.0 to 7.14.2",
    "a59cc9366774": "7.14.3",
}
_INTERMEDIATE = frozenset(
    {
        "8a44a4364f5a",
        "8da20383f6e1",
        "eb869a77abd1",
        "b4d024197413",
        "7d5db1a6ffb0",
        "257fe0f0c039",
        "a79c27ec1054",
        "9169f80345ed",
        "bf48e0c4751d",
        "a72aec03d720",
        "4329e2d14944",
        "2fbc0fb8fa4d",
        "32902c0a8d90",
        "f4196d13fe45",
        "870c218abd9a",
        "460d7adda633",
        "517a2d6b5cd3",
    }
)


def release_of(revision: str) -> str:
    """What made a database of this revision, in words that end a sentence."""
    if revision in _RELEASES:
        return f"Keylime {_RELEASES[revision]}"
    if revision in _INTERMEDIATE:
        return f"a Keylime that was cut off while it changed its tables (schema {revision})"
    return f"a Keylime that this release does not know (schema {revision}); what is known of it is read"
