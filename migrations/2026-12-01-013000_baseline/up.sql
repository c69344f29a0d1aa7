-- The baseline schema, the same text for SQLite and PostgreSQL.
--
-- Conventions: ids are TEXT and made by the application; points in time are microseconds since 1970-01-01 UTC in BIGINT
-- columns named `*_us`; JSON is TEXT. `installation_id` is the tenant, and with `workspace_id` the key of a workspace.
-- Columns with a closed list of words have no CHECK, also none that names one of the words: an older version reads words
-- that it does not know, and a list in the schema would have to be rebuilt on SQLite, table and all, for each new word.

-- Names this database, so that a cursor of another one is recognised. One row, made at the first start.
CREATE TABLE identity (
    one BOOLEAN NOT NULL PRIMARY KEY CHECK (one),
    epoch TEXT NOT NULL
);

-- The supervisors that use this database; until replicas exist, at most one row has not expired. Times are by the
-- database's clock. `epoch` counts the take-overs; a row that was given back expires at 0 and keeps its epoch.
CREATE TABLE replicas (
    id TEXT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL CHECK (epoch > 0),
    address TEXT NOT NULL,
    -- Identifies the process, so that a successor on the same machine recognises its end.
    process TEXT NOT NULL,
    expires_us BIGINT NOT NULL
);

-- The oldest schema whose programs may use this database; '0' for any. A step that takes something away from older
-- programs sets its own version here; a step that only adds leaves the value.
CREATE TABLE schema_compatibility (
    one BOOLEAN NOT NULL PRIMARY KEY CHECK (one),
    oldest TEXT NOT NULL
);

INSERT INTO schema_compatibility (one, oldest) VALUES (TRUE, '0');

-- Workspaces and their sessions ------------------------------------------------------------------------------------

CREATE TABLE workspaces (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    folder_id TEXT NOT NULL UNIQUE,
    repository TEXT,
    branch TEXT,
    path TEXT,
    workspace_path TEXT,
    permission_policy TEXT,
    created_us BIGINT NOT NULL,
    last_used_us BIGINT NOT NULL,
    -- True if the folder is removed with the last session of the workspace.
    is_ephemeral BOOLEAN NOT NULL DEFAULT FALSE,
    -- When the folder was removed; NULL while it is there. The next session creates it again.
    removed_us BIGINT,
    PRIMARY KEY (installation_id, workspace_id)
);

-- Folders that may be removed: the longest unused first.
CREATE INDEX workspaces_with_folder ON workspaces (last_used_us) WHERE path IS NULL AND removed_us IS NULL;
-- Lists, newest first: of all tenants, and of one.
CREATE INDEX workspaces_by_age ON workspaces (created_us, installation_id, workspace_id);
CREATE INDEX workspaces_by_tenant ON workspaces (installation_id, created_us, workspace_id);

CREATE TABLE sessions (
    session_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    user_id TEXT,
    agent TEXT NOT NULL,
    mode TEXT NOT NULL,
    enable_git_ops BOOLEAN NOT NULL,
    state TEXT NOT NULL,
    failure_code TEXT,
    failure_detail TEXT,
    agent_session_id TEXT,
    mcp_servers TEXT NOT NULL,
    protocol TEXT NOT NULL,
    protocol_version INTEGER,
    agent_facts TEXT,
    -- The last confirmed mode, model and options of the agent, which a fresh agent gets before its first prompt.
    choices TEXT,
    restarts INTEGER NOT NULL CHECK (restarts >= 0),
    last_event_id BIGINT NOT NULL CHECK (last_event_id >= 0),
    created_us BIGINT NOT NULL,
    last_used_us BIGINT NOT NULL,
    -- A supervisor that restarts finds an agent that still works for it by the live session's newest connection, by the
    -- cookies that route to the agent's replica, and by the number up to which the agent's output is on disk.
    connection_id TEXT,
    connection_cookies TEXT,
    settled_seq BIGINT NOT NULL DEFAULT 0,
    -- The token that opened the session, if it has limits: the session counts in them whenever it is live.
    limited_token TEXT,
    -- A session with a folder of its own: the branch that is checked out, the path once the folder was prepared, and when
    -- the folder was removed; a later load creates it again.
    is_isolated BOOLEAN NOT NULL DEFAULT FALSE,
    branch TEXT,
    folder_path TEXT,
    folder_removed_us BIGINT,
    FOREIGN KEY (installation_id, workspace_id) REFERENCES workspaces (installation_id, workspace_id)
);

