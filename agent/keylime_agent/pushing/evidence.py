"""Evidence of an agent that attests by itself: what there is, what is asked for, the proof of its AK."""

import asyncio
import base64
from collections.abc import Sequence

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import parse_event_log
from keylime.messages import push_evidence
from keylime.messages.push_document import encode_binary
from keylime.messages.push_evidence import (
    Asked,
    Collected,
    CollectedLog,
    CollectedQuote,
    LogData,
    LogRequest,
    QuoteData,
    QuoteParameters,
    QuoteRequest,
)
from keylime.tpm.device import Certified
from keylime.tpm.pcr import IMA_PCR, encode_pcr_blob
from keylime_agent.attestation import TpmThread
from keylime_agent.evidence import BootLog
from keylime_agent.ima_list import ImaList
from keylime_agent.os_log import OsLog
from keylime_agent.pushing.offers import CannotShow, Facts, quote_selection
from keylime_agent.tpm_identity import TpmIdentity


class EvidenceSource:
    """One machine's evidence. The quote is made first: the logs that are read later hold all of it."""

    def __init__(
        self,
        tpm: TpmThread,
        keys: TpmIdentity,
        bank: HashAlgorithm,
        *,
        ima: ImaList,
        boot_log: BootLog,
        os_log: OsLog,
        key_identifier: str,
        boot_log_version: str,
    ) -> None:
        self._tpm = tpm
        self._keys = keys
        self._bank = bank
        self._ima = ima
        self._boot_log = boot_log
        self._os_log = os_log
        self._key_identifier = key_identifier
        self._boot_log_version = boot_log_version
        self._counted: tuple[bytes, int] | None = None  # the boot log whose events were counted last

    async def facts(self) -> Facts:
        """What there is now."""
        return await asyncio.to_thread(self._facts)

    async def prove(self, challenge: bytes) -> Certified:
        """The TPM's word that the AK is in it. Raises TpmError."""
        ak = self._keys.ak
        return await self._tpm.run(lambda tpm: tpm.certify(ak, ak, challenge))

    async def collect(self, asked: Sequence[Asked], facts: Facts) -> list[Collected]:
        """All that is asked for, in that order. Raises CannotShow, MalformedMessage, TpmError."""
        quotes = [item.chosen_parameters for item in asked if isinstance(item, QuoteRequest)]
        made = [await self._quote(parameters, facts) for parameters in quotes[:1]]
        if len(quotes) > 1:
            raise CannotShow("several quotes are asked for")
        return [
            made[0] if isinstance(item, QuoteRequest) else await asyncio.to_thread(self._log, item)
            for item in asked
        ]

    def _facts(self) -> Facts:
        boot_log = self._boot_log.read()
        return Facts(
            ak=self._keys.ak_key,
            bank=self._bank,
            key_identifier=self._key_identifier,
            boot_log_version=self._boot_log_version,
            boot_events=None if boot_log is None else self._events(boot_log),
            ima_entries=self._ima.count(),
            has_os_log=self._os_log.open(),
        )

    def _events(self, boot_log: bytes) -> int:
        if self._counted is None or self._counted[0] != boot_log:
            try:
                self._counted = boot_log, len(parse_event_log(boot_log).events)
            except MalformedEvidence:  # whether that is bad the verifier says
                self._counted = boot_log, 0
        return self._counted[1]

    async def _quote(self, asked: QuoteParameters, facts: Facts) -> CollectedQuote:
        selection, challenge = quote_selection(asked, facts)
        measurements = None
        if IMA_PCR in selection.indices:
            measurements = await asyncio.to_thread(self._ima.tail)
        quote = await self._tpm.run(
            lambda tpm: tpm.quote(self._keys.ak, selection, challenge, None, measurements)
        )
        return CollectedQuote(
            data=QuoteData(
                subject_data=encode_binary(encode_pcr_blob(quote.pcrs)),
                message=encode_binary(quote.attest),
                signature=encode_binary(quote.signature),
            )
        )

    def _log(self, item: LogRequest) -> CollectedLog:
        return CollectedLog(evidence_type=item.evidence_type, data=self._log_data(item))

    def _log_data(self, item: LogRequest) -> LogData:
        match item.evidence_type:
            case push_evidence.IMA_LOG:
                return self._ima_entries(_offset(item))
            case push_evidence.UEFI_LOG if (boot_log := self._boot_log.read()) is not None:
                return LogData(
                    entry_count=self._events(boot_log), entries=base64.b64encode(boot_log).decode()
                )
            case push_evidence.OS_LOG if (os_log := self._os_log.read_base64()) is not None:
                return LogData(entries=os_log)
        raise CannotShow(f"{item.evidence_type} is asked for, and there is none")

    def _ima_entries(self, offset: int) -> LogData:
        excerpt = self._ima.read_from(offset)
        if excerpt is None or excerpt.entry != offset:
            raise CannotShow(f"the IMA list is asked for from entry {offset}, where it has none")
        return LogData(entry_count=excerpt.text.count("\n"), entries=excerpt.text)


def _offset(item: LogRequest) -> int:
    offset = item.chosen_parameters.starting_offset
    return offset if isinstance(offset, int) else 0
