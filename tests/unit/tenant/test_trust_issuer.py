"""The issuer of an EK certificate: found where certificates lead, shown, and stored when somebody says so."""

import asyncio
import base64
import functools
import io
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from keylime.errors import ConfigError, MalformedEvidence, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisteredAgent
from keylime.pki.der import read_certificate
from keylime.pki.tpm_cert_store import load_trust_store
from keylime.tpm.default_ek import default_ek
from keylime_tenant.arguments import Arguments, combination_problem
from keylime_tenant.commands.trust import trust_issuer
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.forms import Form
from keylime_tenant.issuers import find_issuers, parse_fingerprint, read_bundle
from keylime_tenant.render import Output
from keylime_tenant.session import Session

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Holder:
    """A key with a certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def issue(
    name: str, issuer: Holder | None = None, address: str | None = None, *, ca: bool = True, days: int = 30
) -> Holder:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=60))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if address is not None:
        where = x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(address)
        )
        builder = builder.add_extension(x509.AuthorityInformationAccess([where]), critical=False)
    return Holder(key, builder.sign((issuer.key if issuer else key), hashes.SHA256()))


@dataclass(frozen=True)
class Maker:
    """A TPM's maker: root, intermediate, and the EK certificate of a TPM."""

    root: Holder = field(default_factory=lambda: issue("Maker Root"))
    sub: Holder = field(init=False)
    ek: Holder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sub", issue("Maker CA 1", self.root, "http://maker.example/root.crt"))
        object.__setattr__(self, "ek", issue("EK", self.sub, "http://maker.example/ca1.crt", ca=False))

    @property
    def pages(self) -> dict[str, bytes]:
        return {
            "http://maker.example/ca1.crt": self.sub.der,
            "http://maker.example/root.crt": self.root.der,
        }


@functools.cache
def maker() -> Maker:
    return Maker()


def downloads(pages: dict[str, bytes]) -> Callable[[str], Awaitable[bytes]]:
    async def download(address: str) -> bytes:
        if address not in pages:
            raise PeerUnreachable("it answered 404")
        return pages[address]

    return download


@dataclass
class Run:
    """One `-c trust-issuer`."""

    store: Path
    answer: str | None = None  # None: no terminal
    pages: dict[str, bytes] = field(default_factory=lambda: dict(maker().pages))
    ek: Holder = field(default_factory=lambda: maker().ek)
    fingerprint: str | None = None
    document: dict[str, Any] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)

    def __call__(self) -> None:
        record = RegisteredAgent(
            agent_id="node1",
            ek_tpm=base64.b64encode(default_ek(self.ek.key.public_key())).decode(),
            ekcert=base64.b64encode(self.ek.der).decode(),
            aik_tpm="",
            regcount=1,
        )

        async def agent(_: AgentId) -> tuple[RegisteredAgent, None]:
            return record, None

        def ask(question: str) -> str:
            self.questions.append(question)
            return self.answer or ""

        output = Output(logging.getLogger("keylime.tenant"), Form.JSON, stdout=io.StringIO())
        session = SimpleNamespace(
            arguments=Arguments(command="trust-issuer", fingerprint=self.fingerprint),
            agent_id=AgentId("node1"),
            config=SimpleNamespace(ek=SimpleNamespace(certificate_store=self.store)),
            output=output,
            registrar=SimpleNamespace(agent=agent),
            download=downloads(self.pages),
            ask=None if self.answer is None else ask,
        )
        try:
            asyncio.run(trust_issuer(cast(Session, session)))
        finally:
            self.document = cast(dict[str, Any], output._document or {})  # what --json prints

    @property
    def stored(self) -> set[str]:
        """The subjects in the store."""
        if not self.store.exists():
            return set()
        items = load_trust_store(self.store).by_subject.values()
        return {item.certificate.subject.rfc4514_string() for group in items for item in group}


def test_who_says_yes_trusts_the_chain_that_was_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "store", answer="yes\n")
    with caplog.at_level(logging.INFO):
        run()
    assert run.stored == {"CN=Maker CA 1", "CN=Maker Root"}
    shown = caplog.text
    for one in (maker().sub, maker().root):
        assert f"SHA-256 {one.fingerprint}" in shown
    assert "root: 'CN=Maker Root'" in shown
    assert run.document["trusted"] is True
    assert [link["stored"] for link in run.document["chain"]] == [True, True]
    again = Run(run.store, pages={})
    again()
    assert again.document == {"agent_id": "node1", "trusted": True, "chain": []}


@pytest.mark.parametrize("answer", ["", "no", "y", "yes please"])
def test_any_other_answer_stores_nothing(tmp_path: Path, answer: str) -> None:
    run = Run(tmp_path / "store", answer=answer)
    with pytest.raises(CommandFailed, match="nothing is stored"):
        run()
    assert len(run.questions) == 1
    assert not run.stored


