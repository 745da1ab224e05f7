"""Fuzz targets for what operators write: policies, lists, patterns, reference states, configuration."""

import base64
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.config.reader import parse_file
from keylime.documents.dsse import (
    certificate_key_id,
    is_envelope,
    key_id_of,
    open_envelope,
    self_signed_certificate,
    sign_policy,
    verify_envelope,
)
from keylime.errors import ConfigError, CredentialError, MalformedEvidence, PolicyError
from keylime.findings.severity import SeverityPolicy
from keylime.hashes import HashAlgorithm
from keylime.ima.allowlist import convert_allowlist, read_excludes, upgrade_runtime_policy
from keylime.ima.excludes import compile_excludes
from keylime.ima.keyrings import parse_keyring
from keylime.ima.runtime_policy import EMPTY_POLICY, diff, merge, parse_runtime_policy
from keylime.measured_boot.appraisal import appraise_boot_log
from keylime.measured_boot.authenticode import authenticode_digest, pe_section
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.component_changes import merge as merge_components
from keylime.measured_boot.components import parse_document
from keylime.measured_boot.learning import learn_components, to_json
from keylime.measured_boot.unproven import unproven
from keylime.tpm.tpm_policy import TpmPolicy
from tests.captures import DATA, IMA_KEYS_DIRECTORY, capture
from tests.evidence import policy_of
from tests.fakes.boots import CHAINS, Boot
from tests.fakes.measured_boot import grub_pcrs, reference_state
from tests.fakes.pe_images import pe_image
from tests.fuzz.target import Target, Targets, of_unknown_version, text_of, together

_KEY = ec.generate_private_key(ec.SECP256R1())
_PEM = _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
_SIGNED = EMPTY_POLICY.encode()
_LOG = capture("grub-secureboot").boot_log
_SHORT = 12  # characters of a name: what Python's engine backtracks over in no time
_CONFIG = DATA.parent.parent / "config"


def _runtime_policy(data: bytes) -> None:
    policy = parse_runtime_policy(data)
    again = parse_runtime_policy(policy.to_json())
    assert again.content_hash == policy.content_hash
    assert again.to_json() == policy.to_json()
    assert diff(policy, again).is_empty
    policy.is_excluded("/usr/bin/bash")
    policy.ignores_keyring(".ima")
    merge(policy, parse_runtime_policy(EMPTY_POLICY))


