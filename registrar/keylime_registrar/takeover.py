"""Registrations of an earlier Keylime, taken over: read there, judged row by row, written beside our own.

Only proven ones are taken: an agent whose proof was outstanding registers again by itself. The secret of the
last activation is of no use afterwards, and stays behind.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from keylime.errors import KeylimeError, MalformedEvidence
from keylime.identifiers import AgentId, parse_agent_id
from keylime.pki.der import read_certificate
from keylime.takeover.releases import REGISTRAR_VERSION
from keylime.takeover.report import Fate, Item, ItemKind, TakeoverReport, second_of
from keylime.takeover.source import OldDatabase, open_old
from keylime.takeover.values import NotTakenOver, Row, flag_of, number_of, shown, text_of
from keylime.tpm.keys import parse_attestation_key, parse_endorsement_key
from keylime_registrar.attempts import IDENTITY
from keylime_registrar.audit import LEDGER, Act, entry
from keylime_registrar.identity import Registration, RegistrationRefused
from keylime_registrar.schema import registrations
from keylime_registrar.submission import (
    certificate_bytes,
    mtls_certificate,
    read_blob,
    read_host,
    read_port,
)

TABLE = "registrarmain"

_NO_CERTIFICATES = ("emulator", "virtual")  # words in the place of an EK certificate
_AGAIN = "restart the agent, which registers it again"
_AT_ONCE = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegistrationProposal:
    """One old row: what is said about it, and the registration to take, if any."""

    item: Item
    registration: Registration | None = None
    regcount: int = 1


@dataclass(frozen=True, slots=True)
class RegistrationPlan:
    """What an old database has for us."""

    source: str
    release: str
    proposals: tuple[RegistrationProposal, ...] = ()


def read_from(url: URL) -> RegistrationPlan | None:
    """What is to be taken from the database at `url`, see `read_plan`."""
    with open_old(url) as old:
        return read_plan(old)


def read_plan(old: OldDatabase) -> RegistrationPlan | None:
    """What is to be taken from `old`; None when it holds no registrar's tables. Raises ConfigError."""
    if TABLE not in old.tables:
        return None
    release = old.release(REGISTRAR_VERSION)
    proposals: dict[object, RegistrationProposal] = {}
    for number, row in enumerate(old.rows(TABLE)):
        proposal = convert(row)
        is_second = proposal.item.name in proposals
        key = number if is_second or proposal.registration is None else proposal.item.name
        proposals[key] = RegistrationProposal(second_of(proposal.item)) if is_second else proposal
    return RegistrationPlan(
        old.place, release, tuple(sorted(proposals.values(), key=lambda one: one.item.name))
    )


def convert(row: Row) -> RegistrationProposal:
    """The registration that a row stands for, or why it is not taken."""
    value = row.get("agent_id")
    name = value if isinstance(value, str) else shown(value)
    remedy = "give the agent another uuid in its agent.conf"
    try:
        agent_id = parse_agent_id(text_of(row, "agent_id") or "")
        name, remedy = agent_id, _AGAIN
        return _convert(agent_id, row)
    except KeylimeError as error:
        return RegistrationProposal(
            Item(ItemKind.REGISTRATION, name, Fate.NOT_TAKEN, (f"{error}; {remedy}",))
        )


def _convert(agent_id: AgentId, row: Row) -> RegistrationProposal:
    if flag_of(row, "active") is not True:
        raise NotTakenOver("its TPM was never proven")
    ek_tpm, aik_tpm = _required(row, "ek_tpm"), _required(row, "aik_tpm")
    try:
        parse_endorsement_key(ek_tpm)
        parse_attestation_key(aik_tpm)
    except KeylimeError as error:
        raise NotTakenOver(f"its keys cannot be used: {error}") from error
    remarks: list[str] = []

    def kept(column: str, read: Callable[[], T]) -> T | None:
        """What can be read of a column that a registration can do without."""
        try:
            return read()
        except KeylimeError as error:
            text = str(error)
            about = text if text.startswith(column) else f"{column}: {text}"
            remarks.append(f"{about}, and is left out: {_AGAIN}")
            return None

    registration = Registration(
        agent_id=agent_id,
        ek_tpm=ek_tpm,
        aik_tpm=aik_tpm,
        ekcert=kept("ekcert", lambda: _ek_certificate(row, remarks)),
        iak_tpm=kept("iak_tpm", lambda: read_blob("iak_tpm", _compact(row, "iak_tpm"))),
        iak_cert=kept("iak_cert", lambda: _certificate(row, "iak_cert")),
        idevid_tpm=kept("idevid_tpm", lambda: read_blob("idevid_tpm", _compact(row, "idevid_tpm"))),
        idevid_cert=kept("idevid_cert", lambda: _certificate(row, "idevid_cert")),
        ip=kept("ip", lambda: read_host(text_of(row, "ip"))),
        port=kept("port", lambda: read_port(number_of(row, "port") or None)),
        mtls_cert=kept("mtls_cert", lambda: mtls_certificate(_compact(row, "mtls_cert"))),
    )
    regcount = kept("regcount", lambda: number_of(row, "regcount")) or 1
    return RegistrationProposal(Item.of(ItemKind.REGISTRATION, agent_id, remarks), registration, regcount)


