"""Judging single entries against a runtime policy, in the order of the list.

Only for entries that need a closer look: those whose digest is simply listed are settled during the replay.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.findings.finding import MAX_SHOWN, Finding
from keylime.ima import findings
from keylime.ima.boot_aggregate import BootAggregates
from keylime.ima.checkpoint import ImaCheckpoint, LearnedKey, LearnedKeyring
from keylime.ima.device_mapper import EVENT_NAMES, parse_event
from keylime.ima.device_mapper_policy import DeviceMapperFault, DeviceMapperPolicy, DeviceMapperState
from keylime.ima.digest_maps import DigestMap
from keylime.ima.keyrings import ImaKey, Keyring, load_spki, recognise_key
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry
from keylime.ima.memo import EntryMemo, MemoView
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.ima.signatures import Misfit, check_signature, parse_file_signature

MAX_FINDINGS = 1000
_MAX_LEARNED_KEYS = 1000
# What a kernel measures of the kexec that ends it: the command line of the next one (KEXEC_CMDLINE), and
# since 6.16 with critical data, that it hands the list on.
_KEXEC = frozenset({"kexec-cmdline", "kexec_execute"})


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """A line that the replay did not settle: its absolute index, and the entry or why it is none.

    `extended` is what it adds to PCR 10; `replayed_hash` is the template hash that its fields have.
    """

    index: int
    line: bytes
    entry: Entry | MalformedEvidence
    extended: bytes
    replayed_hash: bytes


@dataclass(frozen=True, slots=True)
class _KnownKeys:
    """The tenant's keys and those learned so far: the keyrings, and the fingerprints of all their keys."""

    keyrings: Sequence[Keyring]
    fingerprints: frozenset[bytes]


