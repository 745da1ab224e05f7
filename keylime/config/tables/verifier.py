"""Options of the verifier, sections `[verifier]` and `[revocations]` of verifier.conf."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option
from keylime.config.tables import shared

_verifier = partial(Option, "verifier")
_ignored = partial(Option, "verifier", ignored=True)
_revocations = partial(Option, "revocations")

VERIFIER = ComponentTable(
    "verifier",
    "Keylime verifier",
    (
        _verifier("version", Kind.TEXT, "2.6", "Format of this file."),
        _verifier(
            "uuid", Kind.TEXT, "default", "Name of this verifier, stored with every agent that it watches."
        ),
        _verifier(
            "ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address to listen on; 0.0.0.0 means every IPv4 address.",
        ),
        _verifier("port", Kind.INTEGER, 8881, "TCP port to listen on (HTTPS).", minimum=0, maximum=65535),
        _verifier("enable_agent_mtls", Kind.FLAG, True, "Talk to agents over mutual TLS."),
        *shared.server_tls("verifier", tls_dir="generate"),
        *shared.client_tls("verifier", peer="agents"),
        *shared.database("verifier"),
        _verifier(
            "exponential_backoff",
            Kind.FLAG,
            True,
            "Let the pause before a retry grow: retry_interval to the power of the attempt.",
        ),
        _verifier(
            "retry_interval",
            Kind.NUMBER,
            2.0,
            "Seconds before an agent that did not answer is asked again.",
            minimum=0,
        ),
        _verifier(
            "max_retries", Kind.INTEGER, 5, "Attempts to reach an agent before it is failed.", minimum=0
        ),
        _verifier(
            "request_timeout",
            Kind.NUMBER,
            60.0,
            "Seconds that a request to an agent may take.",
            minimum=0.001,
        ),
        _verifier(
            "quote_interval", Kind.NUMBER, 2.0, "Seconds between two attestations of one agent.", minimum=0
        ),
        _verifier(
            "num_workers",
            Kind.INTEGER,
            0,
            "Processes that share the work on this machine; 0 means one for each CPU.",
            minimum=0,
        ),
        shared.max_workers("verifier"),
        _verifier(
            "lease",
            Kind.NUMBER,
            10.0,
            "Seconds after which other processes and verifiers with the same database and uuid take over the "
            "agents of one that is not heard of any more.",
            minimum=0.3,
        ),
        _verifier(
            "max_upload_size",
            Kind.INTEGER,
            104_857_600,
            "Largest accepted request body in bytes.",
            minimum=1024,
        ),
        _verifier("measured_boot_policy_name", Kind.TEXT, "accept-all", "Name of the boot-log policy."),
        _verifier(
            "measured_boot_imports", Kind.LIST, (), "Python modules that define further boot-log policies."
        ),
        _verifier(
            "measured_boot_evaluate",
            Kind.TEXT,
            "once",
            "Whether the boot log is judged once per boot or in every round.",
            choices=("once", "always"),
        ),
        _verifier(
            "severity_labels",
            Kind.LIST,
            ("info", "notice", "warning", "error", "critical", "alert", "emergency"),
            "Names of the severity levels, ascending.",
        ),
        _verifier(
            "severity_policy",
            Kind.MAPPINGS,
            ({"event_id": ".*", "severity_label": "emergency"},),
            "Which event id (regular expression) has which severity label; the first match counts.",
        ),
        _verifier(
            "ignore_tomtou_errors",
            Kind.FLAG,
            False,
            "Accept IMA violation entries (open writers, time of measure to use) and only report them.",
        ),
        _verifier(
            "shutdown_drain_timeout",
            Kind.NUMBER,
            10.0,
            "Seconds that running work gets at a stop; never more than 4 are used.",
            minimum=0,
        ),
        _revocations(
            "enabled_revocation_notifications",
            Kind.LIST,
            ("agent",),
            "How revocations are announced: agent (HTTPS to every agent), zeromq (publisher), webhook (HTTPS "
            "to webhook_url).",
            choices=("agent", "zeromq", "webhook"),
            former=(("verifier", "enabled_revocation_notifications"),),
        ),
        _revocations(
            "zmq_ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address on which the ZeroMQ publisher listens.",
            former=(("verifier", "zmq_ip"),),
        ),
        _revocations(
            "zmq_port",
            Kind.INTEGER,
            8992,
            "Port of the ZeroMQ publisher.",
            minimum=0,
            maximum=65535,
            former=(("verifier", "zmq_port"),),
        ),
        _revocations(
            "webhook_url",
            Kind.TEXT,
            "",
            "Where the webhook posts revocations to; the receiver's certificate must come from "
            "trusted_server_ca.",
            former=(("verifier", "webhook_url"),),
        ),
        _revocations(
            "webhook_allow_http", Kind.FLAG, False, "Accept a webhook_url with plain HTTP, unprotected."
        ),
        _revocations(
            "retention",
            Kind.NUMBER,
            604800.0,
            "Seconds during which a revocation is offered to a target that does not take it.",
            minimum=0,
        ),
        _revocations(
            "history",
            Kind.NUMBER,
            2592000.0,
            "Seconds for which revocations are kept after their last delivery ended.",
            minimum=0,
        ),
        # Known from existing files, without effect today.
        _ignored("registrar_ip", Kind.ADDRESS, "127.0.0.1", "Registrar; not used by the verifier."),
        _ignored("registrar_port", Kind.INTEGER, 8891, "Registrar; not used by the verifier."),
        _ignored("authorization_provider", Kind.TEXT, "simple", "Access-control module."),
        _verifier(
            "require_allow_list_signatures",
            Kind.FLAG,
            False,
            "Accept only runtime policies that are signed, with the key they are to be verified with.",
        ),
        *shared.durable_attestation("verifier", signed_attributes=()),
        _ignored("mode", Kind.TEXT, "pull", "Attestation model; only pull is served."),
        _ignored("challenge_lifetime", Kind.INTEGER, 1800, "Push model."),
        _ignored("verification_timeout", Kind.INTEGER, 0, "Push model."),
        _ignored("session_create_rate_limit_per_ip", Kind.INTEGER, 50, "Push model."),
        _ignored("session_create_rate_limit_window_ip", Kind.INTEGER, 60, "Push model."),
        _ignored("session_create_rate_limit_per_agent", Kind.INTEGER, 15, "Push model."),
        _ignored("session_create_rate_limit_window_agent", Kind.INTEGER, 60, "Push model."),
        _ignored("session_lifetime", Kind.INTEGER, 180, "Push model."),
        _ignored("nonce_lifetime", Kind.INTEGER, 60, "Push model."),
        _ignored("extend_token_on_attestation", Kind.FLAG, True, "Push model."),
        _ignored("auto_recover_attestation_failures", Kind.FLAG, False, "Push model."),
        _ignored("log_destination", Kind.TEXT, "", "Log file; messages go to standard output."),
    ),
)
