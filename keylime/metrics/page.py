"""`GET /metrics`: what a process has counted, and how the database and the certificates are at that moment.

On an address of its own, without TLS and to anyone who reaches it: nothing in it is about a single agent.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from keylime.database.engine import DatabaseUnavailable
from keylime.http.exchange import Request, Response, Role
from keylime.http.operation import Operation
from keylime.http.routing import Route
from keylime.http.server import Server, ServerLimits
from keylime.pki.lifetimes import CertificateFile
from keylime.service.metrics_place import MetricsPlace
from keylime.version import installed_version

log = logging.getLogger(__name__)

Measure: TypeAlias = Callable[[], Awaitable[Sequence[Metric]]]
"""How something is now. Raises DatabaseUnavailable."""

_DRAIN_S = 0.5
_KEPT_S = 2.0  # who asks more often than this costs the database nothing more
_LIMITS = ServerLimits(
    max_body=0, max_connections=32, max_connections_per_address=16, max_connections_per_network=32
)


class Certificates(Protocol):
    """Who knows the certificates in use."""

    @property
    def in_use(self) -> Sequence[CertificateFile]: ...


class Remarks(Protocol):
    """Who knows what somebody should see to."""

    def remarks(self) -> Mapping[str, str | None]: ...


class MetricsPage:
    """What is shown when somebody asks."""

    def __init__(
        self,
        component: str,
        counted: CollectorRegistry,
        measure: Measure,
        certificates: Certificates,
        remarks: Remarks,
        *,
        shared: Path | None = None,
        kept_s: float = _KEPT_S,
    ) -> None:
        """`counted` are the counters of this process, or, with a `shared` directory, those of all of them.

        What was measured is shown again to who asks within `kept_s` seconds.
        """
        self._kept_s = kept_s
        self._component = component
        self._measure = measure
        self._certificates = certificates
        self._remarks = remarks
        self._measured: Sequence[Metric] = ()
        self._measured_at: float | None = None
        self._asking = asyncio.Lock()
        self._registry = CollectorRegistry()
        if shared is None:
            self._registry.register(_Collected(counted.collect))
        else:
            MultiProcessCollector(self._registry, str(shared))  # type: ignore[no-untyped-call]  # it has none
        self._registry.register(_Collected(self._state))

    def serve(self, place: MetricsPlace, stack: AsyncExitStack, *, reuse_port: bool) -> None:
        """Serves it until `stack` ends. Raises ConfigError."""
        about = Operation("What has been counted, in the formats of Prometheus and OpenMetrics.")
        route = Route(
            "GET", "/metrics", Role.ANONYMOUS, self.show, plain_http=True, versioned=False, about=about
        )
        server = Server([route], limits=_LIMITS)
        stack.push_async_callback(server.stop, _DRAIN_S)
        server.listen(place.ip, place.port, reuse_port=reuse_port)

    async def show(self, request: Request) -> Response:
        """The page in the format that is asked for."""
        async with self._asking:
            if self._measured_at is None or time.monotonic() - self._measured_at >= self._kept_s:
                self._measured = await self._measured_now()
                self._measured_at = time.monotonic()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(raw=encode(self._registry), headers={"Content-Type": content_type})

    async def _measured_now(self) -> Sequence[Metric]:
        reached = GaugeMetricFamily(
            f"keylime_{self._component}_database_reachable", "Whether the database answers (1) or not (0)."
        )
        try:
            measured = await self._measure()
        except DatabaseUnavailable as error:
            log.debug("%s; it is not measured", error)
            measured = ()
        reached.add_metric([], 1 if measured else 0)
        return (reached, *measured)

    def _state(self) -> Iterator[Metric]:
        yield from self._measured
        yield build_info()
        yield warnings_of(self._component, self._remarks.remarks())
        yield certificate_ends(self._component, self._certificates.in_use)


class _Collected:
    """What `prometheus_client` asks for metrics that are made when they are wanted."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect

    def describe(self) -> list[Metric]:
        """Nothing, so that none are made before they are wanted."""
        return []


def build_info() -> Metric:
    """Which release this is."""
    info = InfoMetricFamily("keylime_build", "The release of Keylime that runs.")
    info.add_metric([], {"version": installed_version()})
    return info


def warnings_of(component: str, remarks: Mapping[str, str | None]) -> Metric:
    """Which parts somebody should see to."""
    found = GaugeMetricFamily(
        f"keylime_{component}_warning",
        "Whether somebody should see to a part (1) before it fails, or not (0); /readyz says what it is.",
        labels=["about"],
    )
    for about, text in sorted(remarks.items()):
        found.add_metric([about], 0 if text is None else 1)
    return found


def certificate_ends(component: str, certificates: Iterable[CertificateFile]) -> Metric:
    """When each certificate in use ends."""
    ends = GaugeMetricFamily(
        f"keylime_{component}_certificate_expiry_timestamp_seconds",
        "When a certificate in use ends, in seconds since the epoch.",
        labels=["holder", "file"],
    )
    # A file may hold several, and the first of them to end counts.
    found: dict[tuple[str, str], datetime] = {}
    for one in certificates:
        key = (one.holder.name.lower(), one.path.name)
        found[key] = min(found.get(key, one.lifetime.ends), one.lifetime.ends)
    for key, end in sorted(found.items()):
        ends.add_metric(key, end.timestamp())
    return ends
