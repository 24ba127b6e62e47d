-- What a model asks of requests, or can take, beyond its limits. Reading them decides what is refused before an engine is called.

alter table model
  -- Takes sound inside a conversation (data-plane.md 6.4).
  add column audio_in_chat boolean not null default false,
  -- Null: no limit of its own.
  add column max_images integer check (max_images > 0),
  -- A token is a square of so many pixels, once the image is scaled down to the longest side the model works on (data-plane.md 15).
  add column image_token_px integer check (image_token_px > 0),
  add column image_max_px integer check (image_max_px > 0),
  -- Refuses two turns of the same speaker in a row (data-plane.md 6.2).
  add column alternating_roles boolean not null default false,
  -- Said in place of a system message when tools are given without one (data-plane.md 6.5).
  add column tool_system_prompt text check (length(tool_system_prompt) between 1 and 20000),
  -- Empty: not known, so whatever is asked for goes to the engine (data-plane.md 6.7).
  add column reasoning_efforts text[] not null default '{}',
  -- With this, a vector may be cut to any length from here on, and not only to those in `matryoshka` (data-plane.md 9).
  add column min_dimensions integer check (min_dimensions > 0 and min_dimensions <= dimensions);

alter table model drop constraint model_type_check;
alter table model add constraint model_type_check check (type in ('chat', 'embedding', 'rerank', 'audio', 'ocr'));