def _required(row: Row, column: str) -> bytes:
    data = read_blob(column, _compact(row, column))
    if data is None:
        raise NotTakenOver(f"{column} is missing")
    return data


def _compact(row: Row, column: str) -> str | None:
    """A text that is PEM, or base64 as some tools write it: in lines."""
    text = text_of(row, column)
    return text if text is None or "-----BEGIN" in text else "".join(text.split())


def _ek_certificate(row: Row, remarks: list[str]) -> bytes | None:
    if text_of(row, "ekcert") in _NO_CERTIFICATES:
        remarks.append(f"ekcert is the word {text_of(row, 'ekcert')}, which stands for none")
        return None
    return _certificate(row, "ekcert")


def _certificate(row: Row, column: str) -> bytes | None:
    data = certificate_bytes(column, _compact(row, column))
    if data is not None:
        try:
            read_certificate(data)
        except MalformedEvidence as error:
            raise RegistrationRefused(f"{column}: {error}") from error
    return data


def look(connection: sa.Connection, plan: RegistrationPlan) -> TakeoverReport:
    """What taking `plan` over would do to our tables; nothing is written."""
    return _settled(connection, plan)[1]


def take(connection: sa.Connection, plan: RegistrationPlan, now: int) -> TakeoverReport:
    """Takes what is not here yet, in the caller's transaction. `now` is in seconds since the epoch."""
    missing, report = _settled(connection, plan)
    for first in range(0, len(missing), _AT_ONCE):
        rows = [_values(proposal, now) for proposal in missing[first : first + _AT_ONCE]]
        connection.execute(sa.insert(registrations), rows)
    if missing:
        told = {"registrations": len(missing), "source": plan.source}
        LEDGER.append(connection, [entry(Act.REGISTRATIONS_IMPORTED, None, told)])
    return report


def rehearse(plan: RegistrationPlan) -> TakeoverReport:
    """What taking `plan` over would do to empty tables."""
    return TakeoverReport(plan.source, plan.release, tuple(proposal.item for proposal in plan.proposals))


def _settled(
    connection: sa.Connection, plan: RegistrationPlan
) -> tuple[list[RegistrationProposal], TakeoverReport]:
    ids = [one.registration.agent_id for one in plan.proposals if one.registration is not None]
    here: dict[str, tuple[bytes, bytes]] = {}
    for first in range(0, len(ids), _AT_ONCE):
        columns = (registrations.c.agent_id, registrations.c.ek_tpm, registrations.c.aik_tpm)
        query = sa.select(*columns).where(registrations.c.agent_id.in_(ids[first : first + _AT_ONCE]))
        here |= {row.agent_id: (bytes(row.ek_tpm), bytes(row.aik_tpm)) for row in connection.execute(query)}
    return settle(plan, here)


def settle(
    plan: RegistrationPlan, here: dict[str, tuple[bytes, bytes]]
) -> tuple[list[RegistrationProposal], TakeoverReport]:
    """What of a plan is to be written, and the report; `here` has EK and AK of those that we know."""
    missing: list[RegistrationProposal] = []
    items: list[Item] = []
    for proposal in plan.proposals:
        registration = proposal.registration
        if registration is None or registration.agent_id not in here:
            items.append(proposal.item)
            missing += [] if registration is None else [proposal]
            continue
        same = here[registration.agent_id] == (registration.ek_tpm, registration.aik_tpm)
        remark = (
            "with another TPM or AK, which stays: if the old one is right, "
            f"`keylime_tenant -c regdelete -u {registration.agent_id}` and import again"
        )
        items.append(Item(ItemKind.REGISTRATION, proposal.item.name, Fate.PRESENT, () if same else (remark,)))
    return missing, TakeoverReport(plan.source, plan.release, tuple(items))


def _values(proposal: RegistrationProposal, now: int) -> dict[str, object]:
    registration = proposal.registration
    if registration is None:
        raise ValueError("there is nothing to take")
    return {
        **{name: getattr(registration, name) for name in IDENTITY},
        "agent_id": registration.agent_id,
        # The tag of its last activation is not known here, so nobody can repeat it.
        "tag_hash": hashlib.sha256(os.urandom(32)).digest(),
        "ek_hash": hashlib.sha256(registration.ek_tpm).digest(),
        "regcount": proposal.regcount,
        "activated_at": now,
    }
