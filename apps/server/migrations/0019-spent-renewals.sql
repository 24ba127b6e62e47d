-- Renewal tokens of a session that are older than the one before: whoever brings one of them has it from somewhere else, however often
-- the thief has renewed since (RFC 9700 §4.14.2).
create table session_spent (
  hash bytea primary key check (length(hash) = 32),
  session_id uuid not null references session (id) on delete cascade,
  at timestamptz not null default now()
);
create index on session_spent (session_id, at);
