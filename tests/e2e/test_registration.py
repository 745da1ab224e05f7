"""From a new TPM to an attested agent, for every kind of key; and what must not get in between."""

import base64
from dataclasses import dataclass

import pytest

from keylime.hashes import HashAlgorithm
from keylime.tpm.credential import activation_tag, parse_credential_blob
from keylime.tpm.device import Tpm
from keylime_agent.main import FORBIDDEN
from keylime_agent.tpm_identity import TpmAlgorithms, load_tpm_identity
from tests.lab.installation import Machine, start_agent
from tests.lab.rest import Answer
from tests.lab.site import Site, attestation_key, errors_of

_PATH = "/v2.5/agents/"


@pytest.mark.parametrize("ak", ["rsassa", "rsapss", "ecdsa"])
@pytest.mark.parametrize("ek", ["rsa", "ecc", "ecc384"])
def test_every_kind_of_key_registers_and_is_attested(site: Site, ek: str, ak: str) -> None:
    machine = site.running_machine(tpm_encryption_alg=f'"{ek}"', tpm_signing_alg=f'"{ak}"')
    # The software TPM's maker gives it certificates for RSA and P-384 only.
    has_certificate = ek != "ecc"
    assert (site.registration(machine)["ekcert"] is not None) == has_certificate
    refused = site.add(machine, check=False) if not has_certificate else None
    # An AK on P-384 must be asked for; "ecc" stands for P-256.
    environ = {"KEYLIME_TENANT_ACCEPT_TPM_ENCRYPTION_ALGS": "rsa, ecc, ecc384"}
    site.add(
        machine,
        environ=environ if has_certificate else {**environ, "KEYLIME_TENANT_REQUIRE_EK_CERT": "False"},
    )
    record = site.await_passes(machine)
    assert record["sign_alg"] == ak
    assert record["attestation_status"] == "PASS"
    if refused is not None:
        assert refused.returncode == 1
        assert "registered no EK certificate" in refused.stderr
    assert errors_of(machine.agent.text()) == []


@dataclass(frozen=True)
class Stranger:
    """Somebody who can reach the registrar and knows an agent's public keys."""

    site: Site
    machine: Machine

    def register(self, **changes: object) -> bytes:
        """Registers again under the agent's id with its true keys; returns the credential."""
        record = self.site.registration(self.machine)
        keys = {name: record[name] for name in ("ek_tpm", "aik_tpm", "ekcert")}
        answer = self.site.control.registration_api.request(
            "POST", _PATH + self.machine.agent_id, {**keys, **changes}
        )
        assert answer.code == 200, answer
        return base64.b64decode(answer.results["blob"])

    def activate(self, tag: object) -> Answer:
        return self.site.control.registration_api.request(
            "PUT", _PATH + self.machine.agent_id, {"auth_tag": tag}
        )


def prove(machine: Machine, credential: bytes) -> str:
    """The activation tag that only the machine's TPM can find; its agent must not run meanwhile."""
    id_object, secret = parse_credential_blob(credential)
    algorithms = TpmAlgorithms(HashAlgorithm.SHA256, "rsa", "rsassa")
    with Tpm.open(machine.tpm.tcti) as tpm:
        keys = load_tpm_identity(tpm, algorithms, "generate", machine.node.work_dir / "agent_data.json")
        challenge = tpm.activate_credential(keys.ek, keys.ak, id_object, secret)
    return activation_tag(challenge, machine.agent_id)


def test_a_wrong_activation_tag_changes_nothing(site: Site) -> None:
    machine = site.attested_machine()
    stranger = Stranger(site, machine)
    before = site.registration(machine)
    # With the victim's public keys and another address: open to everybody who can reach the registrar (R22).
    stranger.register(ip="127.0.0.99", port=1)
    for wrong in ("0" * 96, "f" * 96, "", "ß" * 48, "0" * 95, "0" * (1 << 20)):
        answer = stranger.activate(wrong)
        assert answer.code in (400, 413), (wrong[:100], answer)
        assert before == site.registration(machine)
    nonsense: tuple[object, ...] = (None, 0, [], {})
    for tag in nonsense:
        assert stranger.activate(tag).code == 400
    assert before == site.registration(machine)
    site.await_passes(machine)
    assert errors_of(site.control.registrar.text()) == []


def test_an_old_activation_does_not_prove_a_new_registration(site: Site) -> None:
    machine = site.attested_machine()
    stranger = Stranger(site, machine)
    true = site.registration(machine)
    assert machine.agent.stop() == 0
    tag = prove(machine, stranger.register())
    assert stranger.activate(tag).code == 200
    activated = site.registration(machine)
    assert activated["regcount"] == 2
    stranger.register(ip="127.0.0.99")
    assert stranger.activate(tag).code == 400
    assert site.registration(machine) == activated
    start_agent(site.control, machine)
    assert site.registration(machine) == {**true, "regcount": 3}
    site.await_passes(machine)


def test_another_tpm_does_not_get_an_id_that_is_taken(site: Site) -> None:
    rightful = site.attested_machine()
    before = site.registration(rightful)
    intruder = site.machine(agent_id=rightful.agent_id)
    intruder.agent.start()
    assert intruder.agent.wait(100) == FORBIDDEN
    log = intruder.agent.text()
    (reason,) = [line for line in log.splitlines() if line.startswith("keylime_agent: error:")]
    assert "different TPM identity is forbidden" in reason
    assert "Traceback" not in log
    assert site.registration(rightful) == before
    assert attestation_key(before) == attestation_key(site.registration(rightful))
    site.await_passes(rightful)
