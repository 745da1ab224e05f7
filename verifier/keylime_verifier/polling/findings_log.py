"""The log lines of a rejected attestation, under the logger names and texts that operators grep for."""

import logging
import re

from keylime.appraisal.verdict import Rejected
from keylime.findings.explain import joined, log_text
from keylime.findings.finding import Finding
from keylime.identifiers import AgentId
from keylime.ima.summary import file_warning, ima_error_summary

_IMA = logging.getLogger("keylime.ima")
_TPM = logging.getLogger("keylime.tpm")
_MEASURED_BOOT = logging.getLogger("keylime.measured_boot")

_MAX_LINES = 50
_WRONG_PCR = re.compile(r"(?P<kind>pcr_validation|measured_boot)\.invalid_pcr_(?P<index>[0-9]{1,2})")


def log_findings(agent_id: AgentId, verdict: Rejected) -> None:
    """One line for each finding, the first ones of many, and one sum for IMA."""
    ima = [finding for finding in verdict.findings if finding.event_id.startswith("ima.")]
    others = [finding for finding in verdict.findings if not finding.event_id.startswith("ima.")]
    for finding in ima[:_MAX_LINES]:
        _IMA.warning("%s (agent %s)", log_text(finding, file_warning(finding)), agent_id)
    if ima:
        _IMA.error("%s (agent %s)", ima_error_summary(ima), agent_id)
    others = list(joined(others))
    for finding in others[:_MAX_LINES]:
        about_pcr = _about_pcr(agent_id, finding)
        if about_pcr is not None:
            _TPM.error("%s (agent %s: %s)", log_text(finding, about_pcr), agent_id, finding.event_id)
            continue
        logger = _MEASURED_BOOT if finding.event_id.startswith("measured_boot.") else _TPM
        logger.error("agent %s: %s: %s", agent_id, finding.event_id, log_text(finding))
    left_out = max(0, len(ima) - _MAX_LINES) + max(0, len(others) - _MAX_LINES) + verdict.omitted
    if left_out:
        _TPM.error("agent %s: %d further findings are left out here", agent_id, left_out)


def _about_pcr(agent_id: AgentId, finding: Finding) -> str | None:
    """The words about a PCR whose value is not the expected one; None for other findings."""
    match = _WRONG_PCR.fullmatch(finding.event_id)
    if match is None:
        return None
    index = match["index"]
    if match["kind"] == "pcr_validation":
        return (
            f"PCR #{index}: {finding.observed} from quote (from agent {agent_id}) does not match expected "
            f"value {list(finding.expected)}"
        )
    bank = str(finding.context.get("context", "")).partition(" ")[0].lower()
    return (
        f"For PCR {index} and hash {bank} the boot event log has value '{finding.observed}' but the agent "
        f"returned '{', '.join(finding.expected)}'"
    )
