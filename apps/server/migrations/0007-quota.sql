-- How much an organization, a project or a person may use; and what of it is left, shared by all gateways.

-- Most that is limited is limited by minute and model; the rest has the model '*'. Null means not limited at all. The narrowest row
-- counts: the organization's for the model, its '*', the tier's for the model, the tier's '*'. A project's can only be lower.
create table quota_limit (
  scope text not null check (scope in ('tier', 'organization', 'project')),
  -- The name of a tier, or the id of an organization or a project.
  subject text not null,
  model text not null check (length(model) between 1 and 128),
  name text not null check (name in (
    'tokens_per_minute', 'requests_per_minute', 'audio_seconds_per_minute',
    'concurrent_requests', 'concurrent_batches', 'free_tokens_per_month'
  )),
  value bigint check (value >= 0 and value <= 9007199254740991),
  primary key (scope, subject, model, name),
  check (scope <> 'project' or name = 'tokens_per_minute')
);

-- An organization without a row is in the tier 'identity_verified': whoever installs Parvis knows whom they let in.
create table quota_organization (
  organization_id uuid primary key references organization (id) on delete cascade,
  tier text not null check (tier in ('none', 'payment_method', 'identity_verified'))
);

-- `project_id` and `principal_id` null: the whole organization. Units: tokens (input and output), or billionths of the currency.
create table quota_budget (
  id uuid primary key,
  organization_id uuid not null references organization (id) on delete cascade,
  project_id uuid references project (id) on delete cascade,
  principal_id uuid references principal (id) on delete cascade,
  unit text not null check (unit in ('tokens', 'money')),
  period text not null check (period in ('day', 'month')),
  amount bigint not null check (amount >= 0 and amount <= 9007199254740991),
  -- Refuses and ends streams; otherwise it only tells.
  hard boolean not null,
  created_at timestamptz not null default now(),
  unique nulls not distinct (organization_id, project_id, principal_id, unit, period)
);

-- That a budget was used up in a period, once; whoever wants to tell people of it reads it here.
create table quota_alert (
  budget_id uuid not null references quota_budget (id) on delete cascade,
  period text not null,
  used bigint not null,
  at timestamptz not null default now(),
  primary key (budget_id, period)
);

-- What refills: level at an instant. Not logged: grants cost no sync and no replication. A crash of the database empties the table,
-- and buckets start full again: one minute's worth too much at most.
create unlogged table quota_bucket (
  key text primary key,
  level double precision not null,
  at timestamptz not null
) with (fillfactor = 50);

-- What does not refill: budgets, and places for concurrent requests. One row per gateway: what it has used for good, and what it holds
-- until its lease ends. Both are absolute, so that saying them twice changes nothing.
create table quota_part (
  key text not null,
  gateway uuid not null,
  used bigint not null,
  held bigint not null,
  until timestamptz not null,
  primary key (key, gateway)
) with (fillfactor = 50);

create unlogged table quota_gateway (
  id uuid primary key,
  until timestamptz not null
) with (fillfactor = 50);

-- Answers asks in one transaction, in the order of their keys, so that two gateways never wait for each other. An ask:
--   key, capacity, perMs (0: does not refill), lease, least and need (null: give nothing), back (buckets), used and held (the others)
-- An answer: [granted, what is left behind]. The rule is `grantOf` in quota/ledger.ts.
create function quota_ask(asking uuid, lease_ms double precision, asks jsonb) returns jsonb language plpgsql as $$
declare
  ask jsonb;
  answers jsonb := '[]';
  moment timestamptz;
  capacity double precision;
  per_ms double precision;
  left_over double precision;
  granted double precision;
  least_wanted double precision;
  bucket quota_bucket%rowtype;
