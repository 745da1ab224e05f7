"""Many attesting machines in one process: genuine quotes by software AKs behind mutual TLS, made cheap.

Each machine has an AK, a payload key and a self-signed certificate, and listens on a loopback port of its
own. What does not depend on the nonce is computed once for all machines.
"""

import array
import asyncio
import base64
import functools
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import cast

import uvloop
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import BOOT_AGGREGATE, ima_ng_line, parse_line
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.ima.templates import FileDigest
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues, data_pcr_value, encode_pcr_blob
from tests.fakes.software_ak import SoftwareAk, pcr_selection, quote_attest
from tests.fakes.tls_material import Issued, self_signed

BANK = HashAlgorithm.SHA256
IMA_PCR, DATA_PCR = 10, 16
_CONTENT_LENGTH = re.compile(rb"(?i)\r\nContent-Length: ([0-9]+)")
_HEADER_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What the machines of one process are: each measures `growth` lines anew in every round.

    A list is `ima_lines` different lines, `repeated` times.
    """

    count: int
    first_number: int
    ima_lines: int
    growth: int
    client_ca: Path
    repeated: int = 1


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """What an operator knows about a machine."""

    agent_id: str
    port: int
    certificate_pem: str
    ak_public: str  # base64 of TPM2B_PUBLIC


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What its machines saw since the last report; `intervals_s` lie between quotes of one machine."""

    quotes: int
    fewest_rounds: int  # of any machine since its start
    connections: int
    intervals_s: Sequence[float]
    cpu_s: float


def path_of(number: int) -> str:
    """A path of usual length; the first thing that a kernel measures is the boot."""
    if number == 0:
        return BOOT_AGGREGATE
    return f"/usr/lib/x86_64-linux-gnu/package-{number % 97}/module-{number}.so.1.2"


def policy_of(paths: int) -> str:
    """A runtime policy that allows the first `paths` measured files."""
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {path_of(number): [_digest_of(number).hex()] for number in range(paths)}
    return json.dumps(document)


def _digest_of(number: int) -> bytes:
    return hashlib.sha256(path_of(number).encode()).digest()


class MeasuredFiles:
    """The IMA list that all machines have, of which each has reached some length."""

    def __init__(self, different: int) -> None:
        """After `different` lines the same ones follow again, but for boot_aggregate."""
        self._different = different
        self._lines: list[str] = []
        self._pcr_values = [bytes(BANK.size)]
        self._whole = (0, "")

    def pcr(self, length: int) -> bytes:
        """PCR 10 after `length` lines."""
        while len(self._lines) < length:
            number = len(self._lines)
            if number >= self._different:
                number = 1 + (number - 1) % max(1, self._different - 1)
            line = ima_ng_line(FileDigest("sha256", _digest_of(number)), path_of(number))
            data = BANK.digest(parse_line(line).template_data)
            self._lines.append(line.decode() + "\n")
            self._pcr_values.append(BANK.digest(self._pcr_values[-1] + data))
        return self._pcr_values[length]

    def text(self, start: int, end: int) -> str:
        """The lines `start` to `end` as an agent sends them."""
        if start > 0:
            return "".join(self._lines[start:end])
        if self._whole[0] != end:
            self._whole = end, "".join(self._lines[:end])
        return self._whole[1]


