"""Who is told of a revocation, and over what."""

import functools
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keylime.messages.revocation import SignedRevocation
from keylime.revocation.broker_process import running_broker
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents.deliveries import AGENT, WEBHOOK, ZEROMQ, Channel
from keylime_verifier.agents.records import AgentRecord
from keylime_verifier.api.routes import Repositories
from keylime_verifier.certificates import Tls
from keylime_verifier.config import VerifierConfig
from keylime_verifier.revocations.audience import Audience
from keylime_verifier.revocations.delivery_rules import RetryPolicy
from keylime_verifier.revocations.notifier import Carrier, Notifier, agent_carrier, broadcast
from keylime_verifier.revocations.repeats import Repeats

if TYPE_CHECKING:  # its library is loaded where there is a webhook
    from keylime_verifier.revocations.webhook import Webhook

_NOTIFICATION_LIMIT_S = 15.0  # for one attempt: receivers only have to put the message aside


@dataclass(frozen=True, slots=True)
class Telling:
    """What brings revocations to their targets; the webhook if there is one."""

    notifier: Notifier
    audience: Audience
    repeats: Repeats
    webhook: "Webhook | None"

    def on_revocations(self) -> None:
        """Another process has written some, or what became of them."""
        self.notifier.wake()
        self.repeats.look()


async def open_telling(
    config: VerifierConfig,
    stored: Repositories,
    broker: str | None,
    tls: Tls,
    connect: Callable[[AgentRecord], AgentClient],
    now: Callable[[], float],
    stack: AsyncExitStack,
) -> Telling:
    """The enabled channels; `stack` closes what they open. `broker` is this process's, if it has one."""
    repeats = Repeats(functools.partial(stored.outbox.over, config.verifier_id))
    carriers: dict[Channel, Carrier] = {}
    if broker is not None:
        carriers[ZEROMQ] = await _open_broker(config, stored, repeats, stack)
    webhook = None
    if config.webhook is not None:
        from keylime_verifier.revocations.webhook import Webhook  # as above

        webhook = Webhook(
            config.webhook, tls.contexts.webhook, _attempt_limit_s(config), config.tls.name_check
        )
        stack.push_async_callback(webhook.close)
        carriers[WEBHOOK] = broadcast(webhook.post)
    if AGENT in config.notifications:
        carriers[AGENT] = agent_carrier(stored.agents.find, connect)
    audience = Audience(
        config.notification_targets,
        config.max_agents_notified,
        functools.partial(stored.agents.any_more_than, verifier_id=config.verifier_id),
    )
    notifier = Notifier(stored.outbox, carriers, _retry_policy(config), now=now)
    return Telling(notifier, audience, repeats, webhook)


async def _open_broker(
    config: VerifierConfig, stored: Repositories, repeats: Repeats, stack: AsyncExitStack
) -> Carrier:
    recent = await stored.outbox.recently_published(config.verifier_id)
    process = await stack.enter_async_context(
        running_broker(config.zmq_ip, config.zmq_port, recent, repeats.check)
    )
    repeats.broker = process

    async def publish(signed: SignedRevocation) -> None:
        await process.publish(signed)
        repeats.look()

    return broadcast(publish)


def _retry_policy(config: VerifierConfig) -> RetryPolicy:
    return RetryPolicy(
        retry_interval_s=config.cadence.retry_interval_s,
        attempt_limit_s=_attempt_limit_s(config),
        retention_s=config.revocation_retention_s,
        history_s=config.revocation_history_s,
    )


def _attempt_limit_s(config: VerifierConfig) -> float:
    return min(config.request_timeout_s, _NOTIFICATION_LIMIT_S)
