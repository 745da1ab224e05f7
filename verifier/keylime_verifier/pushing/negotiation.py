"""What is asked for of what an agent offers: follows from its policies and from what is proven. Pure."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.reference import Reference
from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.push_document import encode_binary, parse_time
from keylime.messages.push_evidence import (
    AK,
    COMPONENT_VERSION,
    FORMAT_OF,
    IMA_LOG,
    MAX_ITEMS,
    MAX_VERSION,
    OS_LOG,
    TPM_QUOTE,
    UEFI_LOG,
    CertificationKey,
    LogCapabilities,
    LogOffer,
    LogParameters,
    Offer,
    QuoteCapabilities,
    QuoteOffer,
    QuoteParameters,
    Received,
    ReceivedLog,
    ReceivedQuote,
    kind_of,
    offer_of,
)
from keylime.tpm.keys import AttestationKey
from keylime.tpm.pcr import DATA_PCR
from keylime_verifier.pushing.problems import Problem, Unacceptable, malformed, problem

EVIDENCE = "evidence"
"""What pointers call both the evidence that is offered and that which is collected, as in the field."""

_BOOT_TIME = "system_info/boot_time"
_ASYMMETRIC = "asymmetric"
_KEY_CLASSES = frozenset({_ASYMMETRIC, "symmetric"})
_SCHEMES_OF: Mapping[str, frozenset[str]] = {
    "rsa": frozenset({"rsassa", "rsapss"}),
    "ecc": frozenset({"ecdsa", "ecschnorr", "ecdaa", "sm2"}),
}
_CLOCK_STEPS_S = 5  # by so much the clock of a machine may be set without its having been started anew


@dataclass(frozen=True, slots=True)
class Offered:
    """What an agent can show, by type, each with its place in the list; when it was started, by its word."""

    items: Mapping[str, tuple[int, Offer]]
    boot_time: float


def read_offer(attributes: Mapping[str, msgspec.Raw]) -> Offered:
    """What an agent offers. Raises Unacceptable with all that is wrong."""
    problems = []
    items: dict[str, tuple[int, Offer]] = {}
    boot_time = 0.0
    try:
        for place, item in enumerate(_list_of(attributes.get("evidence_supported"))):
            try:
                kind = kind_of(item)
                # Kinds that nobody knows here are left out. Of several of a kind the first counts.
                if kind.is_known and kind.evidence_type not in items:
                    items[kind.evidence_type] = place, offer_of(item, kind)
            except MalformedMessage as error:
                problems.append(malformed(f"{EVIDENCE}/{place}", error))
    except Unacceptable as error:
        problems.extend(error.problems)
    try:
        boot_time = _boot_time_of(attributes.get("system_info"))
    except Unacceptable as error:
        problems.extend(error.problems)
    if problems:
        raise Unacceptable(*problems)
    return Offered(items, boot_time)


def _list_of(value: msgspec.Raw | None) -> list[msgspec.Raw]:
    if value is None:
        raise Unacceptable(problem(EVIDENCE, "is required"))
    try:
        items = parse_body(value, list[msgspec.Raw])
    except MalformedMessage as error:
        raise Unacceptable(problem(EVIDENCE, "must be an array")) from error
    if not items:
        raise Unacceptable(problem(EVIDENCE, "is required"))
    if len(items) > MAX_ITEMS:
        raise Unacceptable(problem(EVIDENCE, f"has more than {MAX_ITEMS} items"))
    if any(bytes(memoryview(item)[:1]) != b"{" for item in items):
        raise Unacceptable(problem(EVIDENCE, "may only contain objects with key-value pairs"))
    return items


class _SystemInfo(msgspec.Struct, frozen=True):
    boot_time: str | int | float | None = None


def _boot_time_of(value: msgspec.Raw | None) -> float:
    try:
        told = None if value is None else parse_body(value, _SystemInfo).boot_time
        if told is None:
            raise Unacceptable(problem(_BOOT_TIME, "is required"))
        return parse_time(told).timestamp()
    except MalformedMessage as error:
        what = "must be a valid ISO8601 datetime or Unix timestamp"
        raise Unacceptable(problem(_BOOT_TIME, what)) from error


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is asked for, in its order, and from which entry of the IMA list on."""

    items: tuple[Received, ...]
    ima_entry: int


