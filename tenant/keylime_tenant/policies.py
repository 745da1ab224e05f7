"""From policy files and flags to what the verifier is told: checked, converted, with the PCRs to quote."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from keylime.documents.dsse import is_envelope, verify_envelope
from keylime.documents.encodings import not_utf8
from keylime.documents.strict_json import BYTE_ORDER_MARK, load_document
from keylime.errors import ConfigError, CredentialError, PolicyError
from keylime.ima.allowlist import convert_allowlist, listed_text, read_excludes
from keylime.ima.excludes import compile_excludes
from keylime.ima.keyrings import keyring_of
from keylime.ima.runtime_policy import parse_runtime_policy
from keylime.messages.verifier import NOTHING_JUDGED, PolicyPart
from keylime.tpm.pcr import IMA_PCR, MEASURED_BOOT_PCRS
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_tenant.arguments import Arguments

NO_DEMAND = (
    f"attested, {NOTHING_JUDGED}: no policy makes a demand of the agent. "
    "Give --runtime-policy, --mb-policy or --tpm_policy"
)
NOTHING_ASKED = (
    f"{NOTHING_JUDGED}: no policy makes a demand of the agent, so that no evidence is taken of it, "
    "and it stays PENDING. Give --runtime-policy, --mb-policy or --tpm_policy"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocuments:
    """The contents of the files and downloads that the policy flags name; None for flags not given."""

    runtime_policy: bytes | None = None
    runtime_policy_key: bytes | None = None
    allowlist: bytes | None = None
    excludes: bytes | None = None
    reference_state: bytes | None = None
    ima_keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePolicyText:
    """A runtime policy as it is sent: the file's bytes and the key that signed it, in base64, or empty."""

    policy: str = ""
    key: str = ""
    warnings: tuple[str, ...] = ()  # about rules that say more than their author may think


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPolicies:
    """All policies of one agent in the form of the wire."""

    tpm_policy: str  # JSON text with the mask
    operator_mask: int  # of the PCRs in --tpm_policy alone
    mask: int
    runtime_policy: str
    runtime_policy_name: str
    runtime_policy_key: str
    mb_policy: str | None
    mb_policy_name: str
    ima_keyring: str
    warnings: tuple[str, ...] = ()
    runtime_policies: list[PolicyPart] | UnsetType = UNSET  # several, of which `runtime_policy_name` is one

    @property
    def names_boot_policy(self) -> bool:
        """Whether there is a measured boot policy that may demand something."""
        return bool(self.mb_policy_name) or self.mb_policy not in (None, "", "{}")


def compose(arguments: Arguments, documents: PolicyDocuments) -> AgentPolicies:
    """The policies that flags and documents make. Raises ConfigError and PolicyError."""
    operator = operator_policy(arguments.tpm_policy)
    runtime = runtime_policy(arguments, documents)
    with blaming(arguments.flag("mb_policy", "--mb-policy"), arguments.mb_policy):
        refstate = reference_state(documents)
    uses_ima = bool(runtime.policy or arguments.policy_name or documents.ima_keys)
    uses_boot = bool(refstate is not None or arguments.mb_policy_name)
    _demand_unused(operator, {IMA_PCR} if uses_ima else (), "IMA")
    _demand_unused(operator, MEASURED_BOOT_PCRS if uses_boot else (), "measured boot")
    warnings = runtime.warnings
    if not (uses_ima or uses_boot or operator.values):
        warnings = (*warnings, NOTHING_ASKED if arguments.push_model else NO_DEMAND)
    whole = operator.with_mask({IMA_PCR} if uses_ima else ())
    whole = whole.with_mask(MEASURED_BOOT_PCRS if uses_boot else ())
    return AgentPolicies(
        tpm_policy=whole.to_wire(),
        operator_mask=operator.mask,
        mask=whole.mask,
        runtime_policy=runtime.policy,
        runtime_policy_name=arguments.policy_name or "",
        runtime_policy_key=runtime.key,
        mb_policy=refstate,
        mb_policy_name=arguments.mb_policy_name or "",
        ima_keyring=ima_keyring(documents.ima_keys),
        warnings=warnings,
        runtime_policies=[PolicyPart(*part) for part in arguments.runtime_policies] or UNSET,
    )


def operator_policy(text: str | None) -> TpmPolicy:
    """`--tpm_policy`, digests in lower case. Raises ConfigError: PCRs 10 and 16 cannot be in it."""
    try:
        return TpmPolicy.from_operator(text or "{}")
    except PolicyError as error:
        raise ConfigError(f"--tpm_policy: {error}") from error


