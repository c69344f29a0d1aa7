-- One text for SQLite and PostgreSQL: ids are TEXT and made by the application, points in time are
-- microseconds since 1970 in UTC (`*_us`), JSON is TEXT. The tenant (installation_id) and the workspace
-- stand in every table.

CREATE TABLE workspaces (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    folder_id TEXT NOT NULL UNIQUE,
    repository TEXT,
    branch TEXT,
    path TEXT,
    workspace_path TEXT,
    permission_policy TEXT CHECK (permission_policy IN ('allow-once', 'allow-always', 'reject', 'ask')),
    created_us BIGINT NOT NULL,
    last_used_us BIGINT NOT NULL,
    PRIMARY KEY (installation_id, workspace_id)
);

-- Lists, newest first; of all tenants, and of one.
CREATE INDEX workspaces_by_age ON workspaces (created_us, installation_id, workspace_id);
CREATE INDEX workspaces_by_tenant ON workspaces (installation_id, created_us, workspace_id);

CREATE TABLE sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    user_id TEXT,
    agent TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('development', 'conversation')),
    enable_git_ops BOOLEAN NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'starting', 'idle', 'running', 'hibernated', 'expired', 'interrupted', 'failed', 'closed'
    )),
    failure_code TEXT,
    failure_detail TEXT,
    agent_session_id TEXT,
    mcp_servers TEXT NOT NULL,
    protocol TEXT NOT NULL CHECK (protocol IN ('acp', 'http')),
    protocol_version INTEGER,
    agent_facts TEXT,
    restarts INTEGER NOT NULL CHECK (restarts >= 0),
    last_event_id BIGINT NOT NULL CHECK (last_event_id >= 0),
    created_us BIGINT NOT NULL,
    last_used_us BIGINT NOT NULL,
    FOREIGN KEY (installation_id, workspace_id) REFERENCES workspaces (installation_id, workspace_id)
);

-- Lists, newest first: of everything, of a tenant or one of its workspaces, of a user. The state stands
-- in none of them: it changes with every turn, and PostgreSQL rewrites a row in place only as long as no
-- indexed column changes.
CREATE INDEX sessions_by_age ON sessions (created_us, session_id);
CREATE INDEX sessions_by_tenant ON sessions (installation_id, created_us, session_id);
CREATE INDEX sessions_by_workspace ON sessions (installation_id, workspace_id, created_us, session_id);
CREATE INDEX sessions_by_user ON sessions (user_id, created_us, session_id);

CREATE TABLE prompts (
    prompt_id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    idempotency_key TEXT,
    body_hash TEXT,
    state TEXT NOT NULL CHECK (state IN (
        'accepted', 'running', 'completed', 'cancelled', 'failed', 'interrupted'
    )),
    preview TEXT NOT NULL,
    result TEXT,
    error_code TEXT,
    error_detail TEXT,
    accepted_us BIGINT NOT NULL,
    ended_us BIGINT,
    CHECK ((ended_us IS NULL) = (state IN ('accepted', 'running'))),
    CHECK ((idempotency_key IS NULL) = (body_hash IS NULL))
);

-- One key, one execution. Most turns have none and cost nothing here.
CREATE UNIQUE INDEX prompts_by_key ON prompts (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Turns that have not ended: what a restart looks for. Small, because nearly all have.
CREATE INDEX prompts_open ON prompts (session_id) WHERE ended_us IS NULL;

CREATE TABLE transcript_entries (
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    seq BIGINT NOT NULL CHECK (seq > 0),
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    prompt_id TEXT,
    event_type TEXT NOT NULL,
    text TEXT NOT NULL,
    payload TEXT,
    created_us BIGINT NOT NULL,
    PRIMARY KEY (session_id, seq)
);
