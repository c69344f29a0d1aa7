DROP INDEX sessions_hibernated;
