-- applies to: the coordinator
-- Idempotency keys: who has claimed a key, and what its call came to. The protocol is told in src/jobs/idempotent.ts.

-- Grows also over rows that were removed: a key that is claimed anew gets a higher token than any claim before.
create sequence holdfast.idempotency_token;

create table holdfast.idempotency_keys (
  scope text not null,
  key text not null,
  -- of the last claim; whoever holds an older one is fenced off
  token bigint not null,
  -- SHA-256 of the fingerprint's canonical JSON
  fingerprint bytea not null,
  claimed_at timestamptz not null default clock_timestamp(),
  -- of the claim; means nothing any more once there is a response
  lease_until timestamptz not null,
  -- from then on a key with a response, or one whose lease has run out, counts as absent
  expires_at timestamptz not null,
  -- JSON text as the first caller got it; null: in flight
  response json,
  primary key (scope, key)
) with (fillfactor = 90);
-- Room in each page, and a completion that leaves the expiry as it is: then the response goes beside the claim without
-- another entry in the indexes.
create index idempotency_keys_expiry on holdfast.idempotency_keys (expires_at);

-- A claim is visible to everybody when this returns, in a transaction of its own. It need not reach the disk: what comes of
-- it does, and what the server forgets of it in a crash, the completion finds missing.
--
-- It waits for nobody: a key that somebody is changing just now is `busy`, and what is in flight is read without a lock.
-- Each statement sees what was committed before it, so a row that is locked is looked at again.
create function holdfast.claim_idempotency_key(
  p_scope text, p_key text, p_fingerprint bytea, p_lease interval, p_ttl interval,
  out state text, out token bigint, out response json, out running_ms float8, out lease_ms float8)
language plpgsql as $$
declare
  v_row holdfast.idempotency_keys;
  v_now timestamptz;
begin
  set local synchronous_commit = off;
  set local lock_timeout = '1s';
  for look in 1..3 loop
    select * into v_row from holdfast.idempotency_keys k where k.scope = p_scope and k.key = p_key;
    if not found then
      insert into holdfast.idempotency_keys as k (scope, key, token, fingerprint, lease_until, expires_at)
      values (p_scope, p_key, nextval('holdfast.idempotency_token'), p_fingerprint,
        clock_timestamp() + p_lease, clock_timestamp() + p_ttl)
      on conflict do nothing returning k.token into token;
      if found then
        state := 'claimed';
        return;
      end if;
      continue;
    end if;
    v_now := clock_timestamp();
    if v_row.expires_at > v_now or (v_row.response is null and v_row.lease_until > v_now) then
      if v_row.fingerprint <> p_fingerprint then
        state := 'mismatch';
        return;
      elsif v_row.response is not null then
        state := 'completed';
        response := v_row.response;
        return;
      elsif v_row.lease_until > v_now then
        state := 'in_flight';
        running_ms := extract(epoch from v_now - v_row.claimed_at) * 1000;
        lease_ms := extract(epoch from v_row.lease_until - v_now) * 1000;
        return;
      end if;
    end if;
    -- Expired, or its owner is gone. Its owner may be completing, renewing or releasing it at this moment.
    perform from holdfast.idempotency_keys k
    where k.scope = p_scope and k.key = p_key and k.token = v_row.token
      and (k.response is null) = (v_row.response is null)
      and case when k.response is null then k.lease_until else k.expires_at end <= clock_timestamp()
    for update skip locked;
    if found then
      -- The token is drawn under the lock.
      update holdfast.idempotency_keys k set token = nextval('holdfast.idempotency_token'),
        fingerprint = p_fingerprint, claimed_at = clock_timestamp(), lease_until = clock_timestamp() + p_lease,
        expires_at = clock_timestamp() + p_ttl, response = null
      where k.scope = p_scope and k.key = p_key
      returning k.token into token;
      state := 'claimed';
      return;
    end if;
  end loop;
  state := 'busy';
end $$;

-- Called last in the transaction that did the work. It raises, so that the COMMIT behind it in the same flush commits
-- nothing. The setting tells that this is still the transaction that was begun for the claim.
create function holdfast.complete_idempotency_key(
  p_scope text, p_key text, p_token bigint, p_fingerprint bytea, p_response text, p_ttl interval) returns void
language plpgsql as $$
begin
  if current_setting('holdfast.claim', true) is distinct from p_token::text then
    raise exception 'the transaction of this claim was ended' using errcode = 'HF002';
  end if;
  update holdfast.idempotency_keys
  set response = p_response::json,
    -- The claim set it; the work's own time counts only where it is a part of it that matters.
    expires_at = case when clock_timestamp() - claimed_at < p_ttl / 100 then expires_at else clock_timestamp() + p_ttl end
  where scope = p_scope and key = p_key and token = p_token and fingerprint = p_fingerprint and response is null;
  if not found then
    raise exception 'the claim with token % does not hold the key any more', p_token using errcode = 'HF001';
  end if;
end $$;
