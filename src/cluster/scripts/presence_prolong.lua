-- Prolongs the time of entries of a channel: what they contain stays.
-- KEYS: expiry, entries, expiry of users, users. ARGV: TTL, "1" with users, "1" with field TTLs, the number of
-- clients, the clients, and with users the user of each.
-- Answers how many entries are not there: the node writes them anew. The time is that of Redis.
local expiry, entries, users_expiry, users = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl, with_users, with_fields = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local count = tonumber(ARGV[4])
if redis.call('EXPIRE', entries, ttl) == 0 then return count end
local at = redis.call('TIME')[1] + ttl
-- Answers whether some were not there before.
local function prolong(first, set, hash)
  if with_fields then
    local found = redis.call('HEXPIRE', hash, ttl, 'FIELDS', count, unpack(ARGV, first, first + count - 1))
    for _, code in ipairs(found) do
      if code == -2 then return true end
    end
    return false
  end
  local scores, last = {}, 0
  for index = first, first + count - 1 do
    scores[last + 1] = at
    last = last + 2
    scores[last] = ARGV[index]
  end
  local added = redis.call('ZADD', set, unpack(scores))
  redis.call('EXPIRE', set, ttl)
  return added > 0
end
if with_users and redis.call('EXPIRE', users, ttl) == 1 then prolong(5 + count, users_expiry, users) end
local differs = prolong(5, expiry, entries)
if not differs and (with_fields or redis.call('HLEN', entries) == redis.call('ZCARD', expiry)) then return 0 end
local missing = 0
for index = 5, 4 + count do
  if redis.call('HEXISTS', entries, ARGV[index]) == 0 then missing = missing + 1 end
end
return missing
