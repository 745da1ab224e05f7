"""`keylime_ca -c listen`: revokes the certificates of machines that the verifier rejects, and serves the CRL.

Messages come over ZeroMQ, from anybody: only those signed by the holder of the notifier's key count. What
could not be written is tried again; the list is signed anew well before it would be out of date.
"""

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from keylime.errors import CredentialError, KeylimeError, MalformedMessage
from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.pki.authority import Authority
from keylime.pki.certificates import parse_certificate
from keylime.pki.files import read_service_file
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.message import RevocationKind, certificate_serial
from keylime.revocation.signing import verify_revocation
from keylime_tenant.ca.crl_server import CRL_FILE, crl_server

log = logging.getLogger("keylime.ca")

_LOOK_AGAIN_S = 60.0
_MAX_SERIAL_BITS = 159  # RFC 5280: 20 octets


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where messages come from, what they are verified with, and where the list is served."""

    endpoint: str
    certificate: Path
    crl_address: str
    crl_port: int


def serial_to_revoke(message: RevocationMessage, protected: frozenset[int]) -> int | None:
    """The serial number of the certificate that goes with a rejected machine; None when there is none.

    A machine that is only silent keeps its certificate. Raises CredentialError for senseless metadata, and
    for the serial numbers in `protected`: those of the authority itself.
    """
    if message.type != RevocationKind.REVOCATION:
        return None
    try:
        serial = certificate_serial(message.meta_data)
    except MalformedMessage as error:
        raise CredentialError(f"agent {message.agent_id}: {error}") from error
    if serial is None:
        return None
    if serial < 1 or serial.bit_length() > _MAX_SERIAL_BITS or serial in protected:
        raise CredentialError(f"serial number {serial} of agent {message.agent_id} cannot be revoked")
    return serial


def is_refresh_due(crl: x509.CertificateRevocationList | None, now: datetime) -> bool:
    """Whether half of the list's life is over, or there is no list."""
    if crl is None or crl.next_update_utc is None:
        return True
    return now - crl.last_update_utc >= (crl.next_update_utc - crl.last_update_utc) / 2


class RevocationListener:
    """Turns messages into entries of the revocation list."""

    def __init__(self, authority: Authority, directory: Path, certificate: bytes) -> None:
        """`certificate` (PEM) verifies messages. Raises CredentialError when it is none."""
        self._authority = authority
        self._directory = directory
        self._certificate = certificate
        own = parse_certificate(certificate)
        self._protected = frozenset({authority.certificate.serial_number, own.serial_number})
        self._waiting: set[int] = set()
        self._writing = asyncio.Lock()

    async def receive(self, signed: SignedRevocation) -> None:
        """Acts on one message, once: a repeated one changes nothing."""
        try:
            message = verify_revocation(signed, self._certificate)
            serial = serial_to_revoke(message, self._protected)
        except CredentialError as error:
            log.warning("revocation message ignored: %s", error)
            return
        if serial is None:
            log.info("message (%s) about agent %s revokes no certificate", message.type, message.agent_id)
            return
        log.info("agent %s was rejected (%s)", message.agent_id, message.event_id)
        self._waiting.add(serial)
        await self.settle()

    async def settle(self) -> None:
        """Writes what waits, and signs the list anew when it is due. Logs what went wrong; call it again."""
        async with self._writing:
            try:
                await asyncio.to_thread(self._write)
            except (KeylimeError, OSError) as error:
                log.error("the revocation list cannot be written: %s; trying again", error)

    def _write(self) -> None:
        crl = self._read()
        for serial in sorted(self._waiting):
            if crl is None or crl.get_revoked_certificate_by_serial_number(serial) is None:
                self._authority.revoke_serial(serial)
                log.info("certificate %d is revoked", serial)
            self._waiting.discard(serial)
        if is_refresh_due(self._read(), datetime.now(UTC)):
            self._authority.refresh_crl()
            log.info("the revocation list is signed anew")

    def _read(self) -> x509.CertificateRevocationList | None:
        path = self._directory / CRL_FILE
        try:
            return x509.load_der_x509_crl(read_service_file(path)) if path.exists() else None
        except ValueError:
            return None  # it is written anew


async def listen(authority: Authority, directory: Path, options: ListenOptions) -> None:
    """Listens and serves until SIGTERM or SIGINT. Raises ConfigError, CredentialError if it cannot start."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    certificate = read_service_file(options.certificate)
    listener = RevocationListener(authority, directory, certificate)
    await listener.settle()
    async with AsyncExitStack() as stack:
        server = crl_server(directory, lambda reason: log.error("%s", reason))
        port = server.listen(options.crl_address, options.crl_port)
        stack.push_async_callback(server.stop, 1.0)
        log.info("Serving the revocation list at http://%s:%d/crl", options.crl_address, port)
        subscriber = RevocationSubscriber([options.endpoint])
        stack.callback(subscriber.close)
        tasks = [asyncio.create_task(_receive(subscriber, listener)), asyncio.create_task(_tend(listener))]
        stack.push_async_callback(_cancel, tasks)
        log.info("Waiting for revocations from %s", options.endpoint)
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done:
            task.result()  # a defect of ours ends the program, visibly
        log.info("Stopping")


async def _receive(subscriber: RevocationSubscriber, listener: RevocationListener) -> None:
    async for signed in subscriber:
        await listener.receive(signed)


async def _tend(listener: RevocationListener) -> None:
    while True:
        await asyncio.sleep(_LOOK_AGAIN_S)
        await listener.settle()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
