"""What the page does for its operator, each after a confirmation."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from keylime.identifiers import AgentId
from keylime_tenant.approval import Proposal, propose, request_of
from keylime_tenant.commands.approve import KIND, policy_text, policy_to_amend, users_of
from keylime_tenant.commands.cases import read_case
from keylime_tenant.commands.verifier import delete_from_verifier, owner, release
from keylime_tenant.dashboard.machine_page import acceptable, refusals
from keylime_tenant.errors import CommandFailed
from keylime_tenant.session import Session


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a policy would list, and whom else that is about. `seal` stands for exactly this."""

    policy: str
    proposal: Proposal
    users: int
    refused: Sequence[str]
    left_off: int

    @property
    def seal(self) -> str:
        """What a form sends back, so that nothing is stored that was not shown."""
        shown = f"{self.policy}\n{self.proposal.replaces}\n{self.proposal.document}"
        return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()


async def prepare_acceptance(session: Session, agent_id: AgentId) -> Acceptance:
    """The next version of an agent's policy. Raises CommandFailed for what must not be, KeylimeError."""
    about = replace(session, agent_id=agent_id)
    case = await read_case(about)
    paths = acceptable(case.findings)
    if not paths:
        raise CommandFailed(f"agent {agent_id} has no findings that a policy could answer")
    name = policy_to_amend(about, case.status)
    refused = [*refusals(case.findings)]
    only = paths if refused else ()
    proposal = propose(await policy_text(about, name), case.findings, only=only, force=False)
    if proposal.is_signed:
        raise CommandFailed(
            f"policy {name!r} is signed, and the dashboard has no key: keylime_tenant approve -u {agent_id} "
            "--sign-key FILE signs its next version"
        )
    return Acceptance(name, proposal, await users_of(about, name), refused, case.left_off)


async def accept(session: Session, agent_id: AgentId, seal: str) -> None:
    """Stores what was shown with `seal`, and has the agent judged by it. Raises KeylimeError."""
    asked = await prepare_acceptance(session, agent_id)
    if asked.seal != seal:
        raise CommandFailed("the findings or the policy have changed since they were shown: look again")
    reply = await session.verifier.policy("PUT", KIND, asked.policy, request_of(asked.proposal, None))
    if reply.code != 201:
        raise session.verifier.refusal(reply, f"store the next version of policy {asked.policy!r}")
    await reactivate(session, agent_id)


async def stop(session: Session, agent_id: AgentId) -> None:
    """Ends the attestation of an agent for now. Raises CommandFailed, KeylimeError."""
    await _order(session, agent_id, "stop")


async def reactivate(session: Session, agent_id: AgentId) -> None:
    """Has an agent attested again. Raises CommandFailed, KeylimeError."""
    await _order(session, agent_id, "reactivate")


async def delete(session: Session, agent_id: AgentId) -> None:
    """Ends the attestation of an agent for good. Raises CommandFailed, KeylimeError."""
    await delete_from_verifier(session, agent_id)


async def _order(session: Session, agent_id: AgentId, word: str) -> None:
    status = await session.verifier.status(agent_id)
    if status is None:
        raise CommandFailed(f"{session.verifier.place} does not have agent {agent_id}")
    verifier = owner(session, status)
    try:
        reply = await verifier.act(agent_id, word)
    finally:
        await release(session, verifier)
    if reply.code != 200:
        raise verifier.refusal(reply, f"{word} agent {agent_id}")


@dataclass(frozen=True, slots=True)
class Order:
    """Something that is done to one agent, and what to think of before."""

    carry_out: Callable[[Session, AgentId], Awaitable[None]]
    means: str


ORDERS: Mapping[str, Order] = {
    "stop": Order(
        stop, "It is not attested any more, and nobody is told what becomes of it, until it is reactivated."
    ),
    "reactivate": Order(
        reactivate, "It is attested again, from the first entry of its list, by the policies that it has now."
    ),
    "delete": Order(
        delete,
        "The verifier forgets it: keylime_tenant add brings it back. Its certificate is not revoked by this, "
        "keylime_tenant delete does that as well.",
    ),
}
