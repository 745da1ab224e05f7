"""The texts that monitors of existing installations match begin our lines, in the same loggers."""

import asyncio
import hashlib
import logging
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.verdict import Rejected
from keylime.config.loader import load_settings
from keylime.errors import KeylimeError, PeerUnreachable
from keylime.findings.finding import Finding
from keylime.http.agent_connection import AgentConnection
from keylime.http.server import Request, Response, Role, Route, Server
from keylime.identifiers import AgentId
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.keylime_logging import log_sources
from keylime.messages.revocation import SignedRevocation
from keylime.messages.versions import ServerVersions
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_tenant.arguments import Arguments, parse_arguments
from keylime_tenant.client import RegistrarClient, VerifierClient
from keylime_tenant.commands.policies import (
    add_runtime_policy,
    delete_runtime_policy,
    show_runtime_policy,
    update_runtime_policy,
)
from keylime_tenant.config import Address
from keylime_tenant.connection import Connection
from keylime_tenant.policies import PolicyDocuments, compose, runtime_policy
from keylime_tenant.session import Session
from keylime_verifier.polling.findings_log import log_findings
from keylime_verifier.revocations.webhook import Webhook
from keylime_verifier.revocations.webhook_url import parse_webhook_url
from tests.evidence import policy_of
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.running_registrar import running_registrar
from tests.fakes.running_verifier import RunningVerifier
from tests.fakes.software_ak import SoftwareAk
from tests.fakes.software_identity import SoftwareIdentity, b64, certify, certify_attest, name_of
from tests.fakes.tls_material import Authority
from tests.ima_rounds import Kernel
from tests.ima_rounds import Verifier as ImaRounds
from tests.integration.test_verifier_policies import scene

AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")


def matching(caplog: pytest.LogCaptureFixture, text: str) -> list[tuple[str, int]]:
    """Logger and level of each line that holds `text`, a regular expression."""
    return [
        (record.name, record.levelno) for record in caplog.records if re.search(text, record.getMessage())
    ]


def logged(finding: Finding, caplog: pytest.LogCaptureFixture, text: str) -> list[tuple[str, int]]:
    log_findings(AGENT, Rejected((finding,), Checkpoint.fresh()))
    return matching(caplog, text)


def test_a_file_that_is_not_listed_and_one_with_another_digest(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.run("/a", "1")
    policy = policy_of([kernel.text()])
    kernel.run("/a", "2")
    kernel.run("/b", "3")
    changed, unknown = ImaRounds(policy).appraise(kernel.text(), kernel.pcr).findings
    digest = "[0-9a-f]{64}"
    text = rf"^Hashes for file /a don't match {digest} not in \['{digest}'\]"
    assert logged(changed, caplog, text) == [("keylime.ima", logging.WARNING)]
    text = "^File not found in allowlist: /b"
    assert logged(unknown, caplog, text) == [("keylime.ima", logging.WARNING)]
    text = r"^IMA ERRORS: .*Number of failures in modes: ImaNg 1\."
    assert matching(caplog, text) == [("keylime.ima", logging.ERROR)] * 2


def test_a_pinned_pcr_that_differs(caplog: pytest.LogCaptureFixture) -> None:
    (finding,) = TpmPolicy.from_operator('{"23": "00"}').evaluate({23: b"\x01"})
    text = "^PCR #23: 01 from quote.* does not match expected value.*00"
    assert logged(finding, caplog, text) == [("keylime.tpm", logging.ERROR)]


def test_a_boot_log_that_does_not_lead_to_the_quoted_value(caplog: pytest.LogCaptureFixture) -> None:
    finding = Finding(
        "measured_boot.invalid_pcr_4",
        {"context": "SHA256 boot event log PCR value does not match the quote"},
        recoverable=True,
        explanation="differs",
        observed="aa",
        expected=("bb",),
    )
    text = "^For PCR 4 and hash sha256 the boot event log has value 'aa' but the agent returned 'bb'"
    assert logged(finding, caplog, text) == [("keylime.tpm", logging.ERROR)]


def verifier_scene(
    tmp_path: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]], **environ: str
) -> None:
    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="0.02", **environ)


