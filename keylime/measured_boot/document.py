"""An event log as one document of plain JSON values: what operators' policies and tools read.

The keys are those of `tpm2_eventlog --eventlog-version=2`, with the additions that policies for Keylime
expect: texts without their terminating NUL, device paths as text, shim's vendor_db as signatures,
`boot_aggregates`. In `pcrs` the startup locality counts, and records that are never extended do not.
"""

from collections.abc import Callable, Iterable, Mapping

from keylime.errors import MalformedEvidence
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import Event, EventLog, SpecId
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import FirmwareBlob, GptTable, ImageLoad, StartupLocality, Text
from keylime.measured_boot.replay import BOOT_AGGREGATE_SIZES, boot_aggregate, replay_event_log
from keylime.measured_boot.variables import EfiSignature, SignatureList, UefiVariable

_VERSION = 2

# As hex text even though we could say more: policies in the field compare the hex.
_HEX_TYPES = frozenset(
    {
        EventType.SEPARATOR,
        EventType.S_CRTM_VERSION,
        EventType.CPU_MICROCODE,
        EventType.EVENT_TAG,
        EventType.ACTION,
        EventType.OMIT_BOOT_DEVICE_EVENTS,
        EventType.EFI_HCRTM_EVENT,
        EventType.POST_CODE2,
        EventType.EFI_GPT_EVENT2,
    }
)


def event_log_document(
    log: EventLog, *, banks: Iterable[HashAlgorithm] | None = None
) -> dict[str, JsonValue]:
    """The document of `log`, with the digests and PCRs of `banks` only when they are given."""
    shown = frozenset(log.algorithms if banks is None else banks)
    extended = sorted({event.pcr for event in log.events if event.is_extended})
    pcrs = {bank: values for bank, values in replay_event_log(log).items() if bank in shown}
    return {
        "version": _VERSION,
        "events": [_event(event, log, shown) for event in log.events],
        "pcrs": {
            bank.label: {str(index): int.from_bytes(values[index]) for index in extended}
            for bank, values in pcrs.items()
        },
        "boot_aggregates": {
            bank.label: [boot_aggregate(bank, values, count) for count in BOOT_AGGREGATE_SIZES]
            for bank, values in pcrs.items()
        },
    }


def _event(event: Event, log: EventLog, banks: frozenset[HashAlgorithm]) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {
        "EventNum": event.number,
        "PCRIndex": event.pcr,
        "EventType": event.type_name,
    }
    if log.spec_id is None:
        del fields["EventNum"]  # the tool has none in SHA-1 logs
    if event.number == 0 and log.spec_id is not None:
        fields["Digest"] = event.digests[HashAlgorithm.SHA1].hex()
        fields["EventSize"] = len(event.data)
        fields["SpecID"] = [_spec_id(log.spec_id)]
        return fields
    digests = [
        {"AlgorithmId": bank.label, "Digest": digest.hex()}
        for bank, digest in event.digests.items()
        if bank in banks
    ]
    fields["DigestCount"] = len(digests)
    fields["Digests"] = digests
    fields["EventSize"] = len(event.data)
    fields["Event"] = _data(event)
    return fields


def _spec_id(spec_id: SpecId) -> dict[str, JsonValue]:
    algorithms: list[JsonValue] = [
        {f"Algorithm[{position}]": None, "algorithmId": _algorithm_name(number), "digestSize": size}
        for position, (number, size) in enumerate(spec_id.digest_sizes)
    ]
    return {
        "Signature": "Spec ID Event03",
        "platformClass": spec_id.platform_class,
        "specVersionMinor": spec_id.version_minor,
        "specVersionMajor": spec_id.version_major,
        "specErrata": spec_id.errata,
        "uintnSize": spec_id.uintn_size,
        "numberOfAlgorithms": len(algorithms),
        "Algorithms": algorithms,
        "vendorInfoSize": len(spec_id.vendor_info),
    }


def _algorithm_name(number: int) -> str:
    try:
        return HashAlgorithm(number).label
    except ValueError:
        return f"0x{number:x}"


def _data(event: Event) -> JsonValue:
    if event.type_code in _HEX_TYPES:
        return event.data.hex()
    match event.decoded:
        case StartupLocality(locality):
            return {"StartupLocality": locality}
        case Text(text):
            return {"String": text} if event.type_code == EventType.IPL else text
        case FirmwareBlob() as blob:
            return _blob(blob)
        case ImageLoad() as image:
            return _image(image)
        case GptTable() as table:
            return _gpt(table)
        case UefiVariable() as variable:
            return _variable(event.type_code, variable)
        case _:
            return event.data.hex()


def _blob(blob: FirmwareBlob) -> dict[str, JsonValue]:
    place: dict[str, JsonValue] = {"BlobBase": blob.base, "BlobLength": blob.length}
    if blob.description is None:
        return place
    description = blob.description
    return {"BlobDescriptionSize": len(description), "BlobDescription": description.hex(), **place}


