-- What a sweep looks for: sessions that hibernate, the longest unused first. A row comes here when its session
-- hibernates and leaves when it comes back or expires; turns do not touch it.
CREATE INDEX sessions_hibernated ON sessions (last_used_us) WHERE state = 'hibernated';
