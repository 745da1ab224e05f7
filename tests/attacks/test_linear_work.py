"""Whatever a stranger may send is read in time linear in its size.

Eight times as much may be twenty times the work; quadratic work would be sixty-four times as much. CPU time
of this process is compared with itself, the best of some tries, and differences below a millisecond count for
nothing: so an idle machine is not needed.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from tornado.httputil import HTTPHeaders, HTTPInputError

from keylime.documents.strict_json import load_document
from keylime.errors import KeylimeError
from keylime.http.exchange import Caller, Request, Response, Role
from keylime.http.routing import Route, Router
from keylime.identifiers import AgentId
from keylime.ima.device_mapper import parse_event
from keylime.ima.measurement_list import parse_line
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.ima.signatures import parse_file_signature
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.variables import parse_signature_lists, parse_variable
from keylime.messages.envelope import parse_body
from keylime.messages.registrar import ActivateRequest, RegisterRequest
from keylime.messages.verification import EvidenceRequest, TpmEvidence
from keylime.pki.certificates import parse_certificate
from keylime.tpm.ek_certificates import der_items
from keylime.tpm.public_area import parse_public_area
from keylime.tpm.quote import parse_quote
from keylime.tpm.signature import parse_signature
from keylime.tpm.structures import parse_attest
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_registrar.submission import read_submission

_GROWTH = 8
_FACTOR = 20
_FLOOR_S = 0.001
_TRIES = 4


@dataclass(frozen=True)
class Shape:
    """What is read, and the bytes of about a given size to read."""

    read: Callable[[bytes], object]
    made: Callable[[int], bytes]
    size: int = 32 << 10


def repeated(piece: bytes, *, before: bytes = b"", after: bytes = b"") -> Callable[[int], bytes]:
    return lambda size: before + piece * (size // len(piece)) + after


def numbered(piece: str, *, before: str = "", after: str = "", between: str = ",") -> Callable[[int], bytes]:
    """`piece` with another number in the place of "#", as often as it fits."""
    return lambda size: (
        before + between.join(piece.replace("#", f"{n:06d}") for n in range(size // (len(piece) + 6))) + after
    ).encode()


def field(name: str) -> Callable[[bytes], object]:
    """A registration with this in one field, and nothing else wrong with it until there."""

    def read(data: bytes) -> object:
        fields = {"ek_tpm": "AAAA", "aik_tpm": "AAAA", name: data.decode("latin-1")}
        return read_submission(AgentId("agent"), msgspec.convert(fields, RegisterRequest))

    return read


def body(kind: type[object]) -> Callable[[bytes], object]:
    return lambda data: parse_body(data, kind)


async def answer(_request: Request) -> Response:
    return Response()


ROUTER = Router(
    [
        Route("GET", "/verify/identity", Role.ANONYMOUS, answer),
        Route("GET", "/agents/{a}", Role.ANONYMOUS, answer),
    ]
)


def policy(part: str) -> dict[str, str]:
    """The text before and after what is put into a runtime policy in the place of `part`."""
    before, after = EMPTY_POLICY.split(part)
    return {"before": before + part[:-1], "after": part[-1] + after}


def variable(size: int) -> bytes:
    return bytes(16) + (size // 2).to_bytes(8, "little") + bytes(8) + b"a\0" * (size // 2)


def route(data: bytes) -> object:
    caller = Caller(Role.ANONYMOUS, None, "192.0.2.1")
    return ROUTER.admit("GET", data.decode("latin-1"), None, secure=True, identify=lambda: caller)


def headers(data: bytes) -> object:
    return HTTPHeaders.parse(data.decode("latin-1"))


def ima_list(data: bytes) -> object:
    for line in data.split(b"\n"):
        with contextlib.suppress(KeylimeError):
            parse_line(line)
    return None


_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_ZEROS = b"0" * 40
# A header event that names one bank, then events of that bank.
_EVENT_LOG_HEAD = (
    bytes(4)
    + b"\x03\0\0\0"
    + bytes(20)
    + (33).to_bytes(4, "little")
    + b"Spec ID Event03\0"
    + bytes(4)
    + b"\0\x02\0\x02"
    + b"\x01\0\0\0\x0b\0\x20\0"
    + b"\0"
)
_EVENT = bytes(4) + b"\x0d\0\0\0" + b"\x01\0\0\0\x0b\0" + bytes(32) + bytes(4)
_ATTEST_HEAD = b"\xffTCG\x80\x18" + bytes(4) + bytes(25)

SHAPES = {
    "registration, unknown fields": Shape(body(RegisterRequest), numbered('"f#":1', before="{", after="}")),
    "registration, brackets": Shape(body(RegisterRequest), repeated(b"[", before=b'{"x":')),
    "registration, escapes": Shape(
        body(RegisterRequest), repeated(b"\\u00e9", before=b'{"ip":"', after=b'"}')
    ),
    "registration, one number": Shape(body(RegisterRequest), repeated(b"9", before=b'{"port":', after=b"}")),
    "registration, one field again": Shape(
        body(RegisterRequest), repeated(b'"ip":"",', before=b"{", after=b'"ip":""}')
    ),
    "activation, long tag": Shape(
        body(ActivateRequest), repeated(b"0", before=b'{"auth_tag":"', after=b'"}')
    ),
    "ekcert, beginnings": Shape(field("ekcert"), repeated(_BEGIN)),
    "ekcert, one block without end": Shape(field("ekcert"), repeated(b"A", before=_BEGIN)),
    "ekcert, beginnings of blocks": Shape(field("ekcert"), repeated(_BEGIN + b"AAAA\n")),
    "ekcert, blanks": Shape(field("ekcert"), repeated(b" \n", before=_BEGIN, after=_END)),
    "ekcert, chain": Shape(field("ekcert"), repeated(_BEGIN + b"MAAA" + _END)),
    "ek_tpm, hexadecimal": Shape(field("ek_tpm"), repeated(b"0", after=b"g"), 1 << 10),
    "ek_tpm, padding": Shape(field("ek_tpm"), repeated(b"="), 1 << 10),
    "iak_attest, base64": Shape(field("iak_attest"), repeated(b"AAAA", after=b"="), 1 << 10),
    "mtls_cert, beginnings": Shape(field("mtls_cert"), repeated(_BEGIN)),
    "mtls_cert, one block": Shape(field("mtls_cert"), repeated(b"A", before=_BEGIN, after=_END)),
    "mtls_cert, labels": Shape(field("mtls_cert"), repeated(b"-----BEGIN A-----\n")),
    "a certificate in PEM": Shape(parse_certificate, repeated(b"-----BEGIN A-----\nAA==\n-----END A-----\n")),
    "ip, name": Shape(field("ip"), repeated(b"a.")),
    "ip, address": Shape(field("ip"), repeated(b"1:")),
    "ip, brackets": Shape(field("ip"), repeated(b"[")),
    "port": Shape(field("port"), repeated(b"1")),
    "public area": Shape(parse_public_area, repeated(b"\0\x01", before=b"\xff\xff")),
    "attestation": Shape(
        parse_attest, repeated(b"\0\x0b\x03\xff\xff\xff", before=_ATTEST_HEAD + b"\0\0\xff\xff")
    ),
    "signature": Shape(parse_signature, repeated(b"\0", before=b"\0\x14\0\x0b\xff\xff")),
    "certificates of an NV index": Shape(der_items, repeated(b"\x30\x02\x05\0")),
    "quote, colons": Shape(lambda data: parse_quote(data.decode()), repeated(b":", before=b"r"), 1 << 10),
    "quote, base64": Shape(
        lambda data: parse_quote(data.decode()), repeated(b"AAAA", before=b"r", after=b"::"), 1 << 10
    ),
    "path, slashes": Shape(route, repeated(b"/")),
    "path, per cents": Shape(route, repeated(b"%41", before=b"/v2.5/agents/")),
    "path, digits of a version": Shape(route, repeated(b"1", before=b"/v", after=b".5/agents/a")),
    "query, fields": Shape(route, repeated(b"a&", before=b"/v2.5/verify/identity?")),
    "query, per cents": Shape(route, repeated(b"%C3%A9", before=b"/v2.5/verify/identity?quote=")),
    "query, plus": Shape(route, repeated(b"+", before=b"/v2.5/verify/identity?quote=")),
    "query, equals": Shape(route, repeated(b"=", before=b"/v2.5/verify/identity?quote=")),
    "headers, one name": Shape(headers, repeated(b"a:b\r\n"), 8 << 10),
    "headers, names": Shape(headers, numbered("h#: b\r\n", between=""), 8 << 10),
    "headers, folded": Shape(headers, repeated(b" c\r\n", before=b"a:b\r\n"), 8 << 10),
    "headers, blanks": Shape(headers, repeated(b" \t", before=b"a:", after=b"b\r\n"), 8 << 10),
    "headers, ends of lines": Shape(headers, repeated(b"\r\r\n"), 8 << 10),
    "evidence, unknown fields": Shape(body(TpmEvidence), numbered('"f#":1', before="{", after="}")),
    "evidence, nested": Shape(body(EvidenceRequest), repeated(b'{"data":', before=b'{"x":')),
    "policy, names": Shape(
        parse_runtime_policy,
        numbered(f'"/f#":["{"0" * 40}"]', **policy('"digests": {}')),
    ),
    "policy, keyrings": Shape(
        parse_runtime_policy,
        numbered(f'"{"0" * 34}#"', **policy('"ignored_keyrings": []')),
    ),
    "policy, excludes": Shape(
        parse_runtime_policy,
        numbered('"/f#.*"', **policy('"excludes": []')),
        8 << 10,
    ),
    "policy, brackets": Shape(lambda data: load_document(data, "the policy"), repeated(b"[")),
    "policy, one key again": Shape(
        lambda data: load_document(data, "the policy"), repeated(b'"a":1,', before=b"{", after=b'"b":1}')
    ),
    "policy, a large number": Shape(
        lambda data: load_document(data, "the policy"), repeated(b"9", before=b"{", after=b"}")
    ),
    "PCRs": Shape(
        lambda data: TpmPolicy.from_wire(data.decode()),
        numbered(f'"#":"{"0" * 40}"', before="{", after="}"),
    ),
    "PCRs, digests of one": Shape(
        lambda data: TpmPolicy.from_wire(data.decode()),
        numbered(f'"{"0" * 34}#"', before='{"10":[', after="]}"),
    ),
    "IMA, short lines": Shape(ima_list, repeated(b"10\n")),
    "IMA, one long line": Shape(
        ima_list, repeated(b"a", before=b"10 " + _ZEROS + b" ima-ng sha1:" + _ZEROS + b" /")
    ),
    "IMA, blanks": Shape(ima_list, repeated(b" ", before=b"10 " + _ZEROS + b" ima-sig sha1:" + _ZEROS)),
    "IMA, colons": Shape(ima_list, repeated(b":", before=b"10 " + _ZEROS + b" ima-ng ")),
    "IMA, a long buffer": Shape(
        ima_list, repeated(b"00", before=b"10 " + _ZEROS + b" ima-buf sha1:" + _ZEROS + b" n ")
    ),
    "IMA, a device-mapper event": Shape(
        lambda data: parse_event("dm_table_load", data),
        repeated(b"a", before=b"dm_version=4.45.0;name=", after=b",uuid=;"),
    ),
    "IMA, a file signature": Shape(
        lambda data: parse_file_signature(data) or 0, repeated(b"\0", before=b"\x03\x02\x04\0\0\0\0\xff\xff")
    ),
    "boot log, events": Shape(parse_event_log, repeated(_EVENT, before=_EVENT_LOG_HEAD)),
    "boot log, zeros": Shape(parse_event_log, repeated(b"\0")),
    "boot log, one variable": Shape(parse_variable, variable),
    "boot log, signature lists": Shape(
        parse_signature_lists, repeated(bytes(16) + (28).to_bytes(4, "little") + bytes(4) + b"\x11\0\0\0")
    ),
}


def cost_s(shape: Shape, data: bytes) -> float:
    """CPU time of one reading."""
    began = time.process_time()
    with contextlib.suppress(KeylimeError, HTTPInputError, RecursionError, json.JSONDecodeError):
        shape.read(data)
    return time.process_time() - began


def is_linear(shape: Shape) -> bool:
    small, large = shape.made(shape.size), shape.made(_GROWTH * shape.size)
    most = _FACTOR * max(_FLOOR_S, min(cost_s(shape, small) for _ in range(_TRIES)))
    return any(cost_s(shape, large) < most for _ in range(_TRIES))


def test_the_measure_notices_quadratic_work() -> None:
    def cut_piece_by_piece(data: bytes) -> None:
        while data:
            data = data[2:]

    assert not is_linear(Shape(cut_piece_by_piece, repeated(b"\0"), 16 << 10))


@pytest.mark.parametrize("name", SHAPES)
def test_r8_n2_work_for_a_strangers_input_is_linear_in_its_size(name: str) -> None:
    assert is_linear(SHAPES[name])
