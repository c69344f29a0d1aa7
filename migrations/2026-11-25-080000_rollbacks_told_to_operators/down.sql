ALTER TABLE rollback_events DROP COLUMN alarm_id;
