"""Reference states by boot chain as the program makes them: what is said, tables of fleets, the next boot."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.authenticode import authenticode_digest
from keylime.measured_boot.components import ReferenceStateDocument
from keylime.measured_boot.learning import learn_components, to_json
from keylime_policy.fleet import machine_names
from keylime_policy.learned_boot import Update, learn_from_fleet, learn_from_log, update_reference
from keylime_policy.messages import Messages
from keylime_policy.sources import SourceFile
from tests.fakes.boots import Boot, next_boot
from tests.fakes.event_logs import Record, build_log
from tests.fakes.measured_boot import policy
from tests.fakes.pe_images import pe_image

MESSAGES = Messages("test")
DATA = Path(__file__).parents[2] / "data"


def reasons(state: ReferenceStateDocument, boot: Boot) -> str:
    found = policy(to_json(state), "components").evaluate(boot.log(), HashAlgorithm.SHA256)
    return " ".join(str(finding.context["reason"]) for finding in found)


def logs(boots: Iterable[Boot]) -> list[SourceFile]:
    return [
        SourceFile("--for-fleet", f"/logs/node{at}/binary_bios_measurements", boot.log_bytes())
        for at, boot in enumerate(boots)
    ]


def reference(boot: Boot) -> SourceFile:
    document = json.dumps(to_json(learn_components(boot.log())))
    return SourceFile("update-reference", "reference.json", document.encode())


def test_one_log_makes_a_policy_of_its_chain(capsys: pytest.CaptureFixture[str]) -> None:
    (log,) = logs([Boot("shim-grub")])
    document, status = learn_from_log(log, MESSAGES, policy="shim-grub", without_secure_boot=False)
    assert (document.chain, status) == ("shim-grub", 0)
    said = capsys.readouterr().err
    assert "boot chain shim-grub: for policy 'components' or 'shim-grub'" in said
    assert "boot '6.1.0-1' has no load options in PCR 9" in said
    with pytest.raises(ConfigError, match="boots by chain shim-grub, not by uki"):
        learn_from_log(log, MESSAGES, policy="uki", without_secure_boot=False)
    (log,) = logs([replace(Boot("uki"), secure_boot=False)])
    with pytest.raises(ConfigError, match="--without-secureboot accepts that"):
        learn_from_log(log, MESSAGES, policy="uki", without_secure_boot=False)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (DATA / "vm-debian12/seabios-no-uefi/binary_bios_measurements", "nothing can be demanded of them"),
        (DATA / "boot-logs/public/ami-arch-systemd-boot-247-type1-pcr8.bin", "no initrd is measured"),
    ],
)
def test_where_nothing_can_be_demanded_it_is_said(
    log: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SourceFile("-e", str(log), log.read_bytes())
    _, status = learn_from_log(source, MESSAGES, policy="components", without_secure_boot=True)
    assert status == 0
    assert said in capsys.readouterr().err


def test_a_policy_that_does_not_accept_its_source_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def is_lost(item: Record) -> bool:
        return item.pcr == 3

    content = build_log([item for item in Boot("uki").records() if not is_lost(item)])
    _, status = learn_from_log(
        SourceFile("-e", "log", content), MESSAGES, policy="uki", without_secure_boot=False
    )
    assert status == 3
    assert "warning: the policy does not accept its source: " in capsys.readouterr().err


def test_a_fleet_has_one_policy_and_a_table_of_what_would_break(capsys: pytest.CaptureFixture[str]) -> None:
    one = Boot("shim-grub")
    boots = [
        one,
        next_boot(one),
        replace(one, sbat_level=b"sbat,1,2021030218\n"),
        replace(one, shim=b"newer"),
    ]
    document, status = learn_from_fleet(logs(boots), MESSAGES, policy="components", without_secure_boot=False)
    assert status == 0
    assert [reasons(document, boot) for boot in boots] == [""] * 4
    assert "mixed" in reasons(document, replace(one, initrd=next_boot(one).initrd))
    said = capsys.readouterr().err
    pairs = [line.removeprefix("test:   ").split("  ", 1) for line in said.splitlines() if "  " in line]
    rows = {rule: breaks.strip() for rule, breaks in pairs}
    assert rows["only SbatLevel of at least 2022052400"] == "node2"
    assert rows["only command line /boot/vmlinuz-6.1.0-2 root=/dev/vda2"] == "node0, node2, node3"
    assert "node3" in next(value for rule, value in rows.items() if rule.startswith("only boot loader"))


def test_machines_that_cannot_share_a_policy_are_named_and_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    boots = [Boot("shim-grub"), Boot("uki"), Boot("shim-grub"), replace(Boot("shim-grub"), secure_boot=False)]
    paths = logs(boots)
    empty = SourceFile("--for-fleet", "/logs/empty", b"")
    document, status = learn_from_fleet(
        [*paths, empty], MESSAGES, policy="components", without_secure_boot=False
    )
    assert (document.chain, status) == ("shim-grub", 3)
    said = capsys.readouterr().err
    assert "boots by uki with Secure Boot on, most machines by shim-grub with Secure Boot on" in said
    assert "Secure Boot is off in this boot log" in said
    assert "event log is empty" in said
    with pytest.raises(ConfigError, match="none of 1 boot logs can be used"):
        learn_from_fleet([empty], MESSAGES, policy="components", without_secure_boot=True)


KERNEL = pe_image({".linux": b"the next kernel"})
INITRD = SourceFile("--initrd", "/boot/initrd", b"the next initrd")


def updated(boot: Boot, **changes: Any) -> ReferenceStateDocument:
    document, _ = update_reference(
        Update(reference=reference(boot), kernel=SourceFile("--kernel", "/boot/kernel", KERNEL), **changes),
        MESSAGES,
    )
    return document


class _Next(Boot):
    """The boot of the files above, of which PCR 4 has the Authenticode digest."""

    def records(self) -> list[Record]:
        digest = authenticode_digest(KERNEL)
        records = []
        for item in super().records():
            banks = dict(item.digests)
            if item.pcr == 4 and banks[HashAlgorithm.SHA256] == HashAlgorithm.SHA256.digest(self.kernel):
                banks[HashAlgorithm.SHA256] = digest
                item = replace(item, digests=tuple(banks.items()))
            if item.pcr == 9 and item.data.startswith(b"/boot/vmlinuz"):
                item = item.with_data(item.data, KERNEL)
            records.append(item)
        return records


@pytest.mark.parametrize("chain", ["shim-grub", "systemd-boot", "efi-stub"])
def test_the_next_kernel_is_blessed_before_the_reboot(chain: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = Boot(chain)
    new = _Next(chain, kernel=b"next", initrd=b"the next initrd", arguments="quiet", kernel_name="6.1.0-2")
    line = f"BOOT_IMAGE={new.line}\n" if chain == "shim-grub" else new.line
    document = updated(old, initrds=(INITRD,), command_line=line, name="6.1.0-2")
    assert [reasons(document, boot) for boot in (old, new)] == ["", ""]
    for part in ("initrd", "arguments"):
        mixed = _Next(**{name: getattr(new, name) for name in Boot.__slots__} | {part: getattr(old, part)})
        assert "no blessed boot" in reasons(document, mixed)
    assert "+6.1.0-2" in capsys.readouterr().err


def test_the_next_unified_kernel_is_blessed_by_its_image_alone() -> None:
    document = updated(Boot("uki"))
    assert document.components.boot["kernel"].images == [f"0x{authenticode_digest(KERNEL).hex()}"]
    with pytest.raises(ConfigError, match="give the image alone"):
        updated(Boot("uki"), command_line="quiet")


@pytest.mark.parametrize(
    ("chain", "changes", "reason"),
    [
        ("shim-grub", {}, "the command line is measured in this boot chain"),
        ("shim-grub", {"command_line": "quiet"}, "with the path of the kernel in front"),
        ("shim-grub", {"command_line": "/boot/vmlinuz ro"}, "give that of the new one as well"),
        ("unmeasured-loader", {}, ""),
        ("systemd-boot", {"command_line": "ro", "name": "1"}, "is in the reference state already"),
    ],
)
def test_an_update_without_what_is_measured_is_refused(
    chain: str, changes: dict[str, Any], reason: str
) -> None:
    if not reason:  # the kernel is all that there is
        assert len(updated(Boot(chain)).components.boot) == 2
        return
    with pytest.raises(ConfigError, match=reason):
        updated(Boot(chain), **changes)


def test_a_boot_of_a_log_is_added_and_the_old_one_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = Boot("shim-grub"), next_boot(Boot("shim-grub"))
    (log,) = logs([new])
    document, status = update_reference(
        Update(reference=reference(old), boot_log=log, name="next", dropped=("6.1.0-1",)), MESSAGES
    )
    assert (list(document.components.boot), status) == (["next"], 0)
    assert reasons(document, new) == ""
    assert "no blessed boot" in reasons(document, old)
    assert "boot: 6.1.0-1 -> -6.1.0-1, +next" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dropped", "reason"),
    [(("5.10",), "there is no boot '5.10'; there is '6.1.0-1'"), (("6.1.0-1",), "no boot would be left")],
)
def test_what_cannot_be_dropped_is_refused(dropped: tuple[str, ...], reason: str) -> None:
    update = Update(reference=reference(Boot("shim-grub")), dropped=dropped)
    with pytest.raises(ConfigError, match=reason):
        update_reference(update, MESSAGES)


def test_a_log_of_another_chain_or_policy_is_refused() -> None:
    (log,) = logs([Boot("uki")])
    with pytest.raises(ConfigError, match="boots by chain uki, not by shim-grub"):
        update_reference(Update(reference=reference(Boot("shim-grub")), boot_log=log), MESSAGES)
    example = SourceFile("update-reference", "example", b'{"kernels": []}')
    with pytest.raises(ConfigError, match="is of policy `example`"):
        update_reference(Update(reference=example, boot_log=log), MESSAGES)


def test_the_boot_that_is_there_already_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    boot = Boot("efi-stub")
    (log,) = logs([boot])
    document, _ = update_reference(Update(reference=reference(boot), boot_log=log), MESSAGES)
    assert document == learn_components(boot.log())
    assert "nothing has changed" in capsys.readouterr().err


def test_machines_are_named_by_what_differs_in_their_paths() -> None:
    assert machine_names(["/logs/a/log", "/logs/b/log"]) == ["a", "b"]
    assert machine_names(["a.bin", "b.bin"]) == ["a.bin", "b.bin"]
    assert machine_names(["/logs/a"]) == ["/logs/a"]
    assert machine_names(["/logs/x", "/logs/x"]) == ["x", "x"]
