"""The verifier processes that share a database: what `GET /verifiers` answers. Times are epoch seconds."""

import msgspec

SHARDS = 256
"""The parts that agents fall into, and verifiers divide among them. Each agent is stored with its own."""


class VerifierProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process: `name` is its host and process id, `shards` those of `SHARDS` that it has the lease of.

    `agents` are those that it polls, `oldest_pass` is when the one of them that passed last longest ago did,
    of those that are expected to pass; null without any. Those that attest by themselves belong to nobody.
    """

    name: str
    verifier_id: str
    shards: int
    agents: int
    oldest_pass: int | None


class VerifierProcesses(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, and by whose clock: `now` is the database's time."""

    verifiers: list[VerifierProcess]
    now: int
