-- One row for each handshake, and one for each change of a connection's status since. Nothing refers to sessions:
-- these records outlive them, and a probe has none.

CREATE TABLE acp_connections (
    connection_row_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    connection_id TEXT,
    protocol TEXT NOT NULL CHECK (protocol IN ('acp', 'http')),
    outcome TEXT NOT NULL CHECK (outcome IN ('connected', 'failed')),
    protocol_version INTEGER,
    agent_name TEXT,
    agent_version TEXT,
    capabilities TEXT,
    error_code TEXT,
    error_detail TEXT,
    handshake_ms BIGINT NOT NULL CHECK (handshake_ms >= 0),
    is_probe BOOLEAN NOT NULL,
    created_us BIGINT NOT NULL,
    CHECK ((outcome = 'failed') = (error_code IS NOT NULL))
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
    status TEXT NOT NULL CHECK (status IN (
        'connecting', 'connected', 'degraded', 'error', 'reconnecting', 'rolledBack'
    )),
    cause TEXT NOT NULL,
    health TEXT,
    created_us BIGINT NOT NULL
);

CREATE INDEX connection_events_by_connection ON connection_events (connection_row_id, created_us, event_id);
CREATE INDEX connection_events_by_age ON connection_events (created_us);