def boottime_in(checkpoint: Checkpoint, told: float) -> int:
    """The boot that a machine speaks of, in seconds since the epoch: that of the checkpoint, or another one.

    Machines tell it by clocks that are set. The TPM's counters say which boot it is; this only decides from
    where on the IMA list is asked for.
    """
    known = checkpoint.boot.boottime if checkpoint.boot is not None else 0
    return known if known and abs(told - known) <= _CLOCK_STEPS_S else int(told)


def first_entry(reference: Reference, checkpoint: Checkpoint, boottime: int) -> int:
    """From which entry on the IMA list of this boot is asked for."""
    goes_on = checkpoint.boot is not None and checkpoint.boot.boottime == boottime
    if not (
        reference.demands_ima and goes_on and checkpoint.ima.continues(reference.attestation_key.scheme_hash)
    ):
        return 0
    return checkpoint.ima.next_entry


def quoted_pcrs(reference: Reference) -> frozenset[int]:
    """Which PCRs are asked for. No payload key is bound to what is pushed, so that PCR 16 means nothing."""
    return reference.demanded_pcrs - {DATA_PCR}


def choose(offered: Offered, reference: Reference, checkpoint: Checkpoint, challenge: bytes) -> Chosen:
    """What is asked for of an offer. Raises Unacceptable with all that is missing or does not suffice."""
    boottime = boottime_in(checkpoint, offered.boot_time)
    entry = first_entry(reference, checkpoint, boottime)
    chosen: list[Received] = []
    problems: list[Problem] = []
    wanted = (
        (bool(quoted_pcrs(reference)), lambda: _choose_quote(offered, reference, challenge)),
        (reference.measured_boot is not None, lambda: _choose_boot_log(offered, UEFI_LOG)),
        (reference.demands_ima, lambda: _choose_ima_list(offered, entry)),
        (
            reference.measured_boot is not None and OS_LOG in offered.items,
            lambda: _choose_boot_log(offered, OS_LOG),
        ),
    )
    for is_wanted, choose_item in wanted:
        try:
            if is_wanted:
                chosen.append(choose_item())
        except Unacceptable as error:
            problems.extend(error.problems)
    if problems:
        raise Unacceptable(*problems)
    return Chosen(tuple(chosen), entry)


def _choose_quote(offered: Offered, reference: Reference, challenge: bytes) -> ReceivedQuote:
    found = offered.items.get(TPM_QUOTE)
    if found is None or not isinstance(found[1], QuoteOffer):
        raise Unacceptable(
            problem(EVIDENCE, "must contain a certification item of type 'tpm_quote' per agent policy")
        )
    place, capabilities = found[0], found[1].capabilities
    key, pcrs = reference.attestation_key, quoted_pcrs(reference)
    if not capabilities.certification_keys:
        raise Unacceptable(problem(f"{EVIDENCE}/{place}/capabilities/certification_keys", "is required"))
    if unusable := [*_unusable(capabilities, f"{EVIDENCE}/{place}/capabilities")]:
        raise Unacceptable(*unusable)
    if unfit := [*_unfit(capabilities, reference, pcrs)]:
        what = "which are valid and satisfy agent policy"
        raise Unacceptable(
            *(
                problem(EVIDENCE, f"must have 'tpm_quote' with capabilities {what} (check '{name}')")
                for name in unfit
            )
        )
    bank = key.scheme_hash.label
    parameters = QuoteParameters(
        signature_scheme=key.scheme.label,
        challenge=encode_binary(challenge),
        hash_algorithm=bank,
        selected_subjects={
            name: sorted(pcrs) if name == bank else None for name in capabilities.available_subjects
        },
        certification_key=_certification_key(capabilities.certification_keys, key),
    )
    return ReceivedQuote(capabilities=capabilities, chosen_parameters=parameters)


def _unusable(capabilities: QuoteCapabilities, path: str) -> Iterator[Problem]:
    """What does not hold together, whatever is asked for: banks without an algorithm, keys without a name."""
    if not capabilities.available_subjects.keys() <= set(capabilities.hash_algorithms):
        what = "must only contain banks which are among the given hash algorithms"
        yield problem(f"{path}/available_subjects", what)
    for place, key in enumerate(capabilities.certification_keys):
        yield from _unusable_key(key, capabilities.signature_schemes, f"{path}/certification_keys/{place}")


def _unusable_key(key: CertificationKey, schemes: Sequence[str], path: str) -> Iterator[Problem]:
    if key.key_class not in _KEY_CLASSES:
        yield problem(f"{path}/key_class", "must be 'asymmetric' or 'symmetric'")
    if key.key_class != _ASYMMETRIC:
        return
    if key.key_algorithm is None:
        yield problem(f"{path}/key_algorithm", "is required")
    elif not _SCHEMES_OF.get(key.key_algorithm, frozenset()) & set(schemes):
        yield problem(f"{path}/key_algorithm", "must be compatible with a given signature schemes")
    if not (key.server_identifier or key.local_identifier or key.public):
        yield problem(path, "must have one of 'server_identifier', 'local_identifier' and 'public'")


