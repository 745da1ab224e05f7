"""Where the earlier verifier's tables are read from, and what our configuration says about them."""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL

from keylime.errors import ConfigError
from keylime.measured_boot.boot_policy import compile_measured_boot_policy
from keylime.takeover.source import OldDatabase, open_old
from keylime_verifier.api.routes import boot_policies
from keylime_verifier.config import VerifierConfig
from keylime_verifier.takeover.agents import TakeoverRules
from keylime_verifier.takeover.plan import REGISTRAR_TABLE, Plan, read_plan

_REGISTRAR_FILE = "reg_data.sqlite"


def rules_of(config: VerifierConfig) -> TakeoverRules:
    """What of the configuration matters. Raises ConfigError."""
    return TakeoverRules(
        verifier_id=config.verifier_id,
        verifier_ip=config.ip,
        verifier_port=config.port or 8881,
        asks_silent_agents_on=config.cadence.resume_after_silence,
        compile_boot_policy=functools.partial(
            compile_measured_boot_policy,
            policy_name=config.boot_policy_name,
            registry=boot_policies(config),
            is_stored=True,
        ),
    )


def read_from(url: URL, rules: TakeoverRules) -> Plan | None:
    """What is to be taken from the database at `url`, see `read_plan`."""
    with open_old(url) as old, _registrar_of(url, old) as registrar:
        return read_plan(old, registrar, rules)


@contextmanager
def _registrar_of(url: URL, old: OldDatabase) -> Iterator[OldDatabase | None]:
    """The registrations of the same installation, where the files lie side by side."""
    beside = Path(url.database or "").with_name(_REGISTRAR_FILE)
    if url.get_backend_name() != "sqlite" or REGISTRAR_TABLE in old.tables or not beside.is_file():
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(open_old(url.set(database=str(beside))))
        except ConfigError:
            found = None  # the registrar says so; here they only fill gaps
        yield found
