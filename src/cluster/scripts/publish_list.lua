-- Takes a publication into a list, the newest first. As publish_stream.lua, without versions.
-- KEYS: list, position, result. ARGV: payload, size, TTL, PUB/SUB name or "", TTL of the position,
-- epoch for a new list, publish command, TTL of the result or "", "1" for a delta.
local list, position, result = KEYS[1], KEYS[2], KEYS[3]
local payload, name, is_delta = ARGV[1], ARGV[4], ARGV[9] == '1'
if ARGV[8] ~= '' then
  local earlier = redis.call('HMGET', result, 'e', 's')
  if earlier[1] then return {earlier[2], earlier[1], '1', '0'} end
end
local epoch = redis.call('HGET', position, 'e')
if not epoch then
  epoch = ARGV[6]
  redis.call('HSET', position, 'e', epoch)
end
local top = redis.call('HINCRBY', position, 's', 1)
if ARGV[5] ~= '0' then redis.call('EXPIRE', position, ARGV[5]) end
local previous = ''
if is_delta and top ~= 1 then
  local newest = redis.call('LINDEX', list, 0) or ''
  -- Its header would be no part of a publication.
  local _, behind = string.find(newest, '^__p%d:%d+:.-__')
  previous = string.sub(newest, (behind or 0) + 1)
end
local entry = '__p1:' .. top .. ':' .. epoch .. '__' .. payload
redis.call('LPUSH', list, entry)
redis.call('LTRIM', list, 0, ARGV[2] - 1)
redis.call('EXPIRE', list, ARGV[3])
if name ~= '' then
  if is_delta then
    entry = '__d1:' .. top .. ':' .. epoch .. ':' .. #previous .. ':' .. previous .. ':' .. #payload .. ':' .. payload
  end
  redis.call(ARGV[7], name, entry)
end
if ARGV[8] ~= '' then
  redis.call('HSET', result, 'e', epoch, 's', top)
  redis.call('EXPIRE', result, ARGV[8])
end
return {top, epoch, '0', '0'}
