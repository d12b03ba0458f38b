-- Changes entries of a channel.
-- KEYS: expiry, entries, expiry of users, users. ARGV: TTL, "1" with users, "1" with field TTLs, then for
-- each change "+" (write) or "-" (remove), client, info, user.
-- The time is that of Redis: clocks of nodes may differ.
local expiry, entries, users_expiry, users = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl, with_users, with_fields = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local at = redis.call('TIME')[1] + ttl
local kept, kept_users = {}, {}
for index = 4, #ARGV, 4 do
  local kind, client, info, user = ARGV[index], ARGV[index + 1], ARGV[index + 2], ARGV[index + 3]
  if kind == '-' then
    local was_there = redis.call('HDEL', entries, client) == 1
    redis.call('ZREM', expiry, client)
    if with_users and was_there and redis.call('HINCRBY', users, user, -1) <= 0 then
      redis.call('HDEL', users, user)
      redis.call('ZREM', users_expiry, user)
    end
  else
    local is_new = redis.call('HSET', entries, client, info) == 1
    kept[#kept + 1] = client
    if with_users then
      if is_new then redis.call('HINCRBY', users, user, 1) end
      kept_users[#kept_users + 1] = user
    end
  end
end
local function prolong(names, set, hash)
  if #names == 0 then return end
  redis.call('EXPIRE', hash, ttl)
  if with_fields then
    redis.call('HEXPIRE', hash, ttl, 'FIELDS', #names, unpack(names))
    return
  end
  local scores = {}
  for index, name in ipairs(names) do
    scores[2 * index - 1] = at
    scores[2 * index] = name
  end
  redis.call('ZADD', set, unpack(scores))
  redis.call('EXPIRE', set, ttl)
end
prolong(kept, expiry, entries)
prolong(kept_users, users_expiry, users)
return 0
