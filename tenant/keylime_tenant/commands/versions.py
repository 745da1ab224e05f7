"""`policyversions` and `restorepolicy`: the versions of a named policy, and the way back to one."""

from collections.abc import Iterator

from keylime.errors import ConfigError
from keylime.findings.finding import printable
from keylime.messages.verification import PolicyVersions, RestoreRequest
from keylime_tenant.client import answer_document, read_results, results_of
from keylime_tenant.errors import CommandFailed
from keylime_tenant.policies import encoded_key
from keylime_tenant.session import Session
from keylime_tenant.terminal import Terminal, moment


async def policy_versions(session: Session) -> None:
    """The versions that the verifier keeps of one policy, and who uses it."""
    kind, name = _policy(session)
    verifier = session.verifier
    reply = await verifier.call("GET", verifier.policy_path(kind, name, "versions"))
    if reply.code != 200:
        raise _refusal(session, reply.code, reply.status, name, "tell the versions of")
    found = read_results(reply, PolicyVersions, verifier.place)
    document = results_of(reply)
    session.output.result(document, rows=document.get("versions"), names=[name])
    if not session.output.form.is_document:
        session.output.lines(_lines(found, session.output.terminal))


async def restore_policy(session: Session) -> None:
    """Makes what a former version says the newest one."""
    kind, name = _policy(session)
    version = session.arguments.policy_version
    if version is None:
        raise ConfigError("--policy-version is required: see the versions with policyversions")
    key = encoded_key(await session.read_policies())
    reply = await session.verifier.call(
        "POST",
        session.verifier.policy_path(kind, name, "versions", str(version), "restore"),
        body=RestoreRequest(key or None),
    )
    if reply.code != 201:
        raise _refusal(session, reply.code, reply.status, name, f"go back to version {version} of")
    session.output.about(name)
    session.output.result(answer_document(reply))
    session.output.said(
        "Policy %s says what version %d said, as its newest version", printable(name), version
    )


def _policy(session: Session) -> tuple[str, str]:
    runtime, boot = session.arguments.policy_name, session.arguments.mb_policy_name
    if runtime and not boot:
        return "allowlists", runtime
    if boot and not runtime:
        return "mbpolicies", boot
    raise ConfigError("which policy? give --runtime-policy-name or --mb-policy-name")


def _refusal(session: Session, code: int, status: str, name: str, what: str) -> CommandFailed:
    return CommandFailed(f"{session.verifier.place} did not {what} policy {name!r}: {code} {status}")


def _lines(found: PolicyVersions, terminal: Terminal) -> Iterator[str]:
    for version in found.versions:
        mark = terminal.paint("in force", "good") if version.is_current else ""
        yield f"version {version.version}  {mark}".rstrip()
        yield f"   sha256  {version.sha256}"
        if version.at is not None:
            yield f"   stored  {moment(version.at)} by {printable(version.actor or 'unknown')}"
    total = len(found.agents) + found.left_off
    yield f"used by {total or 'no'} agent{'' if total == 1 else 's'}"
    for agent_id in found.agents:
        yield f"   {printable(agent_id)}"
    if found.left_off:
        yield f"   and {found.left_off} more"
