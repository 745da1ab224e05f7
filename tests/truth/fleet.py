"""Machines that remember what they answered, and when they were bad."""

import time
from typing import Any

from keylime.http.server import Response
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import verifier_authority
from tests.truth.history import Answered, Truth


class KnownMachine(AttestingAgent):
    """An agent whose truth is known. It turns bad once, and may be good again after a reboot."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id, verifier_authority())
        self.answers: list[Answered] = []
        self.watched_since = 0.0
        self._bad_since: float | None = None
        self._good_again: float | None = None
        self.answer_quote = self._remember

    def turn_bad(self) -> None:
        """Runs something that no policy allows, from now on."""
        self._bad_since = time.monotonic()
        self.tamper()

    def turn_good(self) -> None:
        """Is rebooted and as it was: who asks from now on cannot know."""
        self.reboot()
        self._good_again = time.monotonic()

    @property
    def is_good(self) -> bool:
        """Whether it has always been good."""
        return self._bad_since is None

    @property
    def truth(self) -> Truth:
        """As the checker needs it."""
        return Truth(self._bad_since, self._good_again, self.watched_since)

    def _remember(self, results: dict[str, Any]) -> Response:
        is_bad = self._bad_since is not None and self._good_again is None
        self.answers.append(Answered(time.monotonic(), self.agent_id, is_bad))
        return Response(results=results)
