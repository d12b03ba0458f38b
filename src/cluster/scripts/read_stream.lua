-- Reads the position of a stream, and publications.
-- KEYS: stream, position. ARGV: "1" for publications, first offset, limit or "0", "1" for the newest first,
-- TTL of the position, epoch for a new stream. A read makes an epoch, so that two nodes that subscribe to
-- an empty channel agree. Answers {top, epoch, publications}.
local known = redis.call('HMGET', KEYS[2], 'e', 's')
local epoch, top = known[1], known[2] or '0'
if not epoch then
  epoch, top = ARGV[6], '0'
  redis.call('HSET', KEYS[2], 'e', epoch)
end
if ARGV[5] ~= '0' then redis.call('EXPIRE', KEYS[2], ARGV[5]) end
if ARGV[1] ~= '1' then return {top, epoch} end
local arguments
-- Nothing above the top: that would be of an earlier life.
if ARGV[4] == '1' then
  local from = ARGV[2]
  if from == '0' or tonumber(from) > tonumber(top) then from = top end
  arguments = {'XREVRANGE', KEYS[1], from, '-'}
else
  arguments = {'XRANGE', KEYS[1], ARGV[2], top}
end
if ARGV[3] ~= '0' then
  arguments[5] = 'COUNT'
  arguments[6] = ARGV[3]
end
return {top, epoch, redis.call(unpack(arguments))}
