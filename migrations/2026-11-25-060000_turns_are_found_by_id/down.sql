CREATE INDEX prompts_by_age ON prompts (accepted_us);
