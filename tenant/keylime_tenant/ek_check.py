"""Whether an agent's EK is that of a real TPM: by its certificate, and by a program of the operator's."""

import asyncio
import base64
import binascii
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from keylime.errors import ConfigError, MalformedEvidence, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.pki.ek import EkVerdict, check_ek_certificate
from keylime.pki.tpm_cert_store import load_trust_store
from keylime.safe_paths import require_safe_file
from keylime.tpm.keys import EndorsementKey, parse_endorsement_key
from keylime_tenant.config import EkRules
from keylime_tenant.enrolment import Candidate
from keylime_tenant.errors import AgentRejected, CommandFailed

_SCRIPT_TIME_S = 300.0


class EkCheck:
    """The check of one run, made of the rules in tenant.conf."""

    def __init__(self, rules: EkRules, work_dir: Path, environ: Mapping[str, str]) -> None:
        self._rules = rules
        self._work_dir = work_dir
        self._environ = environ

    async def __call__(self, candidate: Candidate) -> tuple[str, ...]:
        """What the operator should be warned of. Raises AgentRejected when the EK is not accepted."""
        key = endorsement_key(candidate.agent_id, candidate.ek_tpm)
        warnings: tuple[str, ...] = ()
        if self._rules.require_certificate:
            warnings = self._check_certificate(candidate, key)
        elif not self._rules.script:
            warnings = (
                f"The endorsement key of agent {candidate.agent_id} is not checked: "
                "[tenant] require_ek_cert is off and there is no ek_check_script",
            )
        if self._rules.script:
            await self._run_script(candidate, key)
        return warnings

    def _check_certificate(self, candidate: Candidate, key: EndorsementKey) -> tuple[str, ...]:
        store = self._rules.certificate_store
        verdict = check_ek_certificate(
            certificate_of(candidate.agent_id, candidate.ek_certificate),
            key.public_key,
            load_trust_store(store),
            datetime.now(UTC),
        )
        if not verdict.trusted:
            raise AgentRejected(_refusal(candidate, verdict, store))
        return verdict.warnings

    async def _run_script(self, candidate: Candidate, key: EndorsementKey) -> None:
        script = self._work_dir / self._rules.script
        try:
            require_safe_file(script)
        except ConfigError as error:
            raise CommandFailed(f"[tenant] ek_check_script: {error}") from error
        environment = {**self._environ, **script_variables(candidate, key, self._rules.certificate_store)}
        try:
            process = await asyncio.create_subprocess_exec(
                str(script), cwd=self._work_dir, env=environment, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise CommandFailed(f"[tenant] ek_check_script: {error.strerror}: {script}") from error
        try:
            code = await asyncio.wait_for(process.wait(), _SCRIPT_TIME_S)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise CommandFailed(
                f"[tenant] ek_check_script {script} did not end in {_SCRIPT_TIME_S} s"
            ) from error
        if code != os.EX_OK:
            raise AgentRejected(
                f"External check script failed to validate EK of agent {candidate.agent_id}: {script} ended "
                f"with {code}"
            )


def _refusal(candidate: Candidate, verdict: EkVerdict, store: Path) -> str:
    """What is wrong with the EK certificate, and what to look for where."""
    sentences = [f"Invalid EK certificate of agent {candidate.agent_id}: {verdict.reason}"]
    if verdict.missing is not None:
        if verdict.missing.addresses:
            where = ", ".join(ascii(address) for address in verdict.missing.addresses)
            sentences.append(
                f"The certificate says that its issuer's is published at {where}: "
                f"`keylime_tenant -c trust-issuer -u {candidate.agent_id}` fetches and shows it, and asks"
            )
        sentences.append(
            f"If its maker is trustworthy, get the certificate of {verdict.missing.subject!r} from the maker "
            f"and put it into {store} ([tenant] tpm_cert_store), for instance with "
            f"`keylime_ca import-vendor FILE --store {store}`"
        )
    else:
        sentences.append(
            f"A certificate that the maker has renewed goes into {store} ([tenant] tpm_cert_store); where "
            "there is none, set [tenant] require_ek_cert = False only if something else vouches for the TPM"
        )
    sentences.extend(verdict.warnings)
    return ". ".join(sentences)


def endorsement_key(agent_id: AgentId, ek_tpm: str) -> EndorsementKey:
    """The registered EK. Raises AgentRejected when it cannot be one."""
    try:
        return parse_endorsement_key(base64.b64decode(ek_tpm, validate=True))
    except (binascii.Error, ValueError, MalformedEvidence, UnsuitableKey) as error:
        raise AgentRejected(f"the registered EK of agent {agent_id} cannot be used: {error}") from error


def certificate_of(agent_id: AgentId, ek_certificate: str | None) -> bytes:
    """The registered EK certificate in DER. Raises AgentRejected when there is none."""
    if not ek_certificate:
        raise AgentRejected(
            f"agent {agent_id} registered no EK certificate: set [tenant] require_ek_cert = False "
            "only if something else vouches for its TPM"
        )
    try:
        return base64.b64decode(ek_certificate, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AgentRejected(f"the EK certificate of agent {agent_id} is not base64") from error


def script_variables(candidate: Candidate, key: EndorsementKey, store: Path) -> dict[str, str]:
    """What an operator's program is told about the EK."""
    return {
        "AGENT_UUID": candidate.agent_id,
        "EK": key.pem,
        "EK_TPM": candidate.ek_tpm,
        "EK_CERT": candidate.ek_certificate or "",
        "PROVKEYS": "{}",
        "TPM_CERT_STORE": str(store),
    }
