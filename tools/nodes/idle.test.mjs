// Connections that are silent for longer than a balancer allows by default (60 s). Pings of the nodes are off.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { follow, fresh } from '../sdk/harness.mjs';
import { connected, freshUser, HAS_REDIS, leave, nodes } from './system.mjs';

const SILENT_MS = 63_000;

test('a silent connection is not closed before two intervals of pings', async () => {
  const user = freshUser();
  const channel = fresh();
  const ends = [];
  const all = [];
  for (const transport of HAS_REDIS ? ['websocket', 'http_stream', 'sse'] : ['websocket']) {
    const made = await connected(user, { transport });
    made.on('connecting', (context) => ends.push({ transport, ...context }));
    all.push({ made, ...(await follow(made, channel)) });
  }
  await new Promise((resolve) => setTimeout(resolve, SILENT_MS));
  assert.deepEqual(ends, []);
  // All nodes: without Redis each has its own clients.
  for (const node of nodes) await node.api('publish', { channel, data: 'after the silence' });
  for (const { inbox } of all) assert.deepEqual((await inbox.take(1))[0], 'after the silence');
  assert.deepEqual(ends, []);
  leave(...all.map(({ made }) => made));
});
