"""Attacks on registration (catalogue R) against the real registrar: what attacker and operator see."""

import asyncio
import base64
import functools
import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.database.engine import parse_database_url
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import open_database
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisterRequest
from keylime.pki.der import read_certificate
from keylime.pki.ek import check_ek_certificate, trust_store
from keylime.tpm.keys import SignatureScheme
from keylime_registrar.activation import Proven
from keylime_registrar.identity import IdentityChanged, Registration, TpmIdentity, hash_tag
from keylime_registrar.registrations import Clocks, Registrations, Rules, TooManyRequests
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import Limits, Store, TooManyPending
from keylime_registrar.throttle import Throttle
from tests.fakes.running_registrar import Answer, RunningRegistrar, running_registrar
from tests.fakes.software_ak import AK_ATTRIBUTES, SoftwareAk
from tests.fakes.software_identity import SoftwareIdentity, b64, certify, certify_attest, name_of
from tests.fakes.tls_material import Authority, self_signed

VICTIM = "d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa"
PATH = f"/v2.5/agents/{VICTIM}"
VENDOR = Authority("vendor")


@functools.cache
def victim() -> SoftwareIdentity:
    return SoftwareIdentity()


@functools.cache
def attacker() -> SoftwareIdentity:
    return SoftwareIdentity()


def with_registrar(
    directory: Path, act: Callable[[RunningRegistrar], Awaitable[None]], **environ: str
) -> None:
    async def scenario() -> None:
        async with running_registrar(directory, environ) as registrar:
            await act(registrar)

    asyncio.run(scenario())


def with_active_victim(directory: Path, act: Callable[[RunningRegistrar], Awaitable[None]]) -> None:
    """Runs `act` beside an active victim, and asserts that the victim's record is the same afterwards."""

    async def guarded(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim(), ip="10.0.0.1", port=9002, mtls_cert=self_signed("victim").pem)
        before = await registrar.admin("GET", PATH)
        await act(registrar)
        assert await registrar.admin("GET", PATH) == before

    with_registrar(directory, guarded)


def refused(answer: Answer) -> bool:
    return (answer.code, answer.status) == (400, "Could not register agent with invalid data")


def test_r1_an_ek_beside_another_eks_certificate(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        body = attacker().registration(ekcert=b64(victim().ek_certificate(VENDOR)))
        assert refused(await registrar.plain("POST", PATH, body))
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": []}

    with_registrar(tmp_path, act)


def test_r2_a_certificate_that_nobody_known_has_issued_is_kept_and_vouches_for_nothing(
    tmp_path: Path,
) -> None:
    """Which makers are trusted is decided when an agent is added: see test_ek.py for all the bad chains."""
    certificate = victim().ek_certificate(Authority("nobody"))

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim(), ekcert=b64(certificate))
        shown = (await registrar.admin("GET", PATH)).results
        assert shown["ekcert"] == b64(certificate)
        kept = base64.b64decode(shown["ekcert"])
        known = trust_store([read_certificate(VENDOR.certificate.public_bytes(Encoding.DER))])
        now = datetime.now(UTC)
        assert not check_ek_certificate(kept, victim().ek.public_key(), known, now).trusted
        genuine = victim().ek_certificate(VENDOR)
        assert check_ek_certificate(genuine, victim().ek.public_key(), known, now).trusted

    with_registrar(tmp_path, act)


def test_r4_a_sloppy_ek_certificate_is_kept_as_it_is_or_refused_by_option(tmp_path: Path) -> None:
    padded = b64(victim().ek_certificate(VENDOR) + bytes(9))

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim(), ekcert=padded)
        assert (await registrar.admin("GET", PATH)).results["ekcert"] == padded

    async def strict(registrar: RunningRegistrar) -> None:
        assert refused(await registrar.plain("POST", PATH, victim().registration(ekcert=padded)))

    with_registrar(tmp_path / "a", act)
    with_registrar(tmp_path / "b", strict, KEYLIME_REGISTRAR_MALFORMED_CERT_ACTION="reject")


