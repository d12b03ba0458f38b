-- Reads the position of a list, and all of it. KEYS: list, position. ARGV: "1" for publications,
-- TTL of the position, epoch for a new list. Answers {top, epoch, publications, the newest first}.
local known = redis.call('HMGET', KEYS[2], 'e', 's')
local epoch, top = known[1], known[2] or '0'
if not epoch then
  epoch, top = ARGV[3], '0'
  redis.call('HSET', KEYS[2], 'e', epoch)
end
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
if ARGV[1] ~= '1' then return {top, epoch} end
return {top, epoch, redis.call('LRANGE', KEYS[1], 0, -1)}
