"""Boots of each chain with parts that a test chooses: logs as firmware, loaders and kernel write them."""

import hashlib
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

from keylime.measured_boot.event_log import EventLog, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.variables import GLOBAL_VARIABLE, IMAGE_SECURITY, SHA256_SIGNATURES, SHIM_LOCK
from tests.fakes.event_logs import Record, build_log, record, variable

CHAINS = ("shim-grub", "grub-red-hat", "uki", "systemd-boot", "efi-stub", "cos", "unmeasured-loader")
OWNER = uuid.UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of one machine; bytes stand for the images and files that were measured."""

    chain: str
    secure_boot: bool = True
    shim: bytes = b"shim"
    loader: bytes = b"loader"
    kernel: bytes = b"kernel"
    initrd: bytes = b"initrd"
    arguments: str = "root=/dev/vda1 ro"
    firmware: bytes = b"firmware"
    kernel_name: str = "6.1.0-1"
    # What varies without harm.
    grubenv: bytes = b"# GRUB Environment Block"
    entries: int = 1
    boot_order: bytes = b"\1\0"
    revoked: tuple[bytes, ...] = (b"bad",)
    sbat_level: bytes = b"sbat,1,2022052400\ngrub,2\n"
    kernel_twice: bool = False
    exit_retries: int = 0
    machine_secret: bytes = b"machine"
    choice: str = "0"

    @property
    def line(self) -> str:
        """The kernel's command line as this chain measures it."""
        match self.chain:
            case "systemd-boot":
                return f"initrd=\\{self.kernel_name}\\initrd {self.arguments}"
            case "cos":
                return f"/syslinux/vmlinuz.A {self.arguments}"
            case "shim-grub" | "grub-red-hat":
                return f"/boot/vmlinuz-{self.kernel_name} {self.arguments}"
            case _:
                return self.arguments

    @property
    def image(self) -> bytes:
        """What the firmware or shim starts as the kernel."""
        return (
            self.kernel
            if self.chain != "uki"
            else b"|".join((self.kernel, self.initrd, self.arguments.encode()))
        )

    def records(self) -> list[Record]:
        """All events after the header."""
        return [*self._firmware(), *self._loaders(), *_LOAD[self.chain](self), *self._end()]

    def log(self) -> EventLog:
        """The log as the verifier reads it."""
        return parse_event_log(self.log_bytes())

    def log_bytes(self) -> bytes:
        """The log as the firmware writes it."""
        return build_log(self.records())

    def _firmware(self) -> list[Record]:
        states = [
            (GLOBAL_VARIABLE, "SecureBoot", b"\1" if self.secure_boot else b"\0"),
            (GLOBAL_VARIABLE, "PK", _keys([b"pk"])),
            (GLOBAL_VARIABLE, "KEK", _keys([b"kek"])),
            (IMAGE_SECURITY, "db", _keys([b"db"])),
            (IMAGE_SECURITY, "dbx", _keys(self.revoked)),
        ]
        return [
            record(0, EventType.S_CRTM_VERSION, b"v1"),
            record(0, EventType.EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), self.firmware),
            *(
                record(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(owner.bytes_le, name, value))
                for owner, name, value in states
            ),
            record(
                1,
                EventType.EFI_VARIABLE_BOOT,
                variable(GLOBAL_VARIABLE.bytes_le, "BootOrder", self.boot_order),
            ),
            record(2, EventType.EFI_BOOT_SERVICES_DRIVER, bytes(32), b"option rom"),
            _text(4, EventType.EFI_ACTION, "Calling EFI Application from Boot Option"),
            *(record(pcr, EventType.SEPARATOR, bytes(4)) for pcr in range(8)),
        ]

    def _loaders(self) -> list[Record]:
        if self.chain in {"uki", "efi-stub"}:
            return []
        if self.chain == "systemd-boot":
            config = struct.pack("<II", 0xF5BC582A, 4) + b"conf"
            return [_image(self.loader), record(5, EventType.EVENT_TAG, config, b"loader.conf")]
        level = variable(SHIM_LOCK.bytes_le, "SbatLevel", self.sbat_level)
        return [
            _image(self.shim),
            _text(14, EventType.IPL, "MokList", b"mok"),
            _text(14, EventType.IPL, "MokListX", b"mokx"),
            record(7, EventType.EFI_VARIABLE_AUTHORITY, level),
            _image(self.loader),
        ]

    def _end(self) -> list[Record]:
        invocation = _text(5, EventType.EFI_ACTION, "Exit Boot Services Invocation")
        failure = _text(5, EventType.EFI_ACTION, "Exit Boot Services Returned with Failure")
        success = _text(5, EventType.EFI_ACTION, "Exit Boot Services Returned with Success")
        return [*[invocation, failure] * self.exit_retries, invocation, success]

    def started_kernel(self) -> list[Record]:
        """Started through firmware or shim, if at all; some GRUBs verify it first."""
        return [_image(self.image)] * (2 if self.kernel_twice else 1) if self.secure_boot else []


