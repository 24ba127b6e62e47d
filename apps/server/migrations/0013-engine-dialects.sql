-- What an engine speaks beside chat. A request in such a dialect goes to it as it came, and is made a chat for the others.
alter table engine add column speaks text[] not null default '{}' check (speaks <@ array['responses']);