def _unfit(capabilities: QuoteCapabilities, reference: Reference, pcrs: frozenset[int]) -> Iterator[str]:
    """The names of capabilities that do not suffice. The AK signs in one way, and with one hash."""
    key, accepted = reference.attestation_key, reference.accepted
    scheme, bank = key.scheme.label, key.scheme_hash.label
    if capabilities.component_version != COMPONENT_VERSION:
        yield "component_version"
    if len(capabilities.evidence_version or "") > MAX_VERSION:
        yield "evidence_version"
    if scheme not in capabilities.signature_schemes or scheme not in accepted.signing:
        yield "signature_schemes"
    if bank not in capabilities.hash_algorithms or bank not in accepted.hashes:
        yield "hash_algorithms"
    elif not pcrs <= set(capabilities.available_subjects.get(bank, ())):
        yield "available_subjects"


def _certification_key(offered: Sequence[CertificationKey], key: AttestationKey) -> CertificationKey:
    """The AK as the agent names it; what it leaves out is filled in: agents read all of it or nothing."""
    named = next((one for one in offered if _is_key(one, key)), offered[0])
    return replace(
        named,
        key_class=named.key_class or "asymmetric",
        key_algorithm=named.key_algorithm or key.encryption_label[:3],
        server_identifier=named.server_identifier or AK,
        local_identifier=named.local_identifier or key.name.hex(),
        public=named.public or encode_binary(key.tpm2b_public[2:]),
    )


def _is_key(offered: CertificationKey, key: AttestationKey) -> bool:
    """Whether this is the AK: by its public area (with or without its size), its name, or its role."""
    if offered.public:
        known = {base64.b64encode(public).decode() for public in (key.tpm2b_public, key.tpm2b_public[2:])}
        return offered.public in known
    return key.name.hex() == offered.local_identifier or offered.server_identifier == AK


def _log(offered: Offered, kind: str) -> tuple[int, LogCapabilities]:
    found = offered.items.get(kind)
    if found is None or not isinstance(found[1], LogOffer):
        raise Unacceptable(problem(EVIDENCE, f"must contain a log item of type '{kind}' per agent policy"))
    version = found[1].capabilities.evidence_version
    if isinstance(version, str) and len(version) > MAX_VERSION:
        path = f"{EVIDENCE}/{found[0]}/capabilities/evidence_version"
        raise Unacceptable(problem(path, f"must have at most {MAX_VERSION} characters"))
    if found[1].capabilities.supports_partial_access and isinstance(
        found[1].capabilities.entry_count, msgspec.UnsetType
    ):
        raise Unacceptable(problem(f"{EVIDENCE}/{found[0]}/capabilities/entry_count", "is required"))
    return found[0], found[1].capabilities


def _choose_boot_log(offered: Offered, kind: str) -> ReceivedLog:
    _, capabilities = _log(offered, kind)
    wanted = FORMAT_OF[kind]
    if wanted not in capabilities.formats:
        raise Unacceptable(problem(EVIDENCE, f"must have '{kind}' with format '{wanted}'"))
    return ReceivedLog(
        evidence_type=kind, capabilities=capabilities, chosen_parameters=LogParameters(format=wanted)
    )


def _choose_ima_list(offered: Offered, entry: int) -> ReceivedLog:
    place, capabilities = _log(offered, IMA_LOG)
    wanted = FORMAT_OF[IMA_LOG]
    if wanted not in capabilities.formats or not capabilities.supports_partial_access:
        what = f"must have 'ima_log' with format '{wanted}' and which supports partial access"
        raise Unacceptable(problem(EVIDENCE, what))
    path = f"{EVIDENCE}/{place}/capabilities/entry_count"
    if isinstance(capabilities.entry_count, msgspec.UnsetType):
        raise Unacceptable(problem(path, "is required"))
    if capabilities.entry_count < entry:
        what = f"must be greater than or equal to the calculated starting offset of '{entry}'"
        raise Unacceptable(problem(path, what))
    parameters = LogParameters(starting_offset=entry, format=wanted)
    return ReceivedLog(evidence_type=IMA_LOG, capabilities=capabilities, chosen_parameters=parameters)
