"""The log lines of a rejected attestation, under the logger names and texts that operators grep for."""

import logging

from keylime.appraisal.explain import log_text
from keylime.appraisal.verdict import Rejected
from keylime.identifiers import AgentId
from keylime.ima.summary import file_warning, ima_error_summary

_IMA = logging.getLogger("keylime.ima")
_TPM = logging.getLogger("keylime.tpm")
_MEASURED_BOOT = logging.getLogger("keylime.measured_boot")

_MAX_LINES = 50


def log_findings(agent_id: AgentId, verdict: Rejected) -> None:
    """One line for each finding, the first ones of many, and one sum for IMA."""
    ima = [finding for finding in verdict.findings if finding.event_id.startswith("ima.")]
    others = [finding for finding in verdict.findings if not finding.event_id.startswith("ima.")]
    for finding in ima[:_MAX_LINES]:
        _IMA.warning("%s (agent %s)", log_text(finding, file_warning(finding)), agent_id)
    if ima:
        _IMA.error("%s (agent %s)", ima_error_summary(ima), agent_id)
    for finding in others[:_MAX_LINES]:
        logger = _MEASURED_BOOT if finding.event_id.startswith("measured_boot.") else _TPM
        logger.error("agent %s: %s: %s", agent_id, finding.event_id, log_text(finding))
    left_out = max(0, len(ima) - _MAX_LINES) + max(0, len(others) - _MAX_LINES) + verdict.omitted
    if left_out:
        _TPM.error("agent %s: %d further findings are left out here", agent_id, left_out)
