"""The console scripts, which start without the packages of the extra and say so."""

from keylime.extras import extra_explained
from keylime.program_end import endings_told


def main() -> None:
    with endings_told("keylime-policy"):
        with extra_explained("keylime-policy", "tenant"):
            from keylime_policy.main import main as run
        run()


def attest() -> None:
    with endings_told("keylime_attest"):
        with extra_explained("keylime_attest", "tenant"):
            from keylime_policy.attest import main as run
        run()


def convert() -> None:
    with endings_told("keylime_convert_runtime_policy"):
        with extra_explained("keylime_convert_runtime_policy", "tenant"):
            from keylime_policy.convert import main as run
        run()


def create() -> None:
    with endings_told("keylime_create_policy"):
        with extra_explained("keylime_create_policy", "tenant"):
            from keylime_policy.create_policy import main as run
        run()


def sign() -> None:
    with endings_told("keylime_sign_runtime_policy"):
        with extra_explained("keylime_sign_runtime_policy", "tenant"):
            from keylime_policy.sign_runtime_policy import main as run
        run()
