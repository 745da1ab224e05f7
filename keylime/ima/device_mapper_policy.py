"""What a runtime policy (`ima.dm_policy`) demands of device-mapper events, and the state that they build up.

Devices are followed from table load to removal. Findings carry the ids `ima.validation.dm.*`; the caller adds
where in the list the event stands.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from keylime.documents.patterns import full_matcher, parse_pattern
from keylime.errors import PolicyError
from keylime.ima.device_mapper import (
    DEVICE_REMOVE,
    DEVICE_RENAME,
    DEVICE_RESUME,
    TABLE_CLEAR,
    TABLE_LOAD,
    DeviceMapperEvent,
    Target,
)

_TRUE = frozenset({"y", "yes", "t", "true", "on", "1"})
_FALSE = frozenset({"n", "no", "f", "false", "off", "0"})

Expected: TypeAlias = bool | int | str | None
Matcher: TypeAlias = Callable[[str | None], bool]


class DeviceState(msgspec.Struct, frozen=True):
    """One device as the events so far describe it.

    `table` is the digest of the last load, as printed; `resumed` is whether that table is the running one.
    """

    name: str
    uuid: str
    rule: str
    table: str
    resumed: bool
    active: bool


class DeviceMapperState(msgspec.Struct, frozen=True):
    """All devices that are loaded. Part of an agent's checkpoint."""

    devices: tuple[DeviceState, ...] = ()

    def find(self, event: DeviceMapperEvent, match_on: str) -> DeviceState | None:
        """The device that `event` is about."""
        key = getattr(event, match_on)
        return next((device for device in self.devices if getattr(device, match_on) == key), None)

    def replacing(self, old: DeviceState | None, new: DeviceState | None) -> "DeviceMapperState":
        """This state with `new` (None: nothing) in the place of `old` (None: at the end)."""
        kept = tuple(device for device in self.devices if device is not old)
        return DeviceMapperState(kept if new is None else (*kept, new))


@dataclass(frozen=True, slots=True)
class DeviceMapperFault:
    """One thing wrong with an event: the rest of its id after `ima.validation.dm.`, and a sentence."""

    suffix: str
    explanation: str


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    required: bool
    resume_required: bool
    multiple_loads: bool
    removable: bool
    clearable: bool
    device: Mapping[str, Matcher]
    targets: tuple[Mapping[str, Matcher], ...]
    new_name: Matcher
    new_uuid: Matcher


