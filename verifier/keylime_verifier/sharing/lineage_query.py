"""What a database says of its lineage."""

import sqlalchemy as sa

from keylime_verifier.sharing.lineage import Lineage

_ALLOWED = sa.text(
    "SELECT has_function_privilege(to_regprocedure('pg_catalog.pg_control_system()'), 'EXECUTE') AS system, "
    "has_function_privilege(to_regprocedure('pg_catalog.pg_walfile_name(pg_lsn)'), 'EXECUTE') AND "
    "has_function_privilege(to_regprocedure('pg_catalog.pg_current_wal_lsn()'), 'EXECUTE') AS timeline"
)
_SYSTEM = sa.text("SELECT system_identifier FROM pg_control_system()")
_TIMELINE = sa.text("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
# A Galera cluster is one system, whichever of its nodes answers.
_ON_MARIADB = sa.text("SHOW VARIABLES WHERE variable_name IN ('hostname', 'port', 'server_id', 'wsrep_on')")
_GALERA = sa.text("SHOW STATUS LIKE 'wsrep_cluster_state_uuid'")


def read_lineage(connection: sa.Connection) -> Lineage:
    """The lineage of the database, as far as this user may see it."""
    if connection.dialect.name == "mariadb":
        return Lineage(_system_of_mariadb(connection))
    if connection.dialect.name != "postgresql":
        return Lineage()
    allowed = connection.execute(_ALLOWED).one()
    return Lineage(
        connection.execute(_SYSTEM).scalar() if allowed.system else None,
        connection.execute(_TIMELINE).scalar() if allowed.timeline else None,
    )


def _system_of_mariadb(connection: sa.Connection) -> str:
    known = {str(name).lower(): str(value) for name, value in connection.execute(_ON_MARIADB)}
    if known.get("wsrep_on") == "ON":
        cluster = connection.execute(_GALERA).first()
        if cluster is not None and cluster[1]:
            return f"cluster {cluster[1]}"
    return " ".join(known.get(name, "") for name in ("hostname", "port", "server_id"))
