"""IDevID and IAK: of a real software TPM, certified by a laboratory's CA, judged by the real registrar."""

import asyncio
import base64
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from tpm2_pytss.constants import ESYS_TR, TPMA_NV  # type: ignore[import-untyped]  # ships no types
from tpm2_pytss.ESAPI import ESAPI  # type: ignore[import-untyped]
from tpm2_pytss.types import (  # type: ignore[import-untyped]
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
)

from keylime.errors import ConfigError, TpmError
from keylime.hashes import HashAlgorithm
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisterRequest
from keylime.pki.der import read_certificate
from keylime.tpm.device import LoadedKey, Tpm
from keylime.tpm.device_key_templates import DEVICE_KEY_KINDS, DeviceKey, DeviceKeyKind, device_key_template
from keylime.tpm.keys import parse_device_key
from keylime.tpm.pcr import PcrSelection
from keylime.tpm.structures import parse_attest
from keylime_agent.device_identity import (
    DeviceIdentity,
    DeviceIdentityOptions,
    DeviceKeyOptions,
    load_device_identity,
)
from keylime_registrar.identity import IdentityDemand, RegistrationRefused, UnknownIssuer
from keylime_registrar.submission import read_submission
from tests.fakes.agent_process import AgentProcess
from tests.fakes.challenged import challenge
from tests.fakes.running_registrar import running_registrar
from tests.fakes.software_identity import b64
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls_material import Authority

AGENT_ID = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")
LAB = Authority("Laboratory device CA")
H2 = DEVICE_KEY_KINDS["H-2"]
IDEVID, IAK = DeviceKey.IDEVID, DeviceKey.IAK


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm"), with_ek_certificate=False) as tpm:
        yield tpm


@pytest.fixture
def tpm(machine: SoftwareTpm) -> Iterator[Tpm]:
    with Tpm.open(machine.tcti) as opened:
        yield opened


@dataclass(frozen=True)
class Keys:
    """What an agent has registered with before: EK and AK."""

    ek: LoadedKey
    ak: LoadedKey


@pytest.fixture
def keys(tpm: Tpm) -> Keys:
    ek = tpm.create_ek("ecc")
    return Keys(ek, tpm.load_ak(ek, tpm.create_ak(ek, "ecdsa", "ecc", HashAlgorithm.SHA256)))


def certified(tpm2b_public: bytes, name: str, authority: Authority = LAB) -> x509.Certificate:
    sample = authority.issue(name).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(sample.subject)
        .issuer_name(authority.name)
        .public_key(parse_device_key(tpm2b_public))
        .serial_number(x509.random_serial_number())
        .not_valid_before(sample.not_valid_before_utc)
        .not_valid_after(sample.not_valid_after_utc)
    )
    return builder.sign(authority.key, hashes.SHA256())


def manufacture(tpm: Tpm, directory: Path, kind: DeviceKeyKind, encoding: Encoding = Encoding.PEM) -> None:
    """What the device's maker does: certificates for the keys of a template."""
    for key in DeviceKey:
        with tpm.primary_key(device_key_template(key, kind), key.value) as loaded:
            certificate = certified(loaded.tpm2b_public, f"{key.value} of machine 1")
        (directory / f"{key.value.lower()}-cert.crt").write_bytes(certificate.public_bytes(encoding))


def options(directory: Path, kind: DeviceKeyKind | None = None, **changes: Any) -> DeviceIdentityOptions:
    idevid, iak = (DeviceKeyOptions(directory / f"{name}-cert.crt", False) for name in ("idevid", "iak"))
    return dataclasses.replace(DeviceIdentityOptions(kind, idevid, iak), **changes)


def judge(
    keys: Keys, device: DeviceIdentity, version: str, *, agent_id: str = AGENT_ID, authority: Authority = LAB
) -> None:
    """What the registrar says to a registration. Raises RegistrationRefused."""
    plain = RegisterRequest(ek_tpm=b64(keys.ek.tpm2b_public), aik_tpm=b64(keys.ak.tpm2b_public))
    submission = read_submission(AgentId(agent_id), device.added_to(plain, version))
    challenge(
        submission.registration,
        submission.certification,
        demanded=IdentityDemand.IAK_IDEVID,
        anchors=[read_certificate(authority.certificate.public_bytes(Encoding.DER))],
        secret=b"s" * 32,
    )


