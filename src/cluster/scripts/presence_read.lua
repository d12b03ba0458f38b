-- Reads the entries of a channel, or counts them.
-- KEYS: expiry, entries, expiry of users, users. ARGV: "1" with field TTLs, "1" to count with users.
local now = redis.call('TIME')[1]
local function clean(set, hash)
  local gone = redis.call('ZRANGEBYSCORE', set, '-inf', now)
  for first = 1, #gone, 1000 do
    redis.call('HDEL', hash, unpack(gone, first, math.min(first + 999, #gone)))
  end
  if #gone > 0 then redis.call('ZREMRANGEBYSCORE', set, '-inf', now) end
end
if ARGV[1] ~= '1' then clean(KEYS[1], KEYS[2]) end
if ARGV[2] ~= '1' then return redis.call('HGETALL', KEYS[2]) end
if ARGV[1] ~= '1' then clean(KEYS[3], KEYS[4]) end
return {redis.call('HLEN', KEYS[2]), redis.call('HLEN', KEYS[4])}
