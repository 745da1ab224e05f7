"""`keylime_agent --check`: whether this machine can be attested. What is not well is told with the remedy.

Nothing is written, and no key is made that stays: it may be asked beside a running agent.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from keylime.addresses import means_own_host
from keylime.checkup import Result, bad, ok, unknown, warning
from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.errors import ConfigError, CredentialError, KeylimeError, MalformedEvidence, TpmError
from keylime.hashes import HashAlgorithm
from keylime.pki.der import read_certificate
from keylime.pki.lifetimes import CertificateFile, Holder, Lifetime, life_remark, when
from keylime.pki.tls import load_trusted_certificates
from keylime.tpm.device import Tpm, choose_tcti
from keylime_agent.config import AgentConfig, agent_config
from keylime_agent.kernel_remarks import bank_remark
from keylime_agent.machine_config import MachineConfig
from keylime_agent.tpm_identity import open_ek

_IMA_POLICY = Path("/sys/kernel/security/ima/policy")
_COMMAND_LINE = Path("/proc/cmdline")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - as the configuration may say
_LIMIT_S = 10.0
_SHOWN = 4 << 20  # bytes of a log that are looked at


def examine(environ: Mapping[str, str]) -> Iterator[Result]:
    """Everything, in the order in which an agent needs it."""
    try:
        settings = load_settings("agent", environ=environ)
        config = agent_config(settings, environ)
    except KeylimeError as error:
        yield bad("configuration", str(error))
        return
    yield from machine(settings, config, environ)
    yield from addresses(config)
    yield registrar(config)
    yield from authority(config)


def machine(settings: Settings, config: MachineConfig, environ: Mapping[str, str]) -> Iterator[Result]:
    """What agents of both models need of this machine."""
    for text in settings.warnings:
        yield warning("configuration", text)
    if not settings.warnings:
        yield ok("configuration", ", ".join(map(str, settings.files)) or "defaults, no file")
    yield from tpm(config, environ)
    yield from ima(config.ima_path)
    yield kernel(os.uname().release, config.algorithms.hash_alg)
    yield boot_log(config.boot_log_path)


def tpm(config: MachineConfig, environ: Mapping[str, str]) -> Iterator[Result]:
    """The TPM, how it is reached, its banks, and the certificate of its endorsement key."""
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        tcti = choose_tcti(environ)
        device = Tpm.open(tcti, endorsement_auth=config.endorsement_auth)
    except TpmError as error:
        yield bad(
            "TPM",
            str(error),
            "switch it on in the firmware, or run as root or a member of the group tss; TCTI names another",
        )
        return
    try:
        maker = device.properties()
        yield ok("TPM", f"{maker.manufacturer} ({maker.vendor}), by {tcti}")
        yield resource_manager(tcti)
        banks, wanted = device.banks(), config.algorithms.hash_alg
        found = ", ".join(sorted(bank.label for bank in banks)) or "none"
        if wanted in banks:
            yield ok("PCR banks", f"{found}; quotes are made of {wanted.label}")
        else:
            yield bad(
                "PCR banks",
                f"{found}, but [agent] tpm_hash_alg = {wanted.label}",
                f"tpm2_pcrallocate {wanted.label}:all and a reboot, or another tpm_hash_alg",
            )
        yield ek_certificate(device, config)
    except KeylimeError as error:
        yield bad("TPM", str(error))
    finally:
        device.close()


def resource_manager(tcti: str) -> Result:
    """Whether others can use the TPM beside the agent."""
    if tcti == "device:/dev/tpm0":
        return warning(
            "resource manager",
            "the agent has /dev/tpm0 to itself, since there is no /dev/tpmrm0",
            "use a kernel with the in-kernel resource manager (CONFIG_TCG_TPM)",
        )
    return ok("resource manager", "the kernel's" if "tpmrm" in tcti else f"left to {tcti.partition(':')[0]}")


def ek_certificate(device: Tpm, config: MachineConfig) -> Result:
    """Whether the TPM's maker vouches for it, and who that is."""
    subject = "EK certificate"
    certificate = device.ek_certificates(open_ek(device, config.algorithms, config.ek_handle)).certificate
    if certificate is None:
        return warning(
            subject,
            "the TPM has none, so that nobody can tell whether it is real",
            "the tenant takes it with [tenant] require_ek_cert = False, and better with an ek_check_script "
            "that knows the endorsement keys of your machines",
        )
    try:
        issuer = read_certificate(certificate).certificate.issuer.rfc4514_string()
    except (MalformedEvidence, CredentialError, ValueError) as error:
        return warning(subject, f"cannot be read: {error}")
    return ok(subject, f"issued by {issuer!a}, which must be in the tenant's tpm_cert_store")


def ima(path: Path, policy: Path = _IMA_POLICY, command_line: Path = _COMMAND_LINE) -> Iterator[Result]:
    """Whether the kernel measures files, and by which policy."""
    subject = "IMA"
    try:
        content = _beginning(path)
    except OSError as error:
        remedy = (
            "run as root"
            if isinstance(error, PermissionError)
            else ("mount -t securityfs securityfs /sys/kernel/security, with a kernel that has CONFIG_IMA")
        )
        yield bad(subject, f"{path}: {error.strerror}", remedy)
        return
    entries = content.count(b"\n")
    if entries == 0:
        yield bad(subject, f"{path} is empty: the kernel has not even measured the boot", "boot with ima=on")
        return
    if entries == 1:
        yield warning(
            subject,
            f"{path} has nothing but boot_aggregate: no policy is in force, and no file is measured",
            "boot with ima_policy=tcb, or write a policy to /etc/ima/ima-policy",
        )
    else:
        more = "more than " if len(content) >= _SHOWN else ""
        yield ok(subject, f"{path} has {more}{entries} entries")
    yield ima_policy(policy, command_line)


