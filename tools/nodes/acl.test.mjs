// The user of Redis that the documentation shows, after other tests have used it.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import { within } from '../sdk/harness.mjs';
import { HAS_REDIS, system } from './system.mjs';

/** The reply to the last of some commands, as text. */
function ask(address, ...commands) {
  const [host, port] = address.split(':');
  const socket = connect({ host, port });
  socket.setEncoding('utf8');
  let text = '';
  const all = new Promise((resolve, reject) => {
    socket.on('data', (data) => (text += data));
    socket.on('end', () => resolve(text));
    socket.on('error', reject);
  });
  for (const words of [...commands, ['QUIT']]) {
    socket.write(`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`);
  }
  return within(all, `replies of ${address}`);
}

const WITH_USER = { skip: !(HAS_REDIS && system.redis.user.user) && 'nodes use the default user' };

test('Redis has refused nothing to the nodes', WITH_USER, async () => {
  for (const { address } of system.redis.servers) {
    const clients = await ask(address, ['CLIENT', 'LIST']);
    assert.match(clients, /user=roost/);
    // Nothing but an empty list, and the reply to QUIT.
    assert.equal(await ask(address, ['ACL', 'LOG']), '*0\r\n+OK\r\n');
  }
});

test('the user reaches nothing else', WITH_USER, async () => {
  const { user, password } = system.redis.user;
  for (const { address } of system.redis.servers) {
    for (const command of [
      ['HSET', 'other', 'a', '1'],
      ['PUBLISH', 'other.control', 'x'],
      ['SUBSCRIBE', 'other.control'],
      ['FLUSHALL'],
      ['KEYS', '*'],
      ['CONFIG', 'SET', 'maxmemory', '1'],
      ['ACL', 'LIST'],
      ['CLIENT', 'KILL', 'TYPE', 'normal'],
    ]) {
      assert.match(await ask(address, ['AUTH', user, password], command), /NOPERM/, command.join(' '));
    }
  }
});
