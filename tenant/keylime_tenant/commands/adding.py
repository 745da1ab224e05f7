"""`add`, for agents that are asked and for those that attest by themselves."""

from keylime_tenant.commands import enrol, pushing
from keylime_tenant.session import Session


async def add(session: Session) -> None:
    """Hands a registered agent to the verifier. Raises CommandFailed."""
    await (pushing.add if session.arguments.push_model else enrol.add)(session)