def _image(image: ImageLoad) -> dict[str, JsonValue]:
    path = image.path
    return {
        "ImageLocationInMemory": image.location,
        "ImageLengthInMemory": image.length,
        "ImageLinkTimeAddress": image.link_time_address,
        "LengthOfDevicePath": len(image.device_path),
        "DevicePath": image.device_path.hex() if path is None else path,
    }


def _gpt(table: GptTable) -> dict[str, JsonValue]:
    return {
        "Header": {
            "Signature": table.signature.decode("ascii", "backslashreplace"),
            "Revision": table.revision,
            "HeaderSize": table.header_size,
            "HeaderCRC32": table.header_crc32,
            "MyLBA": table.my_lba,
            "AlternateLBA": table.alternate_lba,
            "FirstUsableLBA": table.first_usable_lba,
            "LastUsableLBA": table.last_usable_lba,
            "DiskGUID": str(table.disk_guid),
            "PartitionEntryLBA": table.entries_lba,
            "NumberOfPartitionEntry": table.entry_count,
            "SizeOfPartitionEntry": table.entry_size,
            "PartitionEntryArrayCRC32": table.entries_crc32,
        },
        "NumberOfPartitions": len(table.partitions),
        "Partitions": [
            {
                "PartitionTypeGUID": str(partition.type_guid),
                "UniquePartitionGUID": str(partition.unique_guid),
                "StartingLBA": partition.first_lba,
                "EndingLBA": partition.last_lba,
                "Attributes": partition.attributes,
                "PartitionName": partition.name,
            }
            for partition in table.partitions
        ],
    }


def _variable(type_code: int, variable: UefiVariable) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {
        "VariableName": str(variable.guid),
        "UnicodeNameLength": len(variable.name.encode("utf-16-le")) // 2,
        "VariableDataLength": len(variable.value),
        "UnicodeName": variable.name,
    }
    renderer = _renderer(type_code, variable)
    try:
        value = renderer(variable) if renderer else variable.value.hex()
    except MalformedEvidence:
        value = variable.value.hex()
    if value != "":  # the tool leaves the key out where it would print nothing
        fields["VariableData"] = value
    return fields


def _renderer(type_code: int, variable: UefiVariable) -> Callable[[UefiVariable], JsonValue] | None:
    if type_code in {EventType.EFI_VARIABLE_BOOT, EventType.EFI_VARIABLE_BOOT2}:
        if variable.name == "BootOrder":
            return _boot_order
        return _boot_option if variable.is_boot_option else None
    return _RENDERERS.get((type_code, variable.name))


def _boot_order(variable: UefiVariable) -> JsonValue:
    return [f"Boot{number:04x}" for number in variable.boot_order()]


def _boot_option(variable: UefiVariable) -> JsonValue:
    option = variable.boot_option()
    return {
        "Enabled": "Yes" if option.is_active else "No",
        "FilePathListLength": len(option.device_path),
        "Description": option.description,
        "DevicePath": (option.device_path + option.optional_data).hex(),
    }


def _switch(variable: UefiVariable) -> JsonValue:
    return {"Enabled": "Yes" if variable.is_set else "No"}


def _text(variable: UefiVariable) -> JsonValue:
    return {"String": variable.value.decode("utf-8", "backslashreplace").removesuffix("\0")}


def _signature_lists(variable: UefiVariable) -> JsonValue:
    return [_signature_list(item) for item in variable.signature_lists()] or None


def _signature_list(item: SignatureList) -> dict[str, JsonValue]:
    return {
        "SignatureType": str(item.type),
        "SignatureListSize": item.size,
        "SignatureHeaderSize": len(item.header),
        "SignatureSize": item.signature_size,
        "Keys": [_signature(signature) for signature in item.signatures],
    }


def _signature(signature: EfiSignature) -> dict[str, JsonValue]:
    return {"SignatureOwner": str(signature.owner), "SignatureData": signature.data.hex()}


def _one_signature(variable: UefiVariable) -> JsonValue:
    return [_signature(variable.signature())]


def _vendor_signatures(variable: UefiVariable) -> JsonValue:
    signatures = variable.vendor_signatures()
    return [_signature(signature) for signature in signatures] if signatures else variable.value.hex()


_RENDERERS: Mapping[tuple[int, str], Callable[[UefiVariable], JsonValue]] = {
    (EventType.EFI_VARIABLE_DRIVER_CONFIG, "SecureBoot"): _switch,
    **{(EventType.EFI_VARIABLE_DRIVER_CONFIG, name): _signature_lists for name in ("PK", "KEK", "db", "dbx")},
    (EventType.EFI_VARIABLE_AUTHORITY, "db"): _one_signature,
    (EventType.EFI_VARIABLE_AUTHORITY, "Shim"): _one_signature,
    (EventType.EFI_VARIABLE_AUTHORITY, "SbatLevel"): _text,
    (EventType.EFI_VARIABLE_AUTHORITY, "MokListTrusted"): _switch,
    (EventType.EFI_VARIABLE_AUTHORITY, "vendor_db"): _vendor_signatures,
}