-- Lists, newest first: of everything, of a tenant or one of its workspaces, of a user. No index has the state, which
-- changes with every turn: PostgreSQL updates a row in place only while no indexed column changes.
CREATE INDEX sessions_by_age ON sessions (created_us, session_id);
CREATE INDEX sessions_by_tenant ON sessions (installation_id, created_us, session_id);
CREATE INDEX sessions_by_workspace ON sessions (installation_id, workspace_id, created_us, session_id);
CREATE INDEX sessions_by_user ON sessions (user_id, created_us, session_id);
-- Hibernated sessions for the expiry sweep, the longest unused first. Turns do not touch this index: a row enters when
-- its session hibernates and leaves when the session resumes or expires.
CREATE INDEX sessions_hibernated ON sessions (last_used_us) WHERE state = 'hibernated';
-- Folders of sessions that may be removed: the longest unused first.
CREATE INDEX sessions_with_folder ON sessions (last_used_us) WHERE is_isolated AND folder_removed_us IS NULL;

-- One session for each `Idempotency-Key` of a tenant, for 24 hours, with the answer that a repeat gets.
CREATE TABLE session_keys (
    installation_id TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    answer TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    PRIMARY KEY (installation_id, idempotency_key)
);

CREATE INDEX session_keys_by_age ON session_keys (created_us);
-- For the removal of sessions.
CREATE INDEX session_keys_by_session ON session_keys (session_id);

-- Turns and transcripts --------------------------------------------------------------------------------------------

CREATE TABLE prompts (
    prompt_id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    idempotency_key TEXT,
    body_hash TEXT,
    state TEXT NOT NULL,
    preview TEXT NOT NULL,
    result TEXT,
    error_code TEXT,
    error_detail TEXT,
    accepted_us BIGINT NOT NULL,
    ended_us BIGINT,
    -- The workspace's route when the turn began, the protocol that carried the turn, the route's epoch, and whether the
    -- turn tried ACP for a workspace that is rolled back.
    route TEXT NOT NULL DEFAULT 'acp',
    protocol TEXT NOT NULL DEFAULT 'acp',
    epoch BIGINT NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    is_canary BOOLEAN NOT NULL DEFAULT FALSE,
    -- The automation that was requested for the turn's changes, so that a turn that outlives its supervisor still ends
    -- as it was requested.
    automation TEXT NOT NULL DEFAULT 'github',
    -- The conversation, by the agent's own id, of the agent that completed the turn. That conversation knows the session
    -- up to the newest turn that names it: a durable mark that costs no write of its own.
    known_by TEXT,
    -- A turn ends in two steps: in phase `automation` the agent has ended, `result` is its part of the result, and the
    -- turn is still open. The decision about automation is taken once, when the turn is accepted.
    phase TEXT NOT NULL DEFAULT 'agent',
    decision TEXT NOT NULL DEFAULT 'nothing',
    -- A caller was promised that the turn ends cancelled.
    cancel_asked BOOLEAN NOT NULL DEFAULT FALSE,
    -- `user`, or `agent` for a turn without a prompt, which the agent began by itself.
    initiator TEXT NOT NULL DEFAULT 'user',
    -- The number of the agent's last message that the end of the turn covers: a supervisor that finds the agent again
    -- ignores it and all before it.
    settled_seq BIGINT NOT NULL DEFAULT 0,
    -- The options of the requested automation, as JSON; absent for the defaults.
    automation_options TEXT,
    CHECK ((idempotency_key IS NULL) = (body_hash IS NULL))
);

