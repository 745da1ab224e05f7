"""See `keylime.tpm.tpm_policy`."""

from keylime.tpm.tpm_policy import TpmPolicy

__all__ = ["TpmPolicy"]
