"""`create measured-boot`: the reference state of a machine that is known to be good, from its event log."""

from typing import cast

from keylime.errors import MalformedEvidence
from keylime.findings.finding import JsonValue
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.reference_state import create_reference_state, missing_proofs, secure_boot_is_on
from keylime_policy.learned_boot import SECURE_BOOT_OFF
from keylime_policy.messages import Messages
from keylime_policy.own_source import check_boot_log
from keylime_policy.sources import SourceFile


def create_from_log(
    source: SourceFile, messages: Messages, *, without_secure_boot: bool
) -> tuple[dict[str, JsonValue], int]:
    """The reference state for policy `example`, and the exit status by its own log. Raises ConfigError."""
    with source.blamed():
        log = parse_event_log(source.content)
        is_on = secure_boot_is_on(log)
        if not is_on and not without_secure_boot:
            raise MalformedEvidence(SECURE_BOOT_OFF)
        state = create_reference_state(log, secure_boot=not without_secure_boot)
    if is_on and without_secure_boot:
        messages.warning("Secure Boot is on in this boot log; the reference state will not demand it")
    messages.warnings(missing_proofs(state))
    others = sum(len(cast("list[str]", digests)) for digests in _others(state).values())
    if others:
        messages.note(
            f"{others} events that no rule knows are listed by digest in other_events, "
            f"of PCR {', '.join(_others(state))}"
        )
    return state, check_boot_log(state, source.content, messages)


def _others(state: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", state.get("other_events", {}))
