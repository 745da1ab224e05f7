"""The verification core, module by module, with the tests that must notice when one of its checks is gone."""

from collections.abc import Mapping

_ROUNDS = (
    "tests/attacks/test_appraisal_quote.py",
    "tests/attacks/test_appraisal_ima.py",
    "tests/attacks/test_appraisal_boot.py",
)
_PROPERTIES = ("tests/unit/appraisal/test_histories.py", "tests/unit/appraisal/test_properties.py")
_QUOTE = ("tests/attacks/test_quote_attacks.py", _ROUNDS[0])
_APPRAISAL = (
    "tests/unit/appraisal/test_continuity.py",
    "tests/unit/appraisal/test_evidence.py",
    "tests/unit/appraisal/test_challenge.py",
    *_ROUNDS,
    "tests/unit/appraisal/test_appraise.py",
    *_PROPERTIES,
)
_IMA = ("tests/unit/ima", "tests/attacks/test_ima_attacks.py", _ROUNDS[1])
_BOOT = (
    "tests/unit/measured_boot",
    "tests/unit/policy/test_measured_boot.py",
    _ROUNDS[2],
    "tests/attacks/test_measured_boot_attacks.py",
)

# Tests in the order in which they run: those that are quick and near first.
SCOPE: Mapping[str, tuple[str, ...]] = {
    "keylime/tpm/quote.py": ("tests/unit/tpm/test_quote.py", *_QUOTE),
    "keylime/tpm/signature.py": ("tests/unit/tpm/test_signature.py", *_QUOTE),
    "keylime/tpm/keys.py": ("tests/unit/tpm/test_keys.py", *_QUOTE),
    "keylime/tpm/pcr.py": ("tests/unit/tpm/test_pcr.py", *_QUOTE),
    "keylime/tpm/structures.py": ("tests/unit/tpm/test_structures.py", *_QUOTE),
    "keylime/tpm/public_area.py": ("tests/unit/tpm/test_keys.py", *_QUOTE),
    "keylime/tpm/credential.py": ("tests/unit/tpm/test_credential.py",),
    "keylime/appraisal/appraise.py": _APPRAISAL,
    "keylime/appraisal/continuity.py": _APPRAISAL,
    "keylime/appraisal/evidence.py": _APPRAISAL,
    "keylime/appraisal/reference.py": _APPRAISAL,
    "keylime/appraisal/challenge.py": _APPRAISAL,
    "keylime/ima/appraisal.py": ("tests/unit/ima/test_appraisal.py", *_IMA),
    "keylime/ima/rules.py": (_ROUNDS[1], *_IMA),
    "keylime/ima/replay.py": ("tests/unit/ima/test_replay.py", *_IMA),
    "keylime/ima/signatures.py": ("tests/unit/ima/test_signatures.py", *_IMA),
    "keylime/ima/keyrings.py": (
        "tests/unit/ima/test_keyrings.py",
        "tests/unit/ima/test_signatures.py",
        *_IMA,
    ),
    "keylime/ima/device_mapper_policy.py": ("tests/unit/ima/test_device_mapper.py", *_IMA),
    "keylime/ima/checkpoint.py": ("tests/unit/ima/test_appraisal.py", *_IMA),
    "keylime/ima/memo.py": ("tests/unit/ima/test_memo.py", "tests/unit/ima/test_appraisal.py"),
    "keylime/measured_boot/replay.py": ("tests/unit/measured_boot/test_replay.py", *_BOOT),
    "keylime/measured_boot/appraisal.py": ("tests/unit/measured_boot/test_appraisal.py", *_BOOT),
    "keylime/measured_boot/binding.py": ("tests/unit/measured_boot/test_binding.py", *_BOOT),
    "keylime/measured_boot/example.py": ("tests/unit/measured_boot/test_example.py", *_BOOT),
    "keylime/measured_boot/rules.py": ("tests/unit/measured_boot/test_rules.py",),
    "keylime/policy/measured_boot.py": ("tests/unit/policy/test_measured_boot.py", *_BOOT),
    "keylime/policy/excludes.py": ("tests/unit/policy/test_excludes.py", "tests/unit/policy/test_runtime.py"),
    "keylime/policy/dsse.py": ("tests/unit/policy/test_dsse.py",),
    "keylime/policy/tpm_policy.py": ("tests/unit/policy/test_tpm_policy.py", *_ROUNDS),
    "keylime/policy/runtime.py": ("tests/unit/policy/test_runtime.py", "tests/unit/policy", *_IMA),
}
