"""What a scrape of the metrics costs with the state of 10,000 agents: CPU time of who serves it."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from prometheus_client.core import Metric
from sqlalchemy.engine import make_url

from keylime.appraisal.verdict import Rejected
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import open_database
from keylime.http.exchange import Caller, Request, Role
from keylime.metrics.page import MetricsPage
from keylime_verifier.agents.lifecycle import Defect
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.assembly.metrics import VerifierMetrics, measure
from keylime_verifier.database.schema import SCHEMA, agents, deliveries, recipients, revocations

_AGENTS = 10_000
_BUDGET_S = 0.05
_SCRAPES = 20


class _NoCertificates:
    in_use = ()

    def remarks(self) -> dict[str, str | None]:
        return {}


def _fill(connection: sa.Connection) -> None:
    texts = {
        column.name: "x"
        for column in agents.columns
        if not column.nullable and isinstance(column.type, sa.String)
    }
    rows = [
        {
            **texts,
            "agent_id": f"agent-{number}",
            "port": 9002,
            "mtls_cert": "c" * 1800,
            "revocation_key": "k" * 1700,
            "checkpoint": "p" * 600,
            "verifier_id": "default",
            "operational_state": 9 if number % 50 == 0 else 3,
            "shard": number % 256,
            "is_polled": number % 50 != 0,
        }
        for number in range(_AGENTS)
    ]
    connection.execute(sa.insert(agents), rows)
    connection.execute(
        sa.insert(recipients),
        [{"agent_id": f"agent-{number}", "through": number % 200, "since": 0} for number in range(_AGENTS)],
    )
    connection.execute(
        sa.insert(revocations),
        [
            {
                "revocation_id": f"{number:032x}",
                "agent_id": "agent-1",
                "created_at": number,
                "message": "m" * 2000,
                "signature": "s",
                "verifier_id": "default",
                "shard": 1,
                "number": number,
                "made": number,
            }
            for number in range(1, 201)
        ],
    )
    connection.execute(
        sa.insert(deliveries),
        [
            {
                "revocation_id": f"{number:032x}",
                "channel": "webhook",
                "target": "https://receiver",
                "state": "pending",
                "attempts": 3,
                "updated_at": 0,
            }
            for number in range(1, 201)
        ],
    )


async def _scrape(url: str) -> float:
    database = open_database(make_url(url))
    try:
        await prepare_schema(database, SCHEMA, migrate=True)
        await database.write("fill", _fill)
        metrics = VerifierMetrics()
        for number in range(60):
            metrics.concluded(Defect("x") if number % 2 else Rejected((), None))  # type: ignore[arg-type]
            metrics.transaction("write", 0.01)

        async def measured() -> Sequence[Metric]:
            return await measure(VerifierId("default"), database)

        page = MetricsPage(
            "verifier", metrics.registry, measured, _NoCertificates(), _NoCertificates(), kept_s=0.0
        )
        request = Request("GET", None, {}, {}, {}, b"", Caller(Role.ANONYMOUS, None, "127.0.0.1"))
        response = await page.show(request)
        began = time.process_time()
        for _ in range(_SCRAPES):
            response = await page.show(request)
        took_s = (time.process_time() - began) / _SCRAPES
        print(f"a page of {len(response.encode())} bytes takes {took_s * 1000:.1f} ms of CPU")
        return took_s
    finally:
        await database.close()


def main() -> None:
    """Ends with status 1 when the budget is exceeded."""
    with tempfile.TemporaryDirectory() as directory:
        took_s = asyncio.run(_scrape(f"sqlite:///{Path(directory) / 'verifier.sqlite'}"))
    sys.exit(took_s > _BUDGET_S)


if __name__ == "__main__":
    main()
