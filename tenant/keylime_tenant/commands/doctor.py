"""`doctor`: examines the control plane from this machine. Each thing is well, or it is said what to type."""

import asyncio
import binascii
import http.client
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from keylime.checkup import Grade, Result, bad, document, is_good, ok, rows, summary, unknown, warning
from keylime.errors import ConfigError, KeylimeError, MalformedMessage
from keylime.file_errors import file_errors_explained
from keylime.findings.finding import printable
from keylime.identifiers import parse_agent_id
from keylime.messages.deliveries import Deliveries
from keylime.pki.ek import check_ek_certificate
from keylime.pki.tpm_cert_store import load_trust_store
from keylime_tenant import examination
from keylime_tenant.client import RegistrarClient, Service, VerifierClient, read_results, results_of
from keylime_tenant.commands.revocations import shortfall
from keylime_tenant.config import Address, TenantConfig
from keylime_tenant.ek_check import certificate_of, endorsement_key
from keylime_tenant.errors import CommandFailed
from keylime_tenant.render import Output
from keylime_tenant.terminal import Terminal

_MOST_WAITING = 50  # agents whose EK certificates are looked at
_CLOCK_TOLERANCE_S = 30.0
_LIMIT_S = 20.0
_STYLES = {Grade.OK: "good", Grade.BAD: "bad", Grade.WARNING: "doubtful", Grade.UNKNOWN: "quiet"}


@dataclass(frozen=True, slots=True)
class Reach:
    """How the services are reached from here."""

    config: TenantConfig
    registrar: RegistrarClient
    verifier: VerifierClient
    tls: ssl.SSLContext


async def doctor(output: Output, environ: Mapping[str, str], connect: Callable[[], Reach]) -> None:
    """Examines everything. Raises CommandFailed when something does not work, as does `connect`."""
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        output.show(lambda terminal: [painted(result, terminal)])
        output.info("%s", result)

    for result in _local(environ):
        tell(result)
    try:
        with file_errors_explained():
            reach = connect()
    except KeylimeError as error:
        tell(bad("services", f"cannot be called from here: {error}"))
    else:
        try:
            async for result in _services(reach):
                tell(result)
        finally:
            await reach.registrar.close()
            await reach.verifier.close()
    output.result(
        document(results),
        rows=rows(results),
        names=[one.subject for one in results if one.grade is Grade.BAD],
    )
    if not is_good(results):
        raise CommandFailed(summary(results))
    output.said("%s", summary(results))


def painted(result: Result, terminal: Terminal) -> str:
    """The line of a result, its grade in colour."""
    grade, rest = f"{result.grade:7}", str(result)[7:]
    return terminal.paint(grade.rstrip(), _STYLES[result.grade]) + " " * (7 - len(grade.rstrip())) + rest


def _local(environ: Mapping[str, str]) -> Iterator[Result]:
    yield from examination.configuration(environ)
    yield from _readable(examination.directories(environ), "directories")
    yield examination.clock(environ)
    yield from _readable(examination.certificates(environ), "certificates")
    yield from _readable(examination.databases(environ), "databases")


def _readable(results: Iterator[Result], subject: str) -> Iterator[Result]:
    """The results, and in place of the rest one about what this user may not even look for."""
    try:
        with file_errors_explained():
            yield from results
    except ConfigError as error:
        yield bad(subject, str(error))


async def _services(reach: Reach) -> AsyncIterator[Result]:
    lists: dict[str, tuple[str, ...]] = {}
    for service in (reach.registrar, reach.verifier):
        async for result in _service(service, reach, lists):
            yield result
    store = reach.config.ek.certificate_store
    if reach.config.ek.require_certificate:
        yield examination.store_result(store)
    if len(lists) == 2:
        waiting = examination.waiting_agents(lists["registrar"], lists["verifier"])
        yield ok(
            "waiting agents",
            f"{len(waiting)} of {len(lists['registrar'])} registered agents are not attested",
        )
        if reach.config.ek.require_certificate and store.is_dir():
            for agent in waiting[:_MOST_WAITING]:
                if (doubt := await _waiting_agent(reach, agent, store)) is not None:
                    yield doubt
    if "verifier" in lists:
        async for result in _channels(reach.verifier):
            yield result


