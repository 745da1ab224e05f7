"""Who issued an EK certificate: the chain that certificates themselves lead to, checked link by link.

Where they lead says nothing about whom to trust: that is the operator's decision, by fingerprints.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from keylime.errors import ConfigError, MalformedEvidence, PeerUnreachable
from keylime.pki.der import OPERATORS, PARSER_ERRORS, TolerantCertificate, read_certificate
from keylime.pki.ek import MAX_CHAIN, is_signed_by, issuer_addresses, names_issuer
from keylime_tenant.ca.vendor_certificates import VendorCertificate, ca_certificate, certificates_in
from keylime_tenant.errors import AgentRejected, CommandFailed

_MAX_ADDRESSES = 4  # that are tried for one issuer
_MAX_POOL = 64  # certificates of one answer
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PKCS7_PEM = b"-----BEGIN PKCS7-----"


@dataclass(frozen=True, slots=True)
class Link:
    """One CA certificate above an EK certificate, and where it came from."""

    item: VendorCertificate
    address: str

    @property
    def is_root(self) -> bool:
        """Whether it names itself as its issuer."""
        return _is_self_issued(self.item.certificate)


@dataclass(frozen=True, slots=True)
class IssuerChain:
    """The issuer of an EK certificate and those above it; `problem` says why it does not reach a root."""

    links: tuple[Link, ...]
    problem: str = ""

    def up_to(self, fingerprint: str) -> tuple[Link, ...]:
        """The links from the issuer up to the certificate with `fingerprint`. Raises AgentRejected.

        Each has signed the one before it, so that the last one vouches for all.
        """
        for number, link in enumerate(self.links, start=1):
            if link.item.fingerprint == fingerprint:
                return self.links[:number]
        found = ", ".join(
            f"{link.item.certificate.subject.rfc4514_string()!a} {link.item.fingerprint}"
            for link in self.links
        )
        raise AgentRejected(f"--fingerprint: none of the issuers has {fingerprint}; found: {found}")


def parse_fingerprint(text: str) -> str:
    """A SHA-256 fingerprint as makers print it, with or without colons. Raises ConfigError."""
    fingerprint = re.sub(r"[:\s]", "", text).lower()
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise ConfigError(f"--fingerprint {text}: expected a SHA-256 fingerprint, 64 hexadecimal digits")
    return fingerprint


async def find_issuers(leaf: TolerantCertificate, download: Callable[[str], Awaitable[bytes]]) -> IssuerChain:
    """The chain above `leaf`, as far as it is published. Raises CommandFailed when not even the issuer is."""
    links: list[Link] = []
    pool: list[Link] = []
    last, problem = leaf, ""
    while len(links) < MAX_CHAIN - 1 and not _is_self_issued(last.certificate):
        link = _issuer_among(pool, last)
        if link is None:
            pool, problem = await _published(last, download)
            link = _issuer_among(pool, last)
        if link is None:
            break
        links.append(link)
        last, problem = read_certificate(link.item.encoded, OPERATORS), ""
    if not links:
        raise CommandFailed(f"the issuer of the EK certificate was not found: {problem}")
    return IssuerChain(tuple(links), problem)


async def _published(
    certificate: TolerantCertificate, download: Callable[[str], Awaitable[bytes]]
) -> tuple[list[Link], str]:
    """What is found where `certificate` says that its issuer's is, or a sentence that says why nothing is."""
    addresses = issuer_addresses(certificate.certificate)
    problems = []
    for address in addresses[:_MAX_ADDRESSES]:
        try:
            found = [Link(item, address) for item in read_bundle(await download(address))]
        except (ConfigError, PeerUnreachable, MalformedEvidence) as error:
            problems.append(f"{address!a}: {error}")
            continue
        if _issuer_among(found, certificate) is not None:
            return found, ""
        problems.append(f"{address!a} holds no certificate that signed it")
    if not addresses:
        subject = certificate.certificate.subject.rfc4514_string()
        problems.append(f"{subject!a} does not say where the certificate of its issuer is published")
    return [], "; ".join(problems)


def _issuer_among(links: Sequence[Link], certificate: TolerantCertificate) -> Link | None:
    for link in links:
        if names_issuer(certificate.certificate, link.item.certificate) and is_signed_by(
            certificate, read_certificate(link.item.encoded, OPERATORS)
        ):
            return link
    return None


def read_bundle(data: bytes) -> list[VendorCertificate]:
    """The CA certificates in `data`: DER, PEM (of several), PKCS #7. Raises MalformedEvidence without one."""
    encoded = _pkcs7(data) or certificates_in(data)
    found, problems = [], []
    for one in encoded[:_MAX_POOL]:
        try:
            found.append(ca_certificate(one))
        except MalformedEvidence as error:
            problems.append(str(error))
    if not found:
        raise MalformedEvidence(problems[0] if problems else "no certificate in DER, PEM or PKCS #7")
    return found


def _pkcs7(data: bytes) -> list[bytes]:
    """The certificates of a PKCS #7 bundle; none for anything else."""
    try:
        if _PKCS7_PEM in data:
            certificates = pkcs7.load_pem_pkcs7_certificates(data)
        elif data[:1] == b"\x30" and b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" in data[:32]:
            certificates = pkcs7.load_der_pkcs7_certificates(data)
        else:
            return []
        return [certificate.public_bytes(Encoding.DER) for certificate in certificates]
    except PARSER_ERRORS:
        return []


def _is_self_issued(certificate: x509.Certificate) -> bool:
    return names_issuer(certificate, certificate)
