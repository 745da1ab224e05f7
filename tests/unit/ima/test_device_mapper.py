import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence, PolicyError
from keylime.ima.device_mapper import EVENT_NAMES, DeviceMapperEvent, parse_event
from keylime.ima.device_mapper_policy import DeviceMapperState, parse_device_mapper_policy
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.runtime_policy import parse_runtime_policy
from tests.captures import capture
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier, line_of

STAGE = capture("direct-critical-data-4banks").stage("s4-device-mapper")
ENTRIES = {
    entry.name: entry for entry in map(parse_line, split_lines(STAGE.ascii_list)) if entry.name in EVENT_NAMES
}
EVENTS = {name: parse_event(name, entry.buffer or b"") for name, entry in ENTRIES.items()}
TABLE = "sha256:" + ENTRIES["dm_table_load"].digest.hex()


def _buffer(name: str) -> bytes:
    return ENTRIES[name].buffer or b""


RULE: dict[str, Any] = {
    "required": False,
    "device_resume_required": True,
    "device_rename": {"valid_name": "lablin[0-9]", "valid_uuid": None},
    "device_remove": {"allow_removal": True},
    "allow_clear": False,
    "table_load": {
        "allow_multiple_loads": False,
        "name": "lablin",
        "major": 253,
        "num_targets": 1,
        "targets": [{"target_name": "linear", "device_name": "7:[0-9]+", "start": 0, "target_len": 8192}],
    },
}


def document(**rule: Any) -> dict[str, Any]:
    return {"version": 1, "match_on": "name", "rules": {"lab": {**RULE, **rule}}}


def loading(**changes: Any) -> dict[str, Any]:
    return {"table_load": {**RULE["table_load"], **changes}}


def run(policy: dict[str, Any], *events: DeviceMapperEvent) -> tuple[DeviceMapperState, list[str]]:
    compiled = parse_device_mapper_policy(policy)
    state = DeviceMapperState()
    suffixes: list[str] = []
    for event in events:
        state, faults = compiled.evaluate(state, event, TABLE)
        suffixes.extend(fault.suffix for fault in faults)
    return state, suffixes


LOAD, RESUME, RENAME, REMOVE = (
    EVENTS[name] for name in ("dm_table_load", "dm_device_resume", "dm_device_rename", "dm_device_remove")
)


def test_captured_events_are_read() -> None:
    (target,) = LOAD.targets
    assert (LOAD.name, target.kind, target.attributes) == (
        "lablin",
        "linear",
        {"device_name": "7:0", "start": "0"},
    )
    assert RESUME.active_table == TABLE
    assert RENAME.new_name == "lablin2"
    assert REMOVE.name == "lablin2"


def test_the_captured_life_of_a_device_is_allowed_by_its_policy() -> None:
    state, faults = run(document(), LOAD, RESUME, RENAME, REMOVE)
    assert faults == []
    assert state.devices == ()


@pytest.mark.parametrize(
    ("policy", "events", "faults"),
    [
        (document(), [LOAD, LOAD], ["dm_table_load.multiple_table_loads"]),
        (document(**loading(name="other")), [LOAD], ["dm_table_load.no_matching_policy"]),
        (document(**loading(major=254)), [LOAD], ["dm_table_load.invalid_entry"]),
        (
            document(**loading(targets=[])),
            [LOAD],
            ["dm_table_load.num_targets_mismatch", "dm_table_load.target_data_invalid"],
        ),
        *(
            (document(**loading(targets=[wrong])), [LOAD], ["dm_table_load.target_data_mismatch"])
            for wrong in ({"start": 1}, {"start": True}, {"device_name": False}, {"device_name": 7})
        ),
        (document(**loading(targets=[{"start": False}])), [LOAD], []),
        *(
            (
                document(**loading(targets=[{"salt": absent}])),
                [LOAD],
                ["dm_table_load.target_attribute_not_found"],
            )
            for absent in ("x", ".*", 1, True)
        ),
        (document(), [RESUME], ["dm_device_resume.resume_before_table_load"]),
        (document(), [LOAD, RESUME, RESUME], ["dm_device_resume.already_active"]),
        (document(), [REMOVE], ["dm_device_remove.remove_before_table_load"]),
        (document(device_remove={}), [LOAD, RENAME, REMOVE], ["dm_device_remove.device_removed"]),
        (document(), [RENAME], ["dm_device_rename.rename_before_table_load"]),
        (document(device_rename={"valid_name": "no"}), [LOAD, RENAME], ["dm_device_rename.new_name_invalid"]),
        (document(device_rename={"valid_uuid": ".+"}), [LOAD, RENAME], ["dm_device_rename.new_uuid_invalid"]),
    ],
)
def test_every_departure_from_the_policy_is_named(
    policy: dict[str, Any], events: list[DeviceMapperEvent], faults: list[str]
) -> None:
    assert run(policy, *events)[1] == faults


