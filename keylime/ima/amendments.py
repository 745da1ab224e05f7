"""What findings about an IMA list would add to a runtime policy, if an operator says that all was right."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from keylime.ima.findings import NOT_IN_ALLOWLIST, RUNTIME_POLICY_HASH, SIGNATURE_MISFIT
from keylime.ima.measurement_list import BOOT_AGGREGATE
from keylime.messages.verifier import FindingSummary

SECTIONS = ("digests", "keyrings", "ima-buf")
_DIGEST = re.compile(r"[0-9a-f]{40,128}")


@dataclass(frozen=True, slots=True)
class Amendment:
    """Digests to add, by section and name; and the findings that no digest answers, each with the reason."""

    added: Mapping[str, Mapping[str, frozenset[str]]]
    refused: tuple[tuple[FindingSummary, str], ...]


def amendment(
    findings: Iterable[FindingSummary], *, only: Collection[str] = (), force: bool = False
) -> Amendment:
    """What the findings (`only` those about these paths, if any are given) ask to be added.

    Refused are findings that speak against the machine whatever a policy lists, and, without `force`, files
    that their own signature contradicts and boots that are others.
    """
    added: dict[str, dict[str, frozenset[str]]] = {}
    refused = []
    for finding in findings:
        if only and finding.path not in only:
            continue
        reason = _objection(finding, force=force)
        if reason is not None:
            refused.append((finding, reason))
            continue
        names = added.setdefault(str(finding.rule), {})
        name = str(finding.path)
        names[name] = names.get(name, frozenset()) | {str(finding.observed)}
    return Amendment(added, tuple(refused))


def _objection(finding: FindingSummary, *, force: bool) -> str | None:
    is_about_digest = finding.event_id in (NOT_IN_ALLOWLIST, RUNTIME_POLICY_HASH)
    if not is_about_digest or finding.rule not in SECTIONS or not finding.path:
        return "no digest in a policy would answer it"
    if not finding.observed or not _DIGEST.fullmatch(finding.observed):
        return "it shows no digest"
    if force:
        return None
    if SIGNATURE_MISFIT in finding.explanation:
        return "its own signature says that it was changed; --force takes it all the same"
    if finding.path == BOOT_AGGREGATE:
        return "it stands for a whole boot: judge that with a reference state; --force takes it all the same"
    return None