@dataclass(slots=True, eq=False)
class Machine:
    """One simulated machine."""

    number: int
    files: MeasuredFiles
    length: int
    growth: int
    ak: SoftwareAk = field(default_factory=lambda: SoftwareAk.generate("ecc256", SignatureScheme.ECDSA))
    pubkey: str = ""
    clock: int = 1000
    asked_at: float = 0.0
    rounds: int = 0
    _quoted: dict[tuple[int, int], tuple[bytes, bytes, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pubkey = _payload_key(self.number)

    @property
    def agent_id(self) -> str:
        return f"{self.number:08x}-0000-4000-8000-{self.number:012x}"

    def answer(self, query: dict[str, str]) -> bytes:
        """The body of an answer to a challenge."""
        mask, entry = int(query["mask"], 16), int(query["ima_ml_entry"])
        if entry > 0:
            self.length += self.growth
        results: dict[str, object] = {
            "quote": self._quote(query["nonce"].encode(), mask),
            "hash_alg": "sha256",
            "enc_alg": "ecc256",
            "sign_alg": "ecdsa",
            "boottime": 1_700_000_000,
        }
        if query["partial"] == "0":
            results["pubkey"] = self.pubkey
        if mask & 1 << IMA_PCR:
            results["ima_measurement_list"] = self.files.text(entry, self.length)
            results["ima_measurement_list_entry"] = entry
        return json.dumps({"code": 200, "status": "Success", "results": results}).encode()

    def _quote(self, nonce: bytes, mask: int) -> str:
        self.clock += 7
        pcr_10 = self.files.pcr(self.length)
        known = self._quoted.get((mask, self.length))
        if known is None:
            pcrs = PcrValues(BANK, self._values(mask, pcr_10))
            selection = pcr_selection(BANK, pcrs.selection.indices)
            blob = base64.b64encode(encode_pcr_blob(pcrs)).decode()
            known = selection, pcrs.digest(BANK), blob
            self._quoted = {(mask, self.length): known}
        selection, digest, blob = known
        attest = quote_attest(nonce=nonce, selections=[selection], digest=digest, clock=self.clock)
        signature = base64.b64encode(self.ak.sign(attest)).decode()
        return f"r{base64.b64encode(attest).decode()}:{signature}:{blob}"

    def _values(self, mask: int, pcr_10: bytes) -> dict[int, bytes]:
        values = {index: bytes(BANK.size) for index in range(16) if mask & 1 << index}
        if IMA_PCR in values:
            values[IMA_PCR] = pcr_10
        values[DATA_PCR] = data_pcr_value(BANK, self.pubkey)
        return values


def _payload_key(number: int) -> str:
    """A public key of the right form and size: no machine here ever decrypts anything."""
    modulus = Random(number).getrandbits(2048) | 1 << 2047 | 1  # noqa: S311 - not a key at all
    key = RSAPublicNumbers(65537, modulus).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class _Fleet:
    """The machines of this process and what they have seen."""

    def __init__(self, plan: FleetPlan) -> None:
        files = MeasuredFiles(plan.ima_lines)
        numbers = range(plan.first_number, plan.first_number + plan.count)
        files.pcr(plan.ima_lines * plan.repeated)  # now rather than in the first round
        self.machines = [
            Machine(number, files, plan.ima_lines * plan.repeated, plan.growth) for number in numbers
        ]
        self._plan = plan
        self._quotes = 0
        self._connections = 0
        self._intervals_s = array.array("d")

    async def listen(self) -> list[MachineIdentity]:
        loop = asyncio.get_running_loop()
        identities = []
        for machine in self.machines:
            certificate = self_signed(machine.agent_id)
            context = self._context(certificate)
            make = functools.partial(_Exchange, self, machine)
            server = await loop.create_server(make, "127.0.0.1", 0, ssl=context)
            port = server.sockets[0].getsockname()[1]
            ak_public = base64.b64encode(machine.ak.tpm2b_public).decode()
            identities.append(MachineIdentity(machine.agent_id, port, certificate.pem, ak_public))
        return identities

    def _context(self, certificate: Issued) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.load_into(context)
        context.load_verify_locations(self._plan.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def report(self) -> FleetReport:
        report = FleetReport(
            self._quotes,
            min(machine.rounds for machine in self.machines),
            self._connections,
            list(self._intervals_s),
            time.process_time(),
        )
        self._quotes, self._connections, self._intervals_s = 0, 0, array.array("d")
        return report

    def connected(self) -> None:
        self._connections += 1

    def respond(self, machine: Machine, target: str) -> bytes:
        path, _, query = target.partition("?")
        if path.endswith("/notifications/revocation"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2" + _HEADER_END + b"{}"
        if not path.endswith("/quotes/integrity"):
            raise RuntimeError(f"nobody here answers {path}")
        now = asyncio.get_running_loop().time()
        if machine.asked_at:
            self._intervals_s.append(now - machine.asked_at)
        machine.asked_at = now
        machine.rounds += 1
        self._quotes += 1
        body = machine.answer(dict(pair.split("=", 1) for pair in query.split("&")))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        return head.encode() + _HEADER_END + body


class _Exchange(asyncio.Protocol):
    """HTTP/1.1 as far as it is needed here: kept-alive connections, and no look at what a body says."""

    def __init__(self, fleet: _Fleet, machine: Machine) -> None:
        self._fleet = fleet
        self._machine = machine
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fleet.connected()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while _HEADER_END in self._received and self._transport is not None:
            head, _, rest = self._received.partition(_HEADER_END)
            length = _CONTENT_LENGTH.search(head)
            missing = int(length[1]) if length else 0
            if len(rest) < missing:
                return
            self._received = rest[missing:]
            target = head.split(b" ", 2)[1].decode()
            self._transport.write(self._fleet.respond(self._machine, target))


def run_machines(plan: FleetPlan, control: Connection) -> None:
    """The life of a fleet process: identities first, then reports on request, until the pipe closes."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(plan, control))


async def _serve(plan: FleetPlan, control: Connection) -> None:
    fleet = _Fleet(plan)
    control.send(await fleet.listen())
    ended = asyncio.Event()

    def answer() -> None:
        try:
            os.set_blocking(control.fileno(), True)  # libuv has made it one that takes no long report
            control.recv()
            control.send(fleet.report())
        except (EOFError, OSError):
            ended.set()

    asyncio.get_running_loop().add_reader(control.fileno(), answer)
    await ended.wait()