def test_an_attribute_that_is_missing_is_told_from_one_that_differs() -> None:
    compiled = parse_device_mapper_policy(document(**loading(targets=[{"salt": "x", "start": 1}])))
    _, faults = compiled.evaluate(DeviceMapperState(), LOAD, TABLE)
    assert [fault.explanation for fault in faults] == [
        "salt of target 0 is missing",
        "start of target 0 is not what the policy says",
    ]


OTHER_LOAD = parse_event("dm_table_load", _buffer("dm_table_load").replace(b"name=lablin,", b"name=other,"))
RENAMED_LOAD = parse_event(
    "dm_table_load", _buffer("dm_table_load").replace(b"name=lablin,", b"name=lablin2,")
)
HEAD = b"dm_version=4.47.0;name=lablin,uuid=,major=253,minor=0,minor_count=1,num_targets=1;"
CLEAR = parse_event("dm_table_clear", HEAD + b"inactive_table_hash=sha256:ab;current_device_capacity=0;")


def test_devices_are_told_apart() -> None:
    both = document()
    both["rules"]["other"] = {**RULE, **loading(name="other")}
    state, faults = run(both, LOAD, OTHER_LOAD, RESUME)
    assert faults == []
    assert [(device.name, device.resumed) for device in state.devices] == [("other", False), ("lablin", True)]
    state, faults = run(both, LOAD, OTHER_LOAD, RESUME, RENAME, REMOVE)
    assert faults == []
    assert [device.name for device in state.devices] == ["other"]


def test_a_device_whose_rule_is_gone_is_in_no_valid_state() -> None:
    state, _ = run(document(), LOAD)
    changed = parse_device_mapper_policy({**document(), "rules": {"another": RULE}})
    assert [fault.suffix for fault in changed.evaluate(state, RESUME, TABLE)[1]] == ["device_invalid_state"]


def test_a_device_stays_bound_to_the_rule_that_its_first_table_fitted() -> None:
    policy = document(**loading(allow_multiple_loads=True))
    assert run(policy, LOAD, LOAD, RESUME)[1] == []
    assert run(policy, LOAD, RENAME, RENAMED_LOAD)[1] == ["dm_table_load.invalid_entry"]


def test_clearing_takes_the_device_only_when_nothing_of_it_runs() -> None:
    policy = document(allow_clear=True, **loading(allow_multiple_loads=True))
    assert run(policy, LOAD, LOAD, CLEAR) == (DeviceMapperState(), [])
    state, faults = run(policy, LOAD, RESUME, LOAD, CLEAR)
    assert faults == []
    assert [device.name for device in state.devices] == ["lablin"]


def test_a_resume_must_name_the_table_that_was_loaded() -> None:
    other = parse_event("dm_device_resume", _buffer("dm_device_resume").replace(b"sha256:23", b"sha256:24"))
    assert run(document(), LOAD, other)[1] == ["dm_device_resume.active_table_mismatch"]


def test_a_resume_that_activates_no_table_changes_nothing() -> None:
    nothing = parse_event("dm_device_resume", HEAD + b"device_resume=no_data;current_device_capacity=8192;")
    resumed, _ = run(document(), LOAD, RESUME)
    assert run(document(), LOAD, RESUME, nothing) == (resumed, [])


