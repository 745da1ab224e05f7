"""A TPM that went away and came back: its keys are loaded again, and whoever waits for it is served then.

A resource manager that was restarted, a driver that was reloaded, another program that flushed all keys:
none of these needs an operator. What does not mend in time is told once, and the agent ends for its service
manager to start it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from keylime.errors import TpmError, TpmLost
from keylime.tpm.device import Tpm
from keylime_agent.attestation import TpmThread

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

# Seconds before each attempt to open it again.
PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_IN_VAIN_AT_MOST = 3  # losses that follow on each other without one command that worked


class RecoveringTpmThread(TpmThread):
    """The one thread that uses the TPM, and opens it again when it was lost."""

    def __init__(
        self,
        tpm: Tpm,
        executor: Executor,
        give_up: Callable[[TpmError], None],
        *,
        pauses_s: Sequence[float] = PAUSES_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`give_up` is told when the TPM does not come back."""
        super().__init__(tpm, executor)
        self._give_up = give_up
        self._pauses_s = pauses_s
        self._sleep = sleep
        self._generation = 0  # how often it was opened again
        self._in_vain = 0
        self._mending: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[Tpm], ResultT]) -> ResultT:
        """What `work` makes of the TPM, where need be once it was opened again. Raises what `work` raises."""
        generation = self._generation
        try:
            return await self._attempt(work)
        except TpmLost as error:
            await self._recovered(error, generation)
        return await self._attempt(work)

    async def _attempt(self, work: Callable[[Tpm], ResultT]) -> ResultT:
        result = await super().run(work)
        self._in_vain = 0
        return result

    async def _recovered(self, error: TpmLost, generation: int) -> None:
        """Returns when the TPM has been opened again since `generation`. Raises TpmError if it cannot be."""
        if generation != self._generation:
            return
        if self._mending is None or self._mending.done():
            # A task of its own: the request that found out may be cancelled.
            self._mending = asyncio.create_task(self._mend(error))
            self._mending.add_done_callback(_seen)
        await asyncio.shield(self._mending)

    async def _mend(self, error: TpmError) -> None:
        log.warning("the TPM was lost and is opened again: %s", error)
        self._in_vain += 1
        if self._in_vain <= _IN_VAIN_AT_MOST:
            for pause_s in self._pauses_s:
                await self._sleep(pause_s)
                try:
                    await super().run(Tpm.reopen)
                except TpmError as latest:
                    error = latest
                    log.warning("the TPM cannot be opened again yet: %s", latest)
                else:
                    self._generation += 1
                    log.info("the TPM is open again and its keys are loaded")
                    return
        final = TpmError(f"the TPM was lost and does not come back: {error}")
        self._give_up(final)
        raise final


def _seen(task: "asyncio.Task[None]") -> None:
    """Whoever waited may be gone: the error of a task counts as noticed."""
    if not task.cancelled():
        task.exception()
