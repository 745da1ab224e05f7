"""Renders EFI device paths as text (UEFI 10.6), in the spelling that policies for boot logs use."""

import uuid
from collections.abc import Callable, Mapping

from keylime.errors import MalformedEvidence
from keylime.measured_boot.reader import EventReader

_END = 0x7F
_END_ENTIRE = 0xFF
_NODE_HEADER_SIZE = 4


def render_device_path(data: bytes) -> str | None:
    """ "PciRoot(0x0)/Pci(0x4,0x0)/.../File(\\EFI\\BOOT\\BOOTX64.EFI)"; None for anything else.

    Node types without a spelling of their own are shown as Path(type,subtype,hex). No bytes are an empty
    path.
    """
    if not data:
        return ""
    try:
        return _render(EventReader(data))
    except MalformedEvidence:
        return None


def _render(reader: EventReader) -> str:
    text = ""
    separator = ""
    while True:
        kind, subtype, size = reader.u8("node type"), reader.u8("node subtype"), reader.u16("node size")
        if size < _NODE_HEADER_SIZE:
            raise MalformedEvidence(f"device path node of {size} bytes")
        body = reader.take(size - _NODE_HEADER_SIZE, "device path node")
        if kind == _END and subtype == _END_ENTIRE:
            reader.expect_end("device path")
            return text
        if kind == _END:
            separator = ","
            continue
        text += separator + _node(kind, subtype, body)
        separator = "/"


def _node(kind: int, subtype: int, body: bytes) -> str:
    renderer = _NODES.get((kind, subtype))
    if renderer is not None:
        try:
            return renderer(EventReader(body))
        except MalformedEvidence:
            pass
    return f"Path({kind},{subtype},{body.hex()})"


def _pci(node: EventReader) -> str:
    function, device = node.u8("function"), node.u8("device")
    return f"Pci(0x{device:x},0x{function:x})"


def _vendor(name: str) -> Callable[[EventReader], str]:
    def render(node: EventReader) -> str:
        guid, rest = node.guid("vendor"), node.rest()
        return f"{name}({guid},{rest.hex()})" if rest else f"{name}({guid})"

    return render


def _acpi(node: EventReader) -> str:
    hid, uid = node.u32("HID"), node.u32("UID")
    if hid & 0xFFFF == _EISA_PNP:
        number = hid >> 16
        name = {0x0501: "Serial", 0x0A03: "PciRoot", 0x0A08: "PcieRoot"}.get(number)
        return f"{name}(0x{uid:x})" if name else f"Acpi(PNP{number:04X},0x{uid:x})"
    return f"Acpi(0x{hid:08x},0x{uid:x})"


def _scsi(node: EventReader) -> str:
    target, unit = node.u16("target"), node.u16("unit")
    return f"SCSI({target},{unit})"


def _usb(node: EventReader) -> str:
    port, interface = node.u8("port"), node.u8("interface")
    return f"USB({port},{interface})"


def _mac(node: EventReader) -> str:
    address, kind = node.take(32, "address"), node.u8("interface type")
    size = 6 if kind in {0, 1} else 32
    return f"MAC({address[:size].hex()},{kind})"


def _sata(node: EventReader) -> str:
    port, multiplier, unit = node.u16("port"), node.u16("multiplier"), node.u16("unit")
    return f"Sata({port},{multiplier},{unit})"


def _nvme(node: EventReader) -> str:
    namespace, eui = node.u32("namespace"), node.take(8, "EUI-64")
    return f"NVMe(0x{namespace:x},{eui.hex('-').upper()})"


def _uri(node: EventReader) -> str:
    return f"Uri({_printable(node.rest().decode('utf-8', 'backslashreplace'))})"


def _hard_drive(node: EventReader) -> str:
    partition, start, size = node.u32("partition"), node.u64("start"), node.u64("size")
    signature, _format, kind = node.take(16, "signature"), node.u8("format"), node.u8("signature type")
    if kind == _GPT_DISK:
        return f"HD({partition},GPT,{uuid.UUID(bytes_le=signature)},0x{start:x},0x{size:x})"
    if kind == _MBR_DISK:
        return f"HD({partition},MBR,0x{int.from_bytes(signature[:4], 'little'):08x},0x{start:x},0x{size:x})"
    return f"HD({partition},{kind},{signature.hex()},0x{start:x},0x{size:x})"


def _cdrom(node: EventReader) -> str:
    entry, start, size = node.u32("boot entry"), node.u64("start"), node.u64("size")
    return f"CDROM(0x{entry:x},0x{start:x},0x{size:x})"


def _file(node: EventReader) -> str:
    name = node.utf16(node.remaining, "file name").removesuffix("\0")
    return f"File({_printable(name)})"


def _firmware_file(node: EventReader) -> str:
    return f"FvFile({node.guid('file')})"


def _firmware_volume(node: EventReader) -> str:
    return f"FvVol({node.guid('volume')})"


def _offset(node: EventReader) -> str:
    _reserved, start, end = node.u32("reserved"), node.u64("start"), node.u64("end")
    return f"Offset(0x{start:x},0x{end:x})"


def _memory_mapped(node: EventReader) -> str:
    kind, start, end = node.u32("memory type"), node.u64("start"), node.u64("end")
    return f"MemoryMapped(0x{kind:x},0x{start:x},0x{end:x})"


def _printable(text: str) -> str:
    """Control characters escaped: the text ends up in logs and on terminals, and comes from the machine."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_EISA_PNP = 0x41D0
_MBR_DISK, _GPT_DISK = 1, 2

_NODES: Mapping[tuple[int, int], Callable[[EventReader], str]] = {
    (1, 1): _pci,
    (1, 3): _memory_mapped,
    (1, 4): _vendor("VenHw"),
    (2, 1): _acpi,
    (3, 2): _scsi,
    (3, 5): _usb,
    (3, 10): _vendor("VenMsg"),
    (3, 11): _mac,
    (3, 18): _sata,
    (3, 23): _nvme,
    (3, 24): _uri,
    (4, 1): _hard_drive,
    (4, 2): _cdrom,
    (4, 3): _vendor("VenMedia"),
    (4, 4): _file,
    (4, 6): _firmware_file,
    (4, 7): _firmware_volume,
    (4, 8): _offset,
}