begin
  perform set_config('synchronous_commit', 'off', true);
  for ask in select value from jsonb_array_elements(asks) order by value ->> 'key' collate "C" loop
    capacity := (ask ->> 'capacity')::double precision;
    per_ms := (ask ->> 'perMs')::double precision;
    least_wanted := (ask ->> 'least')::double precision;
    if per_ms > 0 then
      insert into quota_bucket (key, level, at) values (ask ->> 'key', capacity, clock_timestamp()) on conflict do nothing;
      select * into bucket from quota_bucket where key = ask ->> 'key' for update;
      -- The clock is read once the row is ours: what was before us is behind us.
      moment := greatest(clock_timestamp(), bucket.at);
      left_over := least(capacity, bucket.level + per_ms * 1000 * extract(epoch from moment - bucket.at)::double precision);
      left_over := least(capacity, left_over + (ask ->> 'back')::double precision);
      -- Not `least` alone: it passes over a null.
      if least_wanted is not null then least_wanted := least(least_wanted, capacity); end if;
    else
      perform pg_advisory_xact_lock(hashtextextended(ask ->> 'key', 7));
      moment := clock_timestamp();
      insert into quota_part (key, gateway, used, held, until)
        values (ask ->> 'key', asking, (ask ->> 'used')::bigint, (ask ->> 'held')::bigint, moment + lease_ms * interval '1 millisecond')
        on conflict (key, gateway) do update
          set used = greatest(quota_part.used, excluded.used), held = excluded.held, until = excluded.until;
      select capacity - sum(used + case when until > moment then held else 0 end) into left_over from quota_part where key = ask ->> 'key';
    end if;

    if least_wanted is null or left_over < least_wanted then
      granted := 0;
    else
      granted := greatest(
        (ask ->> 'least')::double precision,
        least((ask ->> 'need')::double precision + greatest((ask ->> 'lease')::double precision, floor(left_over / 32)), floor(left_over))
      );
    end if;
    left_over := left_over - granted;

    if per_ms > 0 then
      update quota_bucket set level = left_over, at = moment where key = ask ->> 'key';
    elsif granted > 0 then
      update quota_part set held = held + granted::bigint where key = ask ->> 'key' and gateway = asking;
    end if;
    answers := answers || jsonb_build_array(jsonb_build_array(granted, left_over));
  end loop;
  return answers;
end
$$;

-- The published table, second half of 2026 (data-plane.md 4.1, serverless-platform.md 4.2), and the operator's to change. The models that
-- it does not list take the row of glm-5.2; all other models take '*'.
insert into quota_limit (scope, subject, model, name, value)
select 'tier', tier, model, name, value
from (
  select model, tokens
  from (values
    ('*', 1000000), ('glm-5.2', 1000000), ('mistral-medium-3.5-128b', 1000000), ('qwen3-235b-a22b-instruct-2507', 1000000),
    ('qwen3-embedding-8b', 1000000), ('gpt-oss-120b', 1000000), ('deepseek-v4-flash-0731', 1000000), ('qwen3.8-27b', 1000000),
    ('gemma-4-26b-a4b-it', 2000000), ('mistral-small-3.2-24b-instruct-2506', 2000000), ('qwen3.6-35b-a3b', 2000000),
    ('qwen3.5-397b-a17b', 2000000),
    ('gemma-3-27b-it', 400000), ('llama-3.3-70b-instruct', 400000), ('voxtral-small-24b-2507', 400000), ('pixtral-12b-2409', 400000),
    ('qwen3-coder-30b-a3b-instruct', 400000), ('holo2-30b-a3b', 400000), ('bge-multilingual-gemma2', 400000),
    ('whisper-large-v3', null)
  ) as listed (model, tokens)
) as models,
lateral (values
  -- Without a payment method the published limits are "stricter" and no more is known: a tenth of the first tier.
  ('none', 'tokens_per_minute', case when tokens is null then null else 20000 end),
  ('payment_method', 'tokens_per_minute', case when tokens is null then null else 200000 end),
  ('identity_verified', 'tokens_per_minute', tokens)
) as limits (tier, name, value);

insert into quota_limit (scope, subject, model, name, value) values
  ('tier', 'none', '*', 'requests_per_minute', 30),
  ('tier', 'payment_method', '*', 'requests_per_minute', 300),
  ('tier', 'identity_verified', '*', 'requests_per_minute', 600),
  ('tier', 'none', '*', 'audio_seconds_per_minute', 180),
  ('tier', 'payment_method', '*', 'audio_seconds_per_minute', 1800),
  ('tier', 'identity_verified', '*', 'audio_seconds_per_minute', 3600),
  ('tier', 'none', '*', 'concurrent_requests', 10),
  ('tier', 'payment_method', '*', 'concurrent_requests', 100),
  ('tier', 'identity_verified', '*', 'concurrent_requests', 100),
  ('tier', 'none', '*', 'concurrent_batches', 2),
  ('tier', 'payment_method', '*', 'concurrent_batches', 20),
  ('tier', 'identity_verified', '*', 'concurrent_batches', 100),
  -- Refused once the free pool is spent (serverless-platform.md 4.1).
  ('tier', 'none', '*', 'free_tokens_per_month', 1000000);
