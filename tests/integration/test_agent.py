"""A real agent process with a real software TPM: registration, quotes, payload, revocation, stop."""

import asyncio
import base64
import ipaddress
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from keylime.errors import PeerRefused, PeerUnreachable
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.http.client import Peer
from keylime.messages.agent import (
    AgentInfo,
    KeyVerification,
    PublicKeyReply,
    QuoteReply,
    UKeyRequest,
    VKeyRequest,
)
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import AGENT_VERSIONS, AgentVersions
from keylime.payload.archive import pack_archive
from keylime.payload.encryption import encrypt_payload
from keylime.payload.keys import auth_tag, encrypt_share, split_key
from keylime.pki.agent_certificate import key_pin
from keylime.pki.certificates import encode_private_key
from keylime.pki.roles import ADMINISTRATOR, NODE
from keylime.pki.tls import pinned_client_context
from keylime.revocation.message import RevocationKind, build_revocation
from keylime.revocation.publisher import RevocationPublisher
from keylime.revocation.signing import sign_revocation
from keylime.tpm.keys import parse_attestation_key
from keylime.tpm.pcr import PcrSelection, data_pcr_value
from keylime.tpm.quote import parse_quote, verify_quote
from tests.api_documents import DOCUMENTS
from tests.captures import VM_DEBIAN12
from tests.fakes.agent_process import AgentProcess, Registrar
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls_material import (
    CLIENT_AUTH,
    SERVER_AUTH,
    Authority,
    Issued,
    client_context,
    plain_leaf,
    unmarked_node,
)
from tests.os_logs import SYSTEMD_262

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
NONCE = "0YkqCoOGTUKHwBO8oeBa"
IMA_LINES = [f"10 {number:040x} ima-ng sha256:{number:064x} /bin/{number}\n" for number in range(5)]
OS_LOG = SYSTEMD_262 / "sdboot-uki.os.log"
BOOT_LOG = VM_DEBIAN12 / "grub-secureboot" / "binary_bios_measurements"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@dataclass
class Site:
    """One agent's surroundings: its working directory, its registrar, and a trusted client."""

    work_dir: Path
    tcti: str
    registrar: Registrar
    registrar_port: int
    client: ssl.SSLContext

    def agent(self, **options: object) -> AgentProcess:
        base: dict[str, object] = {
            "uuid": AGENT_ID,
            "registrar_port": self.registrar_port,
            "ima_ml_path": self.work_dir / "ima",
            "measuredboot_ml_path": BOOT_LOG,
            "os_ml_path": OS_LOG,
            "tpm_encryption_alg": "ecc",
            "tpm_signing_alg": "ecdsa",
        }
        return AgentProcess(self.work_dir, self.tcti, **(base | options))

    async def peer(self, agent: AgentProcess) -> Peer:
        port = await agent.port()
        await agent.line("is registered and active")
        pin = key_pin(self.registrar.requests[-1].mtls_cert or "")
        return Peer(f"https://127.0.0.1:{port}", tls=self.client, pin=pin, timeout_s=20)

    @property
    def ak(self) -> bytes:
        return base64.b64decode(self.registrar.requests[-1].aik_tpm or "")


