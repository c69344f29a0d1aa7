ALTER TABLE sessions DROP COLUMN settled_seq;
ALTER TABLE sessions DROP COLUMN connection_cookies;
ALTER TABLE sessions DROP COLUMN connection_id;
