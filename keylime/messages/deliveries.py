"""How far revocations have come: what the verifier answers to `GET /revocations`. Times are epoch seconds."""

import msgspec


class TargetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All deliveries over one channel to one target, counted by their state."""

    channel: str  # "agent", "zeromq" or "webhook"
    target: str  # an agent id, an endpoint, or the origin of a URL
    pending: int
    delivered: int
    failed: int
    attempts: int
    gone: int = 0  # the agent was deleted under way; what waited is dropped with it
    wrong_key: int = 0  # still to be delivered: whoever answered last did not hold the agent's key
    last_error: str | None = None
    oldest_pending: int | None = None  # when the oldest undelivered revocation was made


class DeliveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One revocation's way to one target."""

    revocation_id: str
    agent_id: str  # whom it is about
    created_at: int
    channel: str
    target: str
    state: str  # "pending", "delivered", "failed", "gone" or "wrong_key"
    attempts: int
    last_error: str | None = None
    updated_at: int


class Deliveries(msgspec.Struct, frozen=True, kw_only=True):
    """Every target, and the newest single deliveries; `left_off` counts those beyond the limit."""

    targets: list[TargetSummary]
    deliveries: list[DeliveryStatus]
    left_off: int
