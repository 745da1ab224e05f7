"""What commands print for people: agents with their findings, registrations, lists of names."""

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from keylime.errors import KeylimeError
from keylime.findings.finding import printable
from keylime.pki.agent_certificate import OVERDUE_MARGIN, read_agent_certificate
from keylime_tenant.standing import circumstances, grouped_findings, standing_of
from keylime_tenant.terminal import Column, Terminal, ago, lines_of, moment, record_lines
from keylime_tenant.told_status import ToldStatus

JsonObject = Mapping[str, Any]

_SHOWN_OF_A_GROUP = 5


def agent_lines(statuses: Mapping[str, ToldStatus], terminal: Terminal, now: float) -> Iterator[str]:
    """One line for each agent, the worst first, and below it why it does not pass."""
    agents = sorted(statuses.items(), key=lambda item: (standing_of(item[1]), item[0]))
    heading, *rows = lines_of(_agent_columns(agents, terminal, now), terminal)
    yield heading
    for (_, status), row in zip(agents, rows, strict=True):
        yield row
        yield from below(status, terminal)


def below(status: ToldStatus, terminal: Terminal) -> Iterator[str]:
    """What stands below the line of an agent."""
    for text in circumstances(status):
        yield f"   {text}"
    for number, group in enumerate(grouped_findings(status.last_findings), 1):
        yield "   " + terminal.paint(f"{number}. {group.title}", "strong")
        shown = group.places if terminal.is_wide else group.places[:_SHOWN_OF_A_GROUP]
        for place in shown:
            for line in place:
                yield f"      {line}"
        if len(shown) < len(group.places):
            yield f"      and {len(group.places) - len(shown)} more: -o wide shows them"
        for line in group.common:
            yield f"      {line}"


def _agent_columns(
    agents: Sequence[tuple[str, ToldStatus]], terminal: Terminal, now: float
) -> Sequence[Column]:
    statuses = [status for _, status in agents]
    standings = [standing_of(status) for status in statuses]
    columns = [
        Column("agent", [printable(agent_id) for agent_id, _ in agents]),
        Column("state", [one.word for one in standings], 0, [one.style for one in standings]),
        Column("last pass", [ago(one.last_successful_attestation, now) for one in statuses], 1),
        Column("passes", [_passes(one) for one in statuses], 3),
        Column("address", [_address(one.ip, one.port) for one in statuses], 2),
        Column("policies", [", ".join(policies_in_force(one)) for one in statuses], 4),
    ]
    if terminal.is_wide:
        columns += [
            Column("step", [str(one.state_text) for one in statuses], 5),
            Column("algorithms", [_algorithms(one) for one in statuses], 5),
            Column("verifier", [_verifier(one) for one in statuses], 5),
        ]
    return columns


def _passes(status: ToldStatus) -> str:
    return "?" if status.attestation_count is None else str(status.attestation_count)


def policies_in_force(status: ToldStatus) -> list[str]:
    """The policies that an agent is held to, by names and versions as far as its verifier tells them."""
    runtime = list(_several(status)) or list(
        _policy(
            "runtime policy",
            status.runtime_policy_name,
            status.runtime_policy_version,
            is_there=bool(status.has_runtime_policy),
        )
    )
    boot = _policy(
        "measured boot policy",
        status.mb_policy_name or None,
        status.mb_policy_version,
        is_there=bool(status.has_mb_refstate),
    )
    found = [*runtime, *boot]
    tpm_policy = (status.tpm_policy or "").strip()
    if tpm_policy not in ("", "{}") and '": [' in tpm_policy:
        found.append("TPM policy")
    return found


def _several(status: ToldStatus) -> Iterator[str]:
    """The runtime policies of an agent with more than one, and when they end."""
    for part in status.parts:
        if part.has_ended:
            continue
        text = f"runtime policy {printable(part.name)}"
        if part.name == status.runtime_policy_name and status.runtime_policy_version is not None:
            text += f" version {status.runtime_policy_version}"
        yield text if part.until is None else f"{text} until {moment(part.until)}"


