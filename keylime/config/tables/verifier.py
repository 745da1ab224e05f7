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
            packaged=shared.EVERYWHERE,
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
            "resume_after_silence",
            Kind.FLAG,
            True,
            "Ask agents on that were failed because they did not answer; the next good attestation brings "
            "them back. If not, they wait for an operator. Agents that answer are asked on in any case.",
        ),
        _verifier(
            "silence_interval",
            Kind.NUMBER,
            15.0,
            "Seconds between two questions to such an agent; more where that would be over a hundred in a "
            "second.",
            minimum=1,
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
        *shared.metrics("verifier"),
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
        _verifier(
            "max_stranger_bodies",
            Kind.INTEGER,
            64 << 20,
            "Bytes that the request bodies of all callers without an administrator's certificate may have "
            "together, in each process.",
            minimum=1 << 20,
        ),
        _verifier(
            "max_evidence_size",
            Kind.INTEGER,
            4 << 20,
            "Largest body of POST /verify/evidence in bytes.",
            minimum=1024,
        ),
        _verifier(
            "evidence_workers",
            Kind.INTEGER,
            1,
            "Processes that judge such evidence beside each process of the verifier, while there is any.",
            minimum=1,
            maximum=64,
        ),
        _verifier(
            "evidence_memory",
            Kind.INTEGER,
            512 << 20,
            "Bytes of memory that judging one piece of evidence may take.",
            minimum=32 << 20,
        ),
        _verifier(
            "evidence_cpu_time",
            Kind.INTEGER,
            10,
            "Seconds of CPU time that judging one piece of evidence may take.",
            minimum=1,
        ),
        _verifier(
            "policy_versions",
            Kind.INTEGER,
            20,
            "How many versions of each named policy are kept to roll back to, the current one included.",
            minimum=1,
            maximum=1000,
        ),
        _verifier(
            "history_retention",
            Kind.NUMBER,
            31536000.0,
            "Seconds for which it is kept what happened to agents and policies, also to deleted ones; 0: for "
            "good.",
            minimum=0,
        ),
        _verifier(
            "events_log",
            Kind.TEXT,
            "",
            "Where every event (GET /events) is written as one line of JSON: log for the verifier's own log, "
            "or a file, relative to the working directory; empty: nowhere.",
        ),
        _verifier(
            "measured_boot_policy_name",
            Kind.TEXT,
            "accept-all",
            "Name of the boot-log policy: accept-all, reject-all, example, components (which judges "
            "reference states of example as well), one named by a boot chain (shim-grub, uki, systemd-boot, "
            "efi-stub, unmeasured-loader), or one that measured_boot_imports offers. With any other the "
            "verifier does not start.",
        ),
        _verifier(
            "measured_boot_imports", Kind.LIST, (), "Python modules that define further boot-log policies."
        ),
        _verifier(
            "measured_boot_explained_pcrs",
            Kind.TEXT,
            "automatic",
            "PCRs that the logs of a boot must explain: firmware (0-7), boot (0-9, 12-14), all (0-9, 11-15), "
            "or automatic: those that the policy rests on, else all, but 9, 11 and 15 of a machine with a "
            "unified kernel only once its agent sends the operating system's log. A reference state may say "
            "otherwise.",
            choices=("automatic", "firmware", "boot", "all"),
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
            "mode",
            Kind.TEXT,
            "both",
            "Whom the verifier attests: pull (agents that it asks itself), push (agents that attest by "
            "themselves, API 3.0), or both side by side.",
            choices=("pull", "push", "both"),
        ),
        _verifier(
            "challenge_lifetime",
            Kind.INTEGER,
            1800,
            "Seconds for which an agent that attests by itself may answer a challenge.",
            minimum=1,
        ),
        _verifier(
            "nonce_lifetime",
            Kind.INTEGER,
            60,
            "Seconds that such an agent has to prove that it holds its AK.",
            minimum=1,
        ),
        _verifier(
            "session_lifetime",
            Kind.INTEGER,
            180,
            "Seconds for which it may use the token that it gets then.",
            minimum=1,
        ),
        _verifier(
            "extend_token_on_attestation",
            Kind.FLAG,
            True,
            "Let every attestation that passes lengthen the life of the token, to session_lifetime from then "
            "on.",
        ),
        _verifier(
            "verification_timeout",
            Kind.INTEGER,
            0,
            "Seconds for which such an agent waits for the verdict on its evidence before it may attest "
            "again.",
            minimum=0,
        ),
        _verifier(
            "auto_recover_attestation_failures",
            Kind.FLAG,
            False,
            "Let an attestation that passes end the failure of such an agent. If not, an operator does "
            "(`keylime_tenant -c reactivate`).",
        ),
        _verifier(
            "session_create_rate_limit_per_ip",
            Kind.INTEGER,
            50,
            "Sessions that may be begun from an address and are not proven, in "
            "session_create_rate_limit_window_ip seconds.",
            minimum=1,
        ),
        _verifier(
            "session_create_rate_limit_window_ip",
            Kind.INTEGER,
            60,
            "Seconds for which session_create_rate_limit_per_ip counts.",
            minimum=1,
        ),
        _verifier(
            "session_create_rate_limit_per_agent",
            Kind.INTEGER,
            15,
            "The same of one agent from one address, in session_create_rate_limit_window_agent seconds.",
            minimum=1,
        ),
        _verifier(
            "session_create_rate_limit_window_agent",
            Kind.INTEGER,
            60,
            "Seconds for which session_create_rate_limit_per_agent counts.",
            minimum=1,
        ),
        _verifier(
            "attestation_history",
            Kind.NUMBER,
            604800.0,
            "Seconds for which attestations of agents that attest by themselves are kept: the first pass of "
            "each boot, and failures. The latest is kept in any case.",
            minimum=0,
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
            "max_agents_notified",
            Kind.INTEGER,
            10_000,
            "Agents of this verifier up to which each is told of revocations by a request (channel agent). "
            "With more of them new revocations go out over the other enabled channels only; where none is "
            "enabled, agents are told all the same. 0 means no limit.",
            minimum=0,
        ),
        _revocations(
            "zmq_ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address on which the ZeroMQ publisher listens.",
            former=(("verifier", "zmq_ip"),),
            packaged=shared.EVERYWHERE,
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
            "webhook_events",
            Kind.FLAG,
            False,
            "Post every event (GET /events) to webhook_url as well, as a message of the type event.",
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
        _ignored(
            "authorization_provider",
            Kind.TEXT,
            "simple",
            "Access-control module.",
            refusal="this release has no other access control than administrators' certificates",
        ),
        _verifier(
            "require_allow_list_signatures",
            Kind.FLAG,
            False,
            "Accept only runtime policies that are signed, with the key they are to be verified with.",
        ),
        *shared.durable_attestation("verifier", signed_attributes=()),
        _ignored("log_destination", Kind.TEXT, "", "Log file; messages go to standard output."),
    ),
)