def _components(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    registry = built_in_policies()
    policy = compile_measured_boot_policy(text, policy_name="components", registry=registry)
    if policy is None:
        return
    appraise_boot_log(
        _LOG, bank=HashAlgorithm.SHA256, quoted=grub_pcrs(), policy=policy, evaluate_content=True
    )
    document = parse_document(json.loads(text))
    assert parse_document(to_json(document)) == document
    assert merge_components(document, document).components.boot == document.components.boot
    unproven(document)


def _pe_image(data: bytes) -> None:
    authenticode_digest(data)
    pe_section(data, ".linux")


def _allowlist(data: bytes) -> None:
    text, _, excludes = text_of(data).partition("\0")
    parse_runtime_policy(convert_allowlist(text, excludes))


def _upgrade(data: bytes) -> None:
    parse_runtime_policy(upgrade_runtime_policy(text_of(data)))


def _excludes(data: bytes) -> None:
    text, _, name = text_of(data).partition("\0")
    sources = read_excludes(text)
    excludes = compile_excludes(sources)
    excludes.match(name)
    short = name[:_SHORT].rstrip("\n")  # before a last line feed "$" matches in Python only
    if len(text) <= 40:  # what an engine that backtracks can still be asked
        expected = any(re.compile(source).match(short) for source in sources)
        assert excludes.match(short) is expected, (sources, short)


def _reference_state(data: bytes) -> None:
    policy = compile_measured_boot_policy(text_of(data), policy_name="example", registry=built_in_policies())
    if policy is not None:
        result = appraise_boot_log(
            _LOG, bank=HashAlgorithm.SHA256, quoted=grub_pcrs(), policy=policy, evaluate_content=True
        )
        assert all(finding.context_json and finding.explanation for finding in result.findings)


def _tpm_policy(data: bytes) -> None:
    for read in (TpmPolicy.from_operator, TpmPolicy.from_client, TpmPolicy.from_wire):
        try:
            policy = read(text_of(data))
        except PolicyError:
            continue
        assert TpmPolicy.from_wire(policy.to_wire()) == policy
        policy.evaluate({0: bytes(32)})


def _envelope(data: bytes) -> None:
    text = text_of(data)
    if is_envelope(text):
        open_envelope(text)
    assert verify_envelope(data, _PEM) == _SIGNED, "nothing else was ever signed"


def _unverified_envelope(data: bytes) -> None:
    verify_envelope(data, None)


def _keyring(data: bytes) -> None:
    keyring = parse_keyring(text_of(data))
    again = parse_keyring(keyring.to_json())
    assert [key.spki for key in again.keys] == [key.spki for key in keyring.keys]
    keyring.find(0)


def _config(data: bytes) -> None:
    for toml in (False, True):
        for entry in parse_file(text_of(data), section="agent", origin="agent.conf", toml=toml):
            assert entry.name == entry.name.lower()


def _severity(data: bytes) -> None:
    SeverityPolicy(["info", "critical"], [{"event_id": text_of(data), "severity_label": "info"}])


def _policy_seeds() -> Iterator[bytes]:
    yield EMPTY_POLICY.encode()
    for name in ("seabios-no-uefi", "direct-critical-data-4banks"):
        lines = capture(name).stages[0].ascii_list.split(b"\n")[:6]
        rules = policy_of([b"\n".join(lines)], excludes=["/tmp/.*", r"^/a(?!b)"])  # noqa: S108
        yield rules.to_json().encode()
    document = json.loads(EMPTY_POLICY)
    document["meta"] = {"version": 1, "generator": 3, "timestamp": "now"}
    document["keyrings"] = {".ima": ["ab" * 32]}
    document["ima"] = {
        "ignored_keyrings": ["*"],
        "log_hash_alg": "sha256",
        "dm_policy": {"version": 1, "match_on": "name", "rules": {"a": {"table_load": {"name": "x"}}}},
    }
    document["verification-keys"] = _keyring_text()
    yield json.dumps(document).encode()


def _keyring_text() -> str:
    der = (IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes()
    return json.dumps({"meta": {"version": 1}, "pubkeys": [base64.b64encode(der).decode()], "keyids": [1]})


def _envelope_seeds() -> Iterator[bytes]:
    yield sign_policy(_SIGNED, _KEY, key_id_of(_KEY.public_key())).encode()
    yield sign_policy(_SIGNED, _KEY, "").encode()
    certificate = self_signed_certificate(_KEY, datetime(2026, 1, 1, tzinfo=UTC))
    yield sign_policy(_SIGNED, _KEY, certificate_key_id(certificate)).encode()
    odd = base64.b64encode(of_unknown_version(certificate.public_bytes(Encoding.DER))).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{odd}\n-----END CERTIFICATE-----\n".encode()
    yield sign_policy(_SIGNED, _KEY, base64.b64encode(pem).decode()).encode()
    yield b'{"payload": "e30=", "payloadType": "application/json", "signatures": []}'


_EXCLUDES = (
    b"/usr/.*\0/usr/bin",
    b"(a|b)+c?\0aabc",
    rb"^/opt/(?!x)[^/]*$" + b"\0/opt/y",
    rb"\w\d\s[a-z]{2,3}" + b"\0a1 bc",
    rb"(?i)ABC|(?:x{2}|y*?)\b" + b"\0abc",
    rb"[\w.-]+\.so(\.\d+)*" + b"\0a.so.1",
    rb"(?P<n>a)(?P=n)" + b"\0aa",
    b".\0\n",
    rb"\x41\u0042\101" + b"\0AB",
)

TARGETS: Targets = {
    "runtime-policy": together(
        Target(_runtime_policy, (PolicyError,), _policy_seeds),
        Target(_upgrade, (PolicyError,), _policy_seeds),
    ),
    "allowlist": Target(
        _allowlist,
        (PolicyError,),
        lambda: (
            b"ab" * 20 + b"  /usr/bin/a b\n" + b"cd" * 32 + b" boot_aggregate\n# x\0/tmp/.*\n",
            b'{"meta": {"version": 5}, "release": 1, "hashes": {"/a": ["' + b"ab" * 32 + b'"]}}\0',
        ),
    ),
    "expressions": together(
        Target(_excludes, (PolicyError,), lambda: _EXCLUDES),
        Target(_severity, (ConfigError,), lambda: (rb"ima\..*", b"(")),
    ),
    "reference-state": Target(
        _reference_state,
        (PolicyError,),
        lambda: (json.dumps(reference_state()).encode(), b"{}", b"null", b'{"a": 1}'),
    ),
    "components": Target(
        _components,
        (PolicyError,),
        lambda: tuple(json.dumps(to_json(learn_components(Boot(chain).log()))).encode() for chain in CHAINS),
    ),
    "pe-image": Target(_pe_image, (MalformedEvidence,), lambda: (pe_image({".linux": b"kernel"}),)),
    "tpm-policy": Target(
        _tpm_policy,
        (PolicyError,),
        lambda: (b'{"22": ["00", "FF"], "15": "ab", "mask": "0x408000"}', b'{"0": "00"}', b"{}"),
    ),
    "envelope": together(
        Target(_envelope, (PolicyError, CredentialError), _envelope_seeds),
        Target(_unverified_envelope, (PolicyError, CredentialError), _envelope_seeds),
    ),
    "keyring": Target(_keyring, (PolicyError,), lambda: (_keyring_text().encode(), b"null", b'""')),
    "config": Target(
        _config,
        (ConfigError,),
        lambda: (
            *(path.read_bytes() for path in sorted(_CONFIG.glob("*.conf"))),
            b'[agent]\nip = "127.0.0.1"\nport = 9002 # x\nlist = ["a", \'b\']\nuuid = hash_ek\n',
            b"[a]\n",
        ),
    ),
}
