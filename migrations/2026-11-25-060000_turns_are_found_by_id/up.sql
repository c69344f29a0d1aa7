-- Ids of turns begin with their time: a period is found by them, and no turn pays for an index of its own.
DROP INDEX prompts_by_age;
