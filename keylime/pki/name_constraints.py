"""Name constraints of CA certificates (RFC 5280, 4.2.1.10), for the kinds of names in TPM certificates.

Pure. A constraint of a kind that is not understood counts as violated by every name of that kind.
"""

from collections.abc import Iterable

from cryptography import x509


def violated_constraint(constraints: x509.NameConstraints, certificate: x509.Certificate) -> str | None:
    """What in `certificate` the `constraints` of a CA above it forbid, in words; None when nothing does."""
    for name in _names(certificate):
        if any(_lies_within(name, subtree) for subtree in _same_kind(name, constraints.excluded_subtrees)):
            return f"the name {name.value!r} is excluded"
        permitted = list(_same_kind(name, constraints.permitted_subtrees))
        if permitted and not any(_is_permitted(name, subtree) for subtree in permitted):
            return f"the name {name.value!r} is not permitted"
    return None


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    if certificate.subject.rdns:
        names.append(x509.DirectoryName(certificate.subject))
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return names
    return [*names, *extension.value]


def _same_kind(
    name: x509.GeneralName, subtrees: Iterable[x509.GeneralName] | None
) -> Iterable[x509.GeneralName]:
    return (subtree for subtree in subtrees or () if type(subtree) is type(name))


def _is_permitted(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    return _is_understood(name) and _lies_within(name, subtree)


def _is_understood(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.DirectoryName | x509.DNSName)


def _lies_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    """Whether `name` is in `subtree`, of the same kind. Kinds not understood lie within everything."""
    if isinstance(name, x509.DirectoryName) and isinstance(subtree, x509.DirectoryName):
        return name.value.rdns[: len(subtree.value.rdns)] == subtree.value.rdns
    if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
        inner, outer = name.value.lower(), subtree.value.lower().removeprefix(".")
        return not outer or inner == outer or inner.endswith("." + outer)
    return True
