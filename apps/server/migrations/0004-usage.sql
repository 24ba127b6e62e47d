-- One served request. Rows are only ever added; totals and bills are computed from them.
--
-- The key begins with the instant because this table will be cut by time, and Postgres wants the cutting column in every
-- unique key of a partitioned table. An event never changes once it is made, so the same event always brings the same
-- instant: (accepted_at, id) refuses a repeat exactly as (id) would. Whoever looks for one id knows its hour, since the id
-- begins with it (UUID version 7).
--
-- No foreign keys and no checks, on purpose: an event tells of something that happened. A project that has been deleted
-- since, or a count that an engine got wrong, must not keep it out of the books.
create table usage_event (
  id uuid not null,
  organization_id uuid not null,
  project_id uuid not null,
  principal_id uuid not null,
  access_key text not null,
  model_asked text not null,
  model text not null,
  price_id uuid not null,
  replica text not null,
  endpoint text not null,
  mode text not null,
  status integer not null,
  ended text not null,
  counted text not null,
  input_tokens bigint not null,
  cached_input_tokens bigint not null,
  output_tokens bigint not null,
  reasoning_tokens bigint not null,
  accepted_at timestamptz not null,
  first_byte_at timestamptz,
  ended_at timestamptz not null,
  -- When it reached the database: what has been added since an instant can be asked for.
  recorded_at timestamptz not null default now(),
  primary key (accepted_at, id)
);
