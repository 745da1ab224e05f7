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
from keylime.http.sources import source_prefixes
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisterRequest
from keylime.pki.der import read_certificate
from keylime.pki.ek import check_ek_certificate, trust_store
from keylime.tpm.keys import SignatureScheme
from keylime_registrar.activation import Proven
from keylime_registrar.identity import IdentityChanged, IdentityDemand, Registration, hash_tag, tag_hash
from keylime_registrar.refusals import TooManyRequests
from keylime_registrar.registrations import Clocks, RegistrationRules, Registrations
from keylime_registrar.schema import SCHEMA
from keylime_registrar.store import Origin, PendingLimits, Store
from keylime_registrar.throttle import Allowance, Throttle
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
    return answer.code == 400 and answer.status.startswith("Could not register agent with invalid data: ")


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


def test_r8_guessing_is_limited_and_locks_nobody_out(tmp_path: Path) -> None:
    """Also for an agent that shares its address with who guesses."""

    async def act(registrar: RunningRegistrar) -> None:
        async def guess(count: int) -> list[int]:
            answers = [await registrar.plain("PUT", PATH, {"auth_tag": f"{n:096x}"}) for n in range(count)]
            return [answer.code for answer in answers]

        registered = await registrar.plain("POST", PATH, victim().registration())
        assert await guess(8) == [400, 400, 400, 400, 400, 429, 429, 429]
        await registrar.plain("POST", PATH, victim().registration(ip="10.6.6.6"))
        assert await guess(2) == [429, 429], "another registration does not start the count anew"
        tag = victim().answer(registered.results["blob"], VICTIM)
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 200

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


def secret_in(answer: Answer) -> bytes:
    """What the victim's TPM finds in a registrar's answer."""
    return victim().open(base64.b64decode(answer.results["blob"]))


def test_r10_the_same_registration_is_challenged_afresh_after_each_proof(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        spent: list[tuple[bytes, str]] = []
        for _ in range(3):
            registered = await registrar.plain("POST", PATH, victim().registration())
            assert secret_in(registered) not in [secret for secret, _ in spent]
            for _, tag in spent:
                assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 400
            tag = victim().answer(registered.results["blob"], VICTIM)
            spent.append((secret_in(registered), tag))
            assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 200
        assert (await registrar.admin("GET", PATH)).results["regcount"] == 3
        assert (await registrar.admin("DELETE", PATH)).code == 200
        again = await registrar.plain("POST", PATH, victim().registration())
        assert secret_in(again) not in [secret for secret, _ in spent]
        for _, tag in spent:
            assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code in (400, 429)
        assert (await registrar.admin("GET", PATH)).code == 404

    with_registrar(tmp_path, act)


def test_r10_a_repeated_registration_leaves_the_one_under_way_valid(tmp_path: Path) -> None:
    async def act(registrar: RunningRegistrar) -> None:
        first = await registrar.plain("POST", PATH, victim().registration())
        others = [await registrar.plain("POST", PATH, victim().registration()) for _ in range(40)]
        assert {secret_in(other) for other in others} == {secret_in(first)}
        changed = await registrar.plain("POST", PATH, victim().registration(ip="10.0.0.9"))
        assert secret_in(changed) != secret_in(first)
        tag = victim().answer(first.results["blob"], VICTIM)
        assert (await registrar.plain("PUT", PATH, {"auth_tag": tag})).code == 200
        assert (await registrar.admin("GET", PATH)).results["ip"] is None

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
        tag = await added(store, waiting(VICTIM), "192.0.2.1", now)
        late = Registration(agent_id, attacker().ek_public, attacker().ak.tpm2b_public)
        other = await added(store, late, "192.0.2.66", now)
        assert await proves(store, VICTIM, tag, "192.0.2.1", now)
        with pytest.raises(IdentityChanged):
            await store.add_pending(late, origin("192.0.2.66"), now)
        assert not await proves(store, VICTIM, other, "192.0.2.66", now)
        active = await store.active(agent_id)
        assert active is not None
        assert (active.registration, active.regcount) == (waiting(VICTIM), 1)

    with_store(tmp_path, PendingLimits(), act)


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
    directory: Path,
    limits: PendingLimits,
    act: Callable[[Store, Registrations, SteppedClock], Awaitable[None]],
) -> None:
    async def scenario() -> None:
        database = open_database(parse_database_url("sqlite", work_dir=directory, sqlite_name="r.sqlite"))
        await prepare_schema(database, SCHEMA, migrate=True)
        store, clock = Store(database, limits), SteppedClock()
        rules = RegistrationRules(IdentityDemand.EK_CERT_OR_IAK_IDEVID, False, True, lambda: ())
        throttle = Throttle(Allowance(burst=0.0095, rate=0.001))
        registrations = Registrations(store, rules, throttle, Clocks(clock, clock, cpu=lambda: 0.0))
        try:
            await act(store, registrations, clock)
        finally:
            await database.close()

    asyncio.run(scenario())


