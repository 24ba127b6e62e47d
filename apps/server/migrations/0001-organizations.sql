-- Who may ask: the installation, its organizations, their projects, principals and keys; what was changed by whom;
-- and the counters that tell other processes that a room's rows have moved.

-- `version` moves in the transaction that moves the room's rows, so whoever sees the new version can read the new rows.
create table change (
  room text primary key,
  version bigint not null
);

-- The row lock on `change` puts writers of one room in a row until they commit. They are people and commands, so that is cheap.
-- The notification goes out at commit and only makes sooner what the poll of `change` makes sure.
create function note_change(changed_room text) returns void language plpgsql as $$
begin
  insert into change (room, version) values (changed_room, 1)
    on conflict (room) do update set version = change.version + 1;
  perform pg_notify('parvis_change', changed_room);
end
$$;

create table organization (
  id uuid primary key,
  name text not null check (length(name) between 1 and 64),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

-- An organization's default project has the id of the organization (control-plane.md 6).
create table project (
  id uuid primary key,
  organization_id uuid not null references organization (id),
  name text not null check (name ~ '^[a-zA-Z0-9._ -]{1,64}$'),
  description text not null default '' check (length(description) <= 200),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (organization_id, name)
);

create table principal (
  id uuid primary key,
  organization_id uuid not null references organization (id),
  kind text not null check (kind in ('user', 'application')),
  role text not null check (role in ('owner', 'member')),
  name text not null check (length(name) between 1 and 64),
  email text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- So that a key cannot point at a principal of another organization.
  unique (organization_id, id)
);

-- The secret itself is nowhere: `secret_hash` is its HMAC-SHA256 under the installation's master key.
create table api_key (
  access_key text primary key check (access_key ~ '^SCW[A-Z0-9]{17}$'),
  secret_hash bytea not null unique check (length(secret_hash) = 32),
  organization_id uuid not null references organization (id),
  principal_id uuid not null,
  description text not null default '' check (length(description) <= 200),
  default_project_id uuid not null references project (id),
  expires_at timestamptz,
  creation_ip inet,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  foreign key (organization_id, principal_id) references principal (organization_id, id)
);
create index on api_key (organization_id, created_at);

-- One row. Keys are hashed and engines' keys sealed under the master key with this fingerprint; another one would refuse them all.
create table installation (
  one boolean primary key default true check (one),
  id uuid not null,
  master_key_fingerprint text not null,
  -- The organization that the first start made; `parvis keys` acts in it.
  organization_id uuid not null references organization (id),
  owner_id uuid not null,
  created_at timestamptz not null default now(),
  foreign key (organization_id, owner_id) references principal (organization_id, id)
);

-- `organization_id` is null for what belongs to the installation as a whole. It is no foreign key: the entry outlives what it tells of.
create table audit_entry (
  id uuid primary key default gen_random_uuid(),
  at timestamptz not null default now(),
  organization_id uuid,
  actor text not null,
  action text not null check (action in ('created', 'updated', 'deleted')),
  resource_type text not null,
  resource_id text not null,
  before jsonb,
  after jsonb
);
create index on audit_entry (organization_id, at);
