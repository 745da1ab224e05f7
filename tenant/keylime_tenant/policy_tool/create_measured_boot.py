"""`create measured-boot`: the reference state of a machine that is known to be good, from its event log."""

import json

from keylime.errors import MalformedEvidence
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.reference_state import create_reference_state, secure_boot_is_on
from keylime_tenant.policy_tool.files import blaming, read_input
from keylime_tenant.policy_tool.messages import Messages

_OPTION = "--eventlog-file"


def reference_state_text(path: str, messages: Messages, *, without_secure_boot: bool) -> str:
    """The JSON text of the reference state for policy `example`. Raises ConfigError."""
    content = read_input(_OPTION, path)
    with blaming(_OPTION, path):
        log = parse_event_log(content)
        is_on = secure_boot_is_on(log)
        if not is_on and not without_secure_boot:
            raise MalformedEvidence("Secure Boot is off in this boot log; --without-secureboot accepts that")
        state = create_reference_state(log, secure_boot=not without_secure_boot)
    if is_on and without_secure_boot:
        messages.warning("Secure Boot is on in this boot log; the reference state will not demand it")
    if "kernels" not in state:
        messages.warning(
            "the machine did not boot through shim and GRUB, so the reference state has no kernels: "
            "policy `example` cannot use it, and with `accept-all` only the replay counts"
        )
    return json.dumps(state, indent=2) + "\n"
