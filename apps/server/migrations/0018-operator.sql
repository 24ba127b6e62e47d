-- What the operator manages over the network: whether an organization may act, and the life of a model.

-- Rights count only while the organization is active. `closed` is for good: its rows stay, since bills were made of them.
alter table organization
  add column state text not null default 'active' check (state in ('active', 'suspended', 'closed'));
create index on organization (created_at, id);

alter table model
  -- In words, for people who choose a model.
  add column description text not null default '' check (length(description) <= 2000),
  -- When a better one is preferred, and when calls end or go to the successor (serverless-platform.md 8). Both come into force by the clock.
  add column deprecated_at timestamptz,
  add column end_of_life_at timestamptz,
  add column updated_at timestamptz not null default now(),
  add constraint model_life_in_order check (deprecated_at <= end_of_life_at);
update model set updated_at = created_at;

alter table engine add column updated_at timestamptz not null default now();
update engine set updated_at = created_at;
