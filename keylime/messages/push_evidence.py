"""Items of evidence in the push model: what an agent can show, what of it is asked for, what it shows.

Items are told apart by class and type; types that nobody knows here are left out when a list is read.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body

CERTIFICATION, LOG = "certification", "log"
TPM_QUOTE, UEFI_LOG, IMA_LOG = "tpm_quote", "uefi_log", "ima_log"
OS_LOG = "os_log"
"""systemd's log of what the operating system measured: an extension, which other verifiers pass over."""
CLASSES = frozenset({CERTIFICATION, LOG})
CLASS_OF: Mapping[str, str] = {TPM_QUOTE: CERTIFICATION, UEFI_LOG: LOG, IMA_LOG: LOG, OS_LOG: LOG}
ORDER = (TPM_QUOTE, UEFI_LOG, IMA_LOG, OS_LOG)
"""In which order items are asked for."""

FORMAT_OF: Mapping[str, str] = {
    UEFI_LOG: "application/octet-stream",
    IMA_LOG: "text/plain",
    OS_LOG: "application/octet-stream",
}
COMPONENT_VERSION = "2.0"
MAX_VERSION = 20
MAX_ITEMS = 64
AK = "ak"

Count = Annotated[int, msgspec.Meta(ge=0)]


class CertificationKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that signs: `local_identifier` is its TPM name in hex, `public` base64 of TPMT_PUBLIC.

    Agents of the field read an answer only with all of the first six.
    """

    key_class: str
    key_size: Count
    key_algorithm: str | None = None
    server_identifier: str | None = None
    local_identifier: str | None = None
    public: str | None = None
    allowable_signature_schemes: list[str] | None = None
    allowable_hash_algorithms: list[str] | None = None


class QuoteCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's TPM can quote; `available_subjects` has PCRs by bank."""

    component_version: str
    evidence_version: str | None = None
    signature_schemes: list[str]
    hash_algorithms: list[str]
    available_subjects: dict[str, list[Count]]
    certification_keys: list[CertificationKey]


class LogCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent has of a log."""

    evidence_version: str | msgspec.UnsetType | None = msgspec.UNSET
    entry_count: Count | msgspec.UnsetType = msgspec.UNSET
    supports_partial_access: bool = False
    appendable: bool = False
    formats: list[str]


class QuoteParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be quoted: `challenge` is base64 of 16 bytes, null in `selected_subjects` means nothing.

    No member may be called `format`: agents of the field tell the parameters of logs by it.
    """

    signature_scheme: str
    challenge: str
    hash_algorithm: str
    selected_subjects: dict[str, list[Count] | None]
    certification_key: CertificationKey


class LogParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be read of a log; `starting_offset`, in entries, of one that is read in parts."""

    starting_offset: Count | msgspec.UnsetType = msgspec.UNSET
    entry_count: Count | msgspec.UnsetType = msgspec.UNSET
    format: str


class QuoteClock(msgspec.Struct, frozen=True):
    """TPMS_CLOCK_INFO, with `safe` as a number."""

    clock: int
    reset_count: int
    restart_count: int
    safe: int


class QuoteMeta(msgspec.Struct, frozen=True):
    """What the verifier has read in a quote: values by PCR and bank in hex, with 0x before them."""

    pcrs: dict[str, dict[str, str]]
    clock_info: QuoteClock


class QuoteData(msgspec.Struct, frozen=True, kw_only=True):
    """TPMS_ATTEST, TPMT_SIGNATURE and the blob with the values of PCRs, each in base64."""

    subject_data: str
    message: str
    signature: str
    meta: QuoteMeta | msgspec.UnsetType = msgspec.UNSET


class LogData(msgspec.Struct, frozen=True, kw_only=True):
    """Entries: of an IMA list its lines, each with its end; of the other logs base64 of their bytes.

    Verifiers need not repeat the lines of an IMA list, but their number.
    """

    entry_count: Count | msgspec.UnsetType = msgspec.UNSET
    entries: str | msgspec.UnsetType = msgspec.UNSET


class UnreadLogData(msgspec.Struct, frozen=True, kw_only=True):
    """The same as it was received: lists may be long, and are not copied as a whole."""

    entry_count: Count | msgspec.UnsetType = msgspec.UNSET
    entries: msgspec.Raw


class QuoteOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A quote that an agent can make."""

    evidence_class: str = CERTIFICATION
    evidence_type: str = TPM_QUOTE
    capabilities: QuoteCapabilities


class LogOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A log that an agent can send."""

    evidence_class: str = LOG
    evidence_type: str
    capabilities: LogCapabilities


class QuoteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A quote that the verifier asks for."""

    evidence_class: str = CERTIFICATION
    evidence_type: str = TPM_QUOTE
    chosen_parameters: QuoteParameters


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A log that the verifier asks for."""

    evidence_class: str = LOG
    evidence_type: str
    chosen_parameters: LogParameters


class CollectedQuote(msgspec.Struct, frozen=True, kw_only=True):
    """A quote that was made."""

    evidence_class: str = CERTIFICATION
    evidence_type: str = TPM_QUOTE
    data: QuoteData


class CollectedLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log that was read."""

    evidence_class: str = LOG
    evidence_type: str
    data: LogData


class ReceivedQuote(msgspec.Struct, frozen=True, kw_only=True):
    """A quote as the verifier shows it: what could be shown, what was asked for, what came, if it has."""

    evidence_class: str = CERTIFICATION
    evidence_type: str = TPM_QUOTE
    capabilities: QuoteCapabilities
    chosen_parameters: QuoteParameters
    data: QuoteData | msgspec.UnsetType = msgspec.UNSET


class ReceivedLog(msgspec.Struct, frozen=True, kw_only=True):
    """The same of a log."""

    evidence_class: str = LOG
    evidence_type: str
    capabilities: LogCapabilities
    chosen_parameters: LogParameters
    data: LogData | msgspec.UnsetType = msgspec.UNSET


class UnreadLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log that was read, as a verifier receives it."""

    evidence_class: str = LOG
    evidence_type: str
    data: UnreadLogData


Offer: TypeAlias = QuoteOffer | LogOffer
Asked: TypeAlias = QuoteRequest | LogRequest
Collected: TypeAlias = CollectedQuote | CollectedLog
Received: TypeAlias = ReceivedQuote | ReceivedLog


class EvidenceKind(msgspec.Struct, frozen=True):
    """What an item says it is, its class in small letters."""

    evidence_class: str
    evidence_type: str

    @property
    def is_known(self) -> bool:
        """Whether items of this kind are understood here."""
        return CLASS_OF.get(self.evidence_type) == self.evidence_class


def kind_of(item: msgspec.Raw) -> EvidenceKind:
    """Which kind of item it is. Raises MalformedMessage, also for a class that there is none of."""
    read = parse_body(item, EvidenceKind)
    kind = EvidenceKind(read.evidence_class.lower(), read.evidence_type)
    if kind.evidence_class not in CLASSES:
        raise MalformedMessage("must be 'certification' or 'log' - at `$.evidence_class`")
    return kind


def offer_of(item: msgspec.Raw, kind: EvidenceKind) -> Offer:
    """An item that an agent can show. Raises MalformedMessage."""
    quote: Offer
    if kind.evidence_class == CERTIFICATION:
        quote = parse_body(item, QuoteOffer)
        return msgspec.structs.replace(quote, evidence_class=kind.evidence_class)
    log = parse_body(item, LogOffer)
    return msgspec.structs.replace(log, evidence_class=kind.evidence_class)


def asked_items(items: Sequence[msgspec.Raw]) -> list[Asked]:
    """What a verifier asks for, in its order. Raises MalformedMessage, also for what cannot be given."""
    return [_one(item, QuoteRequest, LogRequest) for item in items]


def collected_items(items: Sequence[msgspec.Raw]) -> list[Collected]:
    """What an agent has collected, in its order. Raises MalformedMessage."""
    return [_one(item, CollectedQuote, CollectedLog) for item in items]


def unread_items(items: Sequence[msgspec.Raw]) -> list[CollectedQuote | UnreadLog]:
    """What an agent has collected, as a verifier receives it. Raises MalformedMessage."""
    return [_one(item, CollectedQuote, UnreadLog) for item in items]


def received_items(items: Sequence[msgspec.Raw]) -> list[Received]:
    """What a verifier shows. Raises MalformedMessage."""
    return [_one(item, ReceivedQuote, ReceivedLog) for item in items]


_QuoteT = TypeVar("_QuoteT", bound=msgspec.Struct)
_LogT = TypeVar("_LogT", bound=msgspec.Struct)


def _one(item: msgspec.Raw, quote: type[_QuoteT], log: type[_LogT]) -> _QuoteT | _LogT:
    kind = kind_of(item)
    if not kind.is_known:
        raise MalformedMessage(f"{kind.evidence_type[:MAX_VERSION]!r} is no kind of evidence known here")
    if kind.evidence_class == CERTIFICATION:
        return parse_body(item, quote)
    return parse_body(item, log)