def _grub(boot: Boot) -> list[Record]:
    grub = "(hd0,gpt2)/boot/grub"
    initrd = (
        []
        if boot.chain == "cos"
        else [
            _grub_text(f"initrd /boot/initrd.img-{boot.kernel_name}"),
            _file(f"/boot/initrd.img-{boot.kernel_name}", boot.initrd),
        ]
    )
    return [
        *[_file(f"{grub}/grub.cfg", boot.kernel_name.encode())] * 2,
        _file(f"{grub}/x86_64-efi/command.lst", b"list"),
        _grub_text(f"configfile {grub}/grub.cfg"),
        _grub_text(f"[ -s {grub}/grubenv ]"),
        _file(f"{grub}/grubenv", boot.grubenv),
        _grub_text("load_env"),
        _file(f"{grub}/grubenv", boot.grubenv),
        _grub_text(f"set default={boot.choice}"),
        _grub_text(f"menuentry Linux {{ linux {boot.line} }}"),
        *(_file(f"(hd0,gpt2)/loader/entries/{at}.conf", b"%d" % at) for at in range(boot.entries)),
        _grub_text("insmod gzio"),
        _grub_text(f"linux {boot.line}"),
        _file(boot.line.partition(" ")[0], boot.kernel + b" file"),
        *boot.started_kernel(),
        _text(8, EventType.IPL, f"kernel_cmdline: {boot.line}", boot.line.encode()),
        *initrd,
    ]


def _red_hat_grub(boot: Boot) -> list[Record]:
    def command(text: str) -> Record:
        return _text(8, EventType.IPL, f"grub_cmd {text}", text.encode() + b"\0")

    return [
        command("load_env -f (hd0,gpt1)/EFI/redhat/grubenv"),
        command(f"set default={boot.choice}"),
        command(f"linux {boot.line}"),
        _text(9, EventType.IPL, "grub_linuxefi Kernel", boot.kernel + b" file"),
        *boot.started_kernel(),
        _text(8, EventType.IPL, f"grub_kernel_cmdline {boot.line}", boot.line.encode()),
        command(f"initrd /boot/initramfs-{boot.kernel_name}.img"),
        _text(9, EventType.IPL, "grub_linuxefi Initrd", boot.initrd),
    ]


def _uki(boot: Boot) -> list[Record]:
    sections = {".linux": boot.kernel, ".cmdline": boot.arguments.encode(), ".initrd": boot.initrd}
    pairs = [
        _stub_text(11, name, content)
        for name, section in sections.items()
        for content in (name.encode() + b"\0", section)
    ]
    return [_image(boot.image), *pairs, *_stub(boot, boot.initrd + boot.machine_secret)]


def _type1(boot: Boot) -> list[Record]:
    line = boot.line.encode("utf-16-le") + b"\0\0"
    return [_image(boot.image), record(12, EventType.IPL, line), *_stub(boot, boot.initrd)]


def _efi_stub(boot: Boot) -> list[Record]:
    return [_image(boot.image), *_stub(boot, boot.initrd)]


def _unmeasured(boot: Boot) -> list[Record]:
    return boot.started_kernel()


def _stub(boot: Boot, initrd: bytes) -> list[Record]:
    options = boot.line.encode("utf-16-le") + b"\0\0"
    return [
        record(9, EventType.EVENT_TAG, struct.pack("<II", 0x8F3B22ED, 12) + b"LOADED_OPT\0\0", options),
        record(9, EventType.EVENT_TAG, struct.pack("<II", 0x8F3B22EC, 12) + b"Linux initrd", initrd),
    ]


_LOAD = {
    "shim-grub": _grub,
    "cos": _grub,
    "grub-red-hat": _red_hat_grub,
    "uki": _uki,
    "systemd-boot": _type1,
    "efi-stub": _efi_stub,
    "unmeasured-loader": _unmeasured,
}


def _keys(contents: Iterable[bytes]) -> bytes:
    hashes = [hashlib.sha256(content).digest() for content in contents]
    body = b"".join(OWNER.bytes_le + digest for digest in hashes)
    return SHA256_SIGNATURES.bytes_le + struct.pack("<III", 28 + len(body), 0, 48) + body


def _image(image: bytes) -> Record:
    end = b"\x7f\xff\x04\0"
    return record(
        4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(24) + struct.pack("<Q", len(end)) + end, image
    )


def _grub_text(words: str) -> Record:
    return _text(8, EventType.IPL, f"grub_cmd: {words}", words.encode())


def _file(name: str, content: bytes) -> Record:
    return _text(9, EventType.IPL, name, content)


def _stub_text(pcr: int, text: str, measured: bytes) -> Record:
    return record(pcr, EventType.IPL, text.encode("utf-16-le") + b"\0\0", measured)


def _text(pcr: int, kind: EventType, text: str, measured: bytes | None = None) -> Record:
    if kind is EventType.EFI_ACTION:
        return record(pcr, kind, text.encode())
    return record(pcr, kind, text.encode() + b"\0", measured)


def next_boot(boot: Boot) -> Boot:
    """The boot after an update of the kernel."""
    return replace(
        boot,
        kernel=boot.kernel + b"+",
        initrd=boot.initrd + b"+",
        kernel_name="6.1.0-2",
        arguments="root=/dev/vda2",
    )


def grub_command_record(command: str) -> Record:
    """A command of GRUB's, as it measures it."""
    return _grub_text(command)


def reread(boot: Boot, *commands: str) -> list[Record]:
    """A boot whose GRUB is told, behind `linux`, to read the blessed files beside those that it boots."""
    records = boot.records()
    blessed = [item for item in Boot("shim-grub").records() if item.pcr == 9 and b"/boot/" in item.data][-2:]
    files = [at for at, item in enumerate(records) if item.pcr == 9]
    for at in files[-2:]:
        records[at] = replace(records[at], data=b"(hd0,gpt2)/boot/grub/grubenv\0")
    records[files[-1] + 1 : files[-1] + 1] = blessed
    told = [at for at, item in enumerate(records) if item.data.startswith(b"grub_cmd: initrd")]
    records[told[0] : told[0] + 1] = [grub_command_record(command) for command in commands]
    return records
