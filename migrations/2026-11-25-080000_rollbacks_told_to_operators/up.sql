-- The alarm that operators were told in place of the workspace's users, where a rollback was one of many. Its users are
-- not told either that the workspace is back.
ALTER TABLE rollback_events ADD COLUMN alarm_id TEXT;