def waiting(agent_id: str) -> Registration:
    return Registration(AgentId(agent_id), victim().ek_public, victim().ak.tpm2b_public)


def origin(address: str) -> Origin:
    return Origin.of(source_prefixes(address))


async def added(store: Store, registration: Registration, address: str, now: int) -> bytes:
    """The hash of the tag that a registration waits for from now on."""
    return tag_hash(await store.add_pending(registration, origin(address), now), registration.agent_id)


async def proves(store: Store, agent_id: str, tag: bytes, address: str, now: int) -> bool:
    outcome = (await store.activate(AgentId(agent_id), tag, origin(address), now)).outcome
    return isinstance(outcome, Proven)


def strangers_registration(agent_id: str, number: int) -> Registration:
    """What costs a stranger nothing: no TPM is behind it."""
    return Registration(AgentId(agent_id), b"EK %d" % number, b"AK %d" % number, mtls_cert="x" * 1000)


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

    with_store(tmp_path, PendingLimits(), act)


def test_r20_registrations_without_proof_are_listed_nowhere_and_expire(tmp_path: Path) -> None:
    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        tag = await added(store, waiting("a0"), "192.0.2.66", now)
        assert await store.agent_ids() == []
        assert await store.is_pending(AgentId("a0"), now + 59)
        assert not await store.is_pending(AgentId("a0"), now + 60)
        assert not await proves(store, "a0", tag, "192.0.2.66", now + 60)
        assert await added(store, waiting("a0"), "192.0.2.66", now + 61) != tag
        assert not await proves(store, "a0", tag, "192.0.2.66", now + 61)

    with_store(tmp_path, PendingLimits(lifetime_s=60), act)


def rows_in(directory: Path) -> list[tuple[str, str, int]]:
    connection = sqlite3.connect(directory / "r.sqlite")
    try:
        query = "SELECT agent_id, source, size FROM pending_registrations ORDER BY pending_id"
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_r20_a_flood_from_64_prefixes_is_bounded_and_displaces_itself_alone(tmp_path: Path) -> None:
    limits = PendingLimits(capacity=1 << 20)

    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        honest = {
            f"honest-{number}": await added(store, waiting(f"honest-{number}"), f"192.0.2.{number}", now)
            for number in range(3)
        }
        for number in range(1500):
            address = f"198.51.{number % 64}.{number % 7}"
            await added(store, strangers_registration(f"id-{number}", number), address, now + 1)
        assert sum(size for *_, size in rows_in(tmp_path)) <= limits.capacity * (1 + 1 / 32)
        newcomer = await added(store, waiting("newcomer"), "203.0.113.1", now + 2)
        for number in range(1500, 2000):
            address = f"198.51.{number % 64}.{number % 7}"
            await added(store, strangers_registration(f"id-{number}", number), address, now + 3)
        for agent_id, tag in honest.items():
            assert await proves(store, agent_id, tag, "192.0.2.1", now + 4)
        assert await proves(store, "newcomer", newcomer, "203.0.113.1", now + 4)

    with_store(tmp_path, limits, act)