def runtime_policy(arguments: Arguments, documents: PolicyDocuments) -> RuntimePolicyText:
    """The runtime policy that is sent, valid and with a right signature; empty when none is given.

    Raises ConfigError, PolicyError.
    """
    if documents.allowlist is not None:
        text = converted_allowlist(arguments, documents.allowlist, documents.excludes)
        return RuntimePolicyText(policy=_base64(text.encode()), warnings=parse_runtime_policy(text).warnings)
    content = documents.runtime_policy
    if content is None:
        return RuntimePolicyText()
    _check_digest(content, arguments.runtime_policy_checksum)
    key = documents.runtime_policy_key
    is_signed = key is not None or is_envelope(content)
    payload = _verified_payload(content, key) if is_signed else content
    with blaming(*_runtime_source(arguments)):
        warnings = parse_runtime_policy(payload).warnings
    if is_signed and key is None:
        warnings = (
            *warnings,
            "nobody named who may sign the runtime policy: --runtime-policy-sig-key",
        )
    return RuntimePolicyText(policy=_base64(content), key=_base64(key or b""), warnings=warnings)


def encoded_key(documents: PolicyDocuments) -> str:
    """The key of `--runtime-policy-sig-key` as it is sent, empty without one."""
    return _base64(documents.runtime_policy_key or b"")


def converted_allowlist(arguments: Arguments, allowlist: bytes, excludes: bytes | None) -> str:
    """The runtime policy that means the same as an old allowlist and exclude list. Raises PolicyError."""
    text = _utf8("--exclude", arguments.exclude, excludes or b"")
    with blaming("--exclude", arguments.exclude):
        _check_excludes(text)
    with blaming("--allowlist", arguments.allowlist or arguments.allowlist_url):
        return convert_allowlist(
            _utf8("--allowlist", arguments.allowlist or arguments.allowlist_url, allowlist), text
        )


def _check_excludes(text: str) -> None:
    """Raises PolicyError, which names the line of the first expression that is none."""
    for number, line in enumerate(text.splitlines(), start=1):
        for expression in read_excludes(line):
            try:
                compile_excludes([expression])
            except PolicyError as error:
                raise PolicyError(f"line {number}: {str(error).removeprefix('excludes[0]: ')}") from error


def _runtime_source(arguments: Arguments) -> tuple[str, str | None]:
    if arguments.runtime_policy is not None:
        return arguments.flag("runtime_policy", "--runtime-policy"), arguments.runtime_policy
    return "--runtime-policy-url", arguments.runtime_policy_url


@contextmanager
def blaming(flag: str, source: str | None) -> Iterator[None]:
    """Puts the flag and the file that are at fault before the reason of a PolicyError."""
    try:
        yield
    except PolicyError as error:
        raise PolicyError(f"{flag} {source}: {error}" if source else f"{flag}: {error}") from error


def reference_state(documents: PolicyDocuments) -> str | None:
    """The measured boot reference state as text; `{}` asks for the replay alone. Raises PolicyError."""
    if documents.reference_state is None:
        return None
    try:
        text = documents.reference_state.decode()
    except UnicodeDecodeError as error:
        raise PolicyError(not_utf8(error)) from error
    if not isinstance(load_document(text, "the reference state"), dict):
        raise PolicyError("expected a JSON object")
    return text


def ima_keyring(keys: Iterable[bytes]) -> str:
    """The keyring document of IMA verification keys, empty without any. Raises ConfigError."""
    try:
        return keyring_of(keys).to_json()
    except PolicyError as error:
        raise ConfigError(f"--signature-verification-key: {error}") from error


def _verified_payload(content: bytes, key: bytes | None) -> bytes:
    try:
        return verify_envelope(content, key)
    except (PolicyError, CredentialError) as error:
        raise PolicyError(
            f"the runtime policy failed DSSE signature verification: {error} (see --runtime-policy-sig-key)"
        ) from error


def _check_digest(content: bytes, expected: str | None) -> None:
    if expected is None:
        return
    actual = hashlib.sha256(content).hexdigest()
    if not hmac.compare_digest(actual.encode(), expected.strip().lower().encode()):
        raise PolicyError(
            f"Checksum of runtime policy does not match! It has SHA-256 {actual}, not the one of "
            "--runtime-policy-checksum"
        )


def _demand_unused(policy: TpmPolicy, reserved: Iterable[int], owner: str) -> None:
    for pcr in sorted(set(policy.values) & set(reserved)):
        raise ConfigError(
            f'WARNING: PCR {pcr} is specified in "tpm_policy", but will in fact be used by {owner}. '
            "Please remove it from policy"
        )


def _utf8(flag: str, source: str | None, content: bytes) -> str:
    """The text of a list, without the mark that some editors put in front."""
    try:
        return listed_text(content).removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {source}: {not_utf8(error)}") from error


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