def _policy(title: str, name: str | None, version: int | None, *, is_there: bool) -> Iterator[str]:
    if name:
        text = f"{title} {printable(name)}"
        yield text if version is None else f"{text} version {version}"
    elif is_there:
        yield title


def policy_lines(status: ToldStatus, terminal: Terminal) -> Iterator[str]:
    """The policies in force, one in each line."""
    for text in policies_in_force(status) or ("no policy: nothing but its TPM is judged",):
        yield f"   {terminal.paint('in force', 'quiet')}  {text}"


def _address(host: object, port: object) -> str:
    return f"{printable(str(host))}:{port}" if host else ""


def _algorithms(status: ToldStatus) -> str:
    return "/".join(printable(name) for name in (status.hash_alg, status.enc_alg, status.sign_alg) if name)


def _verifier(status: ToldStatus) -> str:
    name = printable(status.verifier_id or "")
    return f"{name} {_address(status.verifier_ip, status.verifier_port)}".strip()


def registration_lines(
    records: Mapping[str, JsonObject],
    terminal: Terminal,
    *,
    title: str = "registered",
    now: float | None = None,
) -> Iterator[str]:
    """What a registrar has of agents. Keys and certificates are told by their SHA-256.

    `now` is the time, in seconds since the epoch, by which certificates end soon; None for the clock's.
    """
    now = time.time() if now is None else now
    for agent_id, record in records.items():
        yield f"{terminal.paint(printable(agent_id), 'strong')}  {title}"
        fields = [
            ("address", _address(record.get("ip"), record.get("port"))),
            ("registered", _times(record.get("regcount"))),
            ("EK certificate", _digest(record.get("ekcert"), "none", terminal)),
            ("endorsement key", _digest(record.get("ek_tpm"), "", terminal)),
            ("attestation key", _digest(record.get("aik_tpm"), "", terminal)),
            ("TLS certificate", _certificate(record.get("mtls_cert"), terminal)),
            ("", _end_of(record.get("mtls_cert"), terminal, now)),
        ]
        yield from (f"   {line}" for line in record_lines(fields, terminal))


def _times(count: object) -> str:
    return "" if not isinstance(count, int) else "once" if count == 1 else f"{count} times"


def _digest(value: object, absent: str, terminal: Terminal) -> str:
    if not isinstance(value, str) or not value:
        return absent
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return printable(value)
    digest = f"SHA-256 {hashlib.sha256(content).hexdigest()}"
    return f"{digest}  {printable(value)}" if terminal.is_wide else digest


def _certificate(value: object, terminal: Terminal) -> str:
    if not isinstance(value, str) or "-----BEGIN" not in value:
        return printable(str(value)) if value else "none"
    body = "".join(line for line in value.splitlines() if line and not line.startswith("-----"))
    return _digest(body, "", terminal)


def _end_of(value: object, terminal: Terminal, now: float) -> str:
    """When a certificate ends, where its agent should have renewed it by now."""
    if not isinstance(value, str) or "-----BEGIN" not in value:
        return ""
    try:
        end = read_agent_certificate(value.encode("utf-8", "surrogatepass")).not_after
    except KeylimeError:
        return terminal.paint("it cannot be read", "doubtful")
    moment_of_now = datetime.fromtimestamp(now, UTC)
    if end is None or end - moment_of_now >= OVERDUE_MARGIN:
        return ""
    verb = "ended" if end <= moment_of_now else "ends"
    return terminal.paint(
        f"it {verb} on {end:%Y-%m-%d}: the agent makes a new one when it starts", "doubtful"
    )


def name_lines(title: str, names: Iterable[str], terminal: Terminal) -> Iterator[str]:
    """A heading and one name in each line."""
    found = [printable(str(name)) for name in names]
    yield terminal.paint(f"{title}: {len(found) or 'none'}", "quiet")
    yield from found