@dataclass(frozen=True, slots=True, eq=False)
class DeviceMapperPolicy:
    """A compiled `dm_policy`; `document` is the object it was made from."""

    document: Mapping[str, Any]
    match_on: str
    _rules: Mapping[str, _Rule]

    def evaluate(
        self, state: DeviceMapperState, event: DeviceMapperEvent, digest: str
    ) -> tuple[DeviceMapperState, tuple[DeviceMapperFault, ...]]:
        """The state after `event`, whose entry has `digest` ("sha256:<hex>"), and what was wrong with it."""
        device = state.find(event, self.match_on)
        if event.kind == TABLE_LOAD:
            return self._load(state, device, event, digest)
        verb = event.kind.rsplit("_", 1)[1]
        if device is None:
            text = f"{event.kind} of device {event.name!r}, for which no table was loaded"
            return state, (DeviceMapperFault(f"{event.kind}.{verb}_before_table_load", text),)
        rule = self._rules.get(device.rule)
        if rule is None:
            return state, (
                DeviceMapperFault(
                    "device_invalid_state", f"device {event.name!r} belongs to a rule that is gone"
                ),
            )
        if event.kind == DEVICE_RESUME:
            return _resume(state, device, event)
        if event.kind == DEVICE_REMOVE:
            return _remove(state, device, event, rule)
        if event.kind == TABLE_CLEAR:
            return _clear(state, device, event, rule)
        if event.kind == DEVICE_RENAME:
            return _rename(state, device, event, rule)
        return state, tuple(_target_faults(event.kind, event.targets, rule))

    def unmet(self, state: DeviceMapperState) -> tuple[DeviceMapperFault, ...]:
        """What the policy requires and `state` does not have: rules that no device in use is bound to."""
        in_use = {
            device.rule
            for device in state.devices
            if (rule := self._rules.get(device.rule)) is not None
            and (device.active or not rule.resume_required)
        }
        return tuple(
            DeviceMapperFault(
                "required_policy_not_in_use", f"no device is in use that rule {rule.name!r} requires"
            )
            for rule in self._rules.values()
            if rule.required and rule.name not in in_use
        )

    def _load(
        self, state: DeviceMapperState, device: DeviceState | None, event: DeviceMapperEvent, digest: str
    ) -> tuple[DeviceMapperState, tuple[DeviceMapperFault, ...]]:
        rule = self._rules.get(device.rule) if device is not None else self._rule_for(event)
        if rule is None:
            return state, (_load_fault("no_matching_policy", event, "no rule of the policy fits it"),)
        if device is not None and not rule.multiple_loads:
            return state, (_load_fault("multiple_table_loads", event, "it has a table already"),)
        faults = [
            _load_fault("invalid_entry", event, f"its {name} is not what the policy says")
            for name, matches in rule.device.items()
            if not matches(str(getattr(event.device, name)))
        ]
        if len(event.targets) != len(rule.targets):
            faults.append(
                _load_fault("num_targets_mismatch", event, f"the policy has {len(rule.targets)} targets")
            )
        faults.extend(_target_faults(event.kind, event.targets, rule))
        loaded = DeviceState(
            event.name,
            event.uuid,
            rule.name,
            table=digest,
            resumed=False,
            active=device is not None and device.active,
        )
        return state.replacing(device, loaded), tuple(faults)

    def _rule_for(self, event: DeviceMapperEvent) -> _Rule | None:
        key = getattr(event, self.match_on)
        return next((rule for rule in self._rules.values() if rule.device[self.match_on](key)), None)


def parse_device_mapper_policy(document: object) -> DeviceMapperPolicy:
    """The policy in `document`, JSON as Python values. Raises PolicyError, which names the field."""
    try:
        parsed = msgspec.convert(document, _PolicyDocument)
    except msgspec.ValidationError as error:
        raise PolicyError(f"ima.dm_policy: {error}") from error
    rules = {name: _compile(name, rule) for name, rule in parsed.rules.items()}
    return DeviceMapperPolicy(msgspec.to_builtins(document), parsed.match_on, rules)


class _RenameDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    valid_name: Expected = None
    valid_uuid: Expected = None


class _RemoveDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow_removal: bool = False


class _LoadDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow_multiple_loads: bool = False
    name: Expected = None
    uuid: Expected = None
    major: Expected = None
    minor: Expected = None
    minor_count: Expected = None
    num_targets: Expected = None
    targets: tuple[dict[str, Expected], ...] = ()


class _RuleDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    required: bool = False
    device_resume_required: bool = False
    device_rename: _RenameDocument = _RenameDocument()
    device_remove: _RemoveDocument = _RemoveDocument()
    allow_clear: bool = False
    table_load: _LoadDocument = _LoadDocument()


class _PolicyDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    match_on: Literal["name", "uuid"]
    rules: dict[str, _RuleDocument]


def _compile(name: str, rule: _RuleDocument) -> _Rule:
    load = rule.table_load
    where = f"ima.dm_policy.rules.{name}"
    keys = ("name", "uuid", "major", "minor", "minor_count", "num_targets")
    return _Rule(
        name,
        required=rule.required,
        resume_required=rule.device_resume_required,
        multiple_loads=load.allow_multiple_loads,
        removable=rule.device_remove.allow_removal,
        clearable=rule.allow_clear,
        device={key: _matcher(getattr(load, key), f"{where}.table_load.{key}") for key in keys},
        targets=tuple(
            {
                key: _matcher(value, f"{where}.table_load.targets[{index}].{key}")
                for key, value in target.items()
            }
            for index, target in enumerate(load.targets)
        ),
        new_name=_matcher(rule.device_rename.valid_name, f"{where}.device_rename.valid_name"),
        new_uuid=_matcher(rule.device_rename.valid_uuid, f"{where}.device_rename.valid_uuid"),
    )