def test_an_agent_whose_polling_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        agent.machine.reset_count = 0
        found = await eventually(lambda: matching(caplog, "^Agent agent-1 failed, stopping polling"))
        assert found == [("keylime.verifier", logging.WARNING)]

    verifier_scene(tmp_path, act)


def test_an_agent_with_a_newer_api_and_one_that_goes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent, supported_version="2.2")
        await verifier.until_passing(agent)
        assert matching(caplog, r"^Agent agent-1 API version updated from 2\.2 to 2\.5") == [
            ("keylime.verifier", logging.INFO)
        ]
        await agent.stop()
        agent.versions = ("2.1",)
        agent.start()
        text = r"^Agent agent-1 new API version 2\.1 is lower or equal to previous version 2\.5"
        found = await eventually(lambda: matching(caplog, text))
        assert found == [("keylime.verifier", logging.WARNING)]

    verifier_scene(tmp_path, act)


def test_every_file_of_configuration_that_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "agent.conf"
    path.write_text("[agent]\nport = 9002\n")
    log_sources(load_settings("agent", environ={"KEYLIME_AGENT_CONFIG": str(path)}))
    assert matching(caplog, f"^Reading configuration from {path}$") == [("keylime.config", logging.INFO)]


@pytest.mark.parametrize("member", ["meta", "digests"])
def test_a_runtime_policy_without_a_member(member: str) -> None:
    text = re.sub(rf'"{member}":', '"other":', EMPTY_POLICY, count=1)
    with pytest.raises(KeylimeError, match=f"'{member}' is a required property"):
        parse_runtime_policy(text)


def test_a_runtime_policy_with_another_checksum_or_a_wrong_signature() -> None:
    command = ["-c", "addruntimepolicy", "--runtime-policy", "x", "--runtime-policy-checksum", "00"]
    documents = PolicyDocuments(runtime_policy=EMPTY_POLICY.encode())
    with pytest.raises(KeylimeError, match="Checksum of runtime policy does not match!"):
        runtime_policy(parse_arguments(command), documents)
    signed = b'{"payload": "e30=", "payloadType": "x", "signatures": [{"keyid": "", "sig": "e30="}]}'
    documents = PolicyDocuments(runtime_policy=signed)
    with pytest.raises(KeylimeError, match="failed DSSE signature verification"):
        runtime_policy(parse_arguments(command[:4]), documents)


@pytest.mark.parametrize(
    ("verb", "act"),
    [
        ("add", add_runtime_policy),
        ("update", update_runtime_policy),
        ("show", show_runtime_policy),
        ("delete", delete_runtime_policy),
    ],
)
def test_a_command_about_a_runtime_policy_without_its_name(
    verb: str, act: Callable[[Session], Awaitable[None]]
) -> None:
    arguments = parse_arguments(["-c", f"{verb}runtimepolicy", "--runtime-policy", "x"])
    session = cast(Session, SimpleNamespace(arguments=arguments, verifier=SimpleNamespace(policy=None)))
    text = f"^runtime_policy_name is required to {verb} a runtime policy"
    with pytest.raises(KeylimeError, match=text):
        asyncio.run(awaited(act(session)))


async def awaited(act: Awaitable[None]) -> None:
    await act


def test_a_boot_pcr_in_the_tpm_policy_beside_a_boot_policy() -> None:
    arguments = Arguments(tpm_policy='{"15": "ab"}', mb_policy_name="n")
    text = '^WARNING: PCR 15 is specified in "tpm_policy", but will in fact be used by measured boot'
    with pytest.raises(KeylimeError, match=text):
        compose(arguments, PolicyDocuments())


