"""The log lines of a rejected attestation, under the logger names and texts that operators grep for."""

import logging
from collections.abc import Sequence

from keylime.appraisal.findings import Finding
from keylime.identifiers import AgentId
from keylime.ima.summary import file_warning, ima_error_summary

_IMA = logging.getLogger("keylime.ima")
_TPM = logging.getLogger("keylime.tpm")
_MEASURED_BOOT = logging.getLogger("keylime.measured_boot")

_MAX_LINES = 50


def log_findings(agent_id: AgentId, findings: Sequence[Finding]) -> None:
    """One line for each finding, the first ones of many, and one sum for IMA."""
    ima = [finding for finding in findings if finding.event_id.startswith("ima.")]
    others = [finding for finding in findings if not finding.event_id.startswith("ima.")]
    for finding in ima[:_MAX_LINES]:
        _IMA.warning("%s (agent %s)", file_warning(finding) or finding.explanation, agent_id)
    if ima:
        _IMA.error("%s (agent %s)", ima_error_summary(ima), agent_id)
    for finding in others[:_MAX_LINES]:
        logger = _MEASURED_BOOT if finding.event_id.startswith("measured_boot.") else _TPM
        logger.error("agent %s: %s: %s", agent_id, finding.event_id, finding.explanation)
    left_out = max(0, len(ima) - _MAX_LINES) + max(0, len(others) - _MAX_LINES)
    if left_out:
        _TPM.error("agent %s: %d further findings are left out here", agent_id, left_out)
