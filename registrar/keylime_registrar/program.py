"""The console script, which starts without the packages of the extra and says so."""

from keylime.extras import extra_explained


def main() -> None:
    with extra_explained("keylime_registrar", "registrar"):
        from keylime_registrar.main import main as run
    run()