def test_versions_that_tenant_and_servers_agree_on_or_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def serving(versions: list[str]) -> Server:
        async def show(_request: Request) -> Response:
            return Response(results=ServerVersions(versions[-1], versions))

        route = Route("GET", "/version", Role.ANONYMOUS, show, plain_http=True, versioned=False)
        return Server([route])

    async def ask(service: type[RegistrarClient] | type[VerifierClient], versions: list[str]) -> None:
        server = serving(versions)
        port = server.listen("127.0.0.1", 0)
        address = Address("127.0.0.1", port)
        connection = AgentConnection("127.0.0.1", port, tls=None, timeout_s=20)
        client = service(address, Connection(address, connection, asks_plainly=True))
        try:
            await client.call("GET", "/agents/")
        finally:
            await client.close()
            await server.stop()

    for service, name in ((RegistrarClient, "registrar"), (VerifierClient, "verifier")):
        asyncio.run(ask(service, ["2.1", "2.2"]))
        text = f"^Using API version 2.2 for {name} communication$"
        assert [level for _, level in matching(caplog, text)] == [logging.INFO]
        with pytest.raises(KeylimeError, match="has no compatible API"):
            asyncio.run(ask(service, ["9.0"]))


def test_a_registration_with_device_identity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    vendor, machine, agent_id = Authority("Maker of devices"), SoftwareIdentity(), str(AGENT)
    iak, idevid = (SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA) for _ in range(2))
    fields: dict[str, object] = {}
    for name, key in (("iak", iak), ("idevid", idevid)):
        public_key = key.private_key.public_key()
        assert isinstance(public_key, RSAPublicKey)
        fields[f"{name}_tpm"] = b64(key.tpm2b_public)
        fields[f"{name}_cert"] = b64(certify(vendor, public_key, name).public_bytes(Encoding.DER))
    attest = certify_attest(name_of(machine.ak.tpm2b_public), hashlib.sha256(agent_id.encode()).digest())
    fields |= {"iak_attest": b64(attest), "iak_sign": b64(iak.sign(attest))}
    store = tmp_path / "store"
    store.mkdir()
    environ = {"KEYLIME_TENANT_TPM_CERT_STORE": str(store)}

    async def play() -> None:
        async with running_registrar(tmp_path, environ) as registrar:
            path, body = f"/v2.5/agents/{agent_id}", machine.registration(**fields)
            assert (await registrar.plain("POST", path, body)).code == 400
            (store / "maker.pem").write_bytes(vendor.certificate.public_bytes(Encoding.PEM))
            assert (await registrar.plain("POST", path, body)).code == 200

    asyncio.run(play())
    levels = {
        "^IDevID and IAK received": [logging.INFO, logging.INFO],
        "^No Root CA matched IDevID Certificate": [logging.ERROR],
        "^AIK verified with IAK": [logging.INFO],
    }
    assert {text: [level for _, level in matching(caplog, text)] for text in levels} == levels


def test_a_webhook_that_begins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    address = parse_webhook_url("http://127.0.0.1:1/hook?token=secret", allow_http=True)

    async def scenario() -> None:
        webhook = Webhook(address, None, 5.0)
        try:
            with pytest.raises(PeerUnreachable):
                await webhook.post(SignedRevocation("{}", "signature"))
        finally:
            await webhook.close()

    asyncio.run(scenario())
    text = "^Sending revocation event via webhook to http://127.0.0.1:1"
    assert matching(caplog, text) == [("keylime.verifier", logging.INFO)]
    assert "secret" not in caplog.text


def test_a_replaced_policy_counts_the_agents_of_all_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path, body = "/v2.5/allowlists/fleet", {"runtime_policy": b64encode(EMPTY_POLICY.encode()).decode()}

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.admin("POST", path, body)).code == 201
        await verifier.add(agent, runtime_policy="", runtime_policy_name="fleet")
        # Polled by another worker, or by none at the moment.
        assert (await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")).code == 200
        assert (await verifier.admin("PUT", path, body)).code == 201

    verifier_scene(tmp_path, act)
    assert len(matching(caplog, "'fleet': replaced, for 1 agents, by")) == 1
