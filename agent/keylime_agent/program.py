"""The console scripts, which start without the packages of the extra and say so."""

from keylime.extras import extra_explained
from keylime.program_end import endings_told


def main() -> None:
    with endings_told("keylime_agent"):
        with extra_explained("keylime_agent", "agent"):
            from keylime_agent.main import main as run
        run()


def ima_emulator() -> None:
    with endings_told("keylime_ima_emulator"):
        with extra_explained("keylime_ima_emulator", "agent"):
            from keylime_agent.ima_emulator import main as run
        run()


def push_model_agent() -> None:
    with endings_told("keylime_push_model_agent"):
        with extra_explained("keylime_push_model_agent", "agent"):
            from keylime_agent.pushing.main import main as run
        run()