-- One execution for each key. Most turns have no key and no entry here.
CREATE UNIQUE INDEX prompts_by_key ON prompts (session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Turns that have not ended, for the recovery after a restart. Small, because nearly all turns have ended.
-- A period of turns is found by the primary key, whose ids begin with their time.
CREATE INDEX prompts_open ON prompts (session_id) WHERE ended_us IS NULL;
-- For the removal of sessions, which would otherwise read every turn for each of them.
CREATE INDEX prompts_by_session ON prompts (session_id);

-- An entry is a state: updates of a message, a tool call or a plan change its row, with a new `revision`. Entries and
-- changes take their numbers from one sequence per session, so that `changed` of an entry without a change is its `seq`.
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
    revision BIGINT NOT NULL DEFAULT 1 CHECK (revision > 0),
    changed BIGINT NOT NULL CHECK (changed >= seq),
    -- The agent's id of a message; a tool call has its own in `payload`.
    message_id TEXT,
    PRIMARY KEY (session_id, seq)
);

-- Changed entries, in the order of their newest change. Entries that have not changed are found by the primary key, so
-- that most of them have no entry here.
CREATE UNIQUE INDEX transcript_changes ON transcript_entries (session_id, changed) WHERE revision > 1;

-- Routes, flips and fleet migrations -------------------------------------------------------------------------------

-- `routing` is the whole state as JSON; the columns beside it are those that lists filter by.
CREATE TABLE workspace_routes (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch >= 0),
    route TEXT NOT NULL,
    default_protocol TEXT NOT NULL,
    is_pinned BOOLEAN NOT NULL,
    stage TEXT NOT NULL,
    routing TEXT NOT NULL,
    migration_enabled BOOLEAN NOT NULL DEFAULT TRUE,
    auto_rollout BOOLEAN NOT NULL DEFAULT FALSE,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    PRIMARY KEY (installation_id, workspace_id)
);

-- Lists, newest first: of all tenants, of one, and of the few workspaces that are not simply on ACP.
CREATE INDEX workspace_routes_by_age ON workspace_routes (created_us, installation_id, workspace_id);
CREATE INDEX workspace_routes_by_tenant ON workspace_routes (installation_id, created_us, workspace_id);
CREATE INDEX workspace_routes_off_acp ON workspace_routes (created_us, installation_id, workspace_id)
    WHERE route = 'http' OR stage <> 'closed';

-- One row for each flip of a workspace, with the epoch that began, and one for each step of a migration run.
CREATE TABLE protocol_migrations (
    migration_id TEXT NOT NULL PRIMARY KEY,
    run_id TEXT,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    from_protocol TEXT NOT NULL,
    to_protocol TEXT NOT NULL,
    epoch BIGINT CHECK (epoch > 0),
    initiated_by TEXT NOT NULL,
    actor TEXT NOT NULL,
    -- The name that the caller gave, if it differs from the subject of its token.
    actor_note TEXT,
    trigger TEXT NOT NULL,
    reason TEXT NOT NULL,
    status TEXT NOT NULL,
    metrics_snapshot TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    completed_us BIGINT
);

-- One row for each flip, however often and by whichever process it is written.
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
    kind TEXT NOT NULL,
    trigger TEXT NOT NULL,
    reason_code TEXT NOT NULL,
    actor TEXT NOT NULL,
    -- The name that the caller gave, if it differs from the subject of its token.
    actor_note TEXT,
    reason TEXT NOT NULL,
    follow_up TEXT,
    metrics_snapshot TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    -- The cause of the alarm that notified operators in place of the workspace's users, for one of many rollbacks. Its
    -- users are not notified of the recovery either.
    alarm_id TEXT,
    -- Time of an automatic rollback by the database's clock, by which rollback storms are counted. NULL for other events.
    counted_us BIGINT,
    UNIQUE (installation_id, workspace_id, epoch)
);

