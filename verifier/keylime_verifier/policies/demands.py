"""What an enrolment's texts demand: its key, its keyring, whether any policy of it demands anything. Pure."""

import base64
import binascii
from collections.abc import Callable

from keylime.appraisal.reference import demands_ima
from keylime.errors import MalformedMessage, PolicyError
from keylime.ima.keyrings import Keyring, parse_keyring
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.tpm.keys import AttestationKey, parse_attestation_key
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agents.records import Enrolment

CompileBootPolicy = Callable[[str], MeasuredBootPolicy | None]


def judges_nothing(enrolment: Enrolment, *, runtime_policy: bool) -> bool:
    """Whether no policy of an agent makes a demand; `runtime_policy`: whether that one does.

    As the reference would say, which a status must not compile. What cannot be read demands something.
    """
    if runtime_policy or enrolment.measured_boot_policy is not None:
        return False
    try:
        tpm_policy = TpmPolicy.from_wire(enrolment.tpm_policy)
        keyring = tenant_keyring(enrolment.ima_sign_verification_keys)
    except PolicyError:
        return False
    uses_ima = demands_ima(runtime_policy=runtime_policy, tpm_policy=tpm_policy, tenant_keyring=keyring)
    return not uses_ima and not tpm_policy.values


def decode_attestation_key(ak_tpm: str) -> AttestationKey:
    """The AK in base64 `ak_tpm`. Raises MalformedMessage, MalformedEvidence or UnsuitableKey (T3)."""
    try:
        public = base64.b64decode(ak_tpm, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(f"ak_tpm is not base64: {error}") from error
    return parse_attestation_key(public)


def tenant_keyring(text: str, *, is_stored: bool = True) -> Keyring | None:
    """The keyring in the deprecated `ima_sign_verification_keys`, if any. Raises PolicyError."""
    return parse_keyring(text, is_stored=is_stored) if text else None
