-- What a principal may do: groups, policies and their rules; what is known of users; settings of an organization; and from where a change was made.

-- An application has a description; a user has an address, names, and a password once they chose one. `name` is a user's username.
alter table principal
  add column description text not null default '' check (length(description) <= 200),
  add column tags text[] not null default '{}',
  add column first_name text not null default '',
  add column last_name text not null default '',
  add column phone_number text not null default '',
  add column locale text not null default 'en_US',
  add column locked boolean not null default false,
  -- False while an invitation is open.
  add column activated boolean not null default true;
create unique index on principal (organization_id, lower(name)) where kind = 'user';
create index on principal (organization_id, kind, created_at);
create index on api_key (principal_id);

-- A link that lets somebody become the user it was made for. Like a key, the token itself is nowhere.
create table invitation (
  principal_id uuid primary key references principal (id) on delete cascade,
  token_hash bytea not null unique check (length(token_hash) = 32),
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);

-- `everybody` marks the two groups of each organization whose members are all of a kind, without rows in group_member.
create table principal_group (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references organization (id),
  name text not null check (length(name) between 1 and 64),
  description text not null default '' check (length(description) <= 200),
  tags text[] not null default '{}',
  everybody text check (everybody in ('user', 'application')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (organization_id, id),
  unique (organization_id, everybody)
);

create table group_member (
  organization_id uuid not null,
  group_id uuid not null,
  principal_id uuid not null,
  primary key (group_id, principal_id),
  foreign key (organization_id, group_id) references principal_group (organization_id, id) on delete cascade,
  foreign key (organization_id, principal_id) references principal (organization_id, id) on delete cascade
);
create index on group_member (principal_id);

create function make_managed_groups() returns trigger language plpgsql as $$
begin
  insert into principal_group (organization_id, name, everybody)
    values (new.id, 'All users', 'user'), (new.id, 'All applications', 'application');
  return new;
end
$$;
create trigger organization_has_managed_groups after insert on organization for each row execute function make_managed_groups();
insert into principal_group (organization_id, name, everybody)
  select organization.id, made.name, made.everybody
    from organization, (values ('All users', 'user'), ('All applications', 'application')) as made (name, everybody);

-- At most one of the two: whose policy it is. What a principal or a group leaves behind when it goes keeps its rules and helps nobody.
create table policy (
  id uuid primary key,
  organization_id uuid not null references organization (id),
  name text not null check (length(name) between 1 and 64),
  description text not null default '' check (length(description) <= 200),
  tags text[] not null default '{}',
  principal_id uuid,
  group_id uuid,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  check (num_nonnulls(principal_id, group_id) <= 1),
  foreign key (organization_id, principal_id) references principal (organization_id, id) on delete set null (principal_id),
  foreign key (organization_id, group_id) references principal_group (organization_id, id) on delete set null (group_id)
);
create index on policy (organization_id, created_at);

-- `project_ids` null: the whole organization.
create table policy_rule (
  id uuid primary key,
  policy_id uuid not null references policy (id) on delete cascade,
  position int not null,
  permission_set_names text[] not null check (cardinality(permission_set_names) > 0),
  project_ids uuid[],
  condition text not null default '' check (length(condition) <= 2048)
);
create index on policy_rule (policy_id, position);

-- Seconds; 0 for the life of a key means no maximum (serverless-platform.md 5.5).
alter table organization
  add column alias text not null default '',
  add column enforce_password_renewal boolean not null default false,
  add column grace_period_seconds bigint not null default 604800 check (grace_period_seconds >= 0),
  add column login_attempts_before_locked int not null default 10 check (login_attempts_before_locked >= 0),
  add column max_login_session_seconds bigint not null default 2592000 check (max_login_session_seconds >= 0),
  add column max_api_key_seconds bigint not null default 0 check (max_api_key_seconds >= 0);

alter table audit_entry
  add column ip inet,
  add column user_agent text;