async def _service(
    service: Service, reach: Reach, lists: dict[str, tuple[str, ...]]
) -> AsyncIterator[Result]:
    subject = f"{service.name} {service.address}"
    try:
        reply = await service.probe("/readyz")
    except KeylimeError as error:
        yield bad(subject, str(error))
        return
    if reply.code == 404:
        yield unknown(subject, "answers, and does not tell how it is: its release is older")
    else:
        try:
            results = results_of(reply)
        except MalformedMessage:
            results = {}
        problems, remarks = results.get("problems", {}), results.get("remarks", {})
        for name, text in sorted(dict(problems).items()):
            yield bad(
                f"{subject}, {printable(str(name))}",
                printable(str(text)),
                f"see the log of keylime_{service.name}",
            )
        for name, text in sorted(dict(remarks).items()):
            yield warning(f"{subject}, {printable(str(name))}", printable(str(text)))
        if not problems and reply.code == 200:
            yield ok(subject, "is reached over TLS, and ready")
        elif not problems:
            yield bad(
                subject,
                f"is not ready: {reply.code} {reply.status}",
                f"see the log of keylime_{service.name}",
            )
    yield await _peer_clock(service.name, service.address, reach.tls)
    try:
        answer = await service.agents()
        if answer.code != 200:
            raise service.refusal(answer, "list its agents")
        listed = results_of(answer).get("uuids", [])
    except KeylimeError as error:
        yield bad(f"{subject}, administration", str(error))
        return
    # Each id of a verifier's comes in a list of its own.
    lists[service.name] = tuple(
        printable(str(entry[0] if isinstance(entry, list) and entry else entry)) for entry in listed
    )
    yield ok(f"{subject}, administration", f"takes our certificate, and has {len(listed)} agents")


async def _peer_clock(name: str, address: Address, tls: ssl.SSLContext) -> Result:
    """The time that a service gives with each answer, compared with ours."""
    subject = f"clock of {name}"

    def ask() -> str | None:
        connection = http.client.HTTPSConnection(address.host, address.port, context=tls, timeout=_LIMIT_S)
        try:
            connection.request("GET", "/version")
            return connection.getresponse().getheader("Date")
        finally:
            connection.close()

    try:
        told = await asyncio.to_thread(ask)
        theirs = parsedate_to_datetime(told or "")
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return unknown(subject, "is not told")
    return peer_clock_result(subject, (theirs - datetime.now(UTC)).total_seconds())


def peer_clock_result(subject: str, ahead_s: float) -> Result:
    """What it means that a clock is so far ahead of ours."""
    if abs(ahead_s) <= _CLOCK_TOLERANCE_S:
        return ok(subject, "is as ours")
    word = "ahead of" if ahead_s > 0 else "behind"
    return bad(subject, f"is {abs(ahead_s):.0f} s {word} ours", "timedatectl set-ntp true, on both machines")


async def _waiting_agent(reach: Reach, agent: str, store: Path) -> Result | None:
    """What would keep an agent from being added: its TPM's maker; None when nothing does."""
    subject = f"waiting agent {agent}"
    try:
        agent_id = parse_agent_id(agent)
        found = await reach.registrar.agent(agent_id)
        if found is None:
            return None
        record, _ = found
        certificate = certificate_of(agent_id, record.ekcert)
        key = endorsement_key(agent_id, record.ek_tpm).public_key
        verdict = check_ek_certificate(certificate, key, load_trust_store(store), datetime.now(UTC))
    except (KeylimeError, binascii.Error) as error:
        return warning(subject, str(error))
    if verdict.trusted:
        return None
    remedy = f"keylime_tenant trust-issuer -u {agent}" if verdict.missing is not None else ""
    return warning(subject, f"the EK store does not trust its TPM: {verdict.reason}", remedy)


async def _channels(verifier: VerifierClient) -> AsyncIterator[Result]:
    try:
        reply = await verifier.revocations(None)
        if reply.code == 404:
            return
        if reply.code != 200:
            raise verifier.refusal(reply, "tell about revocations")
        found = read_results(reply, Deliveries, verifier.place)
    except KeylimeError as error:
        yield bad("revocations", str(error))
        return
    now = datetime.now(UTC).timestamp()
    late = [one for one in found.targets if one.pending or one.failed or one.wrong_key]
    for target in late:
        yield warning("revocations", printable(shortfall(target, now)), "keylime_tenant revocations")
    if not late:
        yield ok("revocations", f"nothing waits for any of {len(found.targets)} targets")