def test_a_rename_gives_the_uuid_that_it_names_and_otherwise_leaves_it() -> None:
    policy = document(device_rename={"valid_uuid": "U-[0-9]"})

    def uuid_after(rename: bytes) -> str:
        load, renaming = (
            parse_event(kind, data.replace(b"uuid=,major", b"uuid=U-1,major"))
            for kind, data in (("dm_table_load", _buffer("dm_table_load")), ("dm_device_rename", rename))
        )
        state, faults = run(policy, load, renaming)
        assert faults == []
        return state.devices[0].uuid

    rename = _buffer("dm_device_rename")
    assert uuid_after(rename) == "U-1"
    assert uuid_after(rename.replace(b"new_uuid=;", b"new_uuid=U-2;")) == "U-2"


def test_clearing_and_updating_follow_the_policy() -> None:
    target = _buffer("dm_table_load").split(b";", 2)[2]
    update = parse_event("dm_target_update", HEAD + target)
    assert run(document(), CLEAR)[1] == ["dm_table_clear.clear_before_table_load"]
    assert run(document(), LOAD, CLEAR)[1] == ["dm_table_clear.table_cleared"]
    assert run(document(allow_clear=True), LOAD, CLEAR) == (DeviceMapperState(), [])
    assert run(document(), update)[1] == ["dm_target_update.update_before_table_load"]
    assert run(document(), LOAD, update)[1] == []


def test_verity_targets_are_read_with_and_without_their_optional_attributes() -> None:
    head = b"dm_version=4.45.0;name=root,uuid=CRYPT-VERITY-1,major=253,minor=1,minor_count=1,num_targets=1;"
    target = (
        b"target_index=0,target_begin=0,target_len=8192,target_name=verity,target_version=1.8.0,hash_failed=V,"
        b"verity_version=1,data_device_name=253:2,hash_device_name=253:3,verity_algorithm=sha256,root_digest=ab,"
        b"salt=cd,ignore_zero_blocks=n,check_at_most_once=y"
    )
    plain = parse_event("dm_table_load", head + target + b";")
    assert plain.targets[0].attributes["check_at_most_once"] == "y"
    signed = parse_event("dm_table_load", head + target + b",root_hash_sig_key_desc=key,verity_mode=panic;\0")
    assert signed.targets[0].attributes["verity_mode"] == "panic"
    policy = document(
        **loading(name=".*", major=None, targets=[{"check_at_most_once": True, "ignore_zero_blocks": False}])
    )
    assert run(policy, plain)[1] == []


# -- what a policy requires


def unmet(policy: dict[str, Any], *events: DeviceMapperEvent) -> list[str]:
    compiled = parse_device_mapper_policy(policy)
    state, _ = run(policy, *events)
    return [fault.suffix for fault in compiled.unmet(state)]


NOT_IN_USE = "required_policy_not_in_use"


def test_a_required_device_must_be_there_and_active() -> None:
    required = document(required=True)
    assert unmet(required) == [NOT_IN_USE]
    assert unmet(required, LOAD) == [NOT_IN_USE], "a table that is never used"
    assert unmet(required, LOAD, RESUME) == []
    assert unmet(required, LOAD, RESUME, RENAME) == []
    assert unmet(required, LOAD, RESUME, RENAME, REMOVE) == [NOT_IN_USE]
    unresumed = document(required=True, device_resume_required=False)
    assert unmet(unresumed, LOAD) == []
    assert unmet(unresumed) == [NOT_IN_USE]


def test_what_is_not_required_may_be_absent() -> None:
    assert unmet(document()) == []
    assert unmet(document(), LOAD) == []


def test_every_rule_that_requires_a_device_needs_one_of_its_own() -> None:
    other = {**RULE, "required": True, "table_load": {**RULE["table_load"], "name": "other"}}
    two = {"version": 1, "match_on": "name", "rules": {"lab": {**RULE, "required": True}, "other": other}}
    assert unmet(two, LOAD, RESUME) == [NOT_IN_USE]
    (fault,) = parse_device_mapper_policy(two).unmet(run(two, LOAD, RESUME)[0])
    assert "'other'" in fault.explanation


