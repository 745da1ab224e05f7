"""Strangers at a registrar: many loopback addresses, and registrations that cost them nothing."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.fakes.client_session import client_session
from tests.fakes.software_ak import rsa_public
from tests.fakes.software_identity import EK_ATTRIBUTES, SoftwareIdentity, b64

_AES_128_CFB = bytes.fromhex("000600800043")
_NULL = b"\x00\x10"


def prefix_address(number: int, host: int = 1) -> str:
    """An address of this machine in network number `number` (/24), of 60,000."""
    return f"127.{1 + number // 250}.{1 + number % 250}.{host}"


@asynccontextmanager
async def calling_from(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose connections come from `address`."""
    async with client_session(local_addr=(address, 0)) as session:
        yield session


def hollow_registration(like: SoftwareIdentity, **fields: object) -> dict[str, object]:
    """A registration in order, with an EK of its own that nobody holds: made in no time, never proven."""
    modulus = bytearray(secrets.token_bytes(256))
    modulus[0] |= 0x80
    modulus[-1] |= 1
    ek = rsa_public(bytes(modulus), scheme=_NULL, attributes=EK_ATTRIBUTES, symmetric=_AES_128_CFB)
    return like.registration(ek_tpm=b64(ek), **fields)
