"""What the pages need, asked of verifier and registrar with the operator's certificate."""

import asyncio
import base64
import binascii
from collections.abc import Iterator
from datetime import datetime

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.deliveries import Deliveries
from keylime.messages.history import HistoryEvent
from keylime.messages.registrar import RegisteredAgent
from keylime.messages.verification import PolicyVersions, PolicyVersionText
from keylime.messages.verifiers import VerifierProcesses
from keylime.pki.der import TolerantCertificate, read_certificate, read_pem_certificates
from keylime_tenant.client import Service, read_results, results_of
from keylime_tenant.dashboard.machine_page import ReadCertificate
from keylime_tenant.dashboard.policy_pages import KINDS, Comparison, PolicyKindPages, compare
from keylime_tenant.dashboard.service_pages import ServiceAnswer
from keylime_tenant.errors import CommandFailed
from keylime_tenant.session import Session
from keylime_tenant.told_status import ToldStatus
from keylime_tenant.why import Case, case_of


async def read_statuses(session: Session) -> dict[str, ToldStatus]:
    """Every agent's status by its id. Raises KeylimeError."""
    return await session.verifier.statuses(session.arguments.verifier_id or "")


async def read_machine(session: Session, agent_id: AgentId) -> tuple[Case | None, list[HistoryEvent]]:
    """How a machine stands, None when it is gone, and what happened to it.

    Raises CommandFailed for one that never was, KeylimeError.
    """
    status = await session.verifier.status(agent_id)
    try:
        events = await session.verifier.history(agent_id)
    except CommandFailed:
        if status is None:
            raise
        events = []  # a verifier of an older release keeps none
    return None if status is None else case_of(agent_id, status, events), events


async def read_certificates(session: Session, agent_id: AgentId) -> list[ReadCertificate]:
    """What the registrar has of a machine; nothing when it does not answer: the page has more than that."""
    try:
        found = await session.registrar.agent(agent_id)
    except KeylimeError:
        return []
    return [] if found is None else [*certificates_of(found[0])]


def certificates_of(registered: RegisteredAgent) -> Iterator[ReadCertificate]:
    """The certificates of a registration."""
    if registered.ekcert:
        yield _read("endorsement key of the TPM", _decoded(registered.ekcert))
    if registered.mtls_cert and "-----BEGIN" in registered.mtls_cert:
        yield _read("TLS of the agent", registered.mtls_cert.encode())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _read(title: str, data: bytes) -> ReadCertificate:
    try:
        found = _tolerantly(data).certificate
        ends: datetime | None = found.not_valid_after_utc
        return ReadCertificate(title, found.subject.rfc4514_string(), found.issuer.rfc4514_string(), ends)
    except (KeylimeError, ValueError):
        return ReadCertificate(title, "", "", None)


def _tolerantly(data: bytes) -> TolerantCertificate:
    return read_pem_certificates(data)[0] if b"-----BEGIN" in data else read_certificate(data)


async def read_policy_names(session: Session) -> dict[str, list[str]]:
    """The names of all policies by the words of their kinds. Raises KeylimeError."""
    found = {}
    for kind in KINDS.values():
        reply = await session.verifier.policy("GET", kind.path, "")
        if reply.code != 200:
            raise session.verifier.refusal(reply, "list its policies")
        names = results_of(reply).get(kind.names_key)
        found[kind.word] = [str(name) for name in names] if isinstance(names, list) else []
    return found


async def read_versions(session: Session, kind: PolicyKindPages, name: str) -> PolicyVersions:
    """The versions of one policy, and who uses it. Raises KeylimeError."""
    verifier = session.verifier
    reply = await verifier.call("GET", verifier.policy_path(kind.path, name, "versions"))
    if reply.code != 200:
        raise verifier.refusal(reply, f"tell the versions of policy {name!r}")
    return read_results(reply, PolicyVersions, verifier.place)


async def read_comparison(
    session: Session, kind: PolicyKindPages, name: str, former: int, latter: int
) -> Comparison:
    """Two versions of a policy, compared. Raises KeylimeError."""
    texts = [(number, await _version_text(session, kind, name, number)) for number in (former, latter)]
    return await asyncio.to_thread(compare, kind, *texts)  # policies may have millions of lines


async def _version_text(session: Session, kind: PolicyKindPages, name: str, number: int) -> str:
    verifier = session.verifier
    reply = await verifier.call("GET", verifier.policy_path(kind.path, name, "versions", str(number)))
    if reply.code != 200:
        raise verifier.refusal(reply, f"show version {number} of policy {name!r}")
    return read_results(reply, PolicyVersionText, verifier.place).text


async def read_revocations(session: Session) -> Deliveries:
    """How far revocations have come. Raises KeylimeError."""
    reply = await session.verifier.revocations(None)
    if reply.code != 200:
        raise session.verifier.refusal(reply, "tell about revocations")
    return read_results(reply, Deliveries, session.verifier.place)


async def read_processes(session: Session) -> VerifierProcesses | None:
    """The verifiers that share the work; None where a release does not tell. Raises KeylimeError."""
    verifier = session.verifier
    reply = await verifier.call("GET", "/verifiers")
    if reply.code == 404:
        return None
    if reply.code != 200:
        raise verifier.refusal(reply, "tell who shares its work")
    return read_results(reply, VerifierProcesses, verifier.place)


async def read_services(session: Session) -> list[ServiceAnswer]:
    """How registrar and verifier are."""
    return [await _read_service(service) for service in (session.registrar, session.verifier)]


async def _read_service(service: Service) -> ServiceAnswer:
    place = service.address.url()
    try:
        reply, version = await service.probe("/readyz"), await service.version()
        if reply.code == 404:
            return ServiceAnswer(service.name, place, version, "its release does not tell how it is", {})
        return ServiceAnswer(service.name, place, version, "", results_of(reply))
    except KeylimeError as error:
        return ServiceAnswer(service.name, place, "", str(error), {})
