"""What can be wrong with a measurement list or an entry of it: ids, contexts, explanations, hints."""

from collections.abc import Iterable
from dataclasses import dataclass

from keylime.appraisal.findings import Finding, JsonValue, printable
from keylime.hashes import HashAlgorithm
from keylime.ima.device_mapper_policy import DeviceMapperFault
from keylime.ima.measurement_list import Entry

NOT_IN_ALLOWLIST = "ima.validation.ima-ng.not_in_allowlist"
RUNTIME_POLICY_HASH = "ima.validation.ima-ng.runtime_policy_hash"
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
        hint="leave the path out of the machine's IMA policy, or set ignore_tomtou_errors",
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


def misplaced_boot_aggregate(index: int, entry: Entry) -> Finding:
    """A boot_aggregate that neither begins the list nor follows a kexec."""
    return _about(
        index,
        entry,
        NOT_IN_ALLOWLIST,
        f"boot_aggregate at entry {index}: only the first entry, or one after a measured kexec, may be that",
        observed=entry.digest.hex(),
    )


def missing_boot_aggregate(expected: Iterable[str]) -> Finding:
    """A list that does not begin with boot_aggregate although the boot PCRs are known."""
    return EntryFinding(
        NOT_IN_ALLOWLIST,
        {"message": "the IMA list does not begin with boot_aggregate"},
        recoverable=True,
        explanation="the IMA list does not begin with boot_aggregate: nothing ties it to the measured boot",
        path="boot_aggregate",
        log_index=0,
        expected=tuple(sorted(expected)[:_MAX_EXPECTED]),
        mode="Unknown",
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
