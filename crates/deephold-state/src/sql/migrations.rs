//! The schema, step by step, as SQLite writes it; other databases translate its few types.

/// Each takes the database from its index to the next version; never changed once released.
pub(crate) const MIGRATIONS: [&str; 3] = [
    "CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    models TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER
) STRICT;",
    "CREATE TABLE tenants (
    name TEXT PRIMARY KEY,
    weight REAL NOT NULL,
    limits TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE projects (
    tenant TEXT NOT NULL REFERENCES tenants (name),
    name TEXT NOT NULL,
    limits TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT;
ALTER TABLE api_keys ADD COLUMN project TEXT NOT NULL DEFAULT 'default';
ALTER TABLE api_keys ADD COLUMN endpoints TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
INSERT INTO tenants (name, weight, limits, created_ms)
    SELECT tenant, 1.0, '{}', min(created_ms) FROM api_keys GROUP BY tenant;
INSERT INTO projects (tenant, name, limits, created_ms)
    SELECT tenant, 'default', '{}', min(created_ms) FROM api_keys GROUP BY tenant;
CREATE TABLE usage (
    day INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    model TEXT NOT NULL,
    replica TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost_nanos INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, project, api_key, model, replica)
) STRICT;
CREATE TABLE spending (
    subject TEXT NOT NULL,
    replica TEXT NOT NULL,
    seen_ms INTEGER NOT NULL,
    spending TEXT NOT NULL,
    PRIMARY KEY (subject, replica)
) STRICT;",
    "CREATE TABLE kept_answers (
    api_key TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    replica TEXT NOT NULL,
    until_ms INTEGER NOT NULL,
    status INTEGER,
    content_type TEXT,
    body BLOB,
    PRIMARY KEY (api_key, name)
) STRICT;
CREATE INDEX kept_answers_until ON kept_answers (until_ms);",
];

/// The version that this program knows.
pub(crate) const KNOWN: i64 = MIGRATIONS.len() as i64;
