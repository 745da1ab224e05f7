"""What a scrape finds: values by metric and labels, from the text that is served."""

import socket
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client_session import client_session


@dataclass(frozen=True)
class Scraped:
    """One page."""

    text: str
    content_type: str

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def names(self) -> set[str]:
        """Of all samples."""
        return {
            sample.name for family in text_string_to_metric_families(self.text) for sample in family.samples
        }

    @property
    def without_help(self) -> list[str]:
        """Metrics that do not say what they are."""
        return [
            family.name for family in text_string_to_metric_families(self.text) if not family.documentation
        ]


async def scrape(port: int, accept: str = "") -> Scraped:
    """What is served on a loopback port, over a connection of its own."""
    async with (
        client_session({"headers": {"Connection": "close"}}) as session,
        session.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        return Scraped(await response.text(), response.headers["Content-Type"])


def free_port() -> int:
    """A loopback port that was free a moment ago: 0 stands for no metrics."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