def _matcher(expected: Expected, where: str) -> Matcher:
    """The test of one attribute: null accepts, flags and numbers compare, a text is a regular expression."""
    if expected is None:
        return lambda actual: True
    if isinstance(expected, bool):
        accepted = _TRUE if expected else _FALSE
        return lambda actual: actual is not None and actual.lower() in accepted
    if isinstance(expected, int):
        return lambda actual: actual is not None and _is_number(actual) and int(actual) == expected
    try:
        matches = full_matcher(parse_pattern(expected))
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}") from error
    return lambda actual: actual is not None and matches(actual)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,20}", text) is not None


def _load_fault(suffix: str, event: DeviceMapperEvent, reason: str) -> DeviceMapperFault:
    return DeviceMapperFault(f"{TABLE_LOAD}.{suffix}", f"table load of device {event.name!r}: {reason}")


def _target_faults(kind: str, targets: tuple[Target, ...], rule: _Rule) -> Iterator[DeviceMapperFault]:
    for target in targets:
        if target.index >= len(rule.targets):
            yield DeviceMapperFault(f"{kind}.target_data_invalid", f"the policy has no target {target.index}")
            continue
        actual = {
            **target.attributes,
            "target_index": str(target.index),
            "target_begin": str(target.begin),
            "target_len": str(target.length),
            "target_name": target.kind,
            "target_version": target.version,
        }
        for key, matches in rule.targets[target.index].items():
            if not matches(actual.get(key)):
                missing = key not in actual
                suffix = "target_attribute_not_found" if missing else "target_data_mismatch"
                reason = "is missing" if missing else "is not what the policy says"
                yield DeviceMapperFault(f"{kind}.{suffix}", f"{key} of target {target.index} {reason}")


_Step: TypeAlias = tuple[DeviceMapperState, tuple[DeviceMapperFault, ...]]


def _resume(state: DeviceMapperState, device: DeviceState, event: DeviceMapperEvent) -> _Step:
    if event.no_data:
        return state, ()
    if device.resumed:
        text = f"device {device.name!r} is resumed, but it is active already"
        return state, (DeviceMapperFault(f"{DEVICE_RESUME}.already_active", text),)
    if event.active_table != device.table:
        text = f"device {device.name!r} is resumed with another table than the one that was loaded"
        return state, (DeviceMapperFault(f"{DEVICE_RESUME}.active_table_mismatch", text),)
    return state.replacing(device, msgspec.structs.replace(device, resumed=True, active=True)), ()


def _remove(state: DeviceMapperState, device: DeviceState, event: DeviceMapperEvent, rule: _Rule) -> _Step:
    if not rule.removable:
        text = f"device {device.name!r} was removed"
        return state, (DeviceMapperFault(f"{DEVICE_REMOVE}.device_removed", text),)
    return state.replacing(device, None), ()


def _clear(state: DeviceMapperState, device: DeviceState, event: DeviceMapperEvent, rule: _Rule) -> _Step:
    if not rule.clearable:
        text = f"the table of device {device.name!r} was cleared"
        return state, (DeviceMapperFault(f"{TABLE_CLEAR}.table_cleared", text),)
    # An active device keeps the table that it runs; only the one that was loaded beside it is gone.
    return (state if device.active else state.replacing(device, None)), ()


def _rename(state: DeviceMapperState, device: DeviceState, event: DeviceMapperEvent, rule: _Rule) -> _Step:
    faults = []
    new_uuid = event.new_uuid or device.uuid  # a rename of the name alone prints an empty UUID
    if not rule.new_name(event.new_name):
        text = f"device {device.name!r} was renamed to {event.new_name!r}"
        faults.append(DeviceMapperFault(f"{DEVICE_RENAME}.new_name_invalid", text))
    if not rule.new_uuid(new_uuid):
        text = f"device {device.name!r} was given the UUID {new_uuid!r}"
        faults.append(DeviceMapperFault(f"{DEVICE_RENAME}.new_uuid_invalid", text))
    renamed = msgspec.structs.replace(device, name=event.new_name, uuid=new_uuid)
    return state.replacing(device, renamed), tuple(faults)
