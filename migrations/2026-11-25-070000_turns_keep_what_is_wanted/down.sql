ALTER TABLE prompts DROP COLUMN automation;