def test_r20_r14_strangers_pile_up_registrations_of_one_id(tmp_path: Path) -> None:
    """With keys of their own, or with the agent's and every address there is."""
    limits = PendingLimits(per_agent=1 << 20)

    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        right = await added(store, waiting(VICTIM), "192.0.2.1", now)
        for number in range(1500):
            address = f"198.51.{number % 64}.1"
            copied = replace(waiting(VICTIM), ip=f"10.0.0.{number}") if number % 2 else waiting(VICTIM)
            other = strangers_registration(VICTIM, number)
            await added(store, other if number % 3 else copied, address, now + 1)
            if number % 50 == 0:
                assert not await proves(store, VICTIM, b"wrong", address, now + 1)
        assert sum(size for *_, size in rows_in(tmp_path)) <= limits.per_agent + limits.capacity // 32
        sources = [source for _, source, _ in rows_in(tmp_path)]
        assert max(map(sources.count, sources)) <= 32
        assert await proves(store, VICTIM, right, "192.0.2.1", now + 2)

    with_store(tmp_path, limits, act)


def test_r22_a_stranger_who_repeats_the_victims_own_words_shares_nothing_with_it(tmp_path: Path) -> None:
    """Neither its row, nor its secret, nor the wrong tags that he sends."""

    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        copied = await added(store, waiting(VICTIM), "192.0.2.66", now)
        right = await added(store, waiting(VICTIM), "192.0.2.1", now)
        assert copied != right
        for _ in range(50):
            assert not await proves(store, VICTIM, b"wrong", "192.0.2.66", now)
        assert await added(store, waiting(VICTIM), "192.0.2.1", now + 1) == right
        assert await proves(store, VICTIM, right, "192.0.2.1", now + 1)
        assert not await proves(store, VICTIM, copied, "192.0.2.66", now + 1), "ended by the proof"

    with_store(tmp_path, PendingLimits(), act)


def test_r20_a_registration_that_is_repeated_for_ever_gets_another_secret_in_time(tmp_path: Path) -> None:
    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now = int(clock())
        seen: list[bytes] = []
        for elapsed in range(0, 1800, 20):
            tag = await added(store, waiting(VICTIM), "192.0.2.1", now + elapsed)
            if tag not in seen:
                seen.append(tag)
            if elapsed >= 20:
                # The one before is valid until its own time is up.
                assert await store.is_pending(AgentId(VICTIM), now + elapsed + 599)
        assert len(seen) in (6, 7)
        assert not await proves(store, VICTIM, seen[0], "192.0.2.1", now + 1800)
        assert await proves(store, VICTIM, seen[-1], "192.0.2.1", now + 1800)

    with_store(tmp_path, PendingLimits(lifetime_s=600), act)


def test_r9_the_key_of_challenges_is_replaced_and_shown_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    def keys() -> list[tuple[int, bytes]]:
        connection = sqlite3.connect(tmp_path / "r.sqlite")
        try:
            query = "SELECT key_id, secret FROM challenge_keys ORDER BY key_id"
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    async def act(store: Store, _registrations: Registrations, clock: SteppedClock) -> None:
        now, day = int(clock()), 86_400
        assert keys() == []
        await added(store, waiting("a"), "192.0.2.1", now)
        first = keys()
        await added(store, waiting("b"), "192.0.2.1", now + day - 1)
        assert keys() == first
        under_way = await added(store, waiting("c"), "192.0.2.1", now + day - 1)
        await added(store, waiting("d"), "192.0.2.1", now + day)
        assert [key_id for key_id, _ in keys()] == [1, 2]
        assert await added(store, waiting("c"), "192.0.2.1", now + day) == under_way, "of the key before"
        assert await proves(store, "c", under_way, "192.0.2.1", now + day)
        await added(store, waiting("e"), "192.0.2.1", now + 2 * day)
        assert [key_id for key_id, _ in keys()] == [2, 3]
        assert len({secret for _, secret in (*first, *keys())}) == 3
        for _, secret in (*first, *keys()):
            assert len(secret) == 32
            for text in (secret.hex(), repr(secret), base64.b64encode(secret).decode()):
                assert text not in caplog.text

    with_store(tmp_path, PendingLimits(), act)


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
