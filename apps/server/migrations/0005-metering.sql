-- An older process cannot live with this: it would insert events without the new columns.
--
-- The ledger is cut by month, so that what is older than the retention goes with its partition. There is no default partition on
-- purpose: an event of a month that has been dropped would change totals that can no longer be computed; it is refused and put aside.

alter table usage_event rename to usage_event_whole;
alter table usage_event_whole rename constraint usage_event_pkey to usage_event_whole_pkey;

create table usage_event (
  id uuid not null,
  organization_id uuid not null,
  project_id uuid not null,
  principal_id uuid not null,
  access_key text not null,
  model_asked text not null,
  model text not null,
  price_id uuid not null,
  gateway text not null,
  replica text not null,
  endpoint text not null,
  mode text not null,
  status integer not null,
  ended text not null,
  counted text not null,
  -- By the policy of the day on which it happened; a later policy does not change the past.
  charged boolean not null,
  input_tokens bigint not null,
  cached_input_tokens bigint not null,
  output_tokens bigint not null,
  reasoning_tokens bigint not null,
  audio_input_tokens bigint not null,
  audio_milliseconds bigint not null,
  images bigint not null,
  pages bigint not null,
  accepted_at timestamptz not null,
  first_byte_at timestamptz,
  ended_at timestamptz not null,
  -- The start of the transaction that brought it: what has been added since an instant can be asked for.
  recorded_at timestamptz not null default now(),
  primary key (accepted_at, id)
) partition by range (accepted_at);
-- For one organization's view of hours that have just moved, and for its late events.
create index usage_event_organization on usage_event (organization_id, accepted_at);
-- For what has come since the last totals.
create index usage_event_recorded on usage_event (recorded_at);
-- For the operator: the few that nobody has counted.
create index usage_event_unmeasured on usage_event (accepted_at) where counted = 'none';

-- Totals are only ever written as a whole hour, computed from the events of that hour.
create table usage_total (
  hour timestamptz not null,
  organization_id uuid not null,
  project_id uuid not null,
  principal_id uuid not null,
  access_key text not null,
  model text not null,
  kind text not null check (kind in ('input_tokens', 'cached_input_tokens', 'output_tokens', 'audio_milliseconds')),
  mode text not null,
  price_id uuid not null,
  units bigint not null,
  events bigint not null,
  primary key (organization_id, hour, project_id, principal_id, access_key, model, kind, mode, price_id)
);
create index usage_total_hour on usage_total (hour);

-- One row. Every event recorded before `settled_before` is in the totals; none that was accepted before `kept_from` is in the ledger
-- any more, so hours before it are never computed again.
create table usage_total_state (
  one boolean primary key default true check (one),
  settled_before timestamptz not null default '-infinity',
  kept_from timestamptz not null default '-infinity'
);
insert into usage_total_state default values;

-- Makes the partition of a month where it is missing, unless the month has been dropped. True where there is one now. It is made beside the
-- table and then attached, which does not stop those who read and write the others.
create function make_usage_partition(at timestamptz) returns boolean language plpgsql as $$
declare
  starts timestamptz := date_trunc('month', at, 'UTC');
  ends timestamptz;
  part text := 'usage_event_' || to_char(at at time zone 'UTC', 'YYYY_MM');
begin
  if starts < (select kept_from from usage_total_state) then return false; end if;
  if to_regclass(part) is not null then return true; end if;
  ends := ((starts at time zone 'UTC') + interval '1 month') at time zone 'UTC';
  -- Two makers at once: the second waits until the first has committed, and then hears that it is there. Any number, the same for all.
  perform pg_advisory_xact_lock(4127590268153370113);
  execute format('create table %I (like usage_event including defaults including constraints)', part);
  execute format('alter table usage_event attach partition %I for values from (%L) to (%L)', part, starts, ends);
  return true;
exception when duplicate_table then
  return true;
end
$$;

select make_usage_partition(month at time zone 'UTC')
  from (select distinct date_trunc('month', accepted_at at time zone 'UTC') as month from usage_event_whole
        union select date_trunc('month', now() at time zone 'UTC') + make_interval(months => ahead) from generate_series(0, 2) as ahead) as months;

insert into usage_event (
  id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, gateway, replica, endpoint, mode, status, ended,
  counted, charged, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, audio_input_tokens, audio_milliseconds, images, pages,
  accepted_at, first_byte_at, ended_at, recorded_at)
select id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, '', replica, endpoint, mode, status, ended,
       counted, ended in ('complete', 'client_left') and counted <> 'none', input_tokens, cached_input_tokens, output_tokens, reasoning_tokens,
       0, 0, 0, 0, accepted_at, first_byte_at, ended_at, recorded_at
  from usage_event_whole;
drop table usage_event_whole;

-- A token that lets somebody outside read what one project uses. Only its hash is kept.
create table usage_share (
  id uuid primary key,
  organization_id uuid not null,
  project_id uuid not null,
  token_hash bytea not null unique check (length(token_hash) = 32),
  description text not null default '' check (length(description) <= 200),
  -- What may be seen begins here: a share does not open the past unless it says so.
  shows_from timestamptz not null,
  expires_at timestamptz not null,
  created_at timestamptz not null,
  created_by uuid not null
);
create index on usage_share (organization_id, created_at);
