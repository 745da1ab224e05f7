BEGIN TRANSACTION;
CREATE TABLE agents (
	agent_id VARCHAR(80) NOT NULL, 
	incarnation VARCHAR(32) NOT NULL, 
	ip VARCHAR(255) NOT NULL, 
	port INTEGER NOT NULL, 
	mtls_cert TEXT, 
	ak_tpm TEXT NOT NULL, 
	supported_version VARCHAR(16) NOT NULL, 
	verifier_id VARCHAR(100) NOT NULL, 
	verifier_ip VARCHAR(255), 
	verifier_port INTEGER, 
	v TEXT, 
	revocation_key TEXT NOT NULL, 
	meta_data TEXT NOT NULL, 
	tpm_policy TEXT NOT NULL, 
	runtime_policy VARCHAR(255) NOT NULL, 
	measured_boot_policy VARCHAR(255), 
	ima_sign_verification_keys TEXT NOT NULL, 
	accept_tpm_hash_algs TEXT NOT NULL, 
	accept_tpm_encryption_algs TEXT NOT NULL, 
	accept_tpm_signing_algs TEXT NOT NULL, 
	operational_state INTEGER NOT NULL, 
	severity_level INTEGER, 
	last_event_id VARCHAR(255), 
	last_findings TEXT, 
	attestation_count INTEGER NOT NULL, 
	last_received_quote INTEGER NOT NULL, 
	last_successful_attestation INTEGER NOT NULL, 
	unreachable_since INTEGER, 
	hash_alg VARCHAR(16) NOT NULL, 
	enc_alg VARCHAR(16) NOT NULL, 
	sign_alg VARCHAR(16) NOT NULL, 
	v_delivered_to TEXT, 
	checkpoint TEXT, 
	PRIMARY KEY (agent_id)
);
INSERT INTO "agents" VALUES('agent-1','e7e0b05ad4cc4d0a80879370adc38953','127.0.0.1',43857,'-----BEGIN CERTIFICATE-----
MIIBODCB36ADAgECAhRmykkPn1J/bWGptB8e0gU1kjoiKDAKBggqhkjOPQQDAjAS
MRAwDgYDVQQDDAdhZ2VudC0xMB4XDTI2MTEyMTIzMTE0MloXDTI2MTIyMjIzMTE0
MlowEjEQMA4GA1UEAwwHYWdlbnQtMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BPH6z3KjwRS/hA2KlRcgJDh+4rq/Yu5iEIhiD2QZ4aT/cAPpm1Qhz5IdrwWOHD7h
6bLwsBKsdeUQxQD1wAG1XYCjEzARMA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIgOexk7F2O2UPijJZCSU/TQhH5aB8pZuJ64+eQAwzPyJECIQDeo5h0
sgEvx5NF9MC91Aldcm70YPeWImyKti0jrOrrTQ==
-----END CERTIFICATE-----
','AFgAIwALAAUAcgAAABAAGAALAAMAEAAgoxRpkJayfNpbfnqKazh7ESK4e2cIvA0G+OHkpbURUB4AIJjfN0BNGny7lWjWqaBifBPtsELQM0/DuWADV/arfbg+','2.5','site-a','127.0.0.1',8881,'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=','','{}','{"mask": "0x0"}','agent-1',NULL,'','["sha256"]','["ecc", "rsa"]','["ecdsa", "rsassa"]',3,NULL,NULL,NULL,63,1795389106,1795389106,NULL,'sha256','ecc256','ecdsa','-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo
pQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S
X3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y
dtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD
C0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6
5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be
cwIDAQAB
-----END PUBLIC KEY-----
','{"boot":{"reset_count":1,"restart_count":0,"clock":1441,"boottime":1700000000},"ima":{"next_entry":1,"pcr":"TbBfACiK6fjyDUTrF+G91EtxF43gIGWUDdgC7LaTq0M=","bank":"sha256","extend_mode":"native","matched":0,"length":0,"keyrings":[],"device_mapper":{"devices":[]},"kexec":false},"ima_policy":"57ed081904452a82c964fe3ab2f76741215aea2a6a6b2457ca8dbf8c79fece36","public_key":"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo\npQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S\nX3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y\ndtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD\nC0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6\n5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be\ncwIDAQAB\n-----END PUBLIC KEY-----\n","evaluated_boot":null,"incomplete_rounds":0,"reboots":0,"firmware_version":2312897626142815798}');
INSERT INTO "agents" VALUES('agent-2','4f993497ff2c4401a8ad798ab02b3f22','127.0.0.1',43459,'-----BEGIN CERTIFICATE-----
MIIBODCB36ADAgECAhQHl8O3lHZWihc9u0/LCkgGljJRDzAKBggqhkjOPQQDAjAS
MRAwDgYDVQQDDAdhZ2VudC0yMB4XDTI2MTEyMTIzMTE0MloXDTI2MTIyMjIzMTE0
MlowEjEQMA4GA1UEAwwHYWdlbnQtMjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BLblFtRvttEMGsZRjkP4jlliUDChctHbaSNyM/92429toECk0bW9/iPOtfZH/D6e
n2x2zbiJnxLfqZeW5T6C5rmjEzARMA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIgYX0le2DPX3szBFXSo5YQnsGH9SC8dLmYapLVeoWGNnACIQDwsOC8
XUXr7wQrDEQE5RHwF3GQAGqQr6ttEoXhpKQpIw==
-----END CERTIFICATE-----
','AFgAIwALAAUAcgAAABAAGAALAAMAEAAgoxRpkJayfNpbfnqKazh7ESK4e2cIvA0G+OHkpbURUB4AIJjfN0BNGny7lWjWqaBifBPtsELQM0/DuWADV/arfbg+','2.5','site-a','127.0.0.1',8881,'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=','','{}','{"mask": "0x0"}','agent-2',NULL,'','["sha256"]','["ecc", "rsa"]','["ecdsa", "rsassa"]',9,6,'ima.validation.ima-ng.not_in_allowlist','[{"event_id":"ima.validation.ima-ng.not_in_allowlist","severity":"emergency","explanation":"/usr/bin/backdoor was measured, but the runtime policy''s digests do not list it; hint: add it with the digest seen, if it belongs on the machine","path":"/usr/bin/backdoor","log_index":1,"observed":"b5c1fb2efc6d6b4674c2fdcc48ce01b43a3b7c03763c0c3355de0099ee0f8c73","expected":[]}]',12,1795389104,1795389104,NULL,'sha256','ecc256','ecdsa','-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo
pQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S
X3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y
dtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD
C0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6
5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be
cwIDAQAB
-----END PUBLIC KEY-----
','{"boot":{"reset_count":1,"restart_count":0,"clock":1084,"boottime":1700000000},"ima":{"next_entry":0,"pcr":null,"bank":"","extend_mode":null,"matched":0,"length":0,"keyrings":[],"device_mapper":{"devices":[]},"kexec":false},"ima_policy":"57ed081904452a82c964fe3ab2f76741215aea2a6a6b2457ca8dbf8c79fece36","public_key":"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo\npQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S\nX3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y\ndtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD\nC0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6\n5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be\ncwIDAQAB\n-----END PUBLIC KEY-----\n","evaluated_boot":null,"incomplete_rounds":0,"reboots":0,"firmware_version":2312897626142815798}');
INSERT INTO "agents" VALUES('agent-3','ba4c1af6003d476289a59584d8ed7b81','127.0.0.1',38199,'-----BEGIN CERTIFICATE-----
MIIBODCB36ADAgECAhQoogOzOgRNsMKMFsA7JD4k+t9awTAKBggqhkjOPQQDAjAS
MRAwDgYDVQQDDAdhZ2VudC0zMB4XDTI2MTEyMTIzMTE0MloXDTI2MTIyMjIzMTE0
MlowEjEQMA4GA1UEAwwHYWdlbnQtMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BIXMNhCD9oj3lpfAPE+1jw5qCpnA+BncP6+tzHow3kXcKNl9FzWpwGOTyyQala83
LOHEG8/mz/WHYeoXUf4w3P+jEzARMA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIhAJGqsLX4DWAgw3Iof3g09Ft8k1vxft2jbpllBp5siQU3AiAbFTkr
5ZlZFRo6xFYOjqJ2dQea1TXVRT66zP/HgTot0g==
-----END CERTIFICATE-----
','AFgAIwALAAUAcgAAABAAGAALAAMAEAAgoxRpkJayfNpbfnqKazh7ESK4e2cIvA0G+OHkpbURUB4AIJjfN0BNGny7lWjWqaBifBPtsELQM0/DuWADV/arfbg+','2.5','site-a','127.0.0.1',8881,'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=','','{}','{"mask": "0x0"}','agent-3',NULL,'','["sha256"]','["ecc", "rsa"]','["ecdsa", "rsassa"]',10,NULL,NULL,NULL,16,1795389104,1795389104,NULL,'','','',NULL,'{"boot":null,"ima":{"next_entry":0,"pcr":null,"bank":"","extend_mode":null,"matched":0,"length":0,"keyrings":[],"device_mapper":{"devices":[]},"kexec":false},"ima_policy":null,"public_key":null,"evaluated_boot":null,"incomplete_rounds":0,"reboots":0,"firmware_version":null}');
INSERT INTO "agents" VALUES('agent-4','d0dad23960c04608806c53d2d6a750c6','127.0.0.1',37105,'-----BEGIN CERTIFICATE-----
MIIBODCB36ADAgECAhRcwVnTOtUA/eeendUCeoI2ec2QiDAKBggqhkjOPQQDAjAS
MRAwDgYDVQQDDAdhZ2VudC00MB4XDTI2MTEyMTIzMTE0MloXDTI2MTIyMjIzMTE0
MlowEjEQMA4GA1UEAwwHYWdlbnQtNDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BN2OeZ2ickvIQPCDKr9/CiiMfspkvl3KLSNFI7o/uDHt6fOGUWp0qQfh4QpX1/BI
Ham7UYaRTc8ivmEpxB2XuvijEzARMA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIhAJyScYmy+YNKcvd4dt+XSYwRBcvUAQpK4oRXChP2h0IOAiAkGOVw
e2HY46ujEW1gzIF3BDb2tpTulLrKfuGPKrnfvw==
-----END CERTIFICATE-----
','AFgAIwALAAUAcgAAABAAGAALAAMAEAAgoxRpkJayfNpbfnqKazh7ESK4e2cIvA0G+OHkpbURUB4AIJjfN0BNGny7lWjWqaBifBPtsELQM0/DuWADV/arfbg+','2.5','site-a','127.0.0.1',8881,'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=','','{}','{"mask": "0x0"}','agent-4',NULL,'','["sha256"]','["ecc", "rsa"]','["ecdsa", "rsassa"]',3,NULL,NULL,NULL,56,1795389106,1795389106,NULL,'sha256','ecc256','ecdsa','-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo
pQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S
X3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y
dtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD
C0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6
5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be
cwIDAQAB
-----END PUBLIC KEY-----
','{"boot":{"reset_count":1,"restart_count":0,"clock":1392,"boottime":1700000000},"ima":{"next_entry":1,"pcr":"TbBfACiK6fjyDUTrF+G91EtxF43gIGWUDdgC7LaTq0M=","bank":"sha256","extend_mode":"native","matched":0,"length":0,"keyrings":[],"device_mapper":{"devices":[]},"kexec":false},"ima_policy":"57ed081904452a82c964fe3ab2f76741215aea2a6a6b2457ca8dbf8c79fece36","public_key":"-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAjjquZmPW6wBSYzgPTgPo\npQdvA94I/mqB4B9gH2ZaYGWEuSXpJF1rsDHpna/VtsQoEg040FIWMjx9wFcTPS2S\nX3IFaQ4zZwq7pNcVIEJUGsJ0kh2H3vGoorCBXY1p2zxZY9oVCamvEUKqucF6Ga9y\ndtwRA9jiZFokV5yJctGIi3Tbw2Hdo4JmdWvmuFGwfxhDWqFjUApg8qHVZYOxJsvD\nC0YxF6AHo2o/xhjgdnW4oTp1EP2P5vwooofNqPk1TVPWNf2W/E8uT43Y6kQUNBu6\n5y4rB2zez/eKvIDmYalh8cSm7ii9UnfOk8tPcMr0KpjLJxx4Yh96QInvlEYmd5be\ncwIDAQAB\n-----END PUBLIC KEY-----\n","evaluated_boot":null,"incomplete_rounds":0,"reboots":0,"firmware_version":2312897626142815798}');
CREATE TABLE deliveries (
	revocation_id VARCHAR(32) NOT NULL, 
	channel VARCHAR(16) NOT NULL, 
	target VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempts INTEGER NOT NULL, 
	last_error TEXT, 
	updated_at INTEGER NOT NULL, 
	PRIMARY KEY (revocation_id, channel, target), 
	FOREIGN KEY(revocation_id) REFERENCES revocations (revocation_id) ON DELETE CASCADE
);
INSERT INTO "deliveries" VALUES('77ad352224024ca1b83d00e349bd6531','agent','agent-1','pending',6,'the agent answered 503 busy',1795389105);
INSERT INTO "deliveries" VALUES('77ad352224024ca1b83d00e349bd6531','agent','agent-2','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('77ad352224024ca1b83d00e349bd6531','agent','agent-3','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('77ad352224024ca1b83d00e349bd6531','agent','agent-4','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('77ad352224024ca1b83d00e349bd6531','agent','gone','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('f43c28b5a47b4a8d9729633fa3229f51','agent','agent-1','pending',4,'the agent answered 503 busy',1795389105);
INSERT INTO "deliveries" VALUES('f43c28b5a47b4a8d9729633fa3229f51','agent','agent-2','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('f43c28b5a47b4a8d9729633fa3229f51','agent','agent-3','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('f43c28b5a47b4a8d9729633fa3229f51','agent','agent-4','delivered',1,NULL,1795389104);
INSERT INTO "deliveries" VALUES('f43c28b5a47b4a8d9729633fa3229f51','agent','gone','delivered',1,NULL,1795389104);
CREATE TABLE keylime_verifier_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT keylime_verifier_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "keylime_verifier_schema" VALUES('v0001');
CREATE TABLE policies (
	kind VARCHAR(16) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	content_hash VARCHAR(64) NOT NULL, 
	tpm_policy TEXT, 
	PRIMARY KEY (kind, name), 
	FOREIGN KEY(content_hash) REFERENCES policy_texts (content_hash)
);
INSERT INTO "policies" VALUES('runtime','agent-1','0d46a0a7596f03018540284ee12a40717a94095ad386b348203309fa75bec343',NULL);
INSERT INTO "policies" VALUES('runtime','agent-2','0d46a0a7596f03018540284ee12a40717a94095ad386b348203309fa75bec343',NULL);
INSERT INTO "policies" VALUES('runtime','agent-3','0d46a0a7596f03018540284ee12a40717a94095ad386b348203309fa75bec343',NULL);
INSERT INTO "policies" VALUES('runtime','agent-4','0d46a0a7596f03018540284ee12a40717a94095ad386b348203309fa75bec343',NULL);
CREATE TABLE policy_texts (
	content_hash VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (content_hash)
);
INSERT INTO "policy_texts" VALUES('0d46a0a7596f03018540284ee12a40717a94095ad386b348203309fa75bec343','{"meta": {"version": 1, "generator": 3}, "release": 0, "digests": {"boot_aggregate": ["82d74a1437289442de67bafaa596ca1bc5e179ad034296e6c3c13203225479c9"]}, "excludes": [], "keyrings": {}, "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null}, "ima-buf": {}, "verification-keys": ""}');
CREATE TABLE revocations (
	revocation_id VARCHAR(32) NOT NULL, 
	agent_id VARCHAR(80) NOT NULL, 
	created_at INTEGER NOT NULL, 
	message TEXT NOT NULL, 
	signature TEXT NOT NULL, 
	PRIMARY KEY (revocation_id)
);
INSERT INTO "revocations" VALUES('77ad352224024ca1b83d00e349bd6531','agent-2',1795389104,'{"type": "revocation", "ip": "127.0.0.1", "agent_id": "agent-2", "port": 43459, "tpm_policy": "{\"mask\": \"0x0\"}", "meta_data": "{}", "event_time": "Sun Nov 22 23:11:44 2026", "event_id": "ima.validation.ima-ng.not_in_allowlist", "severity_label": "emergency", "context": "{\"message\": \"File not found in allowlist: /usr/bin/backdoor\"}"}','');
INSERT INTO "revocations" VALUES('f43c28b5a47b4a8d9729633fa3229f51','gone',1795389104,'{"type": "revocation", "ip": "127.0.0.1", "agent_id": "gone", "port": 41617, "tpm_policy": "{\"mask\": \"0x0\"}", "meta_data": "{}", "event_time": "Sun Nov 22 23:11:44 2026", "event_id": "ima.validation.ima-ng.not_in_allowlist", "severity_label": "emergency", "context": "{\"message\": \"File not found in allowlist: /usr/bin/backdoor\"}"}','');
CREATE INDEX ix_policies_content_hash ON policies (content_hash);
CREATE INDEX ix_agents_verifier_id ON agents (verifier_id);
CREATE INDEX ix_deliveries_state ON deliveries (state);
COMMIT;
