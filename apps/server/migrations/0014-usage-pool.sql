-- An older process lives with this: what it ships has no pool, like what lies in the ledger already.
alter table usage_event add column pool_id uuid;
