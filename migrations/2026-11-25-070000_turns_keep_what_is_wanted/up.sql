-- What is to become of a turn's changes: a turn that outlives its supervisor is still decided as it was asked.
ALTER TABLE prompts ADD COLUMN automation TEXT NOT NULL DEFAULT 'github'
    CHECK (automation IN ('github', 'commit-only', 'none'));