def test_without_a_terminal_nothing_is_stored_and_the_chain_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path / "store")
    with pytest.raises(CommandFailed, match="--fingerprint"):
        run()
    assert not run.stored
    assert run.document["trusted"] is False
    assert [link["sha256"] for link in run.document["chain"]] == [
        maker().sub.fingerprint,
        maker().root.fingerprint,
    ]


def test_a_script_names_the_fingerprint_that_the_maker_publishes(tmp_path: Path) -> None:
    colons = maker().root.fingerprint.upper()
    run = Run(tmp_path / "all", fingerprint=":".join(colons[at : at + 2] for at in range(0, 64, 2)))
    run()
    assert run.stored == {"CN=Maker CA 1", "CN=Maker Root"}
    lower = Run(tmp_path / "one", fingerprint=maker().sub.fingerprint)
    lower()
    assert lower.stored == {"CN=Maker CA 1"}


def test_another_fingerprint_stores_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "store", fingerprint="ab" * 32)
    with pytest.raises(AgentRejected, match="none of the issuers has abab"):
        run()
    assert not run.stored


@pytest.mark.parametrize("text", ["", "ab", "xy" * 32, "ab" * 33])
def test_a_fingerprint_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="--fingerprint"):
        Run(tmp_path, fingerprint=text)()
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        parse_fingerprint(text)


def test_fingerprints_are_for_this_command_alone() -> None:
    assert combination_problem(Arguments(command="add", fingerprint="ab")) is not None


def test_who_is_of_the_same_name_only_is_no_issuer(tmp_path: Path) -> None:
    impostor = issue("Maker CA 1", issue("Maker Root"))
    run = Run(tmp_path, answer="yes", pages={"http://maker.example/ca1.crt": impostor.der})
    with pytest.raises(CommandFailed, match="holds no certificate that signed it"):
        run()
    assert not run.questions


def test_issuers_that_do_not_make_the_tpm_trusted_are_not_stored(tmp_path: Path) -> None:
    expired = issue("Old CA", days=-1)
    ek = issue("EK", expired, "http://old.example/", ca=False)
    run = Run(tmp_path, answer="yes", ek=ek, pages={"http://old.example/": expired.der})
    with pytest.raises(AgentRejected, match="expired"):
        run()
    assert not run.stored
    assert not run.questions
    foreign = Run(tmp_path, answer="yes", ek=issue("EK", maker().sub, ca=True))
    with pytest.raises(AgentRejected, match="that of a CA"):
        foreign()


def test_a_chain_that_stops_below_the_root_is_shown_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "store", answer="yes", pages={"http://maker.example/ca1.crt": maker().sub.der})
    run()
    assert run.stored == {"CN=Maker CA 1"}
    assert "does not reach a root: 'http://maker.example/root.crt': it answered 404" in caplog.text


def test_a_certificate_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, answer="yes", ek=issue("EK", maker().sub, ca=False))
    with pytest.raises(CommandFailed, match="does not say where the certificate of its issuer is published"):
        run()


def test_a_chain_without_an_end_ends(tmp_path: Path) -> None:
    pages, upper = dict[str, bytes](), issue("CA 0")
    for number in range(1, 20):
        upper = issue(f"CA {number}", upper, f"http://maker.example/{number - 1}")
        pages[f"http://maker.example/{number}"] = upper.der
    ek = issue("EK", upper, "http://maker.example/19", ca=False)
    chain = asyncio.run(find_issuers(read_certificate(ek.der), downloads(pages)))
    assert len(chain.links) == 7


def test_an_issuer_may_be_named_with_other_capitals_and_blanks() -> None:
    root = issue("A Maker")
    named_otherwise = Holder(root.key, issue("a  MAKER").certificate)
    ek = issue("EK", named_otherwise, "http://maker.example/root.crt", ca=False)
    pages = {"http://maker.example/root.crt": root.der}
    chain = asyncio.run(find_issuers(read_certificate(ek.der), downloads(pages)))
    assert [link.item.encoded for link in chain.links] == [root.der]


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_bundles_are_pkcs7_too(encoding: Encoding) -> None:
    both = [maker().root.certificate, maker().sub.certificate]
    bundle = pkcs7.serialize_certificates(both, encoding)
    assert {one.encoded for one in read_bundle(bundle)} == {maker().root.der, maker().sub.der}
    pages = {"http://maker.example/ca1.crt": bundle}
    chain = asyncio.run(find_issuers(read_certificate(maker().ek.der), downloads(pages)))
    assert [link.is_root for link in chain.links] == [False, True]
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in both)
    assert len(read_bundle(pem)) == 2
    assert len(read_bundle(maker().sub.der)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"\x30\x03\x02\x01\x01", b"\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"]
)
def test_what_is_no_certificate_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_bundle(data)
    with pytest.raises(MalformedEvidence, match="is not that of a CA"):
        read_bundle(maker().ek.der)
