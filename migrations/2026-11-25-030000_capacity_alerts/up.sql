-- What became of alerts of capacity: rows are added and never changed. `alert_id` joins the levels of one alert and
-- what became of them. `installation_id` is the tenant whose share it is about; NULL for the whole service.
CREATE TABLE capacity_alerts (
    event_id TEXT NOT NULL PRIMARY KEY,
    alert_id TEXT NOT NULL,
    level TEXT NOT NULL CHECK (level IN ('warning', 'critical')),
    kind TEXT NOT NULL CHECK (kind IN ('raised', 'resolved')),
    taken BIGINT NOT NULL CHECK (taken >= 0),
    seat_limit BIGINT NOT NULL CHECK (seat_limit > 0),
    installation_id TEXT,
    created_us BIGINT NOT NULL
);

-- A level of an alert is raised once and resolved once.
CREATE UNIQUE INDEX capacity_alerts_once ON capacity_alerts (alert_id, level, kind);
-- Lists, newest first, and what retention removes.
CREATE INDEX capacity_alerts_by_age ON capacity_alerts (created_us, event_id);
