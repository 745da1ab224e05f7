"""`/healthz` and `/readyz`: for load balancers and orchestrators. Anyone may ask, and nothing is secret."""

import msgspec

from keylime.health import Health, Report
from keylime.http.exchange import Request, Response, Role, retry_after
from keylime.http.routing import Route

_RETRY_AFTER_S = 5.0


class HealthReply(msgspec.Struct, frozen=True):
    """What is wrong, by the name of the part; empty when all is well."""

    problems: dict[str, str]


def probe_routes(health: Health, *, plain_http: bool = False) -> tuple[Route, Route]:
    """Liveness and readiness, outside the version prefix."""

    async def show_liveness(_request: Request) -> Response:
        return _response(await health.alive(), "alive")

    async def show_readiness(_request: Request) -> Response:
        return _response(await health.ready(), "ready")

    anyone = Role.ANONYMOUS
    return (
        Route("GET", "/healthz", anyone, show_liveness, plain_http=plain_http, versioned=False),
        Route("GET", "/readyz", anyone, show_readiness, plain_http=plain_http, versioned=False),
    )


def _response(report: Report, wanted: str) -> Response:
    results = HealthReply(dict(report.problems))
    if report.is_good:
        return Response(status=wanted, results=results)
    status = f"not {wanted}: {', '.join(report.problems)}"
    return Response(503, status=status, results=results, headers=retry_after(_RETRY_AFTER_S))