def test_a_device_of_a_rule_that_is_gone_meets_nothing() -> None:
    state, _ = run(document(), LOAD, RESUME)
    renamed = {**document(), "rules": {"new": {**RULE, "required": True}}}
    assert [fault.suffix for fault in parse_device_mapper_policy(renamed).unmet(state)] == [NOT_IN_USE]


def test_a_required_device_is_demanded_in_every_round() -> None:
    lines = [entry.to_line() for entry in ENTRIES.values()]  # load, resume, rename, remove
    text = policy_of([b""]).to_document()
    text["ima"]["dm_policy"] = document(required=True)
    verifier = Verifier(parse_runtime_policy(json.dumps(text)))
    kernel = Kernel()
    found = []
    for line in (None, *lines):
        if line is not None:
            kernel.add(line)
        result = verifier.appraise(kernel.text(verifier.known.next_entry), kernel.pcr)
        found.append([finding.event_id for finding in result.findings])
        if not result.findings:
            verifier = verifier.after(result)
    demanded = [f"ima.validation.dm.{NOT_IN_USE}"]
    assert [ids == demanded for ids in found] == [True, True, False, False, True]
    assert found[2:4] == [[], []]
    quiet = verifier.appraise(b"", verifier.known.pcr or b"")
    assert quiet.findings == (), "the device that the checkpoint knows is still there"


def test_a_required_device_may_come_right_after_the_first_quote_but_not_much_later() -> None:
    boot = line_of("ima-ng", f"sha256:{'ab' * 32} boot_aggregate")
    lines = [boot, *(ENTRIES[name].to_line() for name in ("dm_table_load", "dm_device_resume"))]
    text = policy_of([boot + b"\n"]).to_document()
    text["ima"]["dm_policy"] = document(required=True)
    verifier = Verifier(parse_runtime_policy(json.dumps(text))).at_first_contact()
    kernel = Kernel()
    kernel.add(boot)
    first = verifier.appraise(b"\n".join(lines), kernel.pcr)
    assert (first.findings, first.uncovered) == ((), 2)
    alone = verifier.appraise(boot, kernel.pcr)
    assert [finding.event_id for finding in alone.findings] == [f"ima.validation.dm.{NOT_IN_USE}"]
    kernel.add(lines[1])
    late = verifier.after(first).appraise(b"\n".join(lines[1:]), kernel.pcr)
    assert f"ima.validation.dm.{NOT_IN_USE}" in [finding.event_id for finding in late.findings]
    kernel.add(lines[2])
    assert verifier.after(first).appraise(b"\n".join(lines[1:]), kernel.pcr).findings == ()


TARGET = b"target_index=0,target_begin=0,target_len=8,target_name=%s,target_version=1.2.3,"


def mirror(count: int) -> bytes:
    devices = b"".join(b",mirror_device_%d=7:%d,mirror_device_%d_status=A" % (n, n, n) for n in range(count))
    return TARGET % b"mirror" + b"nr_mirrors=%d%s,handle_errors=y,keep_log=,log_type_status=;" % (
        count,
        devices,
    )


def test_a_mirror_names_its_devices() -> None:
    (target,) = parse_event("dm_table_load", HEAD + mirror(2)).targets
    assert target.attributes == {
        "nr_mirrors": "2",
        "mirror_device_0": "7:0",
        "mirror_device_0_status": "A",
        "mirror_device_1": "7:1",
        "mirror_device_1_status": "A",
        "handle_errors": "y",
        "keep_log": "",
        "log_type_status": "",
    }


LINEAR = _buffer("dm_table_load").split(b";", 2)[2]


def test_mirrors_and_tables_may_be_as_long_as_their_limits() -> None:
    (target,) = parse_event("dm_table_load", HEAD + mirror(64)).targets
    assert target.attributes["mirror_device_63"] == "7:63"
    assert len(parse_event("dm_table_load", HEAD + LINEAR * 4096).targets) == 4096
    with pytest.raises(MalformedEvidence, match="mirror with 65 devices"):
        parse_event("dm_table_load", HEAD + mirror(65))
    with pytest.raises(MalformedEvidence, match="more than 4096 targets"):
        parse_event("dm_table_load", HEAD + LINEAR * 4097)


