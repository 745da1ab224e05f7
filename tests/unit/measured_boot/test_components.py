"""A policy learned by boot chain accepts its own boot and what varies without harm, and nothing else."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import MalformedEvidence, PolicyError
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_policy import built_in_policies
from keylime.measured_boot.component_changes import merge
from keylime.measured_boot.component_rules import ComponentRules
from keylime.measured_boot.event_log import Event, EventLog, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.grub_commands import GrubCommand, grub_command, is_unjudged_file, without_place
from keylime.measured_boot.learning import learn_components, to_json
from tests.captures import capture
from tests.fakes.boots import CHAINS, Boot, grub_command_record, next_boot, reread
from tests.fakes.event_logs import build_log, record
from tests.fakes.measured_boot import appraise, grub_pcrs, pcrs_after, policy, reference_state
from tests.fuzz.cpu_time import within
from tests.unit.measured_boot.test_boot_chains import LOGS, changed, log_named

SHA256 = HashAlgorithm.SHA256


def learned(log: EventLog) -> dict[str, JsonValue]:
    return to_json(learn_components(log))


def objections(log: EventLog, state: Mapping[str, Any], name: str = "components") -> str:
    return " ".join(str(finding.context["reason"]) for finding in policy(state, name).evaluate(log, SHA256))


@pytest.mark.parametrize("name", LOGS)
def test_a_learned_policy_accepts_its_own_source(name: str) -> None:
    log = log_named(name)
    state = learned(log)
    assert objections(log, state) == ""
    assert objections(log, state, str(state["chain"])) == ""


_CODE_FILES = (b".mod", b".lst", b"Kernel", b"Initrd")


def judged(log: EventLog) -> list[tuple[Event, str]]:
    """Events that decide what runs, and a word of the finding when one of them is another."""
    state = learned(log)
    found = []
    for event in log.events:
        match event.pcr, event.type_code:
            case 0, EventType.EFI_PLATFORM_FIRMWARE_BLOB | EventType.EFI_PLATFORM_FIRMWARE_BLOB2:
                found.append((event, "firmware"))
            case 2, EventType.EFI_BOOT_SERVICES_DRIVER:
                found.append((event, "driver"))
            case 4, EventType.EFI_BOOT_SERVICES_APPLICATION:
                found.append((event, ""))
            case 8, EventType.IPL if event.data.startswith((b"kernel_cmdline", b"grub_kernel_cmdline")):
                found.append((event, ""))
            case 9, EventType.IPL if event.data.rstrip(b"\0").endswith(
                (b".mod", b".lst", b"Kernel", b"Initrd")
            ):
                found.append((event, ""))
            case (12 | 13, EventType.IPL):
                found.append((event, ""))
            case 9, EventType.EVENT_TAG if state["chain"] in {"systemd-boot", "efi-stub"}:
                found.append((event, ""))
            case 14, EventType.IPL:
                found.append((event, "Mok"))
    return found


@pytest.mark.parametrize("name", LOGS)
def test_other_code_than_that_of_the_source_is_rejected(name: str) -> None:
    log = log_named(name)
    state = policy(learned(log), "components")
    for event, word in judged(log):
        reasons = [str(finding.context["reason"]) for finding in state.evaluate(changed(log, event), SHA256)]
        assert reasons, f"event {event.number}"
        assert word in reasons[0]


@pytest.mark.parametrize("chain", CHAINS)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=8), min_size=5, max_size=5, unique=True),
    arguments=st.text(
        st.characters(codec="ascii", categories=("L", "N"), include_characters=" =/,."), min_size=1
    ),
    secure_boot=st.booleans(),
)
@settings(max_examples=8)
def test_each_generated_boot_satisfies_its_own_policy(
    chain: str, parts: list[bytes], arguments: str, secure_boot: bool
) -> None:
    shim, loader, kernel, initrd, firmware = parts
    boot = Boot(
        chain,
        secure_boot,
        shim,
        loader,
        kernel,
        initrd,
        " ".join(arguments.split()) or "ro",
        firmware=firmware,
    )
    state = learned(boot.log())
    assert objections(boot.log(), state) == ""
    found = appraise(boot.log_bytes(), policy(state, "components"), pcrs_after(boot.records())).findings
    assert found == ()


CHANGES: Mapping[str, tuple[Callable[[Boot], Boot], tuple[str, ...]]] = {
    "kernel": (lambda boot: replace(boot, kernel=b"evil"), ("kernel image", "kernel file")),
    "initrd": (lambda boot: replace(boot, initrd=b"evil"), ("initrd", "unified kernel image")),
    "arguments": (
        lambda boot: replace(boot, arguments="root=/dev/vda1 rw init=/bin/sh"),
        ("command line", "load options", "unified kernel image"),
    ),
    "secure boot": (lambda boot: replace(boot, secure_boot=False), ("SecureBoot is off",)),
    "shim": (lambda boot: replace(boot, shim=b"evil"), ("shim is another",)),
    "loader": (lambda boot: replace(boot, loader=b"evil"), ("GRUB is another", "boot loader is another")),
    "firmware": (lambda boot: replace(boot, firmware=b"evil"), ("firmware is none",)),
    "revocations": (lambda boot: replace(boot, revoked=(b"other",)), ("dbx lacks 1",)),
    "older sbat": (
        lambda boot: replace(boot, sbat_level=b"sbat,1,2021030218\n"),
        ("SbatLevel is 2021030218",),
    ),
}
UNSEEN = {
    ("initrd", "cos"), ("shim", "uki"), ("shim", "systemd-boot"), ("shim", "efi-stub"), ("loader", "uki"),
    ("loader", "efi-stub"), ("initrd", "unmeasured-loader"), ("arguments", "unmeasured-loader"),
    ("older sbat", "uki"), ("older sbat", "systemd-boot"), ("older sbat", "efi-stub"),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_rejected_by_a_finding_that_names_it(chain: str, what: str) -> None:
    change, words = CHANGES[what]
    state = learned(Boot(chain).log())
    reason = objections(change(Boot(chain)).log(), state)
    if (what, chain) in UNSEEN:
        assert reason == ""
    else:
        assert any(word in reason for word in words), reason


@pytest.mark.parametrize("chain", CHAINS)
def test_what_varies_without_harm_is_accepted(chain: str) -> None:
    boot = Boot(chain)
    later = replace(
        boot,
        grubenv=b"saved_entry=1",
        entries=3,
        boot_order=b"\2\0\1\0",
        revoked=(b"bad", b"worse"),
        sbat_level=b"sbat,1,2024010900\n",
        kernel_twice=True,
        exit_retries=1,
        machine_secret=b"another machine",
        choice="Debian>1",
    )
    assert objections(later.log(), learned(boot.log())) == ""


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain != "unmeasured-loader"])
def test_two_blessed_boots_are_never_mixed(chain: str) -> None:
    old = Boot(chain)
    new = next_boot(old)
    both = to_json(merge(learn_components(old.log()), learn_components(new.log())))
    assert [objections(boot.log(), both) for boot in (old, new)] == ["", ""]
    for parts in (("kernel",), ("initrd",), ("arguments", "kernel_name")):
        if (parts[0], chain) in UNSEEN:
            continue
        for one, other in ((old, new), (new, old)):
            mixed = replace(one, **{part: getattr(other, part) for part in parts})
            reason = objections(mixed.log(), both)
            assert "no blessed boot" in reason
            if chain != "uki":  # where the image holds all three
                assert "mixed" in reason


def test_a_good_initrd_read_under_another_name_does_not_hide_the_one_that_is_booted() -> None:
    """Names beside digests can be rewritten; the order of the digests cannot."""
    state = learned(Boot("shim-grub").log())
    evil = replace(Boot("shim-grub"), initrd=b"evil", grubenv=b"initrd").records()
    swapped = []
    for item in evil:
        if item.data.startswith(b"/boot/initrd.img") and item.pcr == 9:
            item = replace(item, data=b"(hd0,gpt2)/boot/grub/grubenv\0")
        elif b"grubenv" in item.data and item.pcr == 9:
            item = replace(item, data=b"/boot/initrd.img-6.1.0-1\0")
        swapped.append(item)
    reason = " ".join(
        str(finding.context["reason"])
        for finding in appraise(build_log(swapped), policy(state, "components"), pcrs_after(swapped)).findings
    )
    assert "initrd is another" in reason


@pytest.mark.parametrize(
    "command",
    [
        "cat /boot/initrd.img",
        "insmod evil",
        "configfile /evil.cfg",
        "[ -s /boot/initrd.img ]",
        "set prefix=/evil",
        "chainloader /evil.efi",
        "load_env -f /x/grubenv",
        "linux /boot/vmlinuz-6.1.0-1 init=/bin/sh",
        "initrd",
    ],
)
def test_a_command_of_grub_that_reads_or_starts_something_else_is_rejected(command: str) -> None:
    boot = Boot("shim-grub")
    records = boot.records()
    added = record(8, EventType.IPL, f"grub_cmd: {command}\0".encode(), command.encode())
    records.insert(next(at for at, item in enumerate(records) if b"insmod" in item.data), added)
    found = appraise(
        build_log(records), policy(learned(boot.log()), "components"), pcrs_after(records)
    ).findings
    assert command in str(found[0].context["reason"])


@pytest.mark.parametrize(
    "commands",
    [
        ("initrd /evil /boot/vmlinuz-6.1.0-1 /boot/initrd.img-6.1.0-1",),
        ("initrd /evil", "initrd /boot/vmlinuz-6.1.0-1 /boot/initrd.img-6.1.0-1"),
        ("load_env", "initrd /boot/initrd.img-6.1.0-1"),
        ("search --file --set=root /x", "initrd /boot/initrd.img-6.1.0-1"),
        ("search.file /x root", "initrd /boot/initrd.img-6.1.0-1"),
        ("blscfg", "initrd /boot/initrd.img-6.1.0-1"),
    ],
)
@pytest.mark.parametrize("part", ["kernel", "initrd"])
def test_m26_what_grub_reads_behind_linux_does_not_hide_what_is_booted(
    part: str, commands: tuple[str, ...]
) -> None:
    """All these files and their digests were read; the blessed ones last, and not to be booted."""
    good = replace(Boot("shim-grub"), secure_boot=False)
    state = learned(good.log())
    evil = reread(
        replace(good, kernel=b"evil") if part == "kernel" else replace(good, initrd=b"evil"), *commands
    )
    found = appraise(build_log(evil), policy(state, "components"), pcrs_after(evil)).findings
    assert found
    assert commands[0] in str(found[-1].context["reason"])


@pytest.mark.parametrize(
    "commands",
    [
        ("initrd (hd0,gpt2)/boot/initrd.img-6.1.0-1",),
        ("echo Loading initial ramdisk ...", "[ -n 1 ]", "set x=1", "x=2", "save_env x", "initrd /initrd"),
    ],
)
def test_ordinary_commands_behind_linux_are_accepted(commands: tuple[str, ...]) -> None:
    state = learned(Boot("shim-grub").log())
    records = Boot("shim-grub").records()
    told = [at for at, item in enumerate(records) if item.data.startswith(b"grub_cmd: initrd")]
    records[told[0] : told[0] + 1] = [grub_command_record(command) for command in commands]
    assert appraise(build_log(records), policy(state, "components"), pcrs_after(records)).findings == ()


def test_unusual_commands_behind_linux_are_learned_by_their_text() -> None:
    records = Boot("shim-grub").records()
    told = [at for at, item in enumerate(records) if item.data.startswith(b"grub_cmd: initrd")]
    unusual = ["load_env", "initrd /a b/initrd"]  # one file: GRUB logs its words without quotes
    records[told[0] : told[0] + 1] = [grub_command_record(command) for command in unusual]
    log = parse_event_log(build_log(records))
    state: Any = learned(log)
    assert set(unusual) <= set(state["grub"]["commands"])
    assert objections(log, state) == ""


@pytest.mark.parametrize("chain", ["shim-grub", "systemd-boot", "efi-stub", "uki"])
def test_m26_what_is_measured_under_a_tag_of_no_known_kind_must_be_listed(chain: str) -> None:
    """Nothing vouches for a tag: an initrd that was booted could be logged under any."""
    state: Any = learned(Boot(chain).log())
    records = [
        *Boot(chain).records(),
        record(9, EventType.EVENT_TAG, struct.pack("<II", 0x12345678, 4) + b"tagg", b"evil"),
    ]
    found = appraise(build_log(records), policy(state, "components"), pcrs_after(records)).findings
    assert "tag" in str(found[0].context["reason"])
    state.setdefault("other_events", {})["9"] = [SHA256.digest(b"evil").hex()]
    assert appraise(build_log(records), policy(state, "components"), pcrs_after(records)).findings == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(hd0,gpt2)/boot/grub", "(hd11,gpt2)/boot/grub"),
        ("(tftp,192.0.2.1)/grub.cfg", "(tftp,192.0.2.77)/grub.cfg"),
        ("/grub.cfg-01-68:05:ca:d9:7b:44", "/grub.cfg-01-aa:05:ca:d9:7b:45"),
    ],
)
def test_where_a_machine_is_booted_from_is_no_part_of_a_command(one: str, other: str) -> None:
    """The numbers of disks move when another one is plugged in."""
    assert without_place(f"configfile {one}") == without_place(f"configfile {other}")
    assert without_place(f"configfile {one}/x") != without_place(f"configfile {other}/y")
    assert without_place("configfile (hd0,gpt2)/x") != without_place("configfile (hd0,gpt3)/x")


def test_names_and_texts_of_any_length_take_time_in_proportion() -> None:
    """The log comes from the machine: what is not linear could keep a verifier busy."""
    for long in ("/" * 1_000_000, "/grub.cfg-" * 100_000, "(tftp," * 100_000, "(hd" * 300_000):
        assert not is_unjudged_file(f"{long}/x")
        assert without_place(long) == long
        assert grub_command(long) is GrubCommand.LISTED


def test_a_log_of_thousands_of_events_is_compared_with_many_boots_in_bounds() -> None:
    boot = Boot("shim-grub")
    state: Any = learned(boot.log())
    (variant,) = state["components"]["boot"].values()
    state["components"]["boot"] = {str(at): variant for at in range(300)}
    images = [record(4, EventType.EFI_BOOT_SERVICES_APPLICATION, b"%d" % at) for at in range(5000)]
    lines = [record(8, EventType.IPL, b"kernel_cmdline: %d\0" % at, b"%d" % at) for at in range(5000)]
    log = parse_event_log(build_log([*boot.records(), *images, *lines]))

    def judge(_: bytes) -> None:
        (finding,) = policy(state, "components").evaluate(log, SHA256)
        assert len(str(finding.context["reason"])) < 20_000

    within(20, judge, b"")


def test_a_disk_that_is_plugged_in_breaks_nothing() -> None:
    boot = Boot("shim-grub")
    moved = []
    for item in boot.records():
        data = item.data.replace(b"(hd0", b"(hd1")
        words = data.removeprefix(b"grub_cmd: ").rstrip(b"\0")
        moved.append(item.with_data(data, words) if item.pcr == 8 and data != item.data else item)
    state = policy(learned(boot.log()), "components")
    assert appraise(build_log(moved), state, pcrs_after(moved)).findings == ()


def test_a_grub_is_no_part_of_a_chain_without_one() -> None:
    state = learned(Boot("efi-stub").log())
    grub = [item for item in Boot("shim-grub").records() if item.pcr in {8, 9}]
    records = [*Boot("efi-stub").records(), *grub]
    found = appraise(build_log(records), policy(state, "components"), pcrs_after(records)).findings
    assert "no part of this boot chain" in str(found[0].context["reason"])


def test_a_command_line_may_be_a_pattern() -> None:
    state: Any = learned(Boot("shim-grub").log())
    (variant,) = state["components"]["boot"].values()
    del variant["command_line"]
    variant["command_line_pattern"] = "/boot/vmlinuz-6[.]1[.]0-1 root=/dev/[a-z0-9]+ ro"
    assert objections(replace(Boot("shim-grub"), arguments="root=/dev/sdb7 ro").log(), state) == ""
    assert "command line" in objections(
        replace(Boot("shim-grub"), arguments="root=/dev/sdb7 rw").log(), state
    )


def test_what_is_absent_is_not_expected() -> None:
    state: Any = learned(Boot("shim-grub").log())
    (variant,) = state["components"]["boot"].values()
    del variant["initrd_files"]
    assert "no blessed boot" in objections(Boot("shim-grub").log(), state)
    state["components"]["boot"] = {}
    assert "no boot is blessed" in objections(Boot("shim-grub").log(), state)


def test_another_profile_of_the_same_unified_kernel_is_no_blessed_boot() -> None:
    boot = Boot("uki")
    state: dict[str, Any] = learned(boot.log())
    (variant,) = state["components"]["boot"].values()
    same, other = (
        record(11, EventType.IPL, boot.arguments.encode()),
        record(11, EventType.IPL, b"init=/bin/sh"),
    )
    rescue = build_log(
        [
            replace(item, digests=other.digests) if item.digests == same.digests else item
            for item in boot.records()
        ]
    )
    log = parse_event_log(rescue)
    assert "section of the unified kernel is another" in objections(log, state)
    name = record(11, EventType.IPL, b".profile\0")
    more = parse_event_log(build_log([*boot.records(), name]))
    assert "section of the unified kernel: 7 measured, 6 expected" in objections(more, state)
    del variant["sections"]  # as after `update-reference` with the image itself
    assert objections(log, state) == ""
    assert objections(boot.log(), state) == ""


def test_the_policies_of_other_chains_refuse_the_reference_state() -> None:
    registry = built_in_policies()
    state = learned(Boot("uki").log())
    registry.rules("uki").compile(state)
    with pytest.raises(PolicyError, match="chain: is 'uki', which policy `shim-grub` does not judge"):
        registry.rules("shim-grub").compile(state)


def test_a_reference_state_of_example_is_read_as_that_policy_reads_it() -> None:
    log = capture("grub-secureboot").boot_log
    assert appraise(log, policy(reference_state(), "components"), grub_pcrs()).findings == ()
    with pytest.raises(PolicyError, match="policy `example`"):
        built_in_policies().rules("shim-grub").compile(reference_state())
    with pytest.raises(PolicyError, match="policy `components`"):
        built_in_policies().rules("example").compile(learned(Boot("uki").log()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chain": "lilo"}, "chain: 'lilo' is none of"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"drivers": ["xx"]}, "drivers"),
        ({"other_events": {"24": []}}, "other_events: '24' is not a PCR"),
        ({"secure_boot": {"on": True, "sbat_level": "new"}}, "sbat_level"),
        ({"secure_boot": {"on": True, "pk": [{"SignatureOwner": "x", "SignatureData": "00"}]}}, "not a GUID"),
        (
            {"components": {"boot": {"1": {"command_line": "a", "command_line_pattern": "b"}}}},
            "of which one counts",
        ),
        ({"components": {"boot": {"1": {"command_line_pattern": "("}}}}, "command_line_pattern"),
        ({"components": {"boot": {"1": {"image": []}}}}, "unknown field `image`"),
    ],
)
def test_a_reference_state_that_cannot_be_used_is_refused_with_the_member(
    change: dict[str, Any], reason: str
) -> None:
    state = {**learned(Boot("shim-grub").log()), **change}
    with pytest.raises(PolicyError, match=reason):
        ComponentRules().compile(state)


TWO_LINES = {"command_line": "a", "command_line_pattern": "b"}


def test_a_quote_of_another_bank_is_named() -> None:
    boot = Boot("uki")
    found = policy(learned(boot.log()), "components").evaluate(boot.log(), HashAlgorithm.SHA1)
    assert "the quote covers the sha1 bank" in str(found[0].context["reason"])


def test_a_boot_with_a_failed_attempt_is_no_base() -> None:
    boot = Boot("shim-grub")
    other = replace(boot, arguments="ro")
    lines = [item for item in other.records() if item.data.startswith(b"kernel_cmdline")]
    with pytest.raises(MalformedEvidence, match="an attempt to boot failed"):
        learn_components(parse_event_log(build_log([*boot.records(), *lines])))


def test_the_document_is_stable_json() -> None:
    state = learned(Boot("shim-grub").log())
    assert json.loads(json.dumps(state)) == state
    assert list(state)[:3] == ["chain", "secure_boot", "components"]
