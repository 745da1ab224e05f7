"""Whether a new policy accepts what it was made from: each objection of the judge is a warning."""

import json
from collections.abc import Mapping

from keylime.findings.finding import JsonValue, printable
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime_policy.messages import Messages
from keylime_policy.offline import Approval, Conclusion, StoredEvidence, judge

NOT_ITS_SOURCE = 3
"""The exit status for a policy that was made, but does not accept its source."""

_SHOWN = 10


def check_boot_log(
    state: Mapping[str, JsonValue],
    boot_log: bytes,
    messages: Messages,
    policy_name: str = "example",
    source: str = "its source",
) -> int:
    """Tries a reference state on its boot log, as policy `policy_name` will; the exit status."""
    policy = compile_measured_boot_policy(
        json.dumps(state), policy_name=policy_name, registry=built_in_policies()
    )
    return _tell(StoredEvidence(boot_log=boot_log), Approval(measured_boot=policy), messages, source)


def check_ima_list(
    policy: RuntimePolicy, ima_list: bytes, messages: Messages, source: str = "its source"
) -> int:
    """Tries a runtime policy on its IMA list, violations set aside, of which the list's reader tells."""
    approval = Approval(runtime_policy=policy, ignore_tomtou=True)
    return _tell(StoredEvidence(ima_list=ima_list), approval, messages, source)


def _tell(evidence: StoredEvidence, approval: Approval, messages: Messages, source: str) -> int:
    judgement = judge(evidence, approval)
    if judgement.outcome is not Conclusion.REJECTED:
        return 0
    for finding in judgement.findings[:_SHOWN]:
        remedy = f"; {finding.hint}" if finding.hint else ""
        messages.warning(printable(f"the policy does not accept {source}: {finding.explanation}{remedy}"))
    more = len(judgement.findings) + judgement.omitted - _SHOWN
    if more > 0:
        messages.warning(f"and {more} more objections")
    return NOT_ITS_SOURCE
