"""What registrar and verifier warn of before it fails: certificates that end, disks that fill up."""

from keylime.errors import KeylimeError
from keylime.findings.finding import printable
from keylime.http.probes import HealthReply
from keylime_tenant.client import Service, read_results
from keylime_tenant.session import Session


async def show_warnings(session: Session) -> None:
    """One warning for each thing that somebody should see to. Services that do not tell have none."""
    for service in (session.registrar, session.verifier):
        for about, text in await _told(service):
            session.output.warning("%s: %s: %s", service.place, printable(about), printable(text))


async def _told(service: Service) -> list[tuple[str, str]]:
    try:
        found = read_results(await service.probe("/readyz"), HealthReply, service.place)
    except KeylimeError:  # it has answered just now; an older release has no such page
        return []
    return sorted((found.problems | found.remarks).items())
