"""Commands about named policies at the verifier: runtime policies (or allowlists) and measured boot."""

import json

from keylime.errors import ConfigError
from keylime.http.replies import Reply
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime_tenant.client import answer_document, results_of
from keylime_tenant.people import name_lines
from keylime_tenant.policies import blaming, operator_policy, reference_state, runtime_policy
from keylime_tenant.session import Session

_RUNTIME = "allowlists"  # the path of runtime policies
_MEASURED_BOOT = "mbpolicies"


async def add_runtime_policy(session: Session) -> None:
    """Stores a new named runtime policy."""
    await _send_runtime_policy(session, "POST")


async def update_runtime_policy(session: Session) -> None:
    """Replaces a named runtime policy."""
    await _send_runtime_policy(session, "PUT")


async def show_runtime_policy(session: Session) -> None:
    """A named runtime policy."""
    reply = await session.verifier.policy("GET", _RUNTIME, _runtime_name(session))
    _report(session, reply, "show the runtime policy", heading="Show allowlist command response")
    _show_policy(session, reply, "runtime_policy")


async def delete_runtime_policy(session: Session) -> None:
    """Removes a named runtime policy that no agent uses."""
    name = _runtime_name(session)
    reply = await session.verifier.policy("DELETE", _RUNTIME, name)
    _report(session, reply, "delete the runtime policy", done=f"runtime policy {name} is removed")


async def list_runtime_policies(session: Session) -> None:
    """The names of all runtime policies."""
    reply = await session.verifier.policy("GET", _RUNTIME, "")
    _report(session, reply, "list runtime policies", heading="list command response")
    _show_names(session, reply, "runtime policies", "runtimepolicy names")


async def add_measured_boot_policy(session: Session) -> None:
    """Stores a new named measured boot policy."""
    await _send_measured_boot_policy(session, "POST")


async def update_measured_boot_policy(session: Session) -> None:
    """Replaces a named measured boot policy."""
    await _send_measured_boot_policy(session, "PUT")


async def show_measured_boot_policy(session: Session) -> None:
    """A named measured boot policy."""
    reply = await session.verifier.policy("GET", _MEASURED_BOOT, _boot_name(session))
    _report(session, reply, "show the measured boot policy", heading="showmbpolicy command response")
    _show_policy(session, reply, "mb_policy")


async def delete_measured_boot_policy(session: Session) -> None:
    """Removes a named measured boot policy that no agent uses."""
    name = _boot_name(session)
    reply = await session.verifier.policy("DELETE", _MEASURED_BOOT, name)
    _report(session, reply, "delete the measured boot policy", done=f"measured boot policy {name} is removed")


async def list_measured_boot_policies(session: Session) -> None:
    """The names of all measured boot policies."""
    reply = await session.verifier.policy("GET", _MEASURED_BOOT, "")
    _report(session, reply, "list measured boot policies", heading="listmbpolicy command response")
    _show_names(session, reply, "measured boot policies", "mbpolicy names")


async def _send_runtime_policy(session: Session, method: str) -> None:
    name = _runtime_name(session)
    text = runtime_policy(session.arguments, await session.read_policies())
    for warning in text.warnings:
        session.output.warning("%s", warning)
    tpm_policy = session.arguments.tpm_policy
    body = RuntimePolicyRequest(
        runtime_policy=text.policy,
        runtime_policy_key=text.key,
        tpm_policy=operator_policy(tpm_policy).to_wire() if tpm_policy else "",
    )
    reply = await session.verifier.policy(method, _RUNTIME, name, body)
    _report(session, reply, f"store the runtime policy {name}", done=f"runtime policy {name} is stored")


async def _send_measured_boot_policy(session: Session, method: str) -> None:
    name = _boot_name(session)
    documents, arguments = await session.read_policies(), session.arguments
    with blaming(arguments.flag("mb_policy", "--mb-policy"), arguments.mb_policy):
        text = reference_state(documents)
    if text is None:
        raise ConfigError("--mb-policy is required to add a measured boot policy")
    reply = await session.verifier.policy(
        method, _MEASURED_BOOT, name, MeasuredBootPolicyRequest(mb_policy=text)
    )
    _report(
        session,
        reply,
        f"store the measured boot policy {name}",
        done=f"measured boot policy {name} is stored",
    )


def _runtime_name(session: Session) -> str:
    if not session.arguments.policy_name:
        raise ConfigError(
            f"runtime_policy_name is required to {_verb(session)} a runtime policy: give "
            "--runtime-policy-name"
        )
    session.output.about(session.arguments.policy_name)
    return session.arguments.policy_name


def _boot_name(session: Session) -> str:
    if not session.arguments.mb_policy_name:
        raise ConfigError(
            f"mb_policy_name is required to {_verb(session)} a measured boot policy: give --mb-policy-name"
        )
    session.output.about(session.arguments.mb_policy_name)
    return session.arguments.mb_policy_name


def _report(
    session: Session, reply: Reply, intention: str, *, heading: str | None = None, done: str = ""
) -> None:
    """Shows the answer; `done` tells people what is different now."""
    document = answer_document(reply)
    if heading is not None:
        session.output.literal(f"{heading}: {reply.code}.")
    session.output.literal({} if reply.code == 204 else document)
    session.output.result(document)
    if reply.code >= 400:
        raise session.verifier.refusal(reply, intention)
    if done:
        session.output.show(lambda _: [done])


def _show_policy(session: Session, reply: Reply, *members: str) -> None:
    """The text of a policy as a document of its own, which can be kept in a file."""
    results = results_of(reply)
    text = next((results[member] for member in members if results.get(member)), None)
    try:
        document = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        document = text
    session.output.show(lambda _: [json.dumps(document, indent=2)])


def _show_names(session: Session, reply: Reply, title: str, key: str) -> None:
    found = results_of(reply).get(key)
    names = [str(name) for name in found] if isinstance(found, list) else []
    session.output.result(answer_document(reply), rows=[{"name": name} for name in names], names=names)
    session.output.show(lambda terminal: name_lines(title, names, terminal))


def _verb(session: Session) -> str:
    command = session.arguments.command
    return next((verb for verb in ("add", "update", "show", "delete") if command.startswith(verb)), command)