@contextmanager
def persistent(machine: SoftwareTpm, key: DeviceKey, kind: DeviceKeyKind, password: bytes) -> Iterator[int]:
    """The handle of a key that the device's maker left in the TPM."""
    handle = {IDEVID: 0x81020000, IAK: 0x81020001}[key]
    esapi = ESAPI(machine.tcti)
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=password))
    primary, *_ = esapi.create_primary(
        sensitive, device_key_template(key, kind), primary_handle=ESYS_TR.ENDORSEMENT
    )
    kept = esapi.evict_control(ESYS_TR.OWNER, primary, handle)
    esapi.flush_context(primary)
    esapi.close()
    yield handle
    esapi = ESAPI(machine.tcti)
    esapi.evict_control(ESYS_TR.OWNER, esapi.tr_from_tpmpublic(handle), handle)
    esapi.close()
    del kept


@contextmanager
def in_nv(machine: SoftwareTpm, contents: list[bytes]) -> Iterator[None]:
    """NV memory as a maker leaves it."""
    esapi = ESAPI(machine.tcti)
    attributes = TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
    indices = []
    for number, content in enumerate(contents):
        public = TPMS_NV_PUBLIC(
            nvIndex=0x01C90000 + number, nameAlg=0xB, attributes=attributes, dataSize=len(content)
        )
        index = esapi.nv_define_space(None, TPM2B_NV_PUBLIC(public))
        for start in range(0, len(content), 512):
            esapi.nv_write(index, content[start : start + 512], start, auth_handle=ESYS_TR.OWNER)
        indices.append(index)
    esapi.close()
    yield
    esapi = ESAPI(machine.tcti)
    for number in range(len(contents)):
        esapi.nv_undefine_space(esapi.tr_from_tpmpublic(0x01C90000 + number))
    esapi.close()


@pytest.mark.parametrize("template", ["H-1", "H-2", "H-3", "H-4"])
def test_each_template_gives_an_identity_that_the_registrar_takes(
    tpm: Tpm, keys: Keys, tmp_path: Path, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    manufacture(tpm, tmp_path, DEVICE_KEY_KINDS[template])
    with caplog.at_level(logging.INFO):
        detected = load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    assert "device identity: IDevID CN=IDevID of machine 1" in caplog.text
    for version in ("2.5", "2.6"):
        judge(keys, detected, version)
    if template != "H-1":  # RSA keys take their time
        named = load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path, DEVICE_KEY_KINDS[template]))
        assert (named.idevid_tpm, named.iak_tpm) == (detected.idevid_tpm, detected.iak_tpm)


def test_the_agent_id_is_certified_as_the_version_wants_it(tpm: Tpm, keys: Keys, tmp_path: Path) -> None:
    manufacture(tpm, tmp_path, H2, Encoding.DER)
    device = load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    digest = hashlib.sha256(AGENT_ID.encode()).digest()
    said = {
        version: parse_attest(
            base64.b64decode(device.added_to(RegisterRequest(), version).iak_attest or "")
        ).extra_data
        for version in ("2.1", "2.5", "2.6")
    }
    assert said == {"2.1": AGENT_ID.encode(), "2.5": AGENT_ID.encode(), "2.6": digest}
    longest = "a" * 80
    judge(keys, load_device_identity(tpm, keys.ak, longest, options(tmp_path)), "2.5", agent_id=longest)
    with pytest.raises(RegistrationRefused, match="not qualified with this agent's id"):
        judge(keys, device, "2.6", agent_id="another")


def test_an_unknown_maker_and_another_machines_ak_are_refused(tpm: Tpm, keys: Keys, tmp_path: Path) -> None:
    manufacture(tpm, tmp_path, H2)
    device = load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    with pytest.raises(UnknownIssuer, match="No Root CA matched IDevID Certificate"):
        judge(keys, device, "2.6", authority=Authority("Laboratory device CA"))
    another = tpm.create_ak(keys.ek, "ecdsa", "ecc", HashAlgorithm.SHA256)
    with pytest.raises(RegistrationRefused, match="another key than this AK"):
        judge(Keys(keys.ek, LoadedKey(another.tpm2b_public)), device, "2.6")


def test_nothing_stays_loaded(tpm: Tpm, keys: Keys, tmp_path: Path) -> None:
    manufacture(tpm, tmp_path, H2)
    for _ in range(4):  # the TPM has three slots
        load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    tpm.reopen()
    tpm.quote(keys.ak, PcrSelection(HashAlgorithm.SHA256, frozenset()), b"nonce", "key")


