"""What an attacker may try with shares, payloads and revocation messages at an agent."""

import asyncio
import io
import logging
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import CredentialError
from keylime.findings.finding import Finding
from keylime.messages.agent import UKeyRequest, VKeyRequest
from keylime.messages.revocation import SignedRevocation
from keylime.payload.archive import PayloadRefused, pack_archive
from keylime.payload.encryption import encrypt_payload
from keylime.payload.keys import DerivedKey, auth_tag, encrypt_share, split_key
from keylime.pki.certificates import encode_private_key, public_key_text
from keylime.revocation.message import RevocationKind, build_revocation
from keylime.revocation.signing import sign_revocation
from keylime_agent.payload import Bootstrap, PayloadOptions, PayloadWorker, install_payload
from keylime_agent.processes import child_environment
from keylime_agent.revocation import RevocationHandler
from keylime_agent.revocation_rules import Incarnation

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
OPTIONS = PayloadOptions(
    "derived_tci_key", "decrypted_payload", True, "autorun.sh", None, is_allowed=True, script_limit_s=10
)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Enrolment:
    """What tenant and verifier send for one K."""

    def __init__(
        self, key: rsa.RSAPrivateKey, *, agent_id: str = AGENT_ID, payload: str | None = "p"
    ) -> None:
        pem = public_key_text(key.public_key())
        shares = split_key()
        self.k = shares.k
        self.u = UKeyRequest(
            encrypted_key=encrypt_share(pem, shares.u), auth_tag=auth_tag(shares.k, agent_id), payload=payload
        )
        self.v = VKeyRequest(encrypt_share(pem, shares.v))


class Delivered(list[DerivedKey]):
    def bootstrap(self, key: rsa.RSAPrivateKey) -> Bootstrap:
        return Bootstrap(AGENT_ID, key, self.append)


def test_a_second_delivery_of_the_same_shares_never_runs_again(key: rsa.RSAPrivateKey) -> None:
    delivered = Delivered()
    bootstrap, first = delivered.bootstrap(key), Enrolment(key)
    for _ in range(3):
        bootstrap.add_u(first.u)
        bootstrap.add_v(first.v)
    assert [derived.k for derived in delivered] == [first.k]
    again = Enrolment(key)  # an administrator adds the agent anew
    bootstrap.add_v(again.v)
    bootstrap.add_u(again.u)
    assert [derived.k for derived in delivered] == [first.k, again.k]


def test_shares_that_do_not_fit_derive_nothing_and_do_not_block_the_right_ones(
    key: rsa.RSAPrivateKey,
) -> None:
    delivered = Delivered()
    bootstrap, right = delivered.bootstrap(key), Enrolment(key)
    for _ in range(50):  # more than are kept
        bootstrap.add_v(Enrolment(key).v)
        bootstrap.add_u(Enrolment(key).u)
    assert not delivered
    assert bootstrap.answer("challenge") is None
    bootstrap.add_u(right.u)
    bootstrap.add_v(right.v)
    assert [derived.k for derived in delivered] == [right.k]


def test_the_auth_tag_of_another_agent_derives_nothing(key: rsa.RSAPrivateKey) -> None:
    delivered = Delivered()
    bootstrap, other = delivered.bootstrap(key), Enrolment(key, agent_id="another")
    bootstrap.add_u(other.u)
    bootstrap.add_v(other.v)
    assert not delivered
    assert bootstrap.answer("challenge") is None


@pytest.mark.parametrize("text", ["", "!", "AAAA", "QUJD" * 100])
def test_garbage_instead_of_shares_is_refused(key: rsa.RSAPrivateKey, text: str) -> None:
    bootstrap = Delivered().bootstrap(key)
    with pytest.raises(CredentialError):
        bootstrap.add_v(VKeyRequest(text))
    with pytest.raises(CredentialError):
        bootstrap.add_u(UKeyRequest(encrypted_key=text, auth_tag="00" * 48))
    with pytest.raises(CredentialError):
        bootstrap.add_u(UKeyRequest(encrypted_key=Enrolment(key).u.encrypted_key, auth_tag="00" * 47))


