"""The certificate revocation list over HTTP, at the address that certificates name: `/crl`, in DER.

The list is signed, and public: it is served without TLS and to anybody.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keylime.errors import ConfigError
from keylime.http.server import HttpError, Request, Response, Role, Route, Server, ServerLimits
from keylime.pki.files import read_service_file

CRL_FILE = "cacrl.der"
CRL_PORT = 38080

_LIMITS = ServerLimits(
    max_body=0, header_timeout_s=5.0, idle_timeout_s=5.0, max_connections=512, max_connections_per_address=32
)


@dataclass(frozen=True, slots=True)
class _Bytes(Response):
    """An answer whose body is not JSON."""

    content: bytes = b""

    def encode(self) -> bytes:
        return self.content


def crl_server(directory: Path, report: Callable[[str], None]) -> Server:
    """A server of the list in the CA directory `directory`, as it is at each request; not listening yet.

    `report` is told why a list could not be read.
    """

    async def show(_request: Request) -> Response:
        try:
            crl = await asyncio.to_thread(read_service_file, directory / CRL_FILE)
        except ConfigError as error:
            report(str(error))
            raise HttpError(503) from error
        return _Bytes(headers={"Content-Type": "application/pkix-crl"}, content=crl)

    routes = [
        Route(method, "/crl", Role.ANONYMOUS, show, plain_http=True, versioned=False)
        for method in ("GET", "HEAD")
    ]
    return Server(routes, limits=_LIMITS)
