"""Agents of an earlier Keylime as they are kept here: an old row in, a record or an objection out. Pure.

Where the earlier verifier stood in the IMA list stays behind: the first round judges the list from its
beginning, by our rules, which costs one long answer and takes nothing on trust. What an agent is held to is
never weakened: without a policy that it needs it is not taken.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from msgspec.structs import replace

from keylime.errors import CredentialError, KeylimeError, PolicyError
from keylime.identifiers import AgentId, parse_agent_id
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.messages.verifier import OperationalState
from keylime.messages.versions import SUPPORTED_VERSIONS
from keylime.pki.agent_certificate import DISABLED
from keylime.pki.certificates import certificate_text, parse_certificate, parse_private_key
from keylime.takeover.report import Fate, Item, ItemKind
from keylime.takeover.values import NotTakenOver, Row, json_of, number_of, shown, sound, text_of
from keylime.tpm.pcr import IMA_PCR
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agents.records import Enrolment, Progress, Secrets
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.api.enrolment import HOST
from keylime_verifier.policies.demands import CompileBootPolicy, decode_attestation_key, tenant_keyring
from keylime_verifier.takeover.policies import OldPolicy, convert_boot, convert_runtime, mended_keyring

_SHARES = (16, 32)
_HIGHEST_PORT = 65535
_LONGEST_VERIFIER_ID = 100
_WIDEST_WORD = 16
_WIDEST_EVENT = 255
_NONE_TEXTS = ("[]", "null", "{}")
_POLLED = {
    OperationalState.START: OperationalState.START,
    OperationalState.SAVED: OperationalState.START,
    OperationalState.GET_QUOTE: OperationalState.GET_QUOTE,
    OperationalState.GET_QUOTE_RETRY: OperationalState.GET_QUOTE,
    # V follows the first pass.
    OperationalState.PROVIDE_V: OperationalState.GET_QUOTE,
    OperationalState.PROVIDE_V_RETRY: OperationalState.GET_QUOTE,
}
_OWED_V = (OperationalState.PROVIDE_V, OperationalState.PROVIDE_V_RETRY)
_DEFAULT_ALGORITHMS = {
    "accept_tpm_hash_algs": ("sha512", "sha384", "sha256"),
    "accept_tpm_encryption_algs": ("ecc", "rsa"),
    "accept_tpm_signing_algs": ("ecdsa", "ecschnorr", "rsassa", "rsapss"),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Registered:
    """What the earlier registrar knows of an agent, for rows from before the verifier kept it itself."""

    aik_tpm: str | None
    mtls_cert: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverRules:
    """What our own configuration says."""

    verifier_id: VerifierId
    verifier_ip: str
    verifier_port: int
    asks_silent_agents_on: bool
    compile_boot_policy: CompileBootPolicy


@dataclass(frozen=True, slots=True)
class RowContext:
    """What rows are read with: policies by their ids, registrations by agent, and our rules."""

    runtime: Mapping[int, OldPolicy]
    boot: Mapping[int, OldPolicy]
    registered: Mapping[str, Registered]
    rules: TakeoverRules


@dataclass(frozen=True, slots=True)
class OldAgent:
    """An agent to take. `own` has the texts of the policies that bear its name, by kind."""

    enrolment: Enrolment
    secrets: Secrets
    progress: Progress
    own_runtime: str | None = None
    own_boot: str | None = None


@dataclass(frozen=True, slots=True)
class AgentProposal:
    """An old row: what is said about it, and the agent to take, if any."""

    item: Item
    agent: OldAgent | None = None


def convert(row: Row, around: RowContext) -> AgentProposal:
    """The agent that a row stands for, or why it is not taken."""
    value = row.get("agent_id")
    name = value if isinstance(value, str) else shown(value)
    try:
        name = parse_agent_id(text_of(row, "agent_id") or "")
    except KeylimeError as error:
        remedy = "give the agent another uuid in its agent.conf, and add it by that"
        return AgentProposal(Item(ItemKind.AGENT, name, Fate.NOT_TAKEN, (f"{error}; {remedy}",)))
    reader = _Reader(row, around, AgentId(name))
    try:
        agent = reader.agent()
    except _Gone as reason:
        return AgentProposal(Item(ItemKind.AGENT, name, Fate.NOT_TAKEN, (str(reason),)))
    except (KeylimeError, RecursionError) as error:
        remedy = f"add it anew: `keylime_tenant -c add -u {name}`"
        return AgentProposal(Item(ItemKind.AGENT, name, Fate.NOT_TAKEN, (f"{error}; {remedy}",)))
    return AgentProposal(Item.of(ItemKind.AGENT, name, reader.remarks), agent)


class _Gone(Exception):
    """A row that is left behind on purpose; the text says why."""


@dataclass(slots=True)
class _Reader:
    row: Row
    around: RowContext
    agent_id: AgentId
    remarks: list[str] = field(default_factory=list)

    def agent(self) -> OldAgent:
        state = self._state()
        ip, port = self._address()
        policy = self._tpm_policy()
        runtime, own_runtime = self._runtime(uses_ima=bool(TpmPolicy.from_wire(policy).mask >> IMA_PCR & 1))
        boot, own_boot = self._boot()
        secrets = Secrets(self._kept("v", self._share), self._kept("revocation_key", self._key) or "")
        enrolment = Enrolment(
            agent_id=self.agent_id,
            ip=ip,
            port=port,
            mtls_cert=self._certificate(),
            ak_tpm=self._attestation_key(),
            verifier_id=self._verifier_id(),
            verifier_ip=self._kept("verifier_ip", self._verifier_ip) or self.around.rules.verifier_ip,
            verifier_port=self._kept("verifier_port", self._verifier_port) or self.around.rules.verifier_port,
            has_v=secrets.v is not None,
            meta_data=self._kept("meta_data", self._meta_data) or "{}",
            tpm_policy=policy,
            runtime_policy=runtime,
            measured_boot_policy=boot,
            ima_sign_verification_keys=self._keyring(),
            accept_tpm_hash_algs=self._algorithms("accept_tpm_hash_algs"),
            accept_tpm_encryption_algs=self._algorithms("accept_tpm_encryption_algs"),
            accept_tpm_signing_algs=self._algorithms("accept_tpm_signing_algs"),
        )
        return OldAgent(enrolment, secrets, self._progress(state, secrets), own_runtime, own_boot)

    def _kept(self, column: str, read: Callable[[], T | None]) -> T | None:
        """What can be read of a column that an agent can do without."""
        try:
            return read()
        except KeylimeError as error:
            text = str(error)
            about = text if text.startswith(column) else f"{column}: {text}"
            self.remarks.append(f"{about}, and is left out")
            return None

    def _state(self) -> OperationalState:
        try:
            number = number_of(self.row, "operational_state")
            state = None if number is None else OperationalState(number)
        except (NotTakenOver, ValueError):
            state = None
        if state is None:
            found = shown(self.row.get("operational_state"))
            self.remarks.append(
                f"operational_state is {found}, and is taken for {OperationalState.FAILED.value}"
            )
            return OperationalState.FAILED
        if state is OperationalState.TERMINATED:
            raise _Gone("its deletion was under way (operational_state 8), and is complete with this")
        if state is OperationalState.REGISTERED:
            self.remarks.append(
                "it was never attested (operational_state 0), and is not until "
                f"`keylime_tenant -c reactivate -u {self.agent_id}`"
            )
        return state

    def _address(self) -> tuple[str, int]:
        ip, port = text_of(self.row, "ip"), number_of(self.row, "port", most=2**63)
        if ip is None and port is None:
            raise NotTakenOver("it has no address, because it attests by itself (push model)")
        if ip is None or not HOST.fullmatch(ip):
            raise NotTakenOver("ip is missing" if ip is None else "ip is not an address or host name")
        if port is None or not 0 < port <= _HIGHEST_PORT:
            raise NotTakenOver("port is missing" if port is None else f"port is {port}: expected 1 to 65535")
        return ip, port

    def _tpm_policy(self) -> str:
        document = json_of(self.row, "tpm_policy")
        inner = sound(document, "tpm_policy") if isinstance(document, str) else None
        text = text_of(self.row, "tpm_policy") if inner is None else inner
        if document is None or not text or not text.strip():
            return "{}"
        try:
            TpmPolicy.from_wire(text)
        except PolicyError as error:
            mended = _mended_tpm_policy(text)
            if mended is None:
                raise
            TpmPolicy.from_wire(mended)
            self.remarks.append(f"{error}: mended")
            return mended
        return text

    def _runtime(self, *, uses_ima: bool) -> tuple[str, str | None]:
        """The name of its runtime policy, and the text when the policy is its own."""
        policy = self._runtime_row()
        if not uses_ima:
            # PCR 10 was not quoted, so that nothing was judged by the policy.
            if policy is not None and policy.demands_ima and policy.name != self.agent_id:
                self.remarks.append(
                    f"its TPM policy leaves out PCR 10, so that the runtime policy {shown(policy.name)} was "
                    "never applied: it has none"
                )
            return self.agent_id, EMPTY_POLICY
        if policy is None or (policy.text is None and policy.problem is None):
            raise NotTakenOver("its TPM policy demands PCR 10, but its runtime policy is missing or empty")
        if policy.text is None:
            raise NotTakenOver(f"its runtime policy {shown(policy.name)} is not taken: {policy.problem}")
        return policy.name, policy.text if policy.name == self.agent_id else None

    def _runtime_row(self) -> OldPolicy | None:
        number = number_of(self.row, "ima_policy_id", most=2**63 - 1)
        if number is not None:
            return self.around.runtime.get(number)
        text = text_of(self.row, "allowlist") or text_of(self.row, "ima_whitelist")
        if text is None:
            return None
        try:
            converted, demands_ima, _ = convert_runtime(text)
        except PolicyError as error:
            return OldPolicy(self.agent_id, problem=str(error))
        return OldPolicy(self.agent_id, converted, demands_ima=demands_ima)

    def _boot(self) -> tuple[str | None, str | None]:
        """The name of its reference state, and the text when that is its own."""
        number = number_of(self.row, "mb_policy_id", most=2**63 - 1)
        if number is None:
            text = convert_boot(text_of(self.row, "mb_refstate"), self.around.rules.compile_boot_policy)
            policy = OldPolicy(self.agent_id, text)
        elif number in self.around.boot:
            policy = self.around.boot[number]
        else:
            raise NotTakenOver(f"its measured boot policy (id {number}) is missing")
        if policy.problem is not None:
            raise NotTakenOver(
                f"its measured boot policy {shown(policy.name)} is not taken: {policy.problem}"
            )
        if policy.text is None:
            return None, None
        if not json.loads(policy.text):
            self.remarks.append(
                "its reference state is empty: its boot log is replayed against the quoted PCRs from now on"
            )
        return policy.name, policy.text if policy.name == self.agent_id else None

    def _attestation_key(self) -> str:
        registered = self.around.registered.get(self.agent_id)
        known = None if registered is None else registered.aik_tpm
        key = text_of(self.row, "ak_tpm")
        if key is None:
            if known is None:
                raise NotTakenOver("ak_tpm is missing, here and at the registrar")
            self.remarks.append("ak_tpm is missing, and is taken from the registrar")
            key = known
        elif known is not None and "".join(known.split()) != "".join(key.split()):
            self.remarks.append(
                "the registrar has another AK: it has registered anew, and fails until it is added anew"
            )
        key = "".join(key.split())
        try:
            decode_attestation_key(key)
        except KeylimeError as error:
            raise NotTakenOver(f"ak_tpm cannot be used: {error}") from error
        return key

    def _certificate(self) -> str | None:
        text = text_of(self.row, "mtls_cert")
        if text is None:
            registered = self.around.registered.get(self.agent_id)
            text = None if registered is None else registered.mtls_cert
        if text is None or text == DISABLED:
            return text
        if "-----BEGIN" in text:
            _certificate_of(text.encode())
            return text
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise NotTakenOver("mtls_cert is neither PEM nor base64") from error
        return _certificate_of(data)

    def _verifier_id(self) -> VerifierId:
        found = VerifierId(text_of(self.row, "verifier_id") or self.around.rules.verifier_id)
        if len(found) > _LONGEST_VERIFIER_ID:
            raise NotTakenOver(f"verifier_id is longer than {_LONGEST_VERIFIER_ID} characters")
        if found != self.around.rules.verifier_id:
            self.remarks.append(
                f"it belongs to the verifier {shown(found)}, and is attested by verifiers with this uuid only"
            )
        return found

    def _verifier_ip(self) -> str | None:
        ip = text_of(self.row, "verifier_ip")
        if ip is not None and not HOST.fullmatch(ip):
            raise NotTakenOver("verifier_ip is not an address or host name")
        return ip

    def _verifier_port(self) -> int | None:
        return number_of(self.row, "verifier_port", least=1, most=_HIGHEST_PORT)

    def _share(self) -> str | None:
        text = text_of(self.row, "v")
        if text is None:
            return None
        try:
            size = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise NotTakenOver("v is not base64") from error
        if size not in _SHARES:
            raise NotTakenOver("v is not the share of a key")
        return text

    def _key(self) -> str | None:
        text = text_of(self.row, "revocation_key")
        if text is None:
            return None
        try:
            key = parse_private_key(text.encode(), None)
        except CredentialError as error:
            raise NotTakenOver("revocation_key is not an unencrypted PEM private key") from error
        if not isinstance(key, RSAPrivateKey):
            raise NotTakenOver("revocation_key is not an RSA key")
        return text

    def _meta_data(self) -> str | None:
        json_of(self.row, "meta_data")
        return text_of(self.row, "meta_data")

    def _keyring(self) -> str:
        text = (text_of(self.row, "ima_sign_verification_keys") or "").strip()
        if text in ("", *_NONE_TEXTS):
            return ""
        mended = mended_keyring(text)
        try:
            tenant_keyring(mended)
        except PolicyError as error:
            raise NotTakenOver(f"ima_sign_verification_keys: {error}") from error
        return mended

    def _algorithms(self, column: str) -> tuple[str, ...]:
        found = self._kept(column, lambda: json_of(self.row, column))
        if isinstance(found, str) and found.strip():
            found = [word.strip() for word in found.split(",") if word.strip()]
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return tuple(sound(word, column) for word in found)
        default = _DEFAULT_ALGORITHMS[column]
        self.remarks.append(f"{column} is missing, and becomes {', '.join(default)}")
        return default

    def _progress(self, state: OperationalState, secrets: Secrets) -> Progress:
        version = self._kept("supported_version", lambda: text_of(self.row, "supported_version"))
        last_event = self._kept("last_event_id", lambda: text_of(self.row, "last_event_id"))
        progress = Progress(
            operational_state=_POLLED.get(state, state),
            is_polled=state in _POLLED
            or (state is OperationalState.FAILED and self.around.rules.asks_silent_agents_on),
            # Agents that were attested may only rise: one of which nothing is known begins at the bottom.
            supported_version=version if version in SUPPORTED_VERSIONS else SUPPORTED_VERSIONS[0],
            severity_level=self._kept("severity_level", lambda: number_of(self.row, "severity_level")),
            last_event_id=None if last_event is None else last_event[:_WIDEST_EVENT],
            attestation_count=self._count("attestation_count"),
            last_received_quote=self._count("last_received_quote"),
            last_successful_attestation=self._count("last_successful_attestation"),
            hash_alg=self._word("hash_alg"),
            enc_alg=self._word("enc_alg"),
            sign_alg=self._word("sign_alg"),
        )
        has_v_already = secrets.v is not None and state not in _OWED_V and progress.attestation_count > 0
        public_key = self._kept("public_key", lambda: text_of(self.row, "public_key"))
        return replace(progress, v_delivered_to=public_key if has_v_already else None)

    def _count(self, column: str) -> int:
        return self._kept(column, lambda: number_of(self.row, column)) or 0

    def _word(self, column: str) -> str:
        return (self._kept(column, lambda: text_of(self.row, column)) or "")[:_WIDEST_WORD]


def _certificate_of(data: bytes) -> str:
    try:
        return certificate_text(parse_certificate(data))
    except CredentialError as error:
        raise NotTakenOver(f"mtls_cert: {error}") from error


def _mended_tpm_policy(text: str) -> str | None:
    """A TPM policy in the spelling of today: without 0x before digests, the mask as hex text."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    mended: dict[str, object] = {}
    for key, value in document.items():
        if key == "mask":
            is_number = isinstance(value, int) and not isinstance(value, bool)
            mended[key] = hex(value) if is_number else value
            continue
        values = value if isinstance(value, list) else [value]
        mended[key] = [
            one.strip().lower().removeprefix("0x") if isinstance(one, str) else one for one in values
        ]
    return json.dumps(mended)
