-- Sends a publication without history, unless its key has been used.
-- KEYS: result. ARGV: payload, PUB/SUB name, publish command, TTL of the result.
if redis.call('HEXISTS', KEYS[1], 'e') == 1 then return 0 end
redis.call(ARGV[3], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[1], 'e', '')
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
