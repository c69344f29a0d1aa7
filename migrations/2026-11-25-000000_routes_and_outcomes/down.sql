ALTER TABLE prompts DROP COLUMN is_canary;
ALTER TABLE prompts DROP COLUMN epoch;
ALTER TABLE prompts DROP COLUMN protocol;
ALTER TABLE prompts DROP COLUMN route;
DROP TABLE outcome_buckets;
DROP TABLE rollback_events;
DROP TABLE protocol_migrations;
DROP TABLE workspace_routes;
