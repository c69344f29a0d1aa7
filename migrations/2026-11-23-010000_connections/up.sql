-- By what a supervisor that comes back finds an agent that still works for it: the connection, the cookies that lead to
-- its replica, and the number up to which what the agent said is on disk. All of it is of the live session's newest
-- connection.

ALTER TABLE sessions ADD COLUMN connection_id TEXT;
ALTER TABLE sessions ADD COLUMN connection_cookies TEXT;
ALTER TABLE sessions ADD COLUMN settled_seq BIGINT NOT NULL DEFAULT 0;