@asynccontextmanager
async def site(tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA) -> AsyncIterator[Site]:
    (tmp_path / "cv_ca").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "cv_ca" / "cacert.crt")
    (tmp_path / "ima").write_text("".join(IMA_LINES))
    client = authority.issue_cert("client")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    client.private_key_pem.write_to_path(tmp_path / "client.pem")
    (tmp_path / "client.pem").chmod(0o600)
    registrar = Registrar()
    server, port = registrar.serve()
    context = pinned_client_context(
        certificate=tmp_path / "client.crt", key=tmp_path / "client.pem", key_password=None
    )
    try:
        yield Site(tmp_path, machine.tcti, registrar, port, context)
    finally:
        await server.stop(0)


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 90))


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")  # others pin its key
def test_an_agent_registers_and_quotes(tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent() as agent:
            async with await here.peer(agent) as peer:
                assert here.registrar.active == {AGENT_ID}
                assert here.registrar.paths == ["POST 2.5", "PUT 2.5"]
                assert f"Agent UUID: {AGENT_ID}" in str(agent)
                await _check_identity_quote(here, peer)
                await _check_integrity_quotes(here, peer)
                await _check_small_questions(peer)
            await _check_description(here, await agent.port())
            assert await agent.stop() == 0
            assert "Traceback" not in str(agent)

    run(scenario())


async def _check_identity_quote(here: Site, peer: Peer) -> None:
    reply = await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/identity", query={"nonce": NONCE})
    assert (reply.hash_alg, reply.enc_alg, reply.sign_alg) == ("sha256", "ecc256", "ecdsa")
    selection = PcrSelection(HashAlgorithm.SHA256, frozenset({16}))
    verified = verify_quote(
        parse_quote(reply.quote), parse_attestation_key(here.ak), NONCE.encode(), selection
    )
    pubkey = await peer.fetch(PublicKeyReply, "GET", "/v2.5/keys/pubkey")
    assert reply.pubkey == pubkey.pubkey
    assert verified.pcrs.values[16] == data_pcr_value(HashAlgorithm.SHA256, pubkey.pubkey)
    assert reply.boottime > 0
    old = await peer.fetch(QuoteReply, "GET", "/v2.1/quotes/identity", query={"nonce": NONCE})
    assert old.enc_alg == "ecc"


async def _check_integrity_quotes(here: Site, peer: Peer) -> None:
    async def ask(mask: str, partial: int, entry: int) -> QuoteReply:
        query: dict[str, str | int] = {
            "nonce": NONCE,
            "mask": mask,
            "partial": partial,
            "ima_ml_entry": entry,
        }
        return await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/integrity", query=query)

    full = await ask("0x401", 0, 0)
    selection = PcrSelection(HashAlgorithm.SHA256, frozenset({0, 10, 16}))
    verify_quote(parse_quote(full.quote), parse_attestation_key(here.ak), NONCE.encode(), selection)
    assert full.ima_measurement_list == "".join(IMA_LINES)
    assert full.mb_measurement_list == base64.b64encode(BOOT_LOG.read_bytes()).decode()
    assert full.os_measurement_list == base64.b64encode(OS_LOG.read_bytes()).decode()
    assert full.pubkey is not None
    part = await ask("400", 1, 3)
    assert (part.ima_measurement_list, part.ima_measurement_list_entry) == ("".join(IMA_LINES[3:]), 3)
    assert (part.pubkey, part.mb_measurement_list, part.os_measurement_list) == (None, None, None)
    assert part.boottime == full.boottime
    unknown = await ask("0x400", 1, 6)
    assert (unknown.ima_measurement_list, unknown.ima_measurement_list_entry) == ("".join(IMA_LINES), 0)
    with pytest.raises(PeerRefused, match="500 Unable to retrieve quote"):
        await ask("0x1000000", 1, 0)
    bare = await ask("0x0", 1, 0)
    assert (bare.ima_measurement_list, bare.mb_measurement_list) == (None, None)


async def _check_description(here: Site, port: int) -> None:
    """What the agent says of its API, and answers to calls made from that."""
    pytest.importorskip("schemathesis")
    from tests.described_calls import Described

    url, files = f"https://127.0.0.1:{port}", ("client.crt", "client.pem")
    trust = {"cert": tuple(str(here.work_dir / name) for name in files), "verify": False}
    async with (
        client_session() as session,
        session.get(f"{url}/openapi.json", ssl=here.client) as answer,
    ):
        assert answer.status == 200
        api = Described(await answer.json(), url, trust)
    assert api.document == DOCUMENTS["agent"], "the manual's"
    query = {"nonce": NONCE, "mask": "0x401", "partial": "0"}
    for path, fields in (("/quotes/identity", {"nonce": NONCE}), ("/quotes/integrity", query)):
        reply = await asyncio.to_thread(api.call, "GET", f"/v2.6{path}", query=fields)
        assert reply["quote"].startswith("r")
    await asyncio.to_thread(api.call, "GET", "/v2.6/agent/info")
    begun = asyncio.get_running_loop().time()
    called = await asyncio.to_thread(api.call_everything, examples=2, budget_s=10.0)
    assert called == api.operations or asyncio.get_running_loop().time() - begun > 10


async def _check_small_questions(peer: Peer) -> None:
    versions = await peer.fetch(AgentVersions, "GET", "/version")
    assert versions.supported_versions == list(AGENT_VERSIONS)
    info = await peer.fetch(AgentInfo, "GET", "/v2.2/agent/info")
    assert (info.agent_uuid, info.tpm_hash_alg, info.tpm_enc_alg) == (AGENT_ID, "sha256", "ecc")
    assert info.ak_handle >> 24 == 0x80
    with pytest.raises(PeerRefused, match=r"400 API version not supported: v2\.9"):
        await peer.fetch(AgentInfo, "GET", "/v2.9/agent/info")
    with pytest.raises(PeerRefused, match="400 Bootstrap key not yet available"):
        await peer.fetch(KeyVerification, "GET", "/v2.5/keys/verify", query={"challenge": "abc"})


NAMED = x509.DNSName("registrar.example.com")
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    ("usages", "name", "check", "said"),
    [
        ((SERVER_AUTH,), LOOPBACK, "strict", "is registered and active"),
        ((SERVER_AUTH,), NAMED, "strict", "is for registrar.example.com and not for 127.0.0.1"),
        ((SERVER_AUTH,), NAMED, "warn", "is for registrar.example.com and not for 127.0.0.1"),
        ((SERVER_AUTH,), NAMED, "off", "is registered and active"),
        ((SERVER_AUTH, CLIENT_AUTH, NODE), LOOPBACK, "off", "made for a machine"),
    ],
)
def test_n3_n4_over_tls_the_registrar_is_known_by_issuer_purpose_and_name(
    tmp_path: Path,
    machine: SoftwareTpm,
    authority: trustme.CA,
    usages: tuple[x509.ObjectIdentifier, ...],
    name: x509.GeneralName,
    check: str,
    said: str,
) -> None:
    async def scenario() -> None:
        services = Authority()
        services.write(tmp_path / "registrar_ca.crt")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        services.issue("registrar", usages=usages, names=[name]).load_into(tls)
        async with site(tmp_path, machine, authority) as here:
            server, port = here.registrar.serve(tls=tls)
            options = {
                "registrar_tls_enabled": True,
                "registrar_tls_port": port,
                "registrar_tls_ca_cert": "registrar_ca.crt",
                "check_server_names": check,
                "registrar_port": 1,
            }
            async with here.agent(**options) as agent:
                await agent.line(said)
                is_refused = (check == "strict" and name == NAMED) or NODE in usages
                if is_refused:
                    assert here.registrar.paths == []
                else:
                    await agent.line("is registered and active")
                    assert str(agent).count("and not for") == (check == "warn")
            await server.stop(0)

    run(scenario())


