-- Cockpit: where a project's metrics, logs and traces are read and written, who may do it by a token, and whom its alerts tell.

create table data_source (
  id uuid primary key,
  project_id uuid not null references project (id),
  region text not null,
  name text not null check (length(name) between 3 and 50),
  type text not null check (type in ('metrics', 'logs', 'traces')),
  -- `scaleway` is the clients' word for the sources that every project has.
  origin text not null check (origin in ('scaleway', 'custom')),
  retention_days integer not null check (retention_days between 1 and 1825),
  synchronized_with_grafana boolean not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
-- Whoever makes them first makes them for all.
create unique index data_source_of_every_project on data_source (project_id, region, type) where origin = 'scaleway';
create index on data_source (project_id, region, created_at);

-- What somebody made holds its project, like every other resource; what a project has by itself goes with it.
create function forget_platform_data_sources() returns trigger language plpgsql as $$
begin
  delete from data_source where project_id = old.id and origin = 'scaleway';
  return old;
end
$$;
create trigger project_forgets_platform_data_sources before delete on project
  for each row execute function forget_platform_data_sources();

-- Like an API key's, the secret itself is nowhere: `secret_hash` is its HMAC-SHA256 under the installation's master key.
create table cockpit_token (
  id uuid primary key,
  project_id uuid not null references project (id),
  region text not null,
  name text not null check (length(name) between 3 and 50),
  scopes text[] not null,
  secret_hash bytea not null unique check (length(secret_hash) = 32),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index on cockpit_token (project_id, region, created_at);

-- Clients keep the id in a small integer.
create table grafana_user (
  id integer generated always as identity primary key,
  project_id uuid not null references project (id) on delete cascade,
  login text not null check (length(login) between 1 and 64),
  role text not null check (role in ('editor', 'viewer')),
  password_hash bytea not null check (length(password_hash) = 32),
  created_at timestamptz not null default now()
);
create unique index on grafana_user (project_id, lower(login));

-- A row: it is enabled.
create table alert_manager (
  project_id uuid not null references project (id) on delete cascade,
  region text not null,
  enabled_at timestamptz not null default now(),
  -- When the addresses below were last sent a test alert.
  tested_at timestamptz,
  primary key (project_id, region)
);

create table contact_point (
  id uuid primary key,
  project_id uuid not null references project (id) on delete cascade,
  region text not null,
  email text not null check (length(email) between 3 and 320),
  send_resolved_notifications boolean not null,
  created_at timestamptz not null default now()
);
create unique index on contact_point (project_id, region, lower(email));