def test_the_optional_attributes_may_come_first_or_be_missing() -> None:
    head = HEAD + TARGET % b"integrity" + b"dev_name=7:0,start=0,tag_size=4,mode=J,"
    tail = (
        b"recalculate=n,allow_discards=n,fix_padding=y,fix_hmac=n,legacy_recalculate=n,journal_sectors=1,"
        b"interleave_sectors=2,buffer_sectors=3;"
    )
    with_all = (
        parse_event("dm_table_load", head + b"meta_device=7:1,block_size=512," + tail).targets[0].attributes
    )
    without = parse_event("dm_table_load", head + tail).targets[0].attributes
    assert {name: value for name, value in with_all.items() if name not in without} == {
        "meta_device": "7:1",
        "block_size": "512",
    }


def remove(metadata: bytes, tables: bytes = b"") -> DeviceMapperEvent:
    rest = b"remove_all=y;current_device_capacity=8;"
    return parse_event("dm_device_remove", b"dm_version=4.47.0;" + metadata + tables + rest)


def test_a_removed_device_may_have_an_active_and_an_inactive_table_or_none() -> None:
    active = b"device_active_metadata=name=a,uuid=,major=253,minor=0,minor_count=1,num_targets=1;"
    inactive = b"device_inactive_metadata=name=a,uuid=,major=253,minor=0,minor_count=1,num_targets=2;"
    both = remove(active + inactive, b"active_table_hash=sha256:aa,inactive_table_hash=sha256:bb,")
    assert both.device is not None
    assert both.inactive_device is not None
    assert (both.name, both.device.num_targets, both.inactive_device.num_targets) == ("a", 1, 2)
    assert (both.active_table, both.inactive_table) == ("sha256:aa", "sha256:bb")
    assert not both.no_data

    cleared = remove(inactive, b"inactive_table_hash=sha256:bb,")
    assert (cleared.name, cleared.device, cleared.active_table) == ("a", None, None)
    assert cleared.inactive_table == "sha256:bb"

    nothing = remove(b"name=a,uuid=U-1;device_remove=no_data;")
    assert (nothing.name, nothing.uuid, nothing.device, nothing.no_data) == ("a", "U-1", None, True)


def test_a_device_without_a_table_is_resumed_and_cleared_without_data() -> None:
    head = b"dm_version=4.47.0;name=a,uuid=;"
    resumed = parse_event("dm_device_resume", head + b"device_resume=no_data;current_device_capacity=0;")
    cleared = parse_event("dm_table_clear", head + b"table_clear=no_data;current_device_capacity=0;")
    for event in (resumed, cleared):
        assert (event.name, event.device, event.no_data) == ("a", None, True)
    assert not RESUME.no_data
    assert not CLEAR.no_data
    assert CLEAR.inactive_table == "sha256:ab"


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("dm_table_load", HEAD + TARGET % b"zero" + b";", "target 'zero' is not supported"),
        ("dm_table_load", HEAD, "target_index="),
        ("dm_table_load", HEAD + LINEAR.replace(b",start=0", b""), ",start="),
        ("dm_table_load", HEAD + LINEAR.replace(b"device_name=7:0,", b""), "device_name="),
        ("dm_table_load", HEAD + LINEAR.replace(b"start=0", b"start=0,x=1"), "';'"),
        ("dm_table_load", HEAD + LINEAR.replace(b"1.4.0", b"1.4"), "expected"),
        ("dm_table_load", HEAD.replace(b"4.47.0", b"") + LINEAR, "expected"),
        ("dm_table_load", HEAD.replace(b"dm_version=", b"") + LINEAR, "dm_version="),
        ("dm_table_load", HEAD.replace(b"lablin", b"") + LINEAR, "expected"),
        ("dm_table_load", HEAD.replace(b",uuid=", b",") + LINEAR, "uuid="),
        ("dm_table_load", HEAD.replace(b"uuid=,", b"uuid=\xff,") + LINEAR, "UTF-8"),
        ("dm_target_update", HEAD + LINEAR + LINEAR, "the end"),
        ("dm_device_remove", b"dm_version=4.47.0;name=a,uuid=;remove_all=y;", "no_data"),
    ],
)
def test_an_event_of_another_grammar_is_refused_with_what_was_expected(
    kind: str, data: bytes, reason: str
) -> None:
    with pytest.raises(MalformedEvidence, match=re.escape(reason)):
        parse_event(kind, data)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_cut_of_an_event_is_refused(name: str) -> None:
    buffer = _buffer(name)
    for cut in range(len(buffer)):
        with pytest.raises(MalformedEvidence):
            parse_event(name, buffer[:cut])
    with pytest.raises(MalformedEvidence):
        parse_event(name, buffer + b"x")


