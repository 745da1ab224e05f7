"""`keylime_push_model_agent --check`: whether this machine can attest by itself, and what to type if not."""

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from keylime.checkup import Result, bad
from keylime.config.loader import load_settings
from keylime.errors import KeylimeError
from keylime_agent.checkup import authorities, listens, machine, registrar
from keylime_agent.pushing.config import push_config

_HTTPS = 443


def examine(environ: Mapping[str, str]) -> Iterator[Result]:
    """Everything, in the order in which an agent needs it."""
    try:
        settings = load_settings("agent", environ=environ)
        config = push_config(settings, environ)
    except KeylimeError as error:
        yield bad("configuration", str(error))
        return
    yield from machine(settings, config, environ)
    yield registrar(config)
    for url in config.verifiers:
        parts = urlsplit(url)
        yield listens(
            f"verifier {url}",
            (parts.hostname or "", parts.port or _HTTPS),
            "check [agent] verifier_url, firewalls, and that keylime_verifier runs there",
        )
    yield from authorities(config, [("verifier_tls_ca_cert", config.authority)])
