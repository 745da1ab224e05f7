"""The console script, which starts without the packages of the extra and says so."""

from keylime.extras import extra_explained
from keylime.program_end import endings_told


def main() -> None:
    with endings_told("keylime_verifier"):
        with extra_explained("keylime_verifier", "verifier"):
            from keylime_verifier.main import main as run
        run()