@given(st.sampled_from(sorted(EVENT_NAMES)), st.binary(max_size=300))
def test_any_buffer_is_an_event_or_refused(name: str, buffer: bytes) -> None:
    for data in (buffer, b"dm_version=1.2.3;" + buffer):
        try:
            parse_event(name, data)
        except MalformedEvidence:
            continue


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {"version": 1, "match_on": "size", "rules": {}},
        document(unknown=1),
        document(**loading(targets=[{"salt": [1]}])),
        document(**loading(name="(")),
    ],
)
def test_a_broken_policy_is_refused_with_its_place(broken: object) -> None:
    with pytest.raises(PolicyError, match=r"ima\.dm_policy"):
        parse_device_mapper_policy(broken)


def test_the_list_is_judged_by_the_device_mapper_policy_of_the_runtime_policy() -> None:
    base = json.loads(policy_of([STAGE.ascii_list]).to_json())
    without = {name: value for name, value in base["ima-buf"].items() if name not in EVENT_NAMES}
    verdicts = {}
    for label, rules in {"right": document(), "wrong": document(device_remove={})}.items():
        policy = {**base, "ima-buf": without, "ima": {**base["ima"], "dm_policy": rules}}
        verifier = Verifier(parse_runtime_policy(json.dumps(policy)), ignore_tomtou=True)
        result = verifier.appraise(STAGE.ascii_list, STAGE.pcrs("sha256")[10])
        verdicts[label] = [finding.event_id for finding in result.findings]
    assert verdicts == {"right": [], "wrong": ["ima.validation.dm.dm_device_remove.device_removed"]}


@pytest.mark.parametrize(
    ("digest", "buffer", "event"),
    [
        ("ab" * 32, _buffer("dm_table_load"), "invalid_data"),
        (None, b"dm_version=1.2.3;nonsense", "parsing_failed"),
    ],
)
def test_an_event_that_is_not_what_its_entry_says_fails_and_changes_nothing(
    digest: str | None, buffer: bytes, event: str
) -> None:
    base = json.loads(policy_of([b""]).to_json())
    base["ima"]["dm_policy"] = document()
    kernel = Kernel()
    stated = digest or hashlib.sha256(buffer).hexdigest()
    kernel.add(line_of("ima-buf", f"sha256:{stated} dm_table_load {buffer.hex()}"))
    kernel.add(ENTRIES["dm_device_resume"].to_line())
    findings = Verifier(parse_runtime_policy(json.dumps(base))).appraise(kernel.text(), kernel.pcr).findings
    expected = [event, "dm_device_resume.resume_before_table_load"]
    assert [finding.event_id for finding in findings] == [f"ima.validation.dm.{event}" for event in expected]


def test_the_state_of_devices_goes_on_in_the_next_round() -> None:
    base = json.loads(policy_of([b""]).to_json())
    base["ima"]["dm_policy"] = document()
    verifier = Verifier(parse_runtime_policy(json.dumps(base)))
    kernel = Kernel()
    kernel.add(ENTRIES["dm_table_load"].to_line())
    first = verifier.appraise(kernel.text(), kernel.pcr)
    kernel.add(ENTRIES["dm_device_resume"].to_line())
    assert verifier.after(first).appraise(kernel.text(1), kernel.pcr).findings == ()
