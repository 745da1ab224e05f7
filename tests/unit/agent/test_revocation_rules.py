"""Messages are about one enrolment: of the sender's agent, and of the agent that hears of it."""

from dataclasses import replace

import pytest

from keylime.messages.revocation import RevocationMessage
from keylime_agent.revocation_rules import NOTHING_SAID, Decision, Handled, Incarnation, LastWord, decide

ENROLLED_AT = 1_800_000_000
ME = Incarnation("me", 7, bytes(16), ENROLLED_AT)


def message(
    kind: str = "revocation", about: str = "other", at: int | None = ENROLLED_AT + 500
) -> RevocationMessage:
    return RevocationMessage(
        type=kind,
        ip="192.0.2.7",
        agent_id=about,
        port=9002,
        tpm_policy="{}",
        meta_data='{"cert_serial": 7}',
        event_time="Mon Nov  2 08:05:08 2026",
        event_id="ima.x",
        severity_label="emergency",
        context="{}",
        event_timestamp=at,
    )


def judged(one: RevocationMessage, me: Incarnation = ME, last_word: LastWord = NOTHING_SAID) -> Decision:
    return decide(one, None, me, ENROLLED_AT + 600, last_word)


@pytest.mark.parametrize("kind", ["revocation", "comm_error", "cleared"])
@pytest.mark.parametrize("about", ["me", "other"])
def test_what_happened_before_an_agent_was_enrolled_does_not_concern_it(kind: str, about: str) -> None:
    assert judged(message(kind, about, ENROLLED_AT - 500)) is Decision.OLDER
    assert judged(message(kind, about, ENROLLED_AT - 30)) is Decision.ACT, "clocks are some seconds apart"
    assert judged(message(kind, about)) is Decision.ACT


def test_nothing_is_ignored_where_either_time_is_unknown() -> None:
    assert judged(message(at=None)) is Decision.ACT
    assert judged(message(at=1), replace(ME, enrolled_at=None)) is Decision.ACT


def test_a_warning_that_comes_after_the_later_all_clear_does_nothing() -> None:
    cleared = NOTHING_SAID.after(message("cleared", at=ENROLLED_AT + 510))
    assert judged(message(), last_word=cleared) is Decision.OVERTAKEN
    assert judged(message(at=ENROLLED_AT + 520), last_word=cleared) is Decision.ACT
    assert judged(message(at=ENROLLED_AT + 510), last_word=cleared) is Decision.ACT, "of the same second"
    assert judged(message(at=None), last_word=cleared) is Decision.ACT


def test_an_all_clear_that_comes_after_a_later_warning_does_nothing() -> None:
    warned = NOTHING_SAID.after(message(at=ENROLLED_AT + 520))
    assert judged(message("cleared", at=ENROLLED_AT + 510), last_word=warned) is Decision.OVERTAKEN
    assert judged(message("cleared", at=ENROLLED_AT + 520), last_word=warned) is Decision.ACT


def test_an_all_clear_is_acted_upon_once() -> None:
    before = Handled(ENROLLED_AT + 510, ME.boot)
    assert decide(message("cleared"), before, ME, ENROLLED_AT + 600) is Decision.HANDLED


@pytest.mark.parametrize("kind", ["revocation", "cleared"])
def test_a_word_of_the_future_does_not_silence_those_of_today(kind: str) -> None:
    """The verifier's clock was ahead for a while; what it says of the agent since is heard."""
    opposite = "cleared" if kind == "revocation" else "revocation"
    ahead = NOTHING_SAID.after(message(opposite, at=ENROLLED_AT + 366 * 86_400))
    assert judged(message(kind), last_word=ahead) is Decision.ACT
    apart = NOTHING_SAID.after(message(opposite, at=ENROLLED_AT + 900))
    assert judged(message(kind), last_word=apart) is Decision.OVERTAKEN, "clocks are some minutes apart"