CREATE INDEX rollback_events_by_age ON rollback_events (created_us, event_id);
CREATE INDEX rollback_events_by_tenant ON rollback_events (installation_id, created_us, event_id);
CREATE INDEX rollback_events_by_workspace ON rollback_events (installation_id, workspace_id, created_us, event_id);
CREATE INDEX rollback_events_counted ON rollback_events (counted_us) WHERE counted_us IS NOT NULL;

-- The rollback storm in progress, if there is one: its alarm was raised, and its end was not announced.
CREATE TABLE rollback_storm (
    one BOOLEAN NOT NULL PRIMARY KEY CHECK (one),
    -- The rollback event that raised the alarm.
    storm_id TEXT NOT NULL,
    since_us BIGINT NOT NULL,
    most_flipped BIGINT NOT NULL CHECK (most_flipped > 0)
);

-- The counts of success windows, so that they survive a restart. Each turn changes a row, but no indexed column of it.
CREATE TABLE outcome_buckets (
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch >= 0),
    route TEXT NOT NULL,
    bucket_us BIGINT NOT NULL,
    successes BIGINT NOT NULL CHECK (successes >= 0),
    failures BIGINT NOT NULL CHECK (failures >= 0),
    PRIMARY KEY (installation_id, workspace_id, epoch, route, bucket_us)
);

-- For retention.
CREATE INDEX outcome_buckets_by_age ON outcome_buckets (bucket_us);

-- The protocol settings of tenants.
CREATE TABLE tenant_protocols (
    installation_id TEXT NOT NULL PRIMARY KEY,
    default_protocol TEXT NOT NULL,
    enable_acp BOOLEAN NOT NULL,
    allow_migration BOOLEAN NOT NULL,
    auto_migration BOOLEAN NOT NULL,
    blocked_repositories TEXT NOT NULL,
    updated_us BIGINT NOT NULL
);

-- Limits and ceilings of tenants, as JSON.
CREATE TABLE tenant_settings (
    installation_id TEXT NOT NULL PRIMARY KEY,
    settings TEXT NOT NULL,
    updated_us BIGINT NOT NULL
);

