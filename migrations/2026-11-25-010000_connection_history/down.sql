DROP TABLE connection_events;
DROP TABLE acp_connections;