def test_n3_another_machines_certificate_opens_nothing_at_an_agent(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def ask(port: int, identity: Issued) -> int:
        context = client_context(services, identity)
        context.verify_mode = ssl.CERT_NONE
        async with (
            client_session() as session,
            session.get(f"https://127.0.0.1:{port}/v2.5/keys/pubkey", ssl=context) as answer,
        ):
            return answer.status

    async def scenario() -> None:
        services.write(tmp_path / "services.crt")
        async with site(tmp_path, machine, authority) as here:
            for required in (False, True):
                options = {"trusted_client_ca": "services.crt", "require_admin_role": required}
                async with here.agent(**options) as agent:
                    port = await agent.port()
                    assert [await ask(port, node) for node in nodes] == [403] * 3
                    assert await ask(port, bearer) == 200
                    assert [await ask(port, former) for _ in range(2)] == [403 if required else 200] * 2
                    assert str(agent).count("lacks the administrators' role") == 1
                    assert await agent.stop() == 0

    services = Authority()
    nodes = [
        services.issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE)),
        unmarked_node(services, "web01"),
        plain_leaf(services, AGENT_ID),
    ]
    bearer = services.issue("client", usages=(CLIENT_AUTH, ADMINISTRATOR))
    former = plain_leaf(services, "client")
    run(scenario())


