"""`keylime-policy check`: reads the files that the flags name, has them judged, prints the judgement."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from keylime.documents.dsse import is_envelope, open_envelope, verify_envelope
from keylime.errors import ConfigError, PolicyError
from keylime.hashes import HashAlgorithm
from keylime.ima.allowlist import convert_allowlist
from keylime.ima.keyrings import Keyring
from keylime.ima.runtime_policy import RuntimePolicy, parse_runtime_policy
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.measured_boot.pcr_sets import PcrSet
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_policy.create_runtime import verification_keys
from keylime_policy.files import read_input, read_text
from keylime_policy.measured import ascii_list
from keylime_policy.messages import Messages
from keylime_policy.offline import Approval, Conclusion, OfflineJudgement, StoredEvidence, judge
from keylime_policy.quote_files import load_quote
from keylime_policy.report import default_severities, json_report, print_report
from keylime_policy.sources import blaming
from keylime_policy.working import working


def run_check(options: argparse.Namespace, wrong_usage: Callable[[str], NoReturn], messages: Messages) -> int:
    """The exit status: 0 accepted, 1 not. Raises ConfigError for input that cannot be used."""
    with working(messages, "Appraising"):
        judgement = judge_files(options, wrong_usage, messages)
    severities = default_severities()
    if options.json:
        sys.stdout.write(json_report(judgement, severities))
    else:
        print_report(judgement, severities, sys.stdout)
    return 0 if judgement.outcome is Conclusion.ACCEPTED else 1


def judge_files(
    options: argparse.Namespace, wrong_usage: Callable[[str], NoReturn], messages: Messages
) -> OfflineJudgement:
    """The judgement on the files that the flags name. Raises ConfigError for input that cannot be used."""
    _check_usage(options, wrong_usage)
    return judge(_evidence(options), _approval(options, messages))


def _check_usage(options: argparse.Namespace, wrong_usage: Callable[[str], NoReturn]) -> None:
    """Refuses combinations in which something given would silently not count."""
    given: dict[str, Any] = vars(options)
    if not (options.ima_log or options.boot_log or options.quote):
        wrong_usage("nothing to check: give --ima-log, --boot-log or --quote")
    needs = {
        "exclude": "allowlist",
        "os_log": "boot_log",
        "runtime_policy_sig_key": "runtime_policy",
        "ak": "quote",
        "nonce": "quote",
        "tpm_policy": "quote",
    }
    if options.quote:
        needs.update({"quote": "ak"})
        if options.nonce is None:
            wrong_usage("--quote needs --nonce")
    else:
        needs.update({"runtime_policy": "ima_log", "allowlist": "ima_log", "mb_policy": "boot_log"})
    for option, needed in needs.items():
        if given[option] is not None and given[needed] is None:
            wrong_usage(f"{_flag(option)} needs {_flag(needed)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _evidence(options: argparse.Namespace) -> StoredEvidence:
    ima_list = None
    if options.ima_log is not None:
        content = read_input("--ima-log", options.ima_log)
        with blaming("--ima-log", options.ima_log):
            ima_list = ascii_list(content)
    return StoredEvidence(
        ima_list=ima_list,
        boot_log=None if options.boot_log is None else read_input("--boot-log", options.boot_log),
        os_log=None if options.os_log is None else read_input("--os-log", options.os_log),
        quote=None if options.quote is None else load_quote(options.quote, options.ak, options.nonce),
        bank=None if options.hash_alg is None else HashAlgorithm.from_label(options.hash_alg),
    )


def _approval(options: argparse.Namespace, messages: Messages) -> Approval:
    policy = _runtime_policy(options, messages)
    if policy is not None:
        messages.warnings(policy.warnings)
    keys = verification_keys("--ima-key", options.ima_keys)
    return Approval(
        runtime_policy=policy,
        measured_boot=_measured_boot(options),
        tpm_policy=_tpm_policy(options.tpm_policy),
        keyring=Keyring(tuple(keys)) if keys else None,
        ignore_tomtou=options.ignore_tomtou,
        explained=PcrSet(options.explained_pcrs),
    )


def _runtime_policy(options: argparse.Namespace, messages: Messages) -> RuntimePolicy | None:
    if options.allowlist is not None:
        excludes = "" if options.exclude is None else read_text("--exclude", options.exclude)
        allowlist = read_text("--allowlist", options.allowlist)
        with blaming("--allowlist", options.allowlist):
            return parse_runtime_policy(convert_allowlist(allowlist, excludes))
    path = options.runtime_policy
    if path is None:
        return None
    text, key_file = read_text("--runtime-policy", path), options.runtime_policy_sig_key
    with blaming("--runtime-policy", path):
        if key_file is not None:
            if not is_envelope(text):
                raise PolicyError("is not signed, but --runtime-policy-sig-key demands it")
            return parse_runtime_policy(
                verify_envelope(text, read_input("--runtime-policy-sig-key", key_file))
            )
        if is_envelope(text):
            messages.warning(
                "the runtime policy's signature is not checked: --runtime-policy-sig-key names the key"
            )
        return parse_runtime_policy(open_envelope(text))


def _measured_boot(options: argparse.Namespace) -> MeasuredBootPolicy | None:
    path = options.mb_policy
    if path is None:
        return None
    text = read_text("--mb-policy", path)
    with blaming("--mb-policy", path):
        policy = compile_measured_boot_policy(
            text,
            policy_name=options.mb_policy_name,
            registry=built_in_policies(),
            explained=PcrSet(options.explained_pcrs),
        )
        if policy is None:
            raise PolicyError("is empty: {} demands that the boot log be true, whatever it says")
        return policy


def _tpm_policy(text: str | None) -> TpmPolicy | None:
    """A TPM policy as operators write it, or with its mask as tenants send it."""
    if text is None:
        return None
    try:
        return TpmPolicy.from_client(text) if '"mask"' in text else TpmPolicy.from_operator(text)
    except PolicyError as error:
        raise ConfigError(f"--tpm-policy: {error}") from error
