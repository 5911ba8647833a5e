-- applies to: the coordinator
-- An operator has undone what a compensation was to undo, and that is written down; it is not tried again.

create function holdfast.compensated_by_hand(p_attempt uuid, p_who text, p_why text)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
  v_error text;
begin
  select name, compensation_error into v_name, v_error from holdfast.distributed_transactions
    where attempt = p_attempt and compensation = 'failed' for no key update;
  if v_name is null then return false; end if;
  update holdfast.distributed_transactions set quarantine = null, updated_at = clock_timestamp(),
    compensation = 'done', compensation_error = null
  where attempt = p_attempt;
  insert into holdfast.transaction_events (event, name, attempt, actor, detail)
  values ('compensated_by_hand', v_name, p_attempt, session_user || '/' || p_who,
          jsonb_build_object('why', p_why, 'was', v_error));
  return true;
end $$;

revoke execute on function holdfast.compensated_by_hand from public;