def test_nobody_talks_to_an_agent_without_a_trusted_certificate(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent() as agent:
            port = await agent.port()
            await agent.line("is registered and active")
            pin = key_pin(here.registrar.requests[-1].mtls_cert or "")
            stranger = trustme.CA().issue_cert("client")
            stranger.cert_chain_pems[0].write_to_path(tmp_path / "s.crt")
            stranger.private_key_pem.write_to_path(tmp_path / "s.pem")
            (tmp_path / "s.pem").chmod(0o600)
            for context in (
                pinned_client_context(certificate=None, key=None),
                pinned_client_context(certificate=tmp_path / "s.crt", key=tmp_path / "s.pem"),
            ):
                async with Peer(f"https://127.0.0.1:{port}", tls=context, pin=pin, timeout_s=10) as peer:
                    with pytest.raises(PeerUnreachable):
                        await peer.request("GET", "/version")

    run(scenario())


def test_key_certificate_and_ak_outlive_a_restart_of_agent_and_machine(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            for expected in range(1, 3):
                async with here.agent() as agent, await here.peer(agent) as peer:
                    await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/identity", query={"nonce": NONCE})
                    assert len(here.registrar.requests) == expected
                    assert await agent.stop() == 0
                machine.restart()
            first, second = here.registrar.requests
            assert first == second
            assert (tmp_path / "agent_data.json").stat().st_mode & 0o777 == 0o600
            certificate = x509.load_pem_x509_certificate((second.mtls_cert or "").encode())
            assert certificate.subject.rfc4514_string() == f"CN={AGENT_ID}"

    run(scenario())


def test_another_tpm_means_another_ak_with_a_warning(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def scenario() -> None:
        other = SoftwareTpm.manufactured(tmp_path_factory.mktemp("other"), with_ek_certificate=False)
        async with site(tmp_path, machine, authority) as here:
            async with here.agent() as agent:
                await here.peer(agent)
            with other:
                here.tcti = other.tcti
                async with here.agent() as agent:
                    await here.peer(agent)
                    assert "the kept attestation key is replaced" in str(agent)
            here.tcti = machine.tcti
            async with here.agent() as agent:
                await here.peer(agent)
                assert "the kept attestation key is replaced" not in str(agent)
            first, other_tpm, again = (request.aik_tpm for request in here.registrar.requests)
            assert first != other_tpm
            assert first == again, "a start with another TPM costs a machine nothing"
            assert (tmp_path / "agent_data.json.other_tpm").stat().st_mode & 0o777 == 0o600

    run(scenario())


def test_the_registrar_gets_the_certificate_of_an_rsa_ek(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            options = {"tpm_encryption_alg": "rsa", "tpm_signing_alg": "rsassa", "uuid": "hash_ek"}
            async with here.agent(**options) as agent, await here.peer(agent) as peer:
                (request,) = here.registrar.requests
                issuer = x509.load_pem_x509_certificate(machine.ca_certificates[0].read_bytes())
                ek_certificate = x509.load_pem_x509_certificate((request.ekcert or "").encode())
                ek_certificate.verify_directly_issued_by(issuer)
                reply = await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/identity", query={"nonce": NONCE})
                assert (reply.enc_alg, reply.sign_alg) == ("rsa2048", "rsassa")
                assert len(next(iter(here.registrar.active))) == 64

    run(scenario())


def test_an_agent_waits_for_its_registrar(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            here.registrar.refusal = 503
            async with here.agent(exponential_backoff_max_retries=0) as agent:
                await agent.line("registration failed, next attempt", count=2)
                await agent.port()  # it serves all the same
                here.registrar.refusal = None
                await agent.line("is registered and active")

    run(scenario())


def test_a_registrar_without_version_page_is_tried_from_the_newest(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            here.registrar.versions, here.registrar.spoken = None, "2.1"
            async with here.agent() as agent:
                await agent.line("is registered and active (API version 2.1)")
                assert here.registrar.paths[0] == "POST 2.6"

    run(scenario())


def test_a_forbidden_agent_stops_with_one_clear_line(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            here.registrar.refusal = 403
            async with here.agent() as agent:
                assert await agent.ended() == 77  # named in the unit: a restart cannot mend it
                assert agent.errors.count("\n") == 1
                assert "different TPM identity is forbidden" in agent.errors
                assert f"`keylime_tenant -c regdelete -u {AGENT_ID}`" in agent.errors
                assert len(here.registrar.paths) == 1

    run(scenario())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"registrar_ip": "<REMOTE_IP>"}, "registrar_ip"),
        ({"uuid": "../x"}, "uuid"),
        ({"tpm_hash_alg": "sha512"}, "no such PCR bank"),
        ({"tpm_signing_alg": "md5"}, "tpm_signing_alg"),
        ({"trusted_client_ca": "missing.crt"}, "trusted_client_ca"),
        ({"trusted_client_ca": "all"}, "trusted_client_ca"),
        ({"run_as": "nobody-of-that-name"}, "there is no user"),
        ({"payload_script": "../x.sh"}, "payload_script"),
        ({"enable_agent_mtls": "false"}, "enable_insecure_payload"),
        ({"ek_handle": "first"}, "ek_handle"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA, options: dict[str, str], expected: str
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent(**options) as agent:
            assert await agent.ended() == 1
            assert expected in agent.errors
            assert agent.errors.startswith("keylime_agent: error: ")
            assert agent.errors.count("\n") == 1

    run(scenario())


def test_without_the_verifiers_ca_or_a_tpm_the_agent_says_what_to_do(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here:
            (tmp_path / "cv_ca" / "cacert.crt").rename(tmp_path / "aside")
            async with here.agent() as agent:
                assert await agent.ended() == 1
                assert "copy it from the verifier" in agent.errors
            (tmp_path / "aside").rename(tmp_path / "cv_ca" / "cacert.crt")
            here.tcti = "swtpm:host=127.0.0.1,port=1"
            async with here.agent() as agent:
                assert await agent.ended() == 1
                assert "cannot reach the TPM" in agent.errors
                assert agent.errors.count("\n") == 1

    run(scenario())


def test_a_payload_is_unpacked_and_its_script_runs_once(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent() as agent:
            async with await here.peer(agent) as peer:
                script = b"echo in $PWD as $AGENT_UUID; ls; env | wc -l; echo once >> ../count\n"
                archive = pack_archive({"autorun.sh": script, "id_rsa": b"secret"})
                key = split_key()
                body, v = await _shares(peer, key.u, key.v, key.k, encrypt_payload(key.k, archive))
                await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/ukey", body=body)
                await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/vkey", body=v)
                challenge = await peer.fetch(
                    KeyVerification, "GET", "/v2.5/keys/verify", query={"challenge": "abc"}
                )
                assert challenge.hmac == auth_tag(key.k, "abc")
                unzipped = tmp_path / "tmpfs-dev" / "unzipped"
                await agent.line("payload script autorun.sh: exit status 0")
                assert f"Payload script stdout: in {unzipped} as {AGENT_ID}" in str(agent)
                assert (unzipped / "derived_tci_key").read_bytes() == key.k
                assert (unzipped / "decrypted_payload").read_bytes() == archive
                assert (unzipped / "id_rsa").read_bytes() == b"secret"
                for _ in range(2):  # the same delivery again does not run again
                    await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/ukey", body=body)
                    await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/vkey", body=v)
                await agent.line("the payload is not run twice")
                assert (tmp_path / "tmpfs-dev" / "count").read_text() == "once\n"
            assert await agent.stop() == 0
            assert list((tmp_path / "tmpfs-dev").iterdir()) == []
            assert key.k.hex() not in str(agent)

    run(scenario())


async def _shares(peer: Peer, u: bytes, v: bytes, k: bytes, payload: str) -> tuple[UKeyRequest, VKeyRequest]:
    pubkey = (await peer.fetch(PublicKeyReply, "GET", "/v2.5/keys/pubkey")).pubkey
    key = load_pem_public_key(pubkey.encode())
    assert isinstance(key, rsa.RSAPublicKey)
    request = UKeyRequest(
        encrypted_key=encrypt_share(pubkey, u), auth_tag=auth_tag(k, AGENT_ID), payload=payload
    )
    return request, VKeyRequest(encrypt_share(pubkey, v))


def test_a_revocation_runs_the_payloads_actions_once(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        notifier = _self_signed(signer)
        async with (
            site(tmp_path, machine, authority) as here,
            here.agent() as agent,
            await here.peer(agent) as peer,
        ):
            archive = pack_archive(_revocation_payload(notifier, tmp_path / "copy.json"))
            key = split_key()
            u, v = await _shares(peer, key.u, key.v, key.k, encrypt_payload(key.k, archive))
            await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/ukey", body=u)
            await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/vkey", body=v)
            await agent.line("payload installed")
            await _notify(peer, agent, signer)
            assert not [name for name in os.listdir(tmp_path) if name.startswith("revocation-")]
            assert msgspec.json.decode((tmp_path / "copy.json").read_bytes())["ip"] == "10.0.0.7"

    run(scenario())


def _revocation_payload(certificate: bytes, copy: Path) -> dict[str, bytes]:
    shell = f"""#!/bin/sh
grep -q '"type":"revocation"' "$1" && echo "Action type: revocation"
cp "$1" {copy}
"""
    module = """
from keylime import keylime_logging, secure_mount
logger = keylime_logging.init_logging('local_action_python')

async def execute(event):
    logger.info('A node in the network has been compromised: %s', event['ip'])
    print(secure_mount.mount())
"""
    return {
        "RevocationNotifier-cert.crt": certificate,
        "action_list": b"local_action_show.sh, local_action_fail\nlocal_action_python other\n",
        "local_action_show.sh": shell.encode(),
        "local_action_fail.py": b"async def execute(event):\n    raise RuntimeError('no')\n",
        "local_action_python.py": module.encode(),
    }


def _signed_revocation(signer: rsa.RSAPrivateKey, agent_id: str = AGENT_ID) -> SignedRevocation:
    message = build_revocation(
        RevocationKind.REVOCATION,
        agent_id=agent_id,
        ip="10.0.0.7",
        port=9002,
        tpm_policy="{}",
        meta_data='{"cert_serial": 2}',
        finding=Finding("ima.validation", {}, recoverable=False, explanation=""),
        severity_label="emergency",
        when=datetime(2026, 11, 22),  # noqa: DTZ001  the protocol's local time
    )
    return sign_revocation(message, encode_private_key(signer, None).decode())


async def _notify(peer: Peer, agent: AgentProcess, signer: rsa.RSAPrivateKey) -> None:
    signed = _signed_revocation(signer)
    path = "/v2.5/notifications/revocation"
    forged = SignedRevocation(signed.msg.replace("10.0.0.7", "10.0.0.8"), signed.signature)
    await peer.fetch(msgspec.Raw, "POST", path, body=forged)
    await agent.line("revocation message ignored")
    assert "Executing" not in str(agent)
    await peer.fetch(msgspec.Raw, "POST", path, body=signed)
    await agent.line("Action stdout: Action type: revocation")
    await agent.line("revocation action local_action_fail: exit status 1")
    await agent.line("A node in the network has been compromised: 10.0.0.7")
    await agent.line("revocation action other not found")
    await peer.fetch(msgspec.Raw, "POST", path, body=signed)
    await agent.line("was handled before")
    assert str(agent).count("Executing revocation action local_action_show.sh") == 1


def _self_signed(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RevocationNotifier")])
    now = datetime.now().astimezone()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(now)
        .not_valid_after(now.replace(year=now.year + 1))
    )
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM)


def test_a_revocation_that_comes_before_the_payload_waits_for_it(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    """The verifier was told that it arrived, so nobody sends it again; a failing script changes nothing."""

    async def scenario() -> None:
        signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        async with (
            site(tmp_path, machine, authority) as here,
            here.agent() as agent,
            await here.peer(agent) as peer,
        ):
            path = "/v2.5/notifications/revocation"
            await peer.fetch(msgspec.Raw, "POST", path, body=_signed_revocation(signer, "another-agent"))
            await agent.line("revocation message cannot be verified (over REST), it waits for a payload")
            files = _revocation_payload(_self_signed(signer), tmp_path / "copy.json")
            archive = pack_archive({**files, "autorun.sh": b"exit 3\n"})
            key = split_key()
            u, v = await _shares(peer, key.u, key.v, key.k, encrypt_payload(key.k, archive))
            await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/ukey", body=u)
            await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/vkey", body=v)
            await agent.line("revocation action local_action_fail: exit status 1")  # the first one is over
            await agent.line("payload script autorun.sh: exit status 3")
            document = msgspec.json.decode((tmp_path / "copy.json").read_bytes())
            assert document["agent_id"] == "another-agent"
            assert await agent.stop() == 0

    run(scenario())


def test_revocations_also_arrive_by_zeromq_from_several_verifiers(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (tmp_path / "notifier.crt").write_bytes(_self_signed(signer))
        (tmp_path / "actions").mkdir()
        script = tmp_path / "actions" / "installed.sh"
        script.write_text("#!/bin/sh\necho heard of it\n")
        script.chmod(0o700)
        first = await RevocationPublisher.bound("127.0.0.1", 0)
        second = await RevocationPublisher.bound("127.0.0.2", first.port)
        options = {
            "enable_revocation_notifications": "true",
            "revocation_notification_ip": '"127.0.0.1, 127.0.0.2"',
            "revocation_notification_port": first.port,
            "revocation_cert": tmp_path / "notifier.crt",
            "revocation_actions": "['installed.sh']",
            "revocation_actions_dir": tmp_path / "actions",
        }
        async with site(tmp_path, machine, authority) as here, here.agent(**options) as agent:
            await here.peer(agent)
            for number, publisher in enumerate((first, second), start=1):
                signed = _signed_revocation(signer, f"agent-{number}")
                heard = asyncio.create_task(agent.line(f"revocation message about agent agent-{number} "))
                while not heard.done():  # a subscriber gets nothing from before its connection stands
                    await publisher.publish(signed)
                    await asyncio.wait([heard], timeout=0.1)
                await heard
            await first.publish(_signed_revocation(signer, "agent-2"))  # what the second one said before
            await agent.line("was handled before")
            assert str(agent).count("Executing revocation action installed.sh") == 2
        await first.close()
        await second.close()

    run(scenario())


def _everybody_may_read(path: Path) -> bool:
    return all(directory.stat().st_mode & 0o005 == 0o005 for directory in (path, *path.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    not (_everybody_may_read(Path(__file__).parent) and _everybody_may_read(Path(sys.prefix))),
    reason="another user could not read the program: checkout or environment are in a private directory",
)
def test_an_agent_started_as_root_runs_as_its_user(machine: SoftwareTpm, authority: trustme.CA) -> None:
    async def scenario(home: Path) -> None:
        async with site(home, machine, authority) as here:
            (home / "ima").chmod(0o400)  # as the kernel's: root's alone
            (home / "cv_ca").chmod(0o600)  # as `chmod -R 600` leaves directories
            shutil.chown(home, "nobody", "nogroup")
            async with here.agent(run_as="nobody:nogroup") as agent:
                async with await here.peer(agent) as peer:
                    query: dict[str, str | int] = {"nonce": NONCE, "mask": "0x400", "partial": 1}
                    reply = await peer.fetch(QuoteReply, "GET", "/v2.5/quotes/integrity", query=query)
                    assert reply.ima_measurement_list == "".join(IMA_LINES)
                assert "running as user nobody" in str(agent)
                assert (home / "agent_data.json").owner() == "nobody"
                assert await agent.stop() == 0

    home = Path(tempfile.mkdtemp(prefix="agent-"))  # pytest's directories are closed to other users
    machine.open_to_all_users()
    try:
        run(scenario(home))
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_y13_nothing_of_a_payload_outlives_a_stop(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA, number: signal.Signals
) -> None:
    """Not even what the payload's own script has written, and goes on writing."""

    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent() as agent:
            async with await here.peer(agent) as peer:
                script = b"mkdir -p deep; n=0; while :; do n=$((n+1)); echo secret > deep/$n; done\n"
                archive = pack_archive({"autorun.sh": script, "id_rsa": b"secret"})
                key = split_key()
                body, v = await _shares(peer, key.u, key.v, key.k, encrypt_payload(key.k, archive))
                await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/ukey", body=body)
                await peer.fetch(msgspec.Raw, "POST", "/v2.5/keys/vkey", body=v)
            unzipped = tmp_path / "tmpfs-dev" / "unzipped"
            await eventually((unzipped / "deep" / "1").exists, limit_s=60)
            assert await agent.stop(number) == 0
            assert list((tmp_path / "tmpfs-dev").iterdir()) == []

    run(scenario())


def test_the_agent_leaves_no_key_behind_in_other_files(
    tmp_path: Path, machine: SoftwareTpm, authority: trustme.CA
) -> None:
    async def scenario() -> None:
        async with site(tmp_path, machine, authority) as here, here.agent() as agent:
            await here.peer(agent)
            for name in ("payload-private.pem", "server-private.pem", "agent_data.json"):
                assert os.stat(tmp_path / name).st_mode & 0o077 == 0

    run(scenario())
