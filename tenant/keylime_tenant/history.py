"""What happened to an agent, in lines for people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from keylime.findings.explain import terminal_lines
from keylime.findings.finding import printable
from keylime.messages.history import HistoryEvent
from keylime.messages.verifier import FindingSummary
from keylime_tenant.json_documents import AuditedEvent
from keylime_tenant.terminal import Terminal, moment

_INDENT = " " * 25
_POLICY_KINDS = {"runtime": "runtime policy", "measured_boot": "measured boot policy"}
_WORDS = {
    "enrolled": "enrolled",
    "changed": "enrolment changed",
    "stopped": "stopped by an operator",
    "reactivated": "reactivated",
    "deleted": "deleted",
    "policy_stored": "stored",
    "policy_replaced": "replaced",
    "policy_deleted": "deleted",
}


def history_lines(events: Sequence[HistoryEvent], terminal: Terminal) -> Iterator[str]:
    """Every event with what is known of it, oldest first; nothing is abbreviated."""
    for event in events:
        yield f"{moment(event.at)}  {terminal.paint(headline(event), style(event))}"
        for line in details(event):
            yield f"{_INDENT}{line}"


def audit_lines(events: Sequence[AuditedEvent], terminal: Terminal) -> Iterator[str]:
    """One line for each event: when, where, on what, what, and who did it, with the id of the request."""
    for event in events:
        subject = "" if event.agent_id is None else f"agent {printable(event.agent_id)} "
        by = f"by {printable(event.actor)}" if event.actor else _without_actor(event)
        request = f", request {printable(event.request_id)}" if event.request_id else ""
        what = terminal.paint(f"{subject}{headline(event)}", style(event))
        yield f"{moment(event.at)}  {event.service} {event.id}  {what}, {by}{request}"


def _without_actor(event: HistoryEvent) -> str:
    source = event.details.get("source")
    return f"from {printable(str(source))}" if source else "by itself"


def style(event: HistoryEvent) -> str:
    """How its line is painted, one of the styles of `terminal`."""
    if event.kind == "delivery":
        return {"delivered": "good", "given_up": "bad"}.get(str(event.details.get("outcome")), "doubtful")
    if event.kind in ("certificate", "refused", "taken_over", "registration_refused", "keys_replaced"):
        return "doubtful"
    if event.kind != "state":
        return "strong"
    return "bad" if event.details.get("findings") else "good"


def headline(event: HistoryEvent) -> str:
    """What happened, in one line."""
    told = event.details
    if event.kind == "refused":
        said = (printable(str(told.get(name))) for name in ("call", "code", "reason"))
        return f"refused: {' '.join(said)}"
    if event.kind == "taken_over":
        name = printable(str(told.get("verifier")))
        return f"{told.get('shards')} of {told.get('of')} shards taken over by verifier {name}"
    if event.kind in _OF_SERVICES:
        return _OF_SERVICES[event.kind](told)
    if event.policy is not None:
        kind, _, name = event.policy.partition("/")
        return f"{_POLICY_KINDS.get(kind, kind)} {printable(name)} {_WORDS.get(event.kind, event.kind)}"
    if event.kind == "state":
        return f"{printable(str(told.get('from')))} -> {printable(str(told.get('to')))}"
    if event.kind == "rebooted":
        return "rebooted, and attested from the first entry of its list"
    if event.kind == "held_to":
        return "passed for the first time under other policies"
    return _WORDS.get(event.kind, printable(event.kind))


def _registered(told: Mapping[str, Any]) -> str:
    same = told.get("same_tpm")
    other = f", with the TPM of {', '.join(printable(str(one)) for one in same)} as well" if same else ""
    return f"registered, its TPM has proven it{other}"


def _keys_replaced(told: Mapping[str, Any]) -> str:
    changed = ", ".join(printable(str(one)) for one in told.get("changed", ()))
    return f"registered again by the same TPM with another {changed}"


def _registration_refused(told: Mapping[str, Any]) -> str:
    result, reason = (printable(str(told.get(name))) for name in ("result", "reason"))
    said = f"registration refused ({result}): {reason}"
    if told.get("repeated"):
        said += f", {told['repeated']} times more since the line before"
    if told.get("left_off"):
        said += f"; {told['left_off']} refusals before it have no line"
    return said


def _registrations_imported(told: Mapping[str, Any]) -> str:
    return f"{told.get('registrations')} registrations taken over from {printable(str(told.get('source')))}"


_DELIVERIES = {
    "delivered": "delivered",
    "given_up": "given up, not delivered",
    "failing": "not delivered yet, and tried again",
    "wrong_key": "not delivered yet, another key answers",
}


_MESSAGES = {
    "revocation": ("revocation", "revocations"),
    "comm_error": ("warning of silence", "warnings of silence"),
    "cleared": ("all-clear", "all-clears"),
}


def _delivery(told: Mapping[str, Any]) -> str:
    count = len(told.get("revocations", ())) + int(told.get("revocations_left_off") or 0)
    one, many = _MESSAGES.get("+".join(map(str, told.get("messages", ()))), _MESSAGES["revocation"])
    what = one if count == 1 else f"{count} {many}"
    outcome = str(told.get("outcome"))
    targets = [printable(str(target)) for target in told.get("targets", ())]
    if told.get("targets_left_off"):
        targets.append(f"{told['targets_left_off']} more")
    said = f"{what} {_DELIVERIES.get(outcome, printable(outcome))}: {printable(str(told.get('channel')))} "
    said += ", ".join(targets)
    return f"{said} ({printable(str(told['error']))})" if told.get("error") else said


def _certificate(told: Mapping[str, Any]) -> str:
    return f"{printable(str(told.get('remark')))}, at verifier {printable(str(told.get('verifier')))}"


_OF_SERVICES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "delivery": _delivery,
    "certificate": _certificate,
    "registered": _registered,
    "keys_replaced": _keys_replaced,
    "registration_refused": _registration_refused,
    "registration_deleted": lambda _: "registration deleted",
    "registrations_imported": _registrations_imported,
}


def details(event: HistoryEvent) -> Iterator[str]:
    """What else is known of it: who did it, what changed, what was found."""
    told = event.details
    if event.actor is not None:
        yield f"by {printable(event.actor)}, request {printable(event.request_id or '')}"
    if event.kind in ("enrolled", "changed"):
        yield from _enrolment(told)
    if event.policy is not None:
        yield from _policy_change(told)
    yield from _judged_by(told)
    for finding in findings_of(event):
        yield f"{printable(finding.event_id)} ({printable(finding.severity)})"
        for line in terminal_lines(finding):
            yield f"  {line}"
    if told.get("findings_left_off"):
        yield f"and {told['findings_left_off']} more findings: see the verifier's log"
    if told.get("revocation"):
        # What is told of a change for the better is that the warning is over.
        word = "revocation" if told.get("findings") else "all-clear"
        yield f"{word} {printable(str(told['revocation']))}"


def findings_of(event: HistoryEvent) -> list[FindingSummary]:
    """The findings that an event tells, as far as they can be read."""
    try:
        return msgspec.convert(event.details.get("findings", []), list[FindingSummary])
    except msgspec.ValidationError:  # of a later release
        return []


def _enrolment(details: Mapping[str, Any]) -> Iterator[str]:
    was = details.get("was", {})
    if details.get("ip"):
        yield f"at {printable(str(details['ip']))} port {details.get('port')}"
    else:
        yield "attests by itself"
    for name, words in (("runtime_policy", "runtime policy"), ("mb_policy", "measured boot policy")):
        now, before = details.get(name), was.get(name)
        if was and now != before:
            yield f"{words} {printable(str(before))} -> {printable(str(now))}"
        elif now:
            yield f"{words} {printable(str(now))}"
    for part in details.get("runtime_policies") or ():
        end = f" until {moment(part.get('until'))}" if part.get("until") else ""
        yield f"together with others: {printable(str(part.get('name')))}{end}"
    if was and details.get("has_new_payload"):
        yield "another payload"


def _policy_change(details: Mapping[str, Any]) -> Iterator[str]:
    if details.get("was"):
        yield f"was     sha256 {printable(str(details['was']))}"
    if details.get("sha256"):
        yield f"is now  sha256 {printable(str(details['sha256']))}"
    if details.get("agents"):
        yield f"used by {details['agents']} agent{'' if details['agents'] == 1 else 's'}"


def _judged_by(details: Mapping[str, Any]) -> Iterator[str]:
    for name, words in (("runtime_policy", "runtime policy"), ("mb_policy", "measured boot policy")):
        policy = details.get(name)
        if isinstance(policy, Mapping):
            yield f"by {words} {printable(str(policy.get('name')))}, sha256 {policy.get('sha256')}"