-- Migrations of fleets: `run` is the whole state of a run as JSON.
CREATE TABLE migration_runs (
    run_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    status TEXT NOT NULL,
    -- Whether the run has not ended.
    is_open BOOLEAN NOT NULL,
    run TEXT NOT NULL,
    -- Incremented by each write, which names the version that it read: optimistic locking.
    version BIGINT NOT NULL CHECK (version > 0),
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX migration_runs_by_age ON migration_runs (created_us, run_id);
CREATE INDEX migration_runs_by_tenant ON migration_runs (installation_id, created_us, run_id);
-- Runs to resume at start. Small, because nearly all runs have ended.
CREATE INDEX migration_runs_open ON migration_runs (created_us, run_id) WHERE is_open;

-- Audit records ----------------------------------------------------------------------------------------------------

-- One row for each handshake, and in `connection_events` one for each later change of the connection's status. Nothing
-- refers to sessions: these records outlive them, and a probe has no session.
CREATE TABLE acp_connections (
    connection_row_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    connection_id TEXT,
    protocol TEXT NOT NULL,
    outcome TEXT NOT NULL,
    protocol_version INTEGER,
    agent_name TEXT,
    agent_version TEXT,
    capabilities TEXT,
    error_code TEXT,
    error_detail TEXT,
    handshake_ms BIGINT NOT NULL CHECK (handshake_ms >= 0),
    is_probe BOOLEAN NOT NULL,
    created_us BIGINT NOT NULL
);

CREATE INDEX acp_connections_by_age ON acp_connections (created_us, connection_row_id);
CREATE INDEX acp_connections_by_tenant ON acp_connections (installation_id, created_us, connection_row_id);
CREATE INDEX acp_connections_by_workspace
    ON acp_connections (installation_id, workspace_id, created_us, connection_row_id);
CREATE INDEX acp_connections_by_session ON acp_connections (session_id, created_us, connection_row_id);

CREATE TABLE connection_events (
    event_id TEXT NOT NULL PRIMARY KEY,
    connection_row_id TEXT NOT NULL,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    status TEXT NOT NULL,
    cause TEXT NOT NULL,
    health TEXT,
    created_us BIGINT NOT NULL
);

CREATE INDEX connection_events_by_connection ON connection_events (connection_row_id, created_us, event_id);
CREATE INDEX connection_events_by_age ON connection_events (created_us);

-- What automation did with the changes of a turn.
CREATE TABLE automation_runs (
    run_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    prompt_id TEXT,
    status TEXT NOT NULL,
    mode TEXT NOT NULL,
    issue_number BIGINT,
    issue_url TEXT,
    pull_request_number BIGINT,
    pull_request_url TEXT,
    branch TEXT,
    commit_sha TEXT,
    skip_reason TEXT,
    skip_detail TEXT,
    duration_ms BIGINT NOT NULL CHECK (duration_ms >= 0),
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    error_code TEXT,
    logs TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    -- The run of `automation_sagas` of which this is one attempt.
    automation_id TEXT
);

CREATE INDEX automation_runs_by_age ON automation_runs (created_us, run_id);
CREATE INDEX automation_runs_by_tenant ON automation_runs (installation_id, created_us, run_id);
CREATE INDEX automation_runs_by_workspace ON automation_runs (installation_id, workspace_id, created_us, run_id);
CREATE INDEX automation_runs_by_session ON automation_runs (session_id, created_us, run_id);

-- The state of each run of automation, from the end of its turn's agent on: `state` is JSON, absent until the run has a
-- plan. A change names the `version` that it replaces. Runs that the service tries again have `retry_us`. Runs whose commit
-- is kept at the runtime have `kept_us`, the time of their newest change.
CREATE TABLE automation_sagas (
    run_id TEXT NOT NULL PRIMARY KEY,
    prompt_id TEXT NOT NULL UNIQUE,
    session_id TEXT NOT NULL,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    version BIGINT NOT NULL CHECK (version >= 0),
    status TEXT NOT NULL,
    state TEXT,
    retry_us BIGINT,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL,
    kept_us BIGINT
);

CREATE INDEX automation_sagas_by_age ON automation_sagas (created_us, run_id);
CREATE INDEX automation_sagas_by_tenant ON automation_sagas (installation_id, created_us, run_id);
CREATE INDEX automation_sagas_by_workspace ON automation_sagas (installation_id, workspace_id, created_us, run_id);
CREATE INDEX automation_sagas_by_session ON automation_sagas (session_id, created_us, run_id);
CREATE INDEX automation_sagas_due ON automation_sagas (retry_us) WHERE retry_us IS NOT NULL;
CREATE INDEX automation_sagas_kept ON automation_sagas (kept_us) WHERE kept_us IS NOT NULL;

-- Deliveries of GitHub's webhook that start turns: `request` is JSON, with the texts of the event until the work ends. A change
-- names the `version` that it replaces. `due_us` is the time of the next work, NULL once there is none.
CREATE TABLE github_deliveries (
    delivery_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    prompt_id TEXT,
    event TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    request TEXT NOT NULL,
    version BIGINT NOT NULL CHECK (version >= 0),
    attempts BIGINT NOT NULL CHECK (attempts >= 0),
    due_us BIGINT,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX github_deliveries_by_age ON github_deliveries (created_us, delivery_id);
CREATE INDEX github_deliveries_by_tenant ON github_deliveries (installation_id, created_us, delivery_id);
CREATE INDEX github_deliveries_by_workspace ON github_deliveries (installation_id, workspace_id, created_us, delivery_id);
CREATE INDEX github_deliveries_by_session ON github_deliveries (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX github_deliveries_open ON github_deliveries (created_us, delivery_id) WHERE due_us IS NOT NULL;

-- The SHA-256 of the body of each delivery that was queued, so that none starts a second turn under another id: GitHub signs the
-- body alone. They have no data of a tenant, and outlast the erasure of the deliveries.
CREATE TABLE github_delivery_hashes (
    content_hash TEXT NOT NULL PRIMARY KEY,
    created_us BIGINT NOT NULL
);

CREATE INDEX github_delivery_hashes_by_age ON github_delivery_hashes (created_us);

-- The tenant of each installation of the GitHub App that is bound to one: the `installations` of `tenant_settings`, in a form
-- in which the database refuses a second tenant.
CREATE TABLE github_bindings (
    github_installation TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL
);

CREATE INDEX github_bindings_by_tenant ON github_bindings (installation_id);

-- Changes of capacity alerts: rows are added and never changed. `alert_id` joins the levels of one alert and their
-- resolution. `installation_id` is the tenant whose share the alert is about; NULL for the whole service.
CREATE TABLE capacity_alerts (
    event_id TEXT NOT NULL PRIMARY KEY,
    alert_id TEXT NOT NULL,
    level TEXT NOT NULL,
    kind TEXT NOT NULL,
    taken BIGINT NOT NULL CHECK (taken >= 0),
    seat_limit BIGINT NOT NULL CHECK (seat_limit > 0),
    installation_id TEXT,
    created_us BIGINT NOT NULL
);

-- Each level of an alert is raised once and resolved once.
CREATE UNIQUE INDEX capacity_alerts_once ON capacity_alerts (alert_id, level, kind);
-- Lists, newest first, and retention.
CREATE INDEX capacity_alerts_by_age ON capacity_alerts (created_us, event_id);

-- What retention, erasure and the end of ephemeral workspaces removed: one row for each sweep, tenant and kind, with the
-- number of rows or folders. Folders have a row each, with their workspace.
CREATE TABLE removals (
    removal_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT,
    removed TEXT NOT NULL,
    cause TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    created_us BIGINT NOT NULL
);

CREATE INDEX removals_by_age ON removals (created_us, removal_id);
CREATE INDEX removals_by_tenant ON removals (installation_id, created_us, removal_id);

-- Administrative changes: limits, ceilings and route defaults of tenants, and tokens. The states have the members that
-- differ, as JSON without secrets. `installation_id` is NULL for tokens of the whole service.
CREATE TABLE admin_changes (
    change_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT,
    -- The workspace to which a token is limited.
    workspace_id TEXT,
    kind TEXT NOT NULL,
    -- The tenant or the id of the token.
    object TEXT NOT NULL,
    actor TEXT NOT NULL,
    -- The name that the caller gave, if it differs from the subject of its token.
    actor_note TEXT,
    reason TEXT,
    state_before TEXT NOT NULL,
    state_after TEXT NOT NULL,
    created_us BIGINT NOT NULL
);

CREATE INDEX admin_changes_by_age ON admin_changes (created_us, change_id);
CREATE INDEX admin_changes_by_tenant ON admin_changes (installation_id, created_us, change_id);

-- Erasures of sessions, workspaces and tenants: what was asked for, and the numbers of removed things as JSON. One without
-- an end is in progress, and continues after a restart.
CREATE TABLE erasures (
    erasure_id TEXT NOT NULL PRIMARY KEY,
    scope TEXT NOT NULL,
    installation_id TEXT NOT NULL,
    workspace_id TEXT,
    session_id TEXT,
    actor TEXT NOT NULL,
    counts TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    ended_us BIGINT
);

CREATE INDEX erasures_by_age ON erasures (created_us, erasure_id);
CREATE INDEX erasures_by_tenant ON erasures (installation_id, created_us, erasure_id);
-- Those to continue. Small, because nearly all have ended.
CREATE INDEX erasures_open ON erasures (created_us) WHERE ended_us IS NULL;

-- Notifications ----------------------------------------------------------------------------------------------------

-- A transaction that adds a notification holds its stream's row until it commits, so numbers become visible in order.
CREATE TABLE notification_streams (
    stream TEXT NOT NULL PRIMARY KEY,
    -- The newest number.
    head BIGINT NOT NULL CHECK (head >= 0),
    -- The newest number that retention removed.
    tail BIGINT NOT NULL CHECK (tail >= 0 AND tail <= head)
);

CREATE TABLE notifications (
    notification_id TEXT NOT NULL PRIMARY KEY,
    stream TEXT NOT NULL,
    seq BIGINT NOT NULL CHECK (seq > 0),
    -- NULL in the operators' stream.
    installation_id TEXT,
    workspace_id TEXT,
    session_id TEXT,
    user_id TEXT,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    severity TEXT NOT NULL,
    trigger TEXT NOT NULL,
    auto_dismiss_ms BIGINT NOT NULL CHECK (auto_dismiss_ms >= 0),
    -- Each cause is notified once.
    cause_id TEXT NOT NULL UNIQUE,
    created_us BIGINT NOT NULL,
    -- The figures of an operators' notification as JSON, for the webhook.
    figures TEXT,
    UNIQUE (stream, seq),
    CHECK ((installation_id IS NULL) = (workspace_id IS NULL))
);

CREATE INDEX notifications_by_age ON notifications (created_us, notification_id);
CREATE INDEX notifications_by_tenant ON notifications (installation_id, created_us, notification_id);
CREATE INDEX notifications_by_workspace
    ON notifications (installation_id, workspace_id, created_us, notification_id);
CREATE INDEX notifications_by_session ON notifications (session_id, created_us, notification_id);

-- Which notification was read by which user; the empty user stands for everyone.
CREATE TABLE notification_reads (
    notification_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    read_us BIGINT NOT NULL,
    PRIMARY KEY (notification_id, user_id)
);

-- Tickets that open one WebSocket of a browser, once.
CREATE TABLE notification_tickets (
    ticket_hash TEXT NOT NULL PRIMARY KEY,
    scope TEXT NOT NULL,
    expires_us BIGINT NOT NULL
);

CREATE INDEX notification_tickets_by_age ON notification_tickets (expires_us);

-- Webhook deliveries of the operators' notifications, one row for each endpoint.
CREATE TABLE webhook_deliveries (
    delivery_id TEXT NOT NULL PRIMARY KEY,
    notification_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    -- When the delivery is due. A process that claims the delivery moves this first, so that no other one claims it.
    next_attempt_us BIGINT NOT NULL,
    last_status INTEGER,
    last_error TEXT,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_us) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (created_us, delivery_id);
CREATE INDEX webhook_deliveries_of ON webhook_deliveries (notification_id);

-- Access -----------------------------------------------------------------------------------------------------------

-- Tokens of the API. The token itself is not stored.
CREATE TABLE client_tokens (
    token_id TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of the token, which has 256 random bits.
    token_hash TEXT NOT NULL UNIQUE,
    -- NULL: the token is for all tenants.
    installation_id TEXT,
    workspace_id TEXT,
    user_id TEXT,
    subject TEXT NOT NULL,
    role TEXT NOT NULL,
    -- Limits of its use, as JSON.
    limits TEXT NOT NULL,
    -- The subject of the token with which it was made.
    created_by TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT,
    revoked_us BIGINT,
    revoked_by TEXT,
    last_used_us BIGINT,
    CHECK ((revoked_us IS NULL) = (revoked_by IS NULL)),
    CHECK (installation_id IS NOT NULL OR (workspace_id IS NULL AND user_id IS NULL))
);

CREATE INDEX client_tokens_by_age ON client_tokens (created_us, token_id);
CREATE INDEX client_tokens_by_tenant ON client_tokens (installation_id, created_us, token_id);
