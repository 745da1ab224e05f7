"""From findings to the next version of a policy: what is added, what is refused, and how it is signed."""

import base64
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.documents.dsse import PolicySigner, is_envelope, key_id_of, open_envelope, sign_policy
from keylime.findings.finding import printable
from keylime.ima.amendments import SECTIONS, amendment
from keylime.ima.runtime_policy import PolicyDifference, compile_runtime_policy, diff, parse_runtime_policy
from keylime.messages.verifier import FindingSummary, RuntimePolicyRequest
from keylime_tenant.errors import CommandFailed
from keylime_tenant.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next version of a policy, not signed yet, and what it has beyond the text with hash `replaces`."""

    document: str
    difference: PolicyDifference
    replaces: str
    is_signed: bool  # whether the version before is


def propose(text: str, findings: Sequence[FindingSummary], *, only: Collection[str], force: bool) -> Proposal:
    """The policy in `text` with the digests of the findings. Raises CommandFailed for what must not be."""
    absent = sorted(set(only) - {finding.path for finding in findings})
    if absent:
        raise CommandFailed(f"--only {printable(absent[0])}: no finding is about that path")
    asked = amendment(findings, only=only, force=force)
    if asked.refused:
        reasons = "; ".join(
            f"{printable(finding.path or finding.event_id)}: {reason}" for finding, reason in asked.refused
        )
        others = " (--only PATH takes others)" if asked.added else ""
        raise CommandFailed(f"not approved: {reasons}{others}")
    before = parse_runtime_policy(open_envelope(text), is_stored=True)
    document = before.to_document()
    for section in SECTIONS:
        for name, digests in asked.added.get(section, {}).items():
            document[section][name] = sorted({*document[section].get(name, ()), *digests})
    document["release"] += 1
    after = compile_runtime_policy(document)
    difference = diff(before, after)
    if difference.is_empty:
        raise CommandFailed(
            "the policy lists all that was found: have the agent judged by it with keylime_tenant reactivate"
        )
    return Proposal(
        json.dumps(document), difference, hashlib.sha256(text.encode()).hexdigest(), is_envelope(text)
    )


def proposal_lines(proposal: Proposal, terminal: Terminal) -> Iterator[str]:
    """What the policy will list and does not list now."""
    for section, names in proposal.difference.added.items():
        for name, digests in names.items():
            yield f"{printable(name)}  {section.replace('_', '-')}"
            for digest in digests:
                yield terminal.paint(f"   + {digest}", "good")


def request_of(proposal: Proposal, key: PolicySigner | None) -> RuntimePolicyRequest:
    """What stores the proposal, signed by `key` if there is one."""
    text, public = proposal.document, ""
    if key is not None:
        text = sign_policy(text.encode(), key, key_id_of(key.public_key()))
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        public = base64.b64encode(pem).decode()
    return RuntimePolicyRequest(
        runtime_policy=base64.b64encode(text.encode()).decode(),
        runtime_policy_key=public or None,
        replaces=proposal.replaces,
    )
