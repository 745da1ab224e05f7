"""What the tenant's clients need of a connection to their peer."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Protocol

import msgspec

from keylime.errors import PeerUnreachable
from keylime.http.replies import Reply


class Trouble(Enum):
    """Why a peer could not be reached, by what an operator has to look at."""

    NO_TLS = auto()
    OWN_CERTIFICATE = auto()  # of ours: it has ended, or begins later
    HANG_UP = auto()  # in TLS 1.3 a refused certificate looks so
    TRUST = auto()
    SILENCE = auto()  # nobody has taken the connection, and nobody has refused it
    NETWORK = auto()


class Peer(Protocol):
    """Whoever answers requests. Raises PeerUnreachable."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
    ) -> Reply: ...

    async def trouble(self, error: PeerUnreachable) -> Trouble: ...

    async def close(self) -> None: ...
