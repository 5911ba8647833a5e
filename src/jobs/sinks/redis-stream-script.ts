import { createHash } from 'node:crypto'
import { waitsBehind } from './publish-by-key.ts'

/**
 * The script that appends a part of a page to the stream and remembers how far it came.
 *
 * Keys: the stream, the memory. Arguments, in this order: maxlen (0: none), generation, epoch, position, xid, closed (the
 * keys of which an earlier part of the page had an event refused; JSON array), first and last id, all ids, all keys (JSON
 * arrays), and the events from the eleventh on.
 *
 * The memory is a hash: `generation`, the highest `xid` that published, `epoch`, `high` (the last id that was considered
 * in this epoch), and each id above the committed position that was refused, with the xid that it was refused to and why.
 *
 * What must hold:
 * 1. The first write is an HSET through redis.call. Redis checks maxmemory, a failed snapshot and missing replicas at a
 *    script's first write only: so those end the script before it did anything, and the sink counts as unavailable.
 * 2. After that nothing ends it without `high` being remembered. XADD goes through redis.pcall and an error is a refusal,
 *    except that the user may not XADD, which is no event's fault; the loop goes through pcall, and such an error is
 *    returned after it. SCRIPT KILL is refused to a script that has written.
 * 3. An event is skipped only if it is at or below `high` and was not refused.
 * 4. After a refusal nothing more of that key is taken.
 * 5. The same call once more (the same xid) gives the same answer: the relay may have acted on the first one, and parks
 *    what was refused. Only a later attempt tries it again.
 *
 * It is made for pages that are new: ids and keys are decoded only when something came again or was refused. Events are
 * arguments of their own, because Redis hashes each string that it hands to Lua from end to end, and a page in one string
 * would be hashed twice.
 */
const text = `
local stream, memory, maxlen = KEYS[1], KEYS[2], ARGV[1]
local generation, epoch, position, xid = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local seen, fields = {}, redis.call('HGETALL', memory)
for i = 1, #fields, 2 do seen[fields[i]] = fields[i + 1] end
local function remembered(name) return tonumber(seen[name] or '0') end

if remembered('generation') > generation then return {'zombie'} end
if remembered('generation') == generation then
  if remembered('xid') > xid then return {'zombie'} end
  if remembered('epoch') > epoch then return {'past'} end
end
local void = remembered('generation') < generation or remembered('epoch') < epoch
local high = void and 0 or remembered('high')
redis.call('HSET', memory, 'generation', ARGV[2], 'xid', ARGV[5], 'epoch', ARGV[3], 'high', void and '0' or seen.high)

local refusedBefore = {}
for name, refusal in pairs(seen) do
  local id = tonumber(name)
  if id and (void or id <= position) then redis.call('HDEL', memory, name) elseif id then refusedBefore[name] = refusal end
end

local new = tonumber(ARGV[7]) > high
local ids, keys, closed, reply = nil, nil, {}, {'ok'}
if not new then ids = cjson.decode(ARGV[9]) end
if ARGV[6] ~= '[]' then
  keys = cjson.decode(ARGV[10])
  for _, key in ipairs(cjson.decode(ARGV[6])) do closed[key] = true end
end

local mine = ARGV[5] .. ' '
local function refuse(i, reason)
  ids, keys = ids or cjson.decode(ARGV[9]), keys or cjson.decode(ARGV[10])
  if keys[i] ~= cjson.null then closed[keys[i]] = true end
  redis.call('HSET', memory, ids[i], mine .. reason)
  reply[#reply + 1] = ids[i]
  reply[#reply + 1] = reason
end

local function isNoPermission(text)
  return string.find(text, 'NOPERM', 1, true) or string.find(text, 'user executing the script', 1, true)
end

local reached, xadd, type, ARGV = 0, redis.pcall, type, ARGV
local done, failure = pcall(function()
  for i = 1, #ARGV - 10 do
    local before = not new and refusedBefore[ids[i]]
    if new or before or tonumber(ids[i]) > high then
      if before and string.sub(before, 1, #mine) == mine then refuse(i, string.sub(before, #mine + 1))
      elseif keys and closed[keys[i]] then refuse(i, '${waitsBehind}')
      else
        local answer
        if maxlen == '0' then answer = xadd('XADD', stream, '*', 'event', ARGV[i + 10])
        else answer = xadd('XADD', stream, 'MAXLEN', '~', maxlen, '*', 'event', ARGV[i + 10]) end
        if type(answer) == 'table' and isNoPermission(answer.err) then error(answer.err, 0)
        elseif type(answer) == 'table' then refuse(i, answer.err)
        elseif before then redis.call('HDEL', memory, ids[i]) end
      end
    end
    reached = i
  end
end)
local last = ARGV[8]
if not done then last = reached > 0 and (ids or cjson.decode(ARGV[9]))[reached] or '0' end
if tonumber(last) > high then redis.call('HSET', memory, 'high', last) end
if not done then return redis.error_reply(tostring(failure)) end
return reply
`

export const appendScript = { text, sha1: createHash('sha1').update(text).digest('hex') }

export type AppendReply = [outcome: 'ok' | 'zombie' | 'past', ...idsAndReasons: string[]]