def test_no_share_and_no_key_reaches_the_log(
    key: rsa.RSAPrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bootstrap, first = Delivered().bootstrap(key), Enrolment(key)
    bootstrap.add_u(first.u)
    bootstrap.add_v(first.v)
    for canary in (
        first.k.hex(),
        first.u.encrypted_key,
        first.u.auth_tag,
        first.v.encrypted_key,
        repr(first.k),
    ):
        assert canary not in caplog.text


# Payloads


def derived(data: bytes, alter: Callable[[str], str] = str) -> DerivedKey:
    k = split_key().k
    return DerivedKey(k, alter(encrypt_payload(k, data)))


@pytest.fixture
def unzipped(tmp_path: Path) -> Path:
    directory = tmp_path / "secure" / "unzipped"
    directory.mkdir(parents=True)
    (directory / "before").write_text("kept")
    return directory


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text[:8] + ("A" if text[8] != "A" else "B") + text[9:],
        lambda text: text[:-8] + "AAAAAAA=",
        lambda text: text[:20],
        lambda _: "",
        lambda _: "not base64",
    ],
)
def test_an_altered_ciphertext_writes_nothing(unzipped: Path, alter: Callable[[str], str]) -> None:
    with pytest.raises(CredentialError):
        install_payload(derived(pack_archive({"autorun.sh": b""}), alter), unzipped, OPTIONS)
    assert [path.name for path in unzipped.iterdir()] == ["before"]


