"""The verification core, module by module, with the tests that must notice when one of its checks is gone."""

from collections.abc import Mapping


def _unit(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/{package}/test_{name}.py" for name in names)


def _attacks(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/attacks/test_{name}.py" for name in names)


# Tests in the order in which they run: those that are quick and near first.
_QUOTE = _attacks("quote_attacks", "appraisal_quote")
_APPRAISAL = (
    *_unit("appraisal", "continuity", "evidence", "challenge", "appraise"),
    *_attacks("appraisal_quote", "appraisal_ima", "appraisal_boot"),
    *_unit("appraisal", "histories", "properties"),
)
_IMA = (
    *_unit("ima", "rules", "signatures", "memo", "device_mapper", "appraisal"),
    *_attacks("appraisal_ima", "ima_attacks"),
)
_BOOT = (
    *_unit("measured_boot", "appraisal", "binding", "replay", "policies", "example", "example_variables"),
    *_unit("measured_boot", "boot_policy"),
    *_attacks("appraisal_boot", "measured_boot_attacks"),
)

SCOPE: Mapping[str, tuple[str, ...]] = {
    "keylime/tpm/quote.py": (*_QUOTE, *_unit("tpm", "quote")),
    "keylime/tpm/signature.py": (*_unit("tpm", "signature"), *_QUOTE),
    "keylime/tpm/keys.py": (*_unit("tpm", "keys"), *_QUOTE),
    "keylime/tpm/pcr.py": (*_unit("tpm", "pcr"), *_QUOTE),
    "keylime/tpm/structures.py": (*_unit("tpm", "structures"), *_QUOTE, *_unit("tpm", "quote")),
    "keylime/tpm/public_area.py": (*_unit("tpm", "keys"), *_QUOTE),
    "keylime/tpm/credential.py": _unit("tpm", "credential"),
    "keylime/appraisal/appraise.py": _APPRAISAL,
    "keylime/appraisal/continuity.py": _APPRAISAL,
    "keylime/appraisal/evidence.py": _APPRAISAL,
    "keylime/appraisal/reference.py": _APPRAISAL,
    "keylime/appraisal/challenge.py": _APPRAISAL,
    "keylime/ima/appraisal.py": _IMA,
    "keylime/ima/rules.py": _IMA,
    "keylime/ima/boot_aggregate.py": _IMA,
    "keylime/ima/replay.py": (*_unit("ima", "replay"), *_IMA),
    "keylime/ima/signatures.py": (*_unit("ima", "signatures"), *_IMA),
    "keylime/ima/keyrings.py": (*_unit("ima", "keyrings"), *_IMA),
    "keylime/ima/checkpoint.py": _IMA,
    "keylime/ima/memo.py": (*_unit("ima", "memo"), *_IMA),
    "keylime/ima/device_mapper_policy.py": (*_unit("ima", "device_mapper"), *_IMA),
    "keylime/ima/measurement_list.py": _unit("ima", "measurement_list", "templates"),
    "keylime/ima/templates.py": _unit("ima", "templates", "measurement_list"),
    "keylime/ima/device_mapper.py": _unit("ima", "device_mapper"),
    "keylime/measured_boot/event_log.py": _unit("measured_boot", "event_log", "events", "replay"),
    "keylime/measured_boot/events.py": _unit("measured_boot", "events", "event_log"),
    "keylime/measured_boot/variables.py": _unit("measured_boot", "events", "example_variables"),
    "keylime/measured_boot/example_reference.py": _unit("measured_boot", "example"),
    "keylime/measured_boot/replay.py": (*_unit("measured_boot", "replay"), *_BOOT),
    "keylime/measured_boot/appraisal.py": _BOOT,
    "keylime/measured_boot/binding.py": (*_unit("measured_boot", "binding"), *_BOOT),
    "keylime/measured_boot/example.py": (*_unit("measured_boot", "example", "example_variables"), *_BOOT),
    "keylime/measured_boot/boot_events.py": (*_unit("measured_boot", "example", "example_variables"), *_BOOT),
    "keylime/measured_boot/rules.py": _unit("measured_boot", "rules"),
    "keylime/measured_boot/user_space_log.py": _unit("measured_boot", "user_space_log", "os_measurements"),
    "keylime/measured_boot/os_records.py": _unit("measured_boot", "os_measurements"),
    "keylime/measured_boot/os_measurements.py": _unit("measured_boot", "os_measurements"),
    "keylime/measured_boot/machine_values.py": _unit("measured_boot", "os_measurements"),
    "keylime/measured_boot/pcr_sets.py": _unit("measured_boot", "os_measurements", "boot_policy"),
    "keylime/measured_boot/component_rules.py": _unit("measured_boot", "components"),
    "keylime/measured_boot/boot_differences.py": _unit("measured_boot", "components"),
    "keylime/measured_boot/boot_reading.py": _unit("measured_boot", "components"),
    "keylime/measured_boot/grub_commands.py": _unit("measured_boot", "components"),
    "keylime/measured_boot/boot_policy.py": (*_unit("measured_boot", "boot_policy"), *_BOOT),
    "keylime/tpm/tpm_policy.py": (*_unit("tpm", "tpm_policy"), *_APPRAISAL),
    "keylime/ima/runtime_policy.py": (*_unit("ima", "runtime_policy"), *_IMA),
    "keylime/ima/excludes.py": _unit("ima", "excludes", "runtime_policy"),
    "keylime/documents/dsse.py": _unit("documents", "dsse"),
    "keylime/documents/patterns.py": (*_unit("documents", "patterns"), *_unit("ima", "excludes")),
    "keylime/documents/strict_json.py": _unit("documents", "strict_json"),
}
