DROP TABLE transcript_entries;
DROP TABLE prompts;
DROP TABLE sessions;
DROP TABLE workspaces;