@pytest.mark.parametrize(
    "attributes", [AK_ATTRIBUTES & ~(1 << bit) for bit in (1, 4, 5, 6, 16, 18)] + [0x00070072]
)
def test_r6_an_ak_that_could_sign_anything_or_leave_its_tpm(tmp_path: Path, attributes: int) -> None:
    weak = replace(victim(), ak=replace(victim().ak, attributes=attributes))

    async def act(registrar: RunningRegistrar) -> None:
        assert refused(await registrar.plain("POST", PATH, weak.registration()))

    with_registrar(tmp_path, act)


def test_r7_an_ak_of_another_tpm_never_becomes_active(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        body = victim().registration(aik_tpm=b64(attacker().ak.tpm2b_public))
        registered = await registrar.plain("POST", PATH, body)
        # The victim's TPM does not hold that AK; the attacker's has another EK.
        for machine in (victim(), attacker()):
            with pytest.raises(ValueError, match=r"another key|[Dd]ecrypt"):
                machine.answer(registered.results["blob"], VICTIM)
        assert (await registrar.admin("GET", PATH)).code == 404

    with_registrar(tmp_path, act)


WRONG_TAGS = [
    "",
    "0" * 96,
    "a" * 95,
    "é" * 96,
    "\ud800",
    "0" * 300_000,
    " ",
    "null",
    "'; DROP TABLE registrations; --",
]


@pytest.mark.parametrize("tag", WRONG_TAGS)
def test_r8_wrong_tags_of_every_shape(tmp_path: Path, tag: str) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        answer = await registrar.plain("PUT", PATH, {"auth_tag": tag})
        assert answer.code == 400
        assert "deleted" not in str(answer.body)

    with_active_victim(tmp_path, act)


def test_r8_a_tag_that_is_too_long_or_no_text(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        assert (await registrar.plain("PUT", PATH, {"auth_tag": "0" * 1_000_000})).code == 413
        for body in ({"auth_tag": 5}, {"auth_tag": None}, {"auth_tag": ["0" * 96]}, {}):
            assert (await registrar.plain("PUT", PATH, body)).code == 400

    with_active_victim(tmp_path, act)


def test_r8_guessing_ends_with_the_registration(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        registered = await registrar.plain("POST", PATH, victim().registration())
        codes = [(await registrar.plain("PUT", PATH, {"auth_tag": f"{n:096x}"})).code for n in range(6)]
        assert codes == [400, 400, 400, 400, 400, 404]
        tag = victim().answer(registered.results["blob"], VICTIM)
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 404

    with_registrar(tmp_path, act)


def test_r9_no_answer_and_no_log_line_shows_the_expected_tag(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def act(registrar: RunningRegistrar) -> None:
        registered = await registrar.plain("POST", PATH, victim().registration())
        expected = victim().answer(registered.results["blob"], VICTIM)
        secret = base64.b64encode(victim().open(base64.b64decode(registered.results["blob"]))).decode()
        answers = [str(registered.body)]
        for tag in ("0" * 96, expected[:-1], expected.upper(), expected + "0"):
            answers.append(str((await registrar.plain("PUT", PATH, {"auth_tag": tag})).body))
        stored = (registrar.directory / "reg_data.sqlite").read_bytes()
        stored += (registrar.directory / "reg_data.sqlite-wal").read_bytes()
        for text in ("".join(answers), caplog.text, stored.decode("latin1")):
            assert expected not in text
            assert secret not in text
        assert hash_tag(expected) in stored  # that is where it would be

    with_registrar(tmp_path, act)


def test_r10_an_earlier_tag_is_no_proof_for_a_later_registration(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        first = await registrar.plain("POST", PATH, victim().registration(ip="10.0.0.1"))
        tag = victim().answer(first.results["blob"], VICTIM)
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 200
        second = await registrar.plain("POST", PATH, victim().registration(ip="10.6.6.6"))
        assert second.results["blob"] != first.results["blob"]
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 400
        assert (await registrar.admin("GET", PATH)).results["ip"] == "10.0.0.1"

    with_registrar(tmp_path, act)


def test_r11_another_tpm_under_an_active_id(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        answer = await registrar.plain("POST", PATH, attacker().registration())
        assert (answer.code, answer.status) == (
            403,
            "Agent re-registration with different TPM identity is forbidden for security reasons",
        )

    with_active_victim(tmp_path, act)


def test_r11_another_tpm_that_was_pending_before_the_id_became_active(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        pending = await registrar.plain("POST", PATH, attacker().registration())
        await registrar.enrol(VICTIM, victim())
        tag = attacker().answer(pending.results["blob"], VICTIM)
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 400
        assert (await registrar.admin("GET", PATH)).results["ek_tpm"] == b64(victim().ek_public)

    with_registrar(tmp_path, act)


def test_r12_a_new_ak_needs_the_administrator(tmp_path: Path) -> None:
    renewed = replace(victim(), ak=SoftwareAk.generate("ecc256", SignatureScheme.ECDSA))

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim())
        assert (await registrar.plain("POST", PATH, renewed.registration())).code == 403
        assert (await registrar.admin("DELETE", PATH)).code == 200
        await registrar.enrol(VICTIM, renewed)

    with_registrar(tmp_path, act)


def test_r13_one_tpm_under_many_ids_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol("first", victim())
        await registrar.enrol("second", victim())

    with_registrar(tmp_path, act)
    assert "agent second has the TPM of first as well" in caplog.text


def test_r14_registrations_of_one_id_at_the_same_time_never_mix(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        machines = {"10.0.0.1": victim(), "10.0.0.2": attacker()}

        async def one(ip: str) -> int:
            registered = await registrar.plain("POST", PATH, machines[ip].registration(ip=ip))
            if registered.code != 200:
                return registered.code
            tag = machines[ip].answer(registered.results["blob"], VICTIM)
            return (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code

        codes = await asyncio.gather(*(one(ip) for ip in machines))
        assert sorted(codes)[0] == 200
        assert all(code in (400, 403) for code in sorted(codes)[1:])
        winner = (await registrar.admin("GET", PATH)).results
        machine = machines[winner["ip"]]
        assert winner["ek_tpm"] == b64(machine.ek_public)
        assert winner["aik_tpm"] == b64(machine.ak.tpm2b_public)

    with_registrar(tmp_path, act)


def test_r14_a_registration_judged_before_another_tpm_became_active(tmp_path: Path) -> None:
    """The other TPM proves itself after the check and before the insertion of this one."""

    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now, agent_id = int(clock()), AgentId(VICTIM)
        await store.add_pending(waiting(VICTIM), b"victim", "192.0.2.1", now)
        assert isinstance((await store.activate(agent_id, b"victim", "192.0.2.1", now)).outcome, Proven)
        late = Registration(agent_id, attacker().ek_public, attacker().ak.tpm2b_public)
        await store.add_pending(late, b"attacker", "192.0.2.66", now)
        with pytest.raises(IdentityChanged):
            await store.activate(agent_id, b"attacker", "192.0.2.66", now)
        active = await store.active(agent_id)
        assert active is not None
        assert (active.registration, active.regcount) == (waiting(VICTIM), 1)

    with_store(tmp_path, Limits(), act)


def test_r15_failed_activations_of_an_active_agent_followed_by_a_takeover(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        for number in range(20):
            assert (await registrar.plain("PUT", PATH, {"auth_tag": f"{number:096x}"})).code == 400
        assert (await registrar.plain("POST", PATH, attacker().registration())).code == 403

    with_active_victim(tmp_path, act)


def device_identity(tmp_path: Path) -> dict[str, str]:
    """IAK and IDevID of a genuine device, whose vendor the operator trusts."""
    store = tmp_path / "tpm_cert_store"
    store.mkdir(parents=True, exist_ok=True)
    VENDOR.write(store / "vendor.pem")
    iak, idevid = device_key("IAK"), device_key("IDevID")
    certificates = [
        certify(VENDOR, public_key(key), "device").public_bytes(Encoding.DER) for key in (iak, idevid)
    ]
    return {
        "iak_tpm": b64(iak.tpm2b_public),
        "iak_cert": b64(certificates[0]),
        "idevid_tpm": b64(idevid.tpm2b_public),
        "idevid_cert": b64(certificates[1]),
    }


@functools.cache
def device_key(_name: str) -> SoftwareAk:
    return SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)


def public_key(key: SoftwareAk) -> RSAPublicKey:
    public = key.private_key.public_key()
    assert isinstance(public, RSAPublicKey)
    return public


def certified(ak: SoftwareAk, agent_id: str) -> dict[str, str]:
    attest = certify_attest(name_of(ak.tpm2b_public), hashlib.sha256(agent_id.encode()).digest())
    return {"iak_attest": b64(attest), "iak_sign": b64(device_key("IAK").sign(attest))}


def store_option(tmp_path: Path) -> dict[str, str]:
    return {"KEYLIME_TENANT_TPM_CERT_STORE": str(tmp_path / "tpm_cert_store")}


def test_r16_a_device_identity_of_another_device_or_for_another_ak_or_id(tmp_path: Path) -> None:
    device = device_identity(tmp_path)

    async def act(registrar: RunningRegistrar) -> None:
        for proof in (
            certified(victim().ak, VICTIM),
            certified(attacker().ak, "another-id"),
            {},
            {**certified(attacker().ak, VICTIM), "iak_sign": b64(bytes(262))},
        ):
            assert refused(await registrar.plain("POST", PATH, attacker().registration(**device, **proof)))
        good = certified(victim().ak, VICTIM)
        await registrar.enrol(VICTIM, victim(), **device, **good)

    with_registrar(tmp_path, act, **store_option(tmp_path), KEYLIME_REGISTRAR_TPM_IDENTITY="iak_idevid")


def test_r16_a_device_identity_of_an_unknown_vendor(tmp_path: Path) -> None:
    device = device_identity(tmp_path)
    (tmp_path / "tpm_cert_store" / "vendor.pem").unlink()
    Authority("vendor").write(tmp_path / "tpm_cert_store" / "vendor.pem")

    async def act(registrar: RunningRegistrar) -> None:
        body = victim().registration(**device, **certified(victim().ak, VICTIM))
        assert refused(await registrar.plain("POST", PATH, body))

    with_registrar(tmp_path, act, **store_option(tmp_path))


def test_r16_without_a_store_no_device_identity_is_accepted(tmp_path: Path) -> None:
    device = device_identity(tmp_path / "elsewhere")

    async def act(registrar: RunningRegistrar) -> None:
        body = victim().registration(**device, **certified(victim().ak, VICTIM))
        assert refused(await registrar.plain("POST", PATH, body))

    with_registrar(tmp_path, act, **store_option(tmp_path))


def test_r17_an_id_that_is_the_hash_of_another_ek(tmp_path: Path) -> None:
    own = hashlib.sha256(victim().ek_pem.encode()).hexdigest()

    async def act(registrar: RunningRegistrar) -> None:
        assert refused(await registrar.plain("POST", f"/v2/agents/{own}", attacker().registration()))
        await registrar.enrol(own, victim())

    with_registrar(tmp_path, act)


def test_r22_a_stranger_registers_the_victims_public_keys_with_his_own_address(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        body = victim().registration(ip="10.6.6.6", port=666, mtls_cert=self_signed("evil").pem)
        assert (await registrar.plain("POST", PATH, body)).code == 200
        assert (await registrar.plain("PUT", PATH, {"auth_tag": "0" * 96})).code == 400
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": [VICTIM]}

    with_active_victim(tmp_path, act)


def test_r23_only_the_device_identity_changes_without_a_new_certification(tmp_path: Path) -> None:
    device = device_identity(tmp_path)

    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim())
        assert refused(await registrar.plain("POST", PATH, victim().registration(**device)))

    with_registrar(tmp_path, act, **store_option(tmp_path))


class SteppedClock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def with_store(
    directory: Path, limits: Limits, act: Callable[[Store, Registrations, SteppedClock], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url("sqlite", work_dir=directory, sqlite_name="r.sqlite"))
        await prepare_schema(database, SCHEMA, migrate=True)
        store, clock = Store(database, limits), SteppedClock()
        rules = Rules(TpmIdentity.EK_CERT_OR_IAK_IDEVID, False, True, lambda: ())
        registrations = Registrations(store, rules, Throttle(rate=1.0, burst=10), Clocks(clock, clock))
        try:
            await act(store, registrations, clock)
        finally:
            await database.close()

    asyncio.run(scenario())


def waiting(agent_id: str) -> Registration:
    return Registration(AgentId(agent_id), victim().ek_public, victim().ak.tpm2b_public)


def test_r20_an_address_that_floods_is_slowed_down_alone(tmp_path: Path) -> None:
    async def act(_store: Store, registrations: Registrations, clock: SteppedClock) -> None:
        request = msgspec.convert(victim().registration(), RegisterRequest)
        for number in range(10):
            await registrations.register(AgentId(f"flood-{number}"), request, "192.0.2.66")
        with pytest.raises(TooManyRequests):
            await registrations.register(AgentId("flood"), request, "192.0.2.66")
        await registrations.register(AgentId("honest"), request, "192.0.2.1")
        clock.now += 2
        await registrations.register(AgentId("later"), request, "192.0.2.66")

    with_store(tmp_path, Limits(), act)


def test_r20_registrations_without_proof_are_bounded_and_expire(tmp_path: Path) -> None:
    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        for number in range(3):
            await store.add_pending(waiting(f"a{number}"), b"t", "192.0.2.66", now)
        with pytest.raises(TooManyPending, match=r"192\.0\.2\.66"):
            await store.add_pending(waiting("a9"), b"t", "192.0.2.66", now)
        for number in range(2):
            await store.add_pending(waiting(f"b{number}"), b"t", "192.0.2.1", now)
        with pytest.raises(TooManyPending):
            await store.add_pending(waiting("c"), b"t", "192.0.2.2", now)
        assert len(await store.agent_ids(now)) == 5
        later = now + 61
        assert await store.agent_ids(later) == []
        assert not isinstance(
            (await store.activate(AgentId("a0"), b"t", "192.0.2.66", later)).outcome, Proven
        )
        await store.add_pending(waiting("c"), b"t", "192.0.2.66", later)

    with_store(tmp_path, Limits(lifetime_s=60, per_source=3, total=5), act)


def test_r20_strangers_do_not_displace_an_agents_own_registration(tmp_path: Path) -> None:
    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        await store.add_pending(waiting(VICTIM), b"right", "192.0.2.1", now)
        for number in range(50):
            await store.add_pending(waiting(VICTIM), b"%d" % number, "192.0.2.66", now)
        for _ in range(50):
            await store.activate(AgentId(VICTIM), b"wrong", "192.0.2.66", now)
        assert isinstance((await store.activate(AgentId(VICTIM), b"right", "192.0.2.1", now)).outcome, Proven)

    with_store(tmp_path, Limits(), act)


def test_s11_one_bad_row_neither_stops_the_list_nor_passes_for_an_agent(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol("good", victim())
        await registrar.enrol("bad", attacker())
        with sqlite3.connect(tmp_path / "reg_data.sqlite") as connection:
            connection.execute(
                "UPDATE registrations SET ek_tpm = 7, regcount = 'many' WHERE agent_id = 'bad'"
            )
        connection.close()
        assert (await registrar.admin("GET", "/v2/agents")).results == {"uuids": ["bad", "good"]}
        assert (await registrar.admin("GET", "/v2/agents/good")).code == 200
        assert (await registrar.admin("GET", "/v2/agents/bad")).code == 500
        assert (await registrar.admin("DELETE", "/v2/agents/bad")).code == 200

    with_registrar(tmp_path, act)


def test_s2_a_database_that_is_gone_is_said_so_and_recovers(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        await registrar.enrol(VICTIM, victim())
        with sqlite3.connect(tmp_path / "reg_data.sqlite") as connection:
            connection.execute("ALTER TABLE registrations RENAME TO hidden")
        for answer in (
            await registrar.admin("GET", PATH),
            await registrar.plain("POST", PATH, victim().registration()),
        ):
            assert (answer.code, answer.status) == (503, "The database is not available, try again later")
        with connection:
            connection.execute("ALTER TABLE hidden RENAME TO registrations")
        connection.close()
        assert (await registrar.admin("GET", PATH)).code == 200

    with_registrar(tmp_path, act)
