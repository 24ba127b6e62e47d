-- What is owed: a bill for each organization and month, the invoices made of them, and alerts on the way there.

-- A month of an organization. Until it is closed its bill is computed from the totals each time it is asked for; closing freezes it.
create table bill (
  organization_id uuid not null references organization (id),
  -- `2026-05`, in UTC.
  month text not null check (month ~ '^\d{4}-(0[1-9]|1[0-2])$'),
  -- The end of the month and the time that late segments are given.
  due_at timestamptz not null,
  leased_by uuid,
  leased_until timestamptz,
  attempt integer not null default 0,
  -- Why it is not closed although it is due, for the operator.
  waits_for text,
  closed_at timestamptz,
  -- The same moment by the database's clock, which also dates the arrival of events: what was recorded after it is late.
  frozen_at timestamptz,
  -- The whole bill as it was computed, amounts as decimal strings. It is never computed again.
  content jsonb,
  primary key (organization_id, month),
  check (num_nulls(closed_at, frozen_at, content) in (0, 3))
);
create index bill_open on bill (due_at) where closed_at is null;

create function refuse_bill_change() returns trigger language plpgsql as $$
begin
  raise exception 'a closed month never changes: correct its invoice with a credit note' using errcode = 'restrict_violation';
end
$$;
create trigger bill_stays_closed before update or delete on bill for each row when (old.closed_at is not null) execute function refuse_bill_change();

create table invoice (
  id uuid primary key,
  organization_id uuid not null references organization (id),
  -- As they were on the day: an invoice does not change when somebody is renamed.
  organization_name text not null,
  seller_name text not null,
  month text not null,
  type text not null check (type in ('periodic', 'credit_note')),
  state text not null check (state in ('draft', 'issued', 'paid', 'void')),
  number integer unique,
  -- The invoice that a credit note takes back, in part or whole, and why.
  corrects uuid references invoice (id),
  reason text not null default '' check (length(reason) <= 500),
  gross_cents bigint not null,
  -- Never positive.
  discount_cents bigint not null check (discount_cents <= 0 or type = 'credit_note'),
  untaxed_cents bigint not null,
  tax_name text not null,
  tax_basis_points integer not null check (tax_basis_points >= 0),
  tax_cents bigint not null,
  taxed_cents bigint not null,
  created_at timestamptz not null,
  issued_at timestamptz,
  due_at timestamptz,
  paid_at timestamptz,
  voided_at timestamptz,
  foreign key (organization_id, month) references bill (organization_id, month),
  check (gross_cents + discount_cents = untaxed_cents and untaxed_cents + tax_cents = taxed_cents),
  check ((type = 'credit_note') = (corrects is not null)),
  -- A number is taken when the invoice is issued; a draft that is thrown away has never had one.
  check ((number is null) = (issued_at is null))
);
create unique index invoice_of_month on invoice (organization_id, month) where type = 'periodic';
create index on invoice (organization_id, created_at);
create index on invoice (corrects) where corrects is not null;
create index invoice_draft on invoice (created_at) where state = 'draft';

-- The last number of each year. The row is locked until the invoice that took the number is committed: no gaps, no doubles.
create table invoice_number (
  year integer primary key,
  last integer not null
);

-- One monthly amount for an organization, in whole euros (serverless-platform.md 3.7).
create table budget (
  id uuid primary key,
  organization_id uuid not null unique references organization (id),
  limit_euros bigint not null check (limit_euros > 0),
  enabled boolean not null,
  created_at timestamptz not null,
  updated_at timestamptz not null
);

create table budget_alert (
  id uuid primary key,
  budget_id uuid not null references budget (id) on delete cascade,
  -- Percent of the budget.
  threshold integer not null check (threshold between 1 and 1000),
  created_at timestamptz not null,
  updated_at timestamptz not null
);
create index on budget_alert (budget_id);

create table budget_notification (
  id uuid primary key,
  alert_id uuid not null references budget_alert (id) on delete cascade,
  type text not null check (type in ('email', 'webhook')),
  recipients text[] not null check (cardinality(recipients) between 1 and 20),
  created_at timestamptz not null,
  updated_at timestamptz not null
);
create index on budget_notification (alert_id);

-- An alert has fired. The key is the promise: once for each month and threshold, whoever looks and however often.
create table budget_firing (
  id uuid not null unique,
  organization_id uuid not null,
  month text not null,
  threshold integer not null,
  cents bigint not null,
  limit_euros bigint not null,
  fired_at timestamptz not null,
  primary key (organization_id, month, threshold)
);

-- A message that is on its way: tried until it is taken or given up. It outlives the alert it came from.
create table budget_message (
  id uuid primary key,
  firing_id uuid not null references budget_firing (id),
  notification_id uuid not null,
  type text not null,
  recipient text not null,
  due_at timestamptz not null,
  leased_until timestamptz,
  attempt integer not null default 0,
  sent_at timestamptz,
  gave_up_at timestamptz,
  -- In words, for the operator.
  last_error text,
  unique (firing_id, notification_id, recipient)
);
create index budget_message_waiting on budget_message (due_at) where sent_at is null and gave_up_at is null;
