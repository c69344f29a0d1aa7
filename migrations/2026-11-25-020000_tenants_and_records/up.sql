-- What a tenant wants for its workspaces, and the records of automation and notifications.

CREATE TABLE tenant_protocols (
    installation_id TEXT NOT NULL PRIMARY KEY,
    default_protocol TEXT NOT NULL CHECK (default_protocol IN ('acp', 'http')),
    enable_acp BOOLEAN NOT NULL,
    allow_migration BOOLEAN NOT NULL,
    auto_migration BOOLEAN NOT NULL,
    blocked_repositories TEXT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE TABLE automation_runs (
    run_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    prompt_id TEXT,
    status TEXT NOT NULL CHECK (status IN ('success', 'skipped', 'error')),
    mode TEXT NOT NULL CHECK (mode IN ('github', 'commit-only')),
    issue_number BIGINT,
    issue_url TEXT,
    pull_request_number BIGINT,
    pull_request_url TEXT,
    branch TEXT,
    commit_sha TEXT,
    skip_reason TEXT CHECK (skip_reason IN (
        'repoBlocked', 'missingCredential', 'automationDisabled', 'rateLimited', 'workspaceRollback', 'other'
    )),
    skip_detail TEXT CHECK (skip_detail IN (
        'env-disabled', 'config-disabled', 'gitops-off', 'caller-skip', 'missing-repository', 'no-changes',
        'nothing-staged', 'blocked-by-pattern', 'no-installation', 'token-refused', 'primary-limit',
        'secondary-limit', 'fallback-cannot'
    )),
    duration_ms BIGINT NOT NULL CHECK (duration_ms >= 0),
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    error_code TEXT,
    logs TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    CHECK ((status = 'skipped') = (skip_reason IS NOT NULL))
);

CREATE INDEX automation_runs_by_age ON automation_runs (created_us, run_id);
CREATE INDEX automation_runs_by_tenant ON automation_runs (installation_id, created_us, run_id);
CREATE INDEX automation_runs_by_workspace ON automation_runs (installation_id, workspace_id, created_us, run_id);
CREATE INDEX automation_runs_by_session ON automation_runs (session_id, created_us, run_id);

-- Toasts: what was told, and what is still to be told.
CREATE TABLE notifications (
    notification_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    seq BIGINT NOT NULL,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    trigger TEXT NOT NULL,
    auto_dismiss_ms BIGINT NOT NULL CHECK (auto_dismiss_ms >= 0),
    cause_id TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    delivered_us BIGINT
);

CREATE INDEX notifications_by_age ON notifications (created_us, notification_id);
CREATE INDEX notifications_by_tenant ON notifications (installation_id, created_us, notification_id);
CREATE INDEX notifications_by_workspace
    ON notifications (installation_id, workspace_id, created_us, notification_id);
CREATE INDEX notifications_by_session ON notifications (session_id, created_us, notification_id);
-- What is still to be told. Small, because nearly all has been.
CREATE INDEX notifications_undelivered ON notifications (created_us) WHERE delivered_us IS NULL;

-- Figures of a period. Turns are appended at its end, so it costs a turn about 2 us.
CREATE INDEX prompts_by_age ON prompts (accepted_us);
