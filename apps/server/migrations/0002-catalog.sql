-- What is served, and what it costs from when on.

-- A model that is removed keeps its row: usage and invoices point at its prices. Its name is free again.
create table model (
  id uuid primary key,
  -- What clients send: lower case, no vendor in front, no quantisation behind (data-plane.md 5.1).
  name text not null check (name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
  owned_by text not null check (length(owned_by) between 1 and 128),
  type text not null check (type in ('chat', 'embedding', 'rerank', 'audio')),
  status text not null check (status in ('preview', 'active', 'deprecated', 'eol')),
  -- By name and not by id, and no foreign key: a successor may be removed and come back, and is looked up when it is needed.
  successor text check (successor <> name),
  created_at timestamptz not null,
  removed_at timestamptz,
  context_tokens integer not null check (context_tokens > 0),
  max_output_tokens integer check (max_output_tokens > 0),
  dimensions integer check (dimensions > 0),
  matryoshka integer[] not null default '{}',
  tools boolean not null default false,
  structured_output boolean not null default false,
  reasoning boolean not null default false,
  vision boolean not null default false,
  licence text,
  -- Where the weights came from, for people; null for models of engines given by hand.
  source text,
  -- `builtin:…` lies in the repository, `pulled:…` in the data directory, anything else is an absolute path.
  weights_path text,
  weights_bytes bigint check (weights_bytes > 0),
  weights_sha256 text check (weights_sha256 ~ '^[0-9a-f]{64}$'),
  check ((type = 'chat') = (max_output_tokens is not null)),
  check (num_nulls(weights_path, weights_bytes, weights_sha256) in (0, 3))
);
create unique index model_name_in_use on model (name) where removed_at is null;
create index on model (successor) where removed_at is null;

-- Micro-euros per million units. A new price is a new row; the past never changes, because invoices were made of it.
create table model_price (
  id uuid primary key,
  model_id uuid not null references model (id),
  starts_at timestamptz not null,
  input bigint not null check (input >= 0),
  cached_input bigint not null check (cached_input >= 0),
  output bigint not null check (output >= 0),
  unique (model_id, starts_at)
);

create function refuse_price_change() returns trigger language plpgsql as $$
begin
  raise exception 'a price never changes: add one that starts later' using errcode = 'restrict_violation';
end
$$;
create trigger model_price_only_grows before update or delete on model_price for each row execute function refuse_price_change();
