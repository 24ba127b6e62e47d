-- Clocks that are set back, and alerts on a budget that has been changed.

-- As in 0007, but for the two places that say what was written before the clock of this database was set back. There a bucket that lay in the
-- future refilled nothing until the clock had passed it, and what a dead gateway held was held as long.
-- Answers asks in one transaction, in the order of their keys, so that two gateways never wait for each other. An ask:
--   key, capacity, perMs (0: does not refill), lease, least and need (null: give nothing), back (buckets), used and held (the others)
-- An answer: [granted, what is left behind]. The rule is `grantOf` in quota/ledger.ts.
create or replace function quota_ask(asking uuid, lease_ms double precision, asks jsonb) returns jsonb language plpgsql as $$
declare
  ask jsonb;
  answers jsonb := '[]';
  moment timestamptz;
  lease_ends timestamptz;
  last_end timestamptz;
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
      -- The clock is read once the row is ours: what was before us is behind us. A bucket that is not was written before the clock was set
      -- back: it counts from now.
      moment := clock_timestamp();
      left_over := least(capacity, bucket.level + per_ms * 1000 * greatest(0, extract(epoch from moment - bucket.at))::double precision);
      left_over := least(capacity, left_over + (ask ->> 'back')::double precision);
      -- Not `least` alone: it passes over a null.
      if least_wanted is not null then least_wanted := least(least_wanted, capacity); end if;
    else
      perform pg_advisory_xact_lock(hashtextextended(ask ->> 'key', 7));
      moment := clock_timestamp();
      lease_ends := moment + lease_ms * interval '1 millisecond';
      insert into quota_part (key, gateway, used, held, until)
        values (ask ->> 'key', asking, (ask ->> 'used')::bigint, (ask ->> 'held')::bigint, lease_ends)
        on conflict (key, gateway) do update
          set used = greatest(quota_part.used, excluded.used), held = excluded.held, until = excluded.until;
      select capacity - sum(used + case when until > moment then held else 0 end), max(until) into left_over, last_end
        from quota_part where key = ask ->> 'key';
      -- Nobody is given anything for longer: such a lease is from before the clock was set back, and ends as if it began now.
      if last_end > lease_ends then
        update quota_part set until = lease_ends where key = ask ->> 'key' and until > lease_ends;
      end if;
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

-- A budget that gets another limit, or is made anew, tells again. What had fired belongs to the budget that there is, if it is older;
-- otherwise to one that is gone, whose id was not written down: its own stands in.
alter table budget_firing add column budget_id uuid;
update budget_firing
   set budget_id = coalesce(
     (select budget.id from budget where budget.organization_id = budget_firing.organization_id and budget.created_at <= fired_at), id);
alter table budget_firing drop constraint budget_firing_pkey;
alter table budget_firing add primary key (budget_id, month, threshold, limit_euros);