def archive(*members: tuple[str, int], content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            file.writestr(info, content)
    return buffer.getvalue()


FILE = stat.S_IFREG | 0o600


@pytest.mark.parametrize(
    "data",
    [
        archive(("ok", FILE), ("../escaped", FILE)),
        archive(("ok", FILE), ("/escaped", FILE)),
        archive(("ok", FILE), ("link", stat.S_IFLNK | 0o777), content=b"/etc/passwd"),
        archive(("ok", FILE), ("device", stat.S_IFCHR | 0o600)),
        archive(("ok", FILE), ("pipe", stat.S_IFIFO | 0o600)),
        archive(("ok", FILE), ("derived_tci_key", FILE)),
        archive(*((f"f{number}", FILE) for number in range(5000))),
        archive(("bomb", FILE), content=bytes(64 << 20)),
        archive(("ok", FILE))[:-30],
    ],
    ids=["parent", "absolute", "link", "device", "pipe", "key-file", "many", "bomb", "truncated"],
)
def test_a_hostile_archive_is_refused_whole(unzipped: Path, data: bytes) -> None:
    with pytest.raises(PayloadRefused):
        install_payload(derived(data), unzipped, OPTIONS)
    assert list(unzipped.iterdir()) == []
    assert {path.name for path in unzipped.parent.parent.rglob("*")} == {"secure", "unzipped"}


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    (tmp_path / "unzipped").symlink_to(elsewhere)
    install_payload(derived(b"plain"), tmp_path / "unzipped", OPTIONS)
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert not (tmp_path / "unzipped").is_symlink()


def test_what_is_written_is_for_the_agents_user_only(unzipped: Path) -> None:
    installed = install_payload(derived(pack_archive({"autorun.sh": b"", "d/f": b""})), unzipped, OPTIONS)
    assert installed.script == unzipped / "autorun.sh"
    for path in (unzipped, *unzipped.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0


def test_only_the_script_with_the_fixed_name_runs_and_only_from_an_archive(unzipped: Path) -> None:
    assert install_payload(derived(b"#!/bin/sh\nexit\n"), unzipped, OPTIONS).script is None
    assert install_payload(derived(pack_archive({"other.sh": b""})), unzipped, OPTIONS).script is None
    nested = pack_archive({"d/autorun.sh": b""})
    assert install_payload(derived(nested), unzipped, OPTIONS).script is None


def work(tmp_path: Path, payload: DerivedKey, options: PayloadOptions = OPTIONS) -> list[str]:
    """Let a worker process one payload; whether it said that one is installed."""
    installed: list[str] = []

    async def measure(_pcr: int, _data: bytes) -> None:
        raise AssertionError("nobody asked to measure")

    async def scenario() -> None:
        environment = child_environment(AGENT_ID, tmp_path)
        worker = PayloadWorker(environment, tmp_path, options, measure, lambda: installed.append("installed"))
        task = asyncio.create_task(worker.run())
        worker.deliver(payload)
        await worker.settled()
        task.cancel()

    asyncio.run(scenario())
    return installed


def test_a_script_does_not_inherit_the_agents_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("KEYLIME_AGENT_SERVER_KEY_PASSWORD", "canary")
    work(tmp_path, derived(pack_archive({"autorun.sh": b"env > ../env\n"})))
    environment = (tmp_path / "env").read_text()
    assert f"AGENT_UUID={AGENT_ID}\n" in environment
    assert "canary" not in environment
    assert "LD_PRELOAD" not in environment


def test_an_endless_script_is_stopped_with_its_children(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = b"sleep 60 & echo $! > ../child; sleep 60\n"
    limited = replace(OPTIONS, script_limit_s=0.3)
    assert work(tmp_path, derived(pack_archive({"autorun.sh": script})), limited) == ["installed"]
    assert "payload script autorun.sh: stopped at its time limit" in caplog.text
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_without_mutual_tls_no_payload_is_processed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = derived(pack_archive({"autorun.sh": b"touch ../done\n"}))
    assert work(tmp_path, script, replace(OPTIONS, is_allowed=False)) == []
    assert "payload ignored" in caplog.text
    assert list(tmp_path.iterdir()) == []


# Revocation messages


def certificate(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RevocationNotifier")])
    now = datetime.now().astimezone()
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(2).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def signed(key: rsa.RSAPrivateKey, event_id: str = "ima.validation") -> SignedRevocation:
    message = build_revocation(
        RevocationKind.REVOCATION,
        agent_id=AGENT_ID,
        ip="10.0.0.7",
        port=9002,
        tpm_policy="{}",
        meta_data="{}",
        finding=Finding(event_id, {}, recoverable=False, explanation=""),
        severity_label="emergency",
        when=datetime(2026, 11, 22),  # noqa: DTZ001  the protocol's local time
    )
    return sign_revocation(message, encode_private_key(key, None).decode())


def acted_upon(certificate_path: Path, messages: list[SignedRevocation]) -> list[bytes]:
    documents: list[bytes] = []

    async def act(document: bytes) -> None:
        documents.append(document)

    async def scenario() -> None:
        me = Incarnation(AGENT_ID, None, bytes(16))
        handler = RevocationHandler(certificate_path, act, lambda: me)
        for message in messages:
            handler.receive(message)
        task = asyncio.create_task(handler.run())
        await handler.settled()
        task.cancel()

    asyncio.run(scenario())
    return documents


@pytest.fixture
def notifier(tmp_path: Path, key: rsa.RSAPrivateKey) -> Path:
    path = tmp_path / "RevocationNotifier-cert.crt"
    path.write_bytes(certificate(key))
    return path


def test_only_genuine_messages_are_acted_upon(
    notifier: Path, key: rsa.RSAPrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = signed(key)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forgeries = [
        SignedRevocation(genuine.msg, ""),
        SignedRevocation(genuine.msg, "!"),
        SignedRevocation(genuine.msg.replace("10.0.0.7", "10.0.0.8"), genuine.signature),
        SignedRevocation(genuine.msg + " ", genuine.signature),
        SignedRevocation("not json", genuine.signature),
        signed(stranger),
    ]
    assert acted_upon(notifier, forgeries) == []
    assert caplog.text.count("revocation message ignored") == len(forgeries)
    (document,) = acted_upon(notifier, [*forgeries, genuine])
    assert b'"type":"revocation"' in document


def test_a_replayed_message_is_acted_upon_once(notifier: Path, key: rsa.RSAPrivateKey) -> None:
    first, second = signed(key), signed(key, "measured_boot.invalid_pcr_0")
    assert len(acted_upon(notifier, [first, first, second, first, second])) == 2


def test_without_the_payloads_certificate_nothing_is_believed(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    assert acted_upon(tmp_path / "missing.crt", [signed(key)]) == []
    (tmp_path / "empty.crt").write_bytes(b"")
    assert acted_upon(tmp_path / "empty.crt", [signed(key)]) == []


def test_a_flood_of_garbage_is_bounded(notifier: Path, key: rsa.RSAPrivateKey) -> None:
    garbage = [SignedRevocation(f"{number}", "AAAA") for number in range(100_000)]
    assert acted_upon(notifier, garbage) == []
