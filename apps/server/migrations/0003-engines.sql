-- Engines that the operator already runs: an address, and which of its models answers for which of ours.
-- They belong to the installation, not to an organization. Embedded engines have no row: they follow the catalogue.
create table engine (
  id uuid primary key,
  name text not null unique,
  -- As it is called, without `/v1`: origin and path.
  url text not null,
  -- Sealed with the installation's master key; null where the engine wants no key.
  bearer bytea,
  created_at timestamptz not null
);

create table engine_model (
  engine_id uuid not null references engine (id) on delete cascade,
  -- A model that leaves the catalogue keeps its row, so this stays as it is and nobody asks for it any more.
  model_id uuid not null references model (id),
  -- Our name, for lists and logs; the id decides.
  model_name text not null,
  remote_name text not null,
  -- One engine may offer a model of ours under one name only: two would be one machine counted as two replicas.
  primary key (engine_id, model_id)
);
