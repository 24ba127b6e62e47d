-- How people sign in: their passwords, what they are signed in with, links to a new password, and who they are at an identity provider.

alter table principal add column last_login_at timestamptz;
create index on principal (lower(email)) where kind = 'user';
create index on principal (lower(name)) where kind = 'user';

-- Apart from `principal`, so that no list of users ever reads a hash. The parameters of the hash stand in it.
create table user_password (
  principal_id uuid primary key references principal (id) on delete cascade,
  hash text not null,
  set_at timestamptz not null default now(),
  -- Somebody else chose it: the organization may ask for one of the user's own (control-plane.md 5.9).
  temporary boolean not null default false,
  -- Attempts since the last that was right; an attempt counts before it is looked at, so that many at once are no way around.
  failures int not null default 0,
  -- Too many of them: the password opens nothing until somebody unlocks the user or the user takes a link. Keys and sessions go on.
  locked_at timestamptz
);

-- Keys that sessions are signed with, sealed under the master key. A new one is made each month; the old ones go when nothing signed with them lives.
create table session_key (
  id uuid primary key,
  sealed bytea not null,
  created_at timestamptz not null default now()
);

-- `id` is the `jti` of the token. A row that is gone ends the session on every gateway at once: the token alone is never enough.
create table session (
  id uuid primary key,
  principal_id uuid not null references principal (id) on delete cascade,
  renew_hash bytea not null unique check (length(renew_hash) = 32),
  -- The one before, for a moment: two tabs may renew at once. Later whoever brings it has stolen it.
  previous_hash bytea unique check (length(previous_hash) = 32),
  -- The sign-in that it goes back to, from which on the organization's longest session counts.
  began_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  expires_at timestamptz not null,
  ip inet,
  user_agent text not null default ''
);
create index on session (principal_id, created_at);
create index on session (expires_at);

create table password_reset (
  principal_id uuid primary key references principal (id) on delete cascade,
  token_hash bytea not null unique check (length(token_hash) = 32),
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);

-- The first sign-in ties the subject to the user; later the address alone is not enough, since a provider may give it to somebody else.
create table oidc_identity (
  issuer text not null,
  subject text not null,
  principal_id uuid not null references principal (id) on delete cascade,
  created_at timestamptz not null default now(),
  primary key (issuer, subject, principal_id),
  unique (principal_id, issuer)
);
