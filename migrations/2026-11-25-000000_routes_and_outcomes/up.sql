-- What carries the turns of each workspace, every change of it, and the counts by which it is decided.

-- The whole state stands in `routing` as JSON; the columns beside it are what lists ask for.
CREATE TABLE workspace_routes (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch >= 0),
    route TEXT NOT NULL CHECK (route IN ('acp', 'http')),
    default_protocol TEXT NOT NULL CHECK (default_protocol IN ('acp', 'http')),
    is_pinned BOOLEAN NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('closed', 'open', 'halfOpen', 'recovering')),
    routing TEXT NOT NULL,
    migration_enabled BOOLEAN NOT NULL DEFAULT TRUE,
    auto_rollout BOOLEAN NOT NULL DEFAULT FALSE,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    PRIMARY KEY (installation_id, workspace_id)
);

-- Lists, newest first; of all tenants, and of one. And what is not simply on ACP: a few of many.
CREATE INDEX workspace_routes_by_age ON workspace_routes (created_us, installation_id, workspace_id);
CREATE INDEX workspace_routes_by_tenant ON workspace_routes (installation_id, created_us, workspace_id);
CREATE INDEX workspace_routes_off_acp ON workspace_routes (created_us, installation_id, workspace_id)
    WHERE route = 'http' OR stage <> 'closed';

-- One row for each flip of a workspace (with an epoch), and for each step of a migration run.
CREATE TABLE protocol_migrations (
    migration_id TEXT NOT NULL PRIMARY KEY,
    run_id TEXT,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    from_protocol TEXT NOT NULL CHECK (from_protocol IN ('acp', 'http')),
    to_protocol TEXT NOT NULL CHECK (to_protocol IN ('acp', 'http')),
    epoch BIGINT CHECK (epoch > 0),
    initiated_by TEXT NOT NULL CHECK (initiated_by IN ('system', 'operator', 'user')),
    actor TEXT NOT NULL,
    trigger TEXT NOT NULL CHECK (trigger IN (
        'autoThreshold', 'manualOperator', 'manualUser', 'recovery', 'pin', 'migration'
    )),
    reason TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN (
        'scheduled', 'inProgress', 'paused', 'succeeded', 'rolledBack', 'cancelled', 'failed'
    )),
    metrics_snapshot TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    completed_us BIGINT
);

-- One flip, one row, whoever writes it and however often.
CREATE UNIQUE INDEX protocol_migrations_by_epoch ON protocol_migrations (installation_id, workspace_id, epoch)
    WHERE epoch IS NOT NULL AND status = 'succeeded';
CREATE INDEX protocol_migrations_by_start ON protocol_migrations (started_us, migration_id);
CREATE INDEX protocol_migrations_by_tenant ON protocol_migrations (installation_id, started_us, migration_id);
CREATE INDEX protocol_migrations_by_workspace
    ON protocol_migrations (installation_id, workspace_id, started_us, migration_id);
CREATE INDEX protocol_migrations_by_status ON protocol_migrations (status, started_us);
CREATE INDEX protocol_migrations_by_end ON protocol_migrations (completed_us);
CREATE INDEX protocol_migrations_by_run ON protocol_migrations (run_id) WHERE run_id IS NOT NULL;

CREATE TABLE rollback_events (
    event_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch > 0),
    kind TEXT NOT NULL CHECK (kind IN ('rollback', 'restore')),
    trigger TEXT NOT NULL CHECK (trigger IN (
        'autoThreshold', 'manualOperator', 'manualUser', 'recovery', 'pin'
    )),
    reason_code TEXT NOT NULL CHECK (reason_code IN (
        'repoBlocked', 'missingCredential', 'automationDisabled', 'rateLimited', 'workspaceRollback', 'other',
        'capacity', 'manual', 'threshold'
    )),
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    follow_up TEXT CHECK (follow_up IN ('notifyUsers', 'scheduleReview')),
    metrics_snapshot TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    UNIQUE (installation_id, workspace_id, epoch)
);

CREATE INDEX rollback_events_by_age ON rollback_events (created_us, event_id);
CREATE INDEX rollback_events_by_tenant ON rollback_events (installation_id, created_us, event_id);
CREATE INDEX rollback_events_by_workspace ON rollback_events (installation_id, workspace_id, created_us, event_id);

-- What a window counted, so that it survives a restart. A row changes with each turn, and no indexed column of it.
CREATE TABLE outcome_buckets (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch >= 0),
    route TEXT NOT NULL CHECK (route IN ('acp', 'http')),
    bucket_us BIGINT NOT NULL,
    successes BIGINT NOT NULL CHECK (successes >= 0),
    failures BIGINT NOT NULL CHECK (failures >= 0),
    PRIMARY KEY (installation_id, workspace_id, epoch, route, bucket_us)
);

-- What retention looks for.
CREATE INDEX outcome_buckets_by_age ON outcome_buckets (bucket_us);

-- The workspace's route when a turn began, what carried the turn, and whether it tried ACP for a workspace that is
-- rolled back. A version that does not know these columns writes turns over ACP, which is what it can do.
ALTER TABLE prompts ADD COLUMN route TEXT NOT NULL DEFAULT 'acp' CHECK (route IN ('acp', 'http'));
ALTER TABLE prompts ADD COLUMN protocol TEXT NOT NULL DEFAULT 'acp' CHECK (protocol IN ('acp', 'http'));
ALTER TABLE prompts ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0 CHECK (epoch >= 0);
ALTER TABLE prompts ADD COLUMN is_canary BOOLEAN NOT NULL DEFAULT FALSE;
