DROP INDEX prompts_by_age;
DROP TABLE notifications;
DROP TABLE automation_runs;
DROP TABLE tenant_protocols;