def ima_policy(policy: Path, command_line: Path) -> Result:
    """Which policy is in force, as far as the kernel tells."""
    subject = "IMA policy"
    try:
        words = command_line.read_text("utf-8", "replace").split()
    except OSError:
        words = []
    chosen = [word for word in words if word.startswith(("ima_policy=", "ima_tcb"))]
    try:
        rules = [line for line in policy.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        said = " ".join(chosen) or "no ima_policy= on the kernel's command line"
        return unknown(subject, f"{said}; this kernel or user may not read {policy}")
    measured = sum(1 for rule in rules if rule.startswith("measure"))
    text = f"{len(rules)} rules, of which {measured} measure"
    if chosen:
        text += f" ({' '.join(chosen)})"
    if not measured:
        return bad(subject, text, "boot with ima_policy=tcb, or write a policy to /etc/ima/ima-policy")
    return ok(subject, text)


def kernel(release: str, bank: HashAlgorithm) -> Result:
    """Whether the kernel extends the quoted bank as its hash demands."""
    remark = bank_remark(release, bank)
    if remark is None:
        return ok("kernel", release)
    text, _, remedy = remark.rpartition("; ")
    return warning("kernel", text, remedy)


def boot_log(path: Path) -> Result:
    """Whether the firmware's log can be sent."""
    subject = "boot log"
    try:
        size = len(_beginning(path))
    except OSError as error:
        remedy = (
            "run as root"
            if isinstance(error, PermissionError)
            else "without it no measured boot policy can be met: use a firmware that keeps a log (UEFI)"
        )
        return warning(subject, f"{path}: {error.strerror}", remedy)
    if not size:
        return warning(subject, f"{path} is empty", "without it no measured boot policy can be met")
    return ok(subject, f"{path}, {size} bytes{' and more' if size >= _SHOWN else ''}")


def addresses(config: AgentConfig) -> Iterator[Result]:
    """Whether others reach the agent where it says that it is."""
    is_local = means_own_host(config.registrar_ip)
    for option, address in (("contact_ip", config.contact_ip), ("ip", config.ip)):
        subject = f"[agent] {option}"
        is_everywhere = option == "ip" and address in _EVERYWHERE
        if not means_own_host(address) or is_everywhere:
            yield ok(subject, address)
        elif is_local:
            yield warning(subject, f"{address}: agent, registrar and verifier must be one machine")
        else:
            yield bad(
                subject,
                f"{address} is this machine itself, but the registrar is elsewhere ({config.registrar_ip})",
                "set it to the address at which the verifier reaches this machine"
                + ("" if option == "contact_ip" else ", or 0.0.0.0"),
            )


def registrar(config: MachineConfig) -> Result:
    """Whether somebody listens where the agent registers."""
    return listens(
        f"registrar {config.registrar_ip}:{config.registrar_port}",
        (config.registrar_ip, config.registrar_port),
        "check [agent] registrar_ip and registrar_port, firewalls, and that keylime_registrar runs there",
    )


def listens(subject: str, address: tuple[str, int], remedy: str) -> Result:
    """Whether somebody takes connections at `address`."""
    try:
        socket.create_connection(address, _LIMIT_S).close()
    except OSError as error:
        return bad(subject, f"cannot be reached: {error.strerror or error}", remedy)
    return ok(subject, "takes connections")


def authority(config: AgentConfig) -> Iterator[Result]:
    """The CAs whose clients may call the agent, and whom it believes to be the registrar."""
    files = [] if config.tls is None else [("trusted_client_ca", path) for path in config.tls.trusted_clients]
    if config.tls is None:
        yield warning(
            "CA",
            "mutual TLS is off: whoever reaches the agent may ask it",
            "[agent] enable_agent_mtls = True",
        )
    yield from authorities(config, files)


def authorities(config: MachineConfig, files: Sequence[tuple[str, Path]]) -> Iterator[Result]:
    """The CAs in `files`, each with its option, and that of the registrar."""
    if config.registrar_tls is not None:
        files = [*files, ("registrar_tls_ca_cert", config.registrar_tls.authority)]
    now = datetime.now(UTC)
    for option, path in files:
        subject = f"[agent] {option} {path}"
        try:
            found = load_trusted_certificates(path)
        except (ConfigError, OSError) as error:
            yield bad(
                subject,
                str(error).removeprefix(f"{path} "),
                "copy cv_ca/cacert.crt from the verifier's machine there",
            )
            continue
        for certificate in found:
            life = Lifetime.of(certificate)
            said = life_remark(CertificateFile(Holder.AUTHORITY, path, life), now)
            if said is None:
                yield ok(subject, f"good until {when(life.ends)}")
            elif life.validity(now).is_usable:
                yield warning(subject, said, "copy the renewed cacert.crt there in time")
            else:
                yield bad(subject, said, "copy the renewed cacert.crt there")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_SHOWN)