def test_persistent_keys_are_used_with_their_passwords(
    machine: SoftwareTpm, tpm: Tpm, keys: Keys, tmp_path: Path
) -> None:
    manufacture(tpm, tmp_path, H2)
    tpm.close()  # the simulator has one connection
    with persistent(machine, IDEVID, H2, b"one") as idevid, persistent(machine, IAK, H2, b"two") as iak:
        tpm.reopen()
        plain = options(tmp_path)
        stored = dataclasses.replace(
            plain,
            idevid=dataclasses.replace(plain.idevid, handle=idevid),
            iak=dataclasses.replace(plain.iak, handle=iak, authorisation=b"two"),
        )
        judge(keys, load_device_identity(tpm, keys.ak, AGENT_ID, stored), "2.6")
        without = dataclasses.replace(stored, iak=dataclasses.replace(stored.iak, authorisation=b""))
        with pytest.raises(TpmError, match="TPM2_Certify"):
            load_device_identity(tpm, keys.ak, AGENT_ID, without)
        swapped = dataclasses.replace(stored, iak=dataclasses.replace(stored.iak, handle=idevid))
        with pytest.raises(ConfigError, match=r"does not certify the IAK of handle 0x81020000.*iak_handle"):
            load_device_identity(tpm, keys.ak, AGENT_ID, swapped)
        tpm.close()
    tpm.reopen()
    with pytest.raises(TpmError, match=r"\[agent\] idevid_handle: there is no IDevID of handle 0x81020000"):
        load_device_identity(tpm, keys.ak, AGENT_ID, stored)


def test_certificates_in_nv_memory_are_found_whatever_lies_beside_them(
    machine: SoftwareTpm, tpm: Tpm, keys: Keys, tmp_path: Path
) -> None:
    manufacture(tpm, tmp_path, H2, Encoding.DER)
    others = [b"\x00" * 100, LAB.certificate.public_bytes(Encoding.DER)]
    stored = [(tmp_path / f"{name}-cert.crt").read_bytes() for name in ("iak", "idevid")]
    nowhere = options(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"none/idevid-cert.crt does not exist.*0x1c90000 to"):
        load_device_identity(tpm, keys.ak, AGENT_ID, nowhere)
    tpm.close()
    with in_nv(machine, [*others, stored[0] + b"\xff" * 200, stored[1]]):
        tpm.reopen()
        device = load_device_identity(tpm, keys.ak, AGENT_ID, nowhere)
        assert [device.iak_cert, device.idevid_cert] == stored
        judge(keys, device, "2.6")
        tpm.close()


def test_a_certificate_that_is_not_this_machines_is_named(tpm: Tpm, keys: Keys, tmp_path: Path) -> None:
    manufacture(tpm, tmp_path, H2)
    iak = tmp_path / "iak-cert.crt"
    iak.write_bytes(LAB.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigError, match=r"iak_cert: .* does not certify the IAK of template H-2"):
        load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    for content in (b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAA=\n-----END CERTIFICATE-----\n"):
        iak.write_bytes(content)
        with pytest.raises(ConfigError, match=r"iak_cert: .*iak-cert.crt: .*expected PEM or DER"):
            load_device_identity(tpm, keys.ak, AGENT_ID, options(tmp_path))
    missing = options(tmp_path, iak=DeviceKeyOptions(tmp_path / "gone.crt", must_exist=True))
    with pytest.raises(ConfigError, match=r"gone.crt cannot be read"):
        load_device_identity(tpm, keys.ak, AGENT_ID, missing)


def test_an_agent_registers_where_device_identities_are_demanded(
    machine: SoftwareTpm, tmp_path: Path
) -> None:
    work_dir, store = tmp_path / "agent", tmp_path / "registrar" / "tpm_cert_store"
    (work_dir / "cv_ca").mkdir(parents=True)
    store.mkdir(parents=True)
    LAB.write(work_dir / "cv_ca" / "cacert.crt")
    with Tpm.open(machine.tcti) as tpm:
        manufacture(tpm, work_dir, H2)
    environ = {"KEYLIME_REGISTRAR_TPM_IDENTITY": "iak_idevid", "KEYLIME_TENANT_TPM_CERT_STORE": str(store)}

    def agent(port: int, **options: object) -> AgentProcess:
        common = {"uuid": AGENT_ID, "tpm_encryption_alg": "ecc", "tpm_signing_alg": "ecdsa"}
        return AgentProcess(work_dir, machine.tcti, registrar_port=port, **common, **options)

    async def scenario() -> None:
        async with running_registrar(tmp_path / "registrar", environ) as registrar:
            async with agent(registrar.port) as without:
                await without.line("tpm_identity = iak_idevid demands IAK and IDevID")
            LAB.write(store / "lab.pem")
            async with agent(registrar.port, enable_iak_idevid=True) as with_identity:
                await with_identity.line("the registrar has verified IDevID and IAK")
                assert await with_identity.stop() == 0
                assert "Traceback" not in str(with_identity)
            listed = await registrar.admin("GET", "/v2.5/agents/")
            assert listed.results["uuids"] == [AGENT_ID]

    asyncio.run(asyncio.wait_for(scenario(), 90))
