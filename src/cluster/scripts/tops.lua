-- Reads the positions of many streams or lists. KEYS: the positions. Answers one text, since a value for each would
-- cost a node several times as much: for each key the bytes of its epoch, 0 without one, the epoch, and the top, with
-- a line feed between all of them.
local call, parts, n = redis.call, {}, 0
for at = 1, #KEYS do
  local known = call('HMGET', KEYS[at], 'e', 's')
  local epoch = known[1] or ''
  parts[n + 1], parts[n + 2], parts[n + 3] = #epoch, epoch, known[2] or '0'
  n = n + 3
end
return table.concat(parts, '\n')
