"""Answers to identity and integrity challenges.

The quote is made first and the logs are read after it, so that they hold all that it covers. On a machine
that measures without a pause, the list also tells what PCR 10 held in the quote.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from keylime.errors import TpmError
from keylime.messages.agent import QuoteReply
from keylime.tpm.device import LoadedKey, QuoteParts, Tpm
from keylime.tpm.pcr import IMA_PCR, PcrSelection, encode_pcr_blob
from keylime.tpm.quote import encode_quote
from keylime_agent.evidence import BootLog
from keylime_agent.ima_list import ImaList
from keylime_agent.os_log import OsLog
from keylime_agent.queries import IntegrityQuery
from keylime_agent.quoting import QuoteAlgorithms, QuoteFailed

ResultT = TypeVar("ResultT")


class TpmThread:
    """The one thread that uses the TPM."""

    def __init__(self, tpm: Tpm, executor: Executor) -> None:
        self._tpm = tpm
        self._executor = executor

    async def run(self, work: Callable[[Tpm], ResultT]) -> ResultT:
        """What `work` makes of the TPM, done in its thread. Raises what `work` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, self._tpm)


class Attestor:
    """Makes quotes and the answers that carry them."""

    def __init__(
        self,
        tpm: TpmThread,
        ak: LoadedKey,
        algorithms: QuoteAlgorithms,
        *,
        pubkey_pem: str,
        ima: ImaList,
        boot_log: BootLog,
        os_log: OsLog,
        boottime: int,
    ) -> None:
        self._tpm = tpm
        self._ak = ak
        self._algorithms = algorithms
        self._pubkey_pem = pubkey_pem
        self._ima = ima
        self._boot_log = boot_log
        self._os_log = os_log
        self._boottime = boottime
        self._logs = asyncio.Lock()  # one reader at a time: the list remembers where it was

    async def identity(self, nonce: bytes, version: str) -> QuoteReply:
        """The answer to an identity challenge: a quote of PCR 16 alone. Raises QuoteFailed."""
        quote = await self._quote(nonce, 0)
        return self._reply(quote, version, with_pubkey=True)

    async def integrity(self, query: IntegrityQuery, version: str) -> QuoteReply:
        """The answer to an integrity challenge, with the logs that its PCRs call for. Raises QuoteFailed."""
        quote = await self._quote(query.nonce, query.mask)
        ima = boot = system = None
        async with self._logs:
            if query.mask >> IMA_PCR & 1:
                ima = await asyncio.to_thread(self._ima.read_from, query.ima_entry)
            if query.mask & 1:
                boot = await asyncio.to_thread(self._boot_log.read_base64)
                system = await asyncio.to_thread(self._os_log.read_base64)
        return self._reply(
            quote,
            version,
            with_pubkey=query.with_pubkey,
            ima_list=None if ima is None else ima.text,
            ima_entry=0 if ima is None else ima.entry,
            boot_log=boot,
            os_log=system,
        )

    async def _quote(self, nonce: bytes, mask: int) -> QuoteParts:
        try:
            selection = PcrSelection.from_mask(self._algorithms.bank, mask)
        except ValueError as error:  # bits 24 to 31: such PCRs do not exist
            raise QuoteFailed(str(error)) from error
        try:
            measurements = self._ima.tail() if mask >> IMA_PCR & 1 else None
            return await self._tpm.run(
                lambda tpm: tpm.quote(self._ak, selection, nonce, self._pubkey_pem, measurements)
            )
        except TpmError as error:
            raise QuoteFailed(str(error)) from error

    def _reply(
        self,
        quote: QuoteParts,
        version: str,
        *,
        with_pubkey: bool,
        ima_list: str | None = None,
        ima_entry: int = 0,
        boot_log: str | None = None,
        os_log: str | None = None,
    ) -> QuoteReply:
        return QuoteReply(
            quote=encode_quote(quote.attest, quote.signature, encode_pcr_blob(quote.pcrs)),
            hash_alg=self._algorithms.bank.label,
            enc_alg=self._algorithms.encryption_for(version),
            sign_alg=self._algorithms.signing,
            pubkey=self._pubkey_pem if with_pubkey else None,
            boottime=self._boottime,
            ima_measurement_list=ima_list,
            ima_measurement_list_entry=ima_entry,
            mb_measurement_list=boot_log,
            os_measurement_list=os_log,
        )
