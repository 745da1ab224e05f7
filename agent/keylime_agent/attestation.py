"""Answers to identity and integrity challenges.

The quote is made first and the logs are read after it, so that they hold all that it covers.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from keylime.errors import TpmError
from keylime.hashes import HashAlgorithm
from keylime.http.server import HttpError
from keylime.messages.agent import QuoteReply
from keylime.messages.versions import version_key
from keylime.tpm.device import LoadedKey, QuoteParts, Tpm
from keylime.tpm.pcr import IMA_PCR, PcrSelection, encode_pcr_blob
from keylime.tpm.quote import encode_quote
from keylime_agent.evidence import BootLog, ImaList

ResultT = TypeVar("ResultT")

MAX_NONCE = 64
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_MASK = re.compile(r"(0[xX])?([0-9a-fA-F]{1,8})")


@dataclass(frozen=True, slots=True)
class IntegrityQuery:
    """The parameters of an integrity challenge, checked."""

    nonce: bytes
    mask: int
    with_pubkey: bool
    ima_entry: int


@dataclass(frozen=True, slots=True)
class QuoteAlgorithms:
    """How quotes are made: PCR bank, kind of AK with its size ("rsa2048"), signature scheme ("rsassa")."""

    bank: HashAlgorithm
    encryption: str
    signing: str

    def encryption_for(self, version: str) -> str:
        """The kind of AK in the words of API `version`: before 2.5 the two usual sizes go without saying."""
        if (version_key(version) or (0, 0)) < (2, 5):
            return {"rsa2048": "rsa", "ecc256": "ecc"}.get(self.encryption, self.encryption)
        return self.encryption


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
        boottime: int,
    ) -> None:
        self._tpm = tpm
        self._ak = ak
        self._algorithms = algorithms
        self._pubkey_pem = pubkey_pem
        self._ima = ima
        self._boot_log = boot_log
        self._boottime = boottime
        self._logs = asyncio.Lock()  # one reader at a time: the list remembers where it was

    async def identity(self, nonce: bytes, version: str) -> QuoteReply:
        """The answer to an identity challenge: a quote of PCR 16 alone. Raises HttpError."""
        quote = await self._quote(nonce, 0)
        return self._reply(quote, version, with_pubkey=True)

    async def integrity(self, query: IntegrityQuery, version: str) -> QuoteReply:
        """The answer to an integrity challenge, with the logs that its PCRs call for. Raises HttpError."""
        quote = await self._quote(query.nonce, query.mask)
        ima = boot = None
        async with self._logs:
            if query.mask >> IMA_PCR & 1:
                ima = await asyncio.to_thread(self._ima.read_from, query.ima_entry)
            if query.mask & 1:
                boot = await asyncio.to_thread(self._boot_log.read_base64)
        return self._reply(
            quote,
            version,
            with_pubkey=query.with_pubkey,
            ima_list=None if ima is None else ima.text,
            ima_entry=0 if ima is None else ima.entry,
            boot_log=boot,
        )

    async def _quote(self, nonce: bytes, mask: int) -> QuoteParts:
        try:
            selection = PcrSelection.from_mask(self._algorithms.bank, mask)
        except ValueError as error:  # bits 24 to 31: such PCRs do not exist
            raise HttpError(500, "Unable to retrieve quote") from error
        try:
            return await self._tpm.run(lambda tpm: tpm.quote(self._ak, selection, nonce, self._pubkey_pem))
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
        )


class QuoteFailed(HttpError):
    """The TPM did not quote; the reason is for the agent's log, the peer learns only that."""

    def __init__(self, reason: str) -> None:
        super().__init__(500, "Unable to retrieve quote")
        self.reason = reason


def parse_identity_query(query: Mapping[str, str]) -> bytes:
    """The nonce of an identity challenge. Raises HttpError 400."""
    return _nonce(query, "Parameters")


def parse_integrity_query(query: Mapping[str, str]) -> IntegrityQuery:
    """The parameters of an integrity challenge (rest-api 3.3). Raises HttpError 400."""
    nonce = _nonce(query, "nonce")
    mask = _required(query, "mask")
    if not _ALPHANUMERIC.fullmatch(mask):
        raise HttpError(400, f"mask should be strictly alphanumeric: {mask}")
    digits = _MASK.fullmatch(mask)
    if digits is None:
        raise HttpError(400, f"mask should be a hex encoded 32-bit integer: {mask}")
    partial = query.get("partial")
    if partial not in ("0", "1"):
        raise HttpError(400, "uri must contain key 'partial' and value '0' or '1'")
    entry = query.get("ima_ml_entry", "0")
    known = int(entry) if entry.isascii() and entry.isdigit() and len(entry) <= 15 else 0
    return IntegrityQuery(nonce, int(digits[2], 16), partial == "0", known)


def parse_challenge(query: Mapping[str, str]) -> str:
    """The challenge of /keys/verify. Raises HttpError 400."""
    challenge = query.get("challenge", "")
    if not challenge:
        raise HttpError(400, "No challenge provided.")
    if not _ALPHANUMERIC.fullmatch(challenge):
        raise HttpError(400, f"Parameters should be strictly alphanumeric: {challenge}")
    return challenge


def _nonce(query: Mapping[str, str], name: str) -> bytes:
    nonce = _required(query, "nonce")
    if not _ALPHANUMERIC.fullmatch(nonce):
        raise HttpError(400, f"{name} should be strictly alphanumeric: {nonce}")
    if len(nonce) > MAX_NONCE:
        raise HttpError(400, f"Nonce is too long (max size {MAX_NONCE}): {nonce}")
    return nonce.encode()


def _required(query: Mapping[str, str], name: str) -> str:
    value = query.get(name)
    if value is None:
        raise HttpError(400, f"Query deserialize error: missing field `{name}`")
    return value
