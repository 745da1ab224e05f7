"""Where events are brought besides `GET /events`, by the configuration."""

from keylime_verifier.api.routes import Repositories
from keylime_verifier.assembly.telling import Telling
from keylime_verifier.config import EVENTS_TO_LOG, VerifierConfig
from keylime_verifier.following.follower import Follower
from keylime_verifier.following.journal import EventLines
from keylime_verifier.following.poster import Poster
from keylime_verifier.sharing.membership import Membership

_SHARD = 0  # whoever has it posts the events of all


def followers(
    config: VerifierConfig, stored: Repositories, telling: Telling, membership: Membership, number: int
) -> dict[str, Follower]:
    """Those of the process `number`, by what they are called."""
    found: dict[str, Follower] = {}
    if config.events_log is not None and number == 0:
        path = None if config.events_log == EVENTS_TO_LOG else config.events_log
        journal = EventLines(config.work_dir / "events-told.json", path)
        found["events journal"] = Follower(stored.history, journal, str(path or "the log"))
    if config.posts_events and telling.webhook is not None and config.webhook is not None:
        origin = f"webhook {config.webhook.origin}"
        poster = Poster(stored.database, origin[:255], telling.webhook.post)
        found["events webhook"] = Follower(stored.history, poster, origin, lambda: membership.owns(_SHARD))
    return found
