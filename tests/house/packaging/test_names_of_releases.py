"""Packages of Debian have other names in other releases."""

from tests.packages.debian_root import names_in


def test_libraries_have_other_names_from_debian_13_on() -> None:
    asked = ("python3", "libtss2-rc0", "libtss2-tcti-tabrmd0")
    assert names_in("bookworm", asked) == asked
    assert names_in("trixie", asked) == ("python3", "libtss2-rc0t64", "libtss2-tcti-tabrmd0")
