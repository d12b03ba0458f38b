-- Gives a stream another epoch, unless it has another one already.
-- KEYS: stream or list, position. ARGV: epoch that it had, new epoch, "1" for a list,
-- seconds for which the position is kept or "0".
-- Answers as a read of the newest publication.
local known = redis.call('HMGET', KEYS[2], 'e', 's')
local epoch, top = known[1], known[2] or '0'
if not epoch or epoch == ARGV[1] then
  epoch = ARGV[2]
  redis.call('HSET', KEYS[2], 'e', epoch)
end
if ARGV[4] ~= '0' then redis.call('EXPIRE', KEYS[2], ARGV[4]) end
if ARGV[3] == '1' then return {top, epoch, redis.call('LRANGE', KEYS[1], 0, 0)} end
return {top, epoch, redis.call('XREVRANGE', KEYS[1], top, '-', 'COUNT', 1)}
