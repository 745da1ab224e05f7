"""`trust-issuer`: the maker of an agent's TPM among the trusted ones, once an operator has said so."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import to_builtins

from keylime.pki.der import OPERATORS, read_certificate
from keylime.pki.ek import EkVerdict, TrustStore, check_ek_certificate, trust_store
from keylime.pki.tpm_cert_store import load_trust_store
from keylime_tenant.ca.vendor_certificates import described
from keylime_tenant.ca.vendor_import import add_to_store
from keylime_tenant.ek_check import certificate_of, endorsement_key
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.issuers import IssuerChain, Link, find_issuers, parse_fingerprint
from keylime_tenant.json_documents import Issuer, Issuers
from keylime_tenant.session import Session

_QUESTION = (
    "Do the fingerprints agree with those that the maker publishes? Trust its TPMs from now on (yes/no)? "
)


async def trust_issuer(session: Session) -> None:
    """Follows the EK certificate to its issuers, shows them, and stores those that the operator trusts.

    Raises CommandFailed, AgentRejected.
    """
    expected = session.arguments.fingerprint
    fingerprint = None if expected is None else parse_fingerprint(expected)
    found = await session.registrar.agent(session.agent_id)
    if found is None:
        raise CommandFailed(
            f"Agent {session.agent_id} is not registered. Start the agent, and see what is with `-c reglist`"
        )
    record, _ = found
    certificate = certificate_of(session.agent_id, record.ekcert)
    key = endorsement_key(session.agent_id, record.ek_tpm).public_key
    directory = session.config.ek.certificate_store
    store = load_trust_store(directory) if directory.exists() else TrustStore({})

    def judge(links: Sequence[Link]) -> EkVerdict:
        return check_ek_certificate(certificate, key, _with(store, links), datetime.now(UTC))

    verdict = judge(())
    if verdict.trusted:
        session.output.said("Agent %s is of a maker that is trusted already: nothing to do", session.agent_id)
        session.output.result(_document(session, (), (), trusted=True))
        return
    if verdict.missing is None:
        raise AgentRejected(f"Invalid EK certificate of agent {session.agent_id}: {verdict.reason}")
    chain = await find_issuers(read_certificate(certificate), session.download)
    _show(session, chain)
    chosen = chain.links if fingerprint is None else chain.up_to(fingerprint)
    verdict = judge(chosen)
    if not verdict.trusted:
        raise AgentRejected(f"these issuers do not make agent {session.agent_id} trusted: {verdict.reason}")
    if fingerprint is None:
        _demand_consent(session)
    stored = _store(session, directory, chosen)
    session.output.result(_document(session, chain.links, stored, trusted=True))


def _with(store: TrustStore, links: Sequence[Link]) -> TrustStore:
    present = [item for items in store.by_subject.values() for item in items]
    return trust_store([*present, *(read_certificate(link.item.encoded, OPERATORS) for link in links)])


def _show(session: Session, chain: IssuerChain) -> None:
    session.output.said("The EK certificate of agent %s leads to:", session.agent_id)
    now = datetime.now(UTC)
    for link in chain.links:
        kind = "root" if link.is_root else "intermediate"
        session.output.said("%s: %s, from %a", kind, described(link.item, now), link.address)
    if chain.problem:
        session.output.warning("The chain does not reach a root: %s", chain.problem)
    session.output.result(_document(session, chain.links, (), trusted=False))


def _demand_consent(session: Session) -> None:
    """Raises CommandFailed unless the operator says that these are the maker's."""
    if session.ask is None:
        raise CommandFailed(
            "nothing is stored, since there is no terminal to ask on: compare a fingerprint with the one "
            "that the maker publishes, and give it with --fingerprint"
        )
    if session.ask(_QUESTION).strip().lower() != "yes":
        raise CommandFailed("nothing is stored: the answer was not yes")


def _store(session: Session, directory: Path, chosen: Sequence[Link]) -> tuple[str, ...]:
    stored = []
    for item, is_new in add_to_store(directory, [link.item for link in chosen]):
        if is_new:
            stored.append(item.fingerprint)
            session.output.said("%s is in %s", item.file_name, directory)
    session.output.said(
        "TPMs whose EK certificates these have signed are trusted from now on; go on with -c add -u %s",
        session.agent_id,
    )
    return tuple(stored)


def _document(session: Session, links: Sequence[Link], stored: Sequence[str], *, trusted: bool) -> object:
    chain = [
        Issuer(
            subject=link.item.certificate.subject.rfc4514_string(),
            sha256=link.item.fingerprint,
            not_after=f"{link.item.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            is_root=link.is_root,
            address=link.address,
            stored=link.item.fingerprint in stored,
        )
        for link in links
    ]
    return to_builtins(Issuers(session.agent_id, trusted, chain))
