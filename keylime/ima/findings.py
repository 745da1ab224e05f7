"""What can be wrong with a measurement list or an entry of it: ids, contexts, explanations, hints."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from keylime.findings.finding import Finding, JsonValue, printable
from keylime.hashes import HashAlgorithm
from keylime.ima.device_mapper_policy import DeviceMapperFault
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry
from keylime.ima.signatures import Misfit, parse_file_signature

NOT_IN_ALLOWLIST = "ima.validation.ima-ng.not_in_allowlist"
RUNTIME_POLICY_HASH = "ima.validation.ima-ng.runtime_policy_hash"
SIGNATURE_MISFIT = "does not fit the file"  # part of the explanation
_MAX_EXPECTED = 16


@dataclass(frozen=True, slots=True)
class EntryFinding(Finding):
    """A finding about one entry; `mode` is its template as failure summaries count it ("ImaNg")."""

    mode: str = ""


def unparsable(index: int, reason: str) -> Finding:
    """A line that is no entry of a known template."""
    return EntryFinding(
        "ima.parser.entry",
        {"message": f"entry {index} of the IMA list: {reason}"},
        recoverable=True,
        explanation=f"entry {index} of the IMA list cannot be read: {reason}",
        log_index=index,
        hint="no kernel writes such a line: see that the agent reads the kernel's own list (its option "
        "ima_ml_path), and that nothing on the way changes it; a template that is not supported is named "
        "with what to boot with",
        mode="Unknown",
    )


def wrong_pcr(index: int, entry: Entry) -> Finding:
    """An entry that names another PCR than 10."""
    return _about(
        index,
        entry,
        "ima.validation.ima_pcr",
        f"IMA entry for {printable(entry.name)} names PCR {entry.pcr} instead of 10",
        observed=str(entry.pcr),
        expected=("10",),
        hint="take pcr= out of the rules of the machine's IMA policy, and reboot it: only PCR 10 is judged",
    )


def wrong_template_hash(index: int, entry: Entry, algorithm: HashAlgorithm, expected: bytes) -> Finding:
    """An entry whose digest column is not the hash of its fields."""
    rule, hint = None, None
    if len(entry.template_hash) != algorithm.size:
        rule = f"ima.log_hash_alg {algorithm.label}"
        hint = "the digest column has another length: does the kernel write it with another algorithm?"
    return _about(
        index,
        entry,
        "ima.validation.ima_hash",
        f"the template hash of {printable(entry.name)} is not the hash of the entry's fields",
        observed=entry.template_hash.hex(),
        expected=(expected.hex(),),
        rule=rule,
        hint=hint,
    )


def malformed_signature(index: int, entry: Entry) -> Finding:
    """A signature field that is not empty and has no valid header or length."""
    return _about(
        index,
        entry,
        "ima.validation.ima_hash",
        f"the signature field of {printable(entry.name)} is malformed",
        observed=(entry.signature or b"")[:64].hex(),
    )


def violation(index: int, entry: Entry) -> Finding:
    """A measurement that the kernel itself calls unreliable."""
    return _about(
        index,
        entry,
        "ima.validation.tomtou",
        f"{printable(entry.name)} was changed while it was measured, or open for writing meanwhile",
        hint="exclude the path in the runtime policy, or leave it out of the machine's IMA policy",
    )


def not_listed(index: int, entry: Entry, section: str) -> Finding:
    """A name that the policy's `section` does not have."""
    name = printable(entry.name)
    return EntryFinding(
        NOT_IN_ALLOWLIST,
        {"message": f"File not found in allowlist: {name}"},
        recoverable=True,
        explanation=f"{name} was measured, but the runtime policy's {section} do not list it",
        path=entry.name,
        log_index=index,
        observed=entry.digest.hex(),
        rule=section,
        hint="if it belongs on the machine, add it to the policy with the digest seen",
        mode=entry.mode,
    )


def wrong_digest(index: int, entry: Entry, allowed: Iterable[bytes], section: str) -> Finding:
    """A listed name with a digest that is not among its digests."""
    name, digest = printable(entry.name), entry.digest.hex()
    expected = sorted(value.hex() for value in allowed)[:_MAX_EXPECTED]
    return EntryFinding(
        RUNTIME_POLICY_HASH,
        {
            "message": f"Hashes for file {name} don't match {digest} not in {expected}",
            "got": digest,
            "expected": expected,
        },
        recoverable=True,
        explanation=f"{name} is not what the runtime policy's {section} list",
        path=entry.name,
        log_index=index,
        observed=digest,
        expected=tuple(expected),
        rule=section,
        hint="after an update, add the new digest to the policy; if nobody updated it, somebody changed it",
        mode=entry.mode,
    )


def with_signature(finding: Finding, entry: Entry, misfit: Misfit) -> Finding:
    """The same about a file whose signature does not vouch for it: why not, and what to do."""
    signature = parse_file_signature(entry.signature or b"")
    if signature is None:
        return finding
    signed = f"its signature, by key {signature.key_id:08x}"
    match misfit:
        case Misfit.UNKNOWN_KEY:
            text = f"{signed}, is by an unknown key"
            hint = (
                f"if key {signature.key_id:08x} is trusted, give its certificate to the verifier "
                "(keylime_tenant --signature-verification-key)"
            )
        case Misfit.OTHER_CONTENT:
            text = f"{signed}, {SIGNATURE_MISFIT}"
            hint = (
                "the file was changed after it was signed, or is another one: restore it, and find out who "
                "changed it"
            )
        case Misfit.UNSUPPORTED:
            text = f"{signed}, is {misfit.value}"
            hint = (
                f"type {signature.type}, version {signature.version}, hash {signature.algorithm}: sign the "
                "file with the hash that the kernel measures (ima_hash), as evmctl does"
            )
        case _:
            assert_never(misfit)
    return replace(finding, explanation=f"{finding.explanation}; {text}", hint=f"{text}: {hint}")


