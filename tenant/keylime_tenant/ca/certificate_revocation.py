"""Takes back the certificate that an agent was enrolled with (`--cert`) when the agent is given up.

Only the very certificate that the verifier names: serial numbers mean something within one authority, and the
agent may have been added with another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keylime.errors import ConfigError, KeylimeError
from keylime.identifiers import AgentId
from keylime.pki.authority import Authority
from keylime.pki.file_names import CA_CERTIFICATE
from keylime_tenant.arguments import Arguments
from keylime_tenant.ca.authorities import authority_directory, load_ca_settings
from keylime_tenant.passwords import has_terminal, keystore_password
from keylime_tenant.render import Output


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
            self.output.said("Certificate %d of agent %s is revoked", serial, agent_id)

    def _revoke(self, agent_id: AgentId, serial: int) -> None:
        if not (self.directory / CA_CERTIFICATE).exists():
            raise ConfigError(f"there is no CA in {self.directory}, and --cert names no other")
        authority = self.open_authority()
        if authority.serial(agent_id) != serial:
            raise ConfigError(f"the CA in {self.directory} gave the agent another certificate")
        authority.revoke_serial(serial)


def authority_of_run(
    arguments: Arguments, environ: Mapping[str, str], output: Output
) -> CertificateRevocation:
    """The authority that the command line, or the configuration, names."""
    directory = authority_directory(arguments.ca_dir, environ)

    def open_existing() -> Authority:
        settings = load_ca_settings(environ)
        # Nobody is asked for the password of an authority that was not mentioned.
        may_ask = arguments.ca_dir is not None and has_terminal()
        password = keystore_password(settings, is_terminal=lambda: may_ask)
        return Authority.open(directory, password, settings.subject)

    return CertificateRevocation(directory, open_existing, output)
