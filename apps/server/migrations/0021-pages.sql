-- An older process must not run beside this: the hours that it adds up have no pages.

alter table usage_total drop constraint usage_total_kind_check;
alter table usage_total add constraint usage_total_kind_check
  check (kind in ('input_tokens', 'cached_input_tokens', 'output_tokens', 'audio_milliseconds', 'pages'));

-- What a model for documents cost was said by the million tokens, and such a model has none: nothing was ever charged at these prices, and no
-- invoice was made of them. Read as prices of pages they would charge what nobody was told of, so they are made what they were: nothing.
alter table model_price disable trigger model_price_only_grows;
update model_price set input = 0, cached_input = 0, output = 0 from model where model.id = model_price.model_id and model.type = 'ocr';
alter table model_price enable trigger model_price_only_grows;

-- Hours that were added up already, as they would be now. Most ledgers have no such model, and are not read.
insert into usage_total (hour, organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, events)
select date_trunc('hour', accepted_at, 'UTC'), organization_id, project_id, principal_id, access_key, model, 'pages', mode, price_id,
       sum(pages)::bigint, count(*)
  from usage_event
 where charged and pages <> 0 and accepted_at >= (select kept_from from usage_total_state)
   and exists (select from model where type = 'ocr')
 group by 1, 2, 3, 4, 5, 6, 8, 9;
