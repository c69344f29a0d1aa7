-- Migrations of fleets: each run whole, as it stands.

CREATE TABLE migration_runs (
    run_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN (
        'scheduled', 'inProgress', 'paused', 'succeeded', 'rolledBack', 'cancelled', 'failed'
    )),
    -- Whether somebody has to go on with it.
    is_open BOOLEAN NOT NULL,
    run TEXT NOT NULL,
    -- Counts up with each write; whoever writes names the one that it read.
    version BIGINT NOT NULL CHECK (version > 0),
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX migration_runs_by_age ON migration_runs (created_us, run_id);
CREATE INDEX migration_runs_by_tenant ON migration_runs (installation_id, created_us, run_id);
-- What is gone on with at start. Small, because nearly all have ended.
CREATE INDEX migration_runs_open ON migration_runs (created_us, run_id) WHERE is_open;