@dataclass(slots=True)
class Judge:
    """Judges entries in their order; what one teaches (keys, devices, kexec) holds for the next."""

    policy: RuntimePolicy
    tenant_keys: Keyring
    boot_aggregates: BootAggregates
    ignore_tomtou: bool
    view: MemoView
    memo: EntryMemo  # whose view it is
    learned: dict[str, tuple[LearnedKey, ...]]
    device_mapper: DeviceMapperState
    kexec: bool
    findings: list[Finding] = field(default_factory=list)
    failures: int = 0
    violations: int = 0
    excluded: int = 0
    _known: _KnownKeys | None = None  # loaded when a signature needs them

    def learned_keyrings(self) -> tuple[LearnedKeyring, ...]:
        """The learned keys in the form of a checkpoint."""
        return tuple(LearnedKeyring(name, keys) for name, keys in self.learned.items())

    def judge(self, pending: PendingEntry) -> None:
        """Judge one entry that the quote covers."""
        entry = self.check_integrity(pending)
        if entry is None:
            return
        if entry.name == BOOT_AGGREGATE and entry.buffer is None:
            self._boot_aggregate(pending.index, entry)
        elif entry.buffer is not None:
            self._buffer(pending, entry, entry.buffer)
        else:
            self._file(pending, entry)

    def check_integrity(self, pending: PendingEntry) -> Entry | None:
        """The entry if it is consistent and a policy can judge it; else None, and the finding is kept."""
        entry, index = pending.entry, pending.index
        if isinstance(entry, MalformedEvidence):
            self.fail(findings.unparsable(index, str(entry)))
            return None
        if entry.pcr != 10:
            self.fail(findings.wrong_pcr(index, entry))
        if entry.template_hash != pending.replayed_hash:
            if entry.is_violation and len(entry.template_hash) == self.policy.log_hash_alg.size:
                self._violation(index, entry)
            else:
                self.fail(
                    findings.wrong_template_hash(
                        index, entry, self.policy.log_hash_alg, pending.replayed_hash
                    )
                )
            return None
        if entry.signature and parse_file_signature(entry.signature) is None:
            self.fail(findings.malformed_signature(index, entry))
            return None
        return entry

    def demand_devices(self) -> None:
        """Devices that the policy requires must have been set up by the entries so far."""
        if self.policy.dm_policy is not None:
            for fault in self.policy.dm_policy.unmet(self.device_mapper):
                self.fail(findings.required_device(fault))

    def fail(self, finding: Finding) -> None:
        """Keep `finding`; of very many only the first ones, and the count."""
        self.failures += 1
        if len(self.findings) < MAX_FINDINGS:
            if finding.rule is not None:
                finding = replace(finding, policy=self.policy.version)
            if finding.path is not None and len(finding.path) > MAX_SHOWN:
                finding = replace(finding, path=finding.path[:MAX_SHOWN])
            self.findings.append(finding)

    def _violation(self, index: int, entry: Entry) -> None:
        """A path whose content is of no matter may change while it is measured: logs and journals do."""
        self.violations += 1
        if entry.name != BOOT_AGGREGATE and self.policy.is_excluded(entry.name):
            self.excluded += 1
        elif not self.ignore_tomtou:
            self.fail(findings.violation(index, entry))

    def _boot_aggregate(self, index: int, entry: Entry) -> None:
        if index and not self.kexec:
            self.fail(findings.misplaced_boot_aggregate(index, entry))
            return
        self.kexec = False
        listed = self.policy.digests.get(entry.name, ())
        right = self.boot_aggregates.at(index)
        if entry.digest in listed or entry.digest.hex() in right:
            return
        if listed or self.boot_aggregates.decide(entry):  # no exclude makes a wrong value right
            known = [*listed, *(bytes.fromhex(digest) for digest in right)]
            self.fail(findings.wrong_digest(index, entry, known, "digests"))
        elif self.policy.is_excluded(entry.name):
            self.excluded += 1
        else:
            self.fail(findings.not_listed(index, entry, "digests"))

    def _file(self, pending: PendingEntry, entry: Entry) -> None:
        # Every one of these accepts, so the cheapest comes first.
        if entry.digest in self.policy.digests.get(entry.name, ()):
            return
        if self.policy.is_excluded(entry.name):
            self.excluded += 1
            self._remember(self.view.excluded, pending.line, pending.extended)
            return
        known = self._known_keys()
        if self.view.signed.get(pending.line) in known.fingerprints:
            return
        signer = check_signature(entry, known.keyrings)
        if isinstance(signer, ImaKey):
            self._remember_signed(pending, signer)
            return
        # Where no key is known nobody relies on signatures.
        misfit = signer if known.fingerprints else None
        self._digest_failure(pending.index, entry, self.policy.digests, "digests", misfit)

    def _remember_signed(self, pending: PendingEntry, signer: ImaKey) -> None:
        if signer in self.tenant_keys.keys:
            self._remember(self.view.accepted, pending.line, pending.extended)
        else:
            self._remember(self.view.signed, pending.line, signer.fingerprint)

    def _buffer(self, pending: PendingEntry, entry: Entry, buffer: bytes) -> None:
        index = pending.index
        try:
            key = recognise_key(buffer)
        except UnsuitableKey as error:
            self.fail(findings.unusable_key(index, entry, str(error)))
            return
        if key is not None:
            self._key(index, entry, buffer, key)
        elif (policy := self.policy.dm_policy) is not None and entry.name in EVENT_NAMES:
            self._device_mapper(index, entry, buffer, policy)
        elif self._is_allowed(index, entry, self.policy.ima_buf, "ima-buf") and entry.name in _KEXEC:
            self.kexec = True

    def _key(self, index: int, entry: Entry, buffer: bytes, key: ImaKey) -> None:
        if self.policy.ignores_keyring(entry.name):
            return
        if entry.digest not in self.policy.keyrings.get(entry.name, ()):
            # An exclude accepts the entry, but a key that nobody listed must not vouch for files.
            self._is_allowed(index, entry, self.policy.keyrings, "keyrings")
            return
        if not _is_hash_of(entry, buffer):
            self.fail(findings.unusable_key(index, entry, "its digest is not the hash of the key"))
            return
        known = self.learned.get(entry.name, ())
        learned = LearnedKey(key.key_id, key.spki)
        if learned not in known and sum(map(len, self.learned.values())) < _MAX_LEARNED_KEYS:
            self.learned[entry.name] = (*known, learned)
            self._known = None

    def _device_mapper(self, index: int, entry: Entry, buffer: bytes, policy: DeviceMapperPolicy) -> None:
        if not _is_hash_of(entry, buffer):
            fault = DeviceMapperFault("invalid_data", "the digest is not the hash of the event")
            self.fail(findings.device_mapper(index, entry, fault))
            return
        try:
            event = parse_event(entry.name, buffer)
        except MalformedEvidence as error:
            self.fail(findings.device_mapper(index, entry, DeviceMapperFault("parsing_failed", str(error))))
            return
        digest = f"{entry.digest_algorithm}:{entry.digest.hex()}"
        self.device_mapper, faults = policy.evaluate(self.device_mapper, event, digest)
        for fault in faults:
            self.fail(findings.device_mapper(index, entry, fault))

    def _is_allowed(self, index: int, entry: Entry, allowed: DigestMap, section: str) -> bool:
        if entry.digest in allowed.get(entry.name, ()):
            return True
        if self.policy.is_excluded(entry.name):
            self.excluded += 1
            return True
        self._digest_failure(index, entry, allowed, section)
        return False

    def _digest_failure(
        self, index: int, entry: Entry, allowed: DigestMap, section: str, misfit: Misfit | None = None
    ) -> None:
        listed = allowed.get(entry.name)
        if listed is None:
            finding = findings.not_listed(index, entry, section)
        else:
            finding = findings.wrong_digest(index, entry, listed, section)
        self.fail(finding if misfit is None else findings.with_signature(finding, entry, misfit))

    def _known_keys(self) -> _KnownKeys:
        if self._known is None:
            keyrings = [self.tenant_keys]
            for keys in self.learned.values():
                loaded = (load_spki(key.spki, key.key_id) for key in keys)
                keyrings.append(Keyring(tuple(key for key in loaded if key is not None)))
            fingerprints = frozenset(key.fingerprint for keyring in keyrings for key in keyring.keys)
            self._known = _KnownKeys(keyrings, fingerprints)
        return self._known

    def _remember(self, lines: dict[bytes, bytes], line: bytes, value: bytes) -> None:
        self.memo.remember(self.view, lines, line, value)


def starting_judge(
    checkpoint: ImaCheckpoint,
    policy: RuntimePolicy,
    tenant_keys: Keyring,
    boot_aggregates: BootAggregates,
    *,
    ignore_tomtou: bool,
    view: MemoView,
    memo: EntryMemo,
) -> Judge:
    """A judge that goes on from `checkpoint`."""
    return Judge(
        policy=policy,
        tenant_keys=tenant_keys,
        boot_aggregates=boot_aggregates,
        ignore_tomtou=ignore_tomtou,
        view=view,
        memo=memo,
        learned={keyring.name: keyring.keys for keyring in checkpoint.keyrings},
        device_mapper=checkpoint.device_mapper,
        kexec=checkpoint.kexec,
    )


def _is_hash_of(entry: Entry, buffer: bytes) -> bool:
    try:
        return hashlib.new(entry.digest_algorithm, buffer, usedforsecurity=False).digest() == entry.digest
    except ValueError:  # an algorithm that the library does not have
        return False
