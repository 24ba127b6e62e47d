-- What 0007 wrote as the limits of the tiers, kept apart: an operator may change those, and have the published ones back.
create table quota_published (
  tier text not null,
  model text not null,
  name text not null,
  value bigint,
  primary key (tier, model, name)
);

insert into quota_published (tier, model, name, value)
select tier, model, name, value
from (
  select model, tokens
  from (values
    ('*', 1000000), ('glm-5.2', 1000000), ('mistral-medium-3.5-128b', 1000000), ('qwen3-235b-a22b-instruct-2507', 1000000),
    ('qwen3-embedding-8b', 1000000), ('gpt-oss-120b', 1000000), ('deepseek-v4-flash-0731', 1000000), ('qwen3.8-27b', 1000000),
    ('gemma-4-26b-a4b-it', 2000000), ('mistral-small-3.2-24b-instruct-2506', 2000000), ('qwen3.6-35b-a3b', 2000000),
    ('qwen3.5-397b-a17b', 2000000),
    ('gemma-3-27b-it', 400000), ('llama-3.3-70b-instruct', 400000), ('voxtral-small-24b-2507', 400000), ('pixtral-12b-2409', 400000),
    ('qwen3-coder-30b-a3b-instruct', 400000), ('holo2-30b-a3b', 400000), ('bge-multilingual-gemma2', 400000),
    ('whisper-large-v3', null)
  ) as listed (model, tokens)
) as models,
lateral (values
  -- Without a payment method the published limits are "stricter" and no more is known: a tenth of the first tier.
  ('none', 'tokens_per_minute', case when tokens is null then null else 20000 end),
  ('payment_method', 'tokens_per_minute', case when tokens is null then null else 200000 end),
  ('identity_verified', 'tokens_per_minute', tokens)
) as limits (tier, name, value);

insert into quota_published (tier, model, name, value) values
  ('none', '*', 'requests_per_minute', 30),
  ('payment_method', '*', 'requests_per_minute', 300),
  ('identity_verified', '*', 'requests_per_minute', 600),
  ('none', '*', 'audio_seconds_per_minute', 180),
  ('payment_method', '*', 'audio_seconds_per_minute', 1800),
  ('identity_verified', '*', 'audio_seconds_per_minute', 3600),
  ('none', '*', 'concurrent_requests', 10),
  ('payment_method', '*', 'concurrent_requests', 100),
  ('identity_verified', '*', 'concurrent_requests', 100),
  ('none', '*', 'concurrent_batches', 2),
  ('payment_method', '*', 'concurrent_batches', 20),
  ('identity_verified', '*', 'concurrent_batches', 100),
  -- Refused once the free pool is spent (serverless-platform.md 4.1).
  ('none', '*', 'free_tokens_per_month', 1000000);
