-- Takes a publication into a stream.
-- KEYS: stream, position, result. ARGV: payload, size, TTL, PUB/SUB name or "", TTL of the position,
-- epoch for a new stream, publish command, TTL of the result or "", "1" for a delta, version, its epoch.
-- Answers {offset, epoch, "1" if it is a repetition, "1" if its version is too old}.
local stream, position, result = KEYS[1], KEYS[2], KEYS[3]
local payload, name, is_delta, version, life = ARGV[1], ARGV[4], ARGV[9] == '1', ARGV[10], ARGV[11]
if ARGV[8] ~= '' then
  local earlier = redis.call('HMGET', result, 'e', 's')
  if earlier[1] then return {earlier[2], earlier[1], '1', '0'} end
end
local known = redis.call('HMGET', position, 'e', 's', 'v', 've')
local epoch = known[1] or ARGV[6]
if version ~= '0' and known[3] and (life == '' or life == known[4]) then
  -- Decimal texts without leading zeros: the longer one is greater, and numbers of Lua are not exact.
  local old = known[3]
  if #old > #version or (#old == #version and old >= version) then
    return {known[2] or '0', epoch, '0', '1'}
  end
end
if not known[1] then redis.call('HSET', position, 'e', epoch) end
local top = redis.call('HINCRBY', position, 's', 1)
local previous = ''
if top == 1 then
  redis.call('DEL', stream)
elseif is_delta then
  local newest = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if newest[1] then
    local fields = newest[1][2]
    for at = 1, #fields, 2 do
      if fields[at] == 'd' then previous = fields[at + 1] end
    end
  end
end
local added = redis.pcall('XADD', stream, 'MAXLEN', ARGV[2], top .. '-0', 'd', payload)
if type(added) == 'table' and added.err then
  -- Without this an offset would be missing for ever.
  redis.call('HINCRBY', position, 's', -1)
  return added
end
redis.call('EXPIRE', stream, ARGV[3])
if version ~= '0' then redis.call('HSET', position, 'v', version, 've', life) end
if ARGV[5] ~= '0' then redis.call('EXPIRE', position, ARGV[5]) end
if name ~= '' then
  local head
  if is_delta then
    head = '__d1:' .. top .. ':' .. epoch .. ':' .. #previous .. ':' .. previous .. ':' .. #payload .. ':'
  else
    head = '__p1:' .. top .. ':' .. epoch .. '__'
  end
  redis.call(ARGV[7], name, head .. payload)
end
if ARGV[8] ~= '' then
  redis.call('HSET', result, 'e', epoch, 's', top)
  redis.call('EXPIRE', result, ARGV[8])
end
return {top, epoch, '0', '0'}
