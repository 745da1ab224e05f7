"""`/healthz` and `/readyz`: for load balancers and orchestrators. Anyone may ask, and nothing is secret.

Pure: whoever is asked has the checks.
"""

import msgspec

from keylime.http.exchange import Request, Response, Role, retry_after
from keylime.http.operation import Operation
from keylime.http.routing import Route
from keylime.service.health_report import Checks, HealthReport

_RETRY_AFTER_S = 5.0


class HealthReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong, by the name of the part; empty when all is well. Remarks: what will be, if any."""

    problems: dict[str, str]
    remarks: dict[str, str] = {}


def probe_routes(health: Checks, *, plain_http: bool = False) -> tuple[Route, Route]:
    """Liveness and readiness, outside the version prefix."""

    async def show_liveness(_request: Request) -> Response:
        return _response(await health.alive(), "alive")

    async def show_readiness(_request: Request) -> Response:
        return _response(await health.ready(), "ready")

    anyone = Role.ANONYMOUS
    return (
        Route(
            "GET",
            "/healthz",
            anyone,
            show_liveness,
            plain_http=plain_http,
            versioned=False,
            about=Operation("Whether the process is alive; if not, start it again.", HealthReply),
        ),
        Route(
            "GET",
            "/readyz",
            anyone,
            show_readiness,
            plain_http=plain_http,
            versioned=False,
            about=Operation("Whether all that it needs is there.", HealthReply),
        ),
    )


def _response(report: HealthReport, wanted: str) -> Response:
    results = HealthReply(dict(report.problems), dict(report.remarks))
    if report.is_good:
        return Response(status=wanted, results=results)
    status = f"not {wanted}: {', '.join(report.problems)}"
    return Response(503, status=status, results=results, headers=retry_after(_RETRY_AFTER_S))