def misplaced_boot_aggregate(index: int, entry: Entry) -> Finding:
    """A boot_aggregate that neither begins the list nor follows a kexec."""
    return _about(
        index,
        entry,
        NOT_IN_ALLOWLIST,
        f"boot_aggregate at entry {index}: only the first entry, or one after a measured kexec, may be that",
        observed=entry.digest.hex(),
        hint="after a kexec, reboot the machine; to have it accepted, let the kernel measure it (measure "
        "func=KEXEC_CMDLINE in its IMA policy), and list kexec-cmdline in the runtime policy's ima-buf",
    )


def missing_boot_aggregate(expected: Iterable[str]) -> Finding:
    """A list that starts at entry 0 and does not begin with boot_aggregate."""
    return EntryFinding(
        "ima.missing_boot_aggregate",
        {"message": "the IMA list does not begin with boot_aggregate"},
        recoverable=True,
        explanation="the IMA list does not begin with boot_aggregate: nothing ties it to the measured boot",
        path=BOOT_AGGREGATE,
        log_index=0,
        expected=tuple(sorted(expected)[:_MAX_EXPECTED]),
        hint="the agent must send the list from its first entry on; was it cut, or written by something else "
        "than the kernel?",
        mode="Unknown",
    )


def nothing_measured(shown: int) -> Finding:
    """PCR 10 has its start value: not even boot_aggregate was measured. `shown` lines came all the same."""
    if shown:
        message = f"the IMA list shows {shown} lines, but PCR 10 of the TPM is still zero"
        hint = "is the TPM's driver built into the kernel? One that is a module is loaded too late for IMA"
    else:
        message = "the IMA list is empty, and PCR 10 of the TPM is zero"
        hint = (
            "boot a kernel that has IMA, with a policy: ima_policy=tcb on its command line, or one of your "
            "own that is loaded at boot"
        )
    return Finding(
        "ima.nothing_measured",
        {"message": message},
        recoverable=True,
        explanation=f"{message}: nothing shows what the machine runs",
        hint=hint,
    )


def unusable_key(index: int, entry: Entry, reason: str) -> Finding:
    """A key entry that cannot be a signature key."""
    return _about(
        index,
        entry,
        "ima.invalid_key",
        f"the key measured for keyring {printable(entry.name)}: {reason}",
        rule="keyrings",
    )


def device_mapper(index: int, entry: Entry, fault: DeviceMapperFault) -> Finding:
    """A device-mapper event that its policy does not allow."""
    return _about(
        index,
        entry,
        f"ima.validation.dm.{fault.suffix}",
        fault.explanation,
        observed=f"{entry.digest_algorithm}:{entry.digest.hex()}",
        rule="ima.dm_policy",
    )


def required_device(fault: DeviceMapperFault) -> Finding:
    """A device that the device-mapper policy requires and that is not there."""
    return Finding(
        f"ima.validation.dm.{fault.suffix}",
        {"message": fault.explanation},
        recoverable=True,
        explanation=fault.explanation,
        rule="ima.dm_policy",
        hint="is the device set up at boot, and does the kernel measure it (critical_data of the label "
        "device-mapper)? A device that may be absent is not required",
    )


def no_progress(covered: int, demanded: int) -> Finding:
    """A quote that still does not cover entries that were in the list a round ago."""
    message = f"the quote covers entries up to {covered}, but the last list already had {demanded}"
    return Finding(
        "ima.quote_progress",
        {"message": message},
        recoverable=True,
        explanation=f"{message}: entries are shown that were never measured into the TPM",
        observed=str(covered),
        expected=(str(demanded),),
    )


def begins_in_the_middle(first: str, asked: int) -> Finding:
    """A list whose first entries are gone, where nothing known says what they were.

    `first` is its first name, `asked` the entry that was asked for: 0 when nothing is known of this boot.
    """
    message = f"the IMA list begins in the middle, with {printable(first)}, and does not lead to PCR 10"
    if asked:
        cause = f"the agent does not know that its first line is entry {asked}, which was asked for"
    else:
        cause = "its first entries were never shown to this verifier"
    return Finding(
        "ima.begins_in_the_middle",
        {"message": message},
        recoverable=True,
        explanation=f"{message}: {cause}",
        log_index=0,
        hint="something on the machine deletes entries that the kernel has measured (Linux 7.2 and later, "
        "CONFIG_IMA_STAGING): reboot it, attest it from its boot on, and let nothing be deleted that the "
        "verifier has not seen",
    )


def unexpected_start(asked: int, stated: int) -> Finding:
    """A list that starts elsewhere than asked."""
    message = f"the IMA list starts at entry {stated}, but entry {asked} was asked for"
    return Finding(
        "qoute_validation.invalid_ima_entry_nb",  # spelled so on the wire
        {"message": message, "got": stated, "expected": asked},
        recoverable=False,
        explanation=f"{message}; only that entry or the whole list from entry 0 can be appraised",
        observed=str(stated),
        expected=(str(asked), "0"),
    )


def _about(
    index: int,
    entry: Entry,
    event_id: str,
    message: str,
    *,
    observed: str | None = None,
    expected: tuple[str, ...] = (),
    rule: str | None = None,
    hint: str | None = None,
) -> Finding:
    context: dict[str, JsonValue] = {"message": message}
    return EntryFinding(
        event_id,
        context,
        recoverable=True,
        explanation=message,
        path=entry.name,
        log_index=index,
        observed=observed,
        expected=expected,
        rule=rule,
        hint=hint,
        mode=entry.mode,
    )
