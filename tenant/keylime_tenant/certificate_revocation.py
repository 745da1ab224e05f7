"""Takes back the certificate that an agent was enrolled with (`--cert`) when the agent is given up.

Only the very certificate that the verifier names: serial numbers mean something within one authority, and the
agent may have been added with another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keylime.errors import ConfigError, KeylimeError, MalformedMessage
from keylime.identifiers import AgentId
from keylime.pki.authority import CA_CERTIFICATE, Authority
from keylime.revocation.message import certificate_serial
from keylime_tenant.render import Output


def enrolled_serial(status: Mapping[str, Any]) -> int | None:
    """The serial number in an agent's status at the verifier; None when it came without a certificate."""
    meta_data = status.get("meta_data")
    try:
        return certificate_serial(meta_data) if isinstance(meta_data, str) else None
    except MalformedMessage:
        return None


@dataclass(frozen=True, slots=True)
class CertificateRevocation:
    """The authority of this run of the tenant; `open_authority` raises ConfigError without its password."""

    directory: Path
    open_authority: Callable[[], Authority]
    output: Output

    def revoke(self, agent_id: AgentId, serial: int) -> None:
        """Puts the certificate on the revocation list. If not, warns with the remedy: the agent is gone."""
        try:
            self._revoke(agent_id, serial)
        except KeylimeError as error:
            self.output.warning(
                "Certificate %d of agent %s is not revoked: %s. To do it: keylime_ca -c revoke -n %s -d DIR",
                serial,
                agent_id,
                error,
                agent_id,
            )
        else:
            self.output.info("Certificate %d of agent %s is revoked", serial, agent_id)

    def _revoke(self, agent_id: AgentId, serial: int) -> None:
        if not (self.directory / CA_CERTIFICATE).exists():
            raise ConfigError(f"there is no CA in {self.directory}, and --cert names no other")
        authority = self.open_authority()
        if authority.serial(agent_id) != serial:
            raise ConfigError(f"the CA in {self.directory} gave the agent another certificate")
        authority.revoke_serial(serial)
