// Clients over a balancer, to two nodes. tools/cluster starts them, with each configuration of a balancer in
// this folder; pings of the nodes are off, so that only messages keep a connection busy.

import assert from 'node:assert/strict';
import http from 'node:http';
import { test } from 'node:test';
import { ENCODINGS, follow, fresh, JSON_ENCODING, range, sign, until, within } from '../sdk/harness.mjs';
import {
  addresses,
  balancer,
  clientsOfBoth,
  connected,
  freshUser,
  leave,
  nodes,
  ONLY_REDIS,
  PASSES_TCP,
  request,
  spread,
  system,
} from './system.mjs';

const HTTP = `http://${balancer.address}`;
const ONLY_HTTP = { skip: PASSES_TCP && 'the balancer sees no requests' };
const BY_ADDRESS = balancer.file.includes('ip-hash');
const BY_COOKIE = balancer.file.includes('cookie');
const TRANSPORTS = ['websocket', 'http_stream', 'sse'];

/** The encodings of a transport. */
const encodingsOf = (transport) => (transport === 'sse' ? [JSON_ENCODING] : ENCODINGS);

test('new clients go to both nodes', async () => {
  const user = freshUser();
  leave(...(await clientsOfBoth(user)));
  await spread(user, 0);
});

for (const transport of TRANSPORTS) {
  for (const encoding of encodingsOf(transport)) {
    test(`each message over ${transport} in ${encoding.name} leaves at once`, ONLY_REDIS, async () => {
      const user = freshUser();
      const listener = await connected(user, { transport, encoding });
      const channel = fresh();
      const { inbox } = await follow(listener, channel);
      const publisher = await connected(user, { encoding });
      // One after another: what waits in a buffer for the next one never comes.
      const began = performance.now();
      for (const number of range(0, 20)) {
        await publisher.publish(channel, encoding.pack({ number }));
        await inbox.take(number + 1);
      }
      assert.deepEqual(inbox.items, range(0, 20).map((number) => ({ number })));
      // A balancer that waits for full packets holds each back for 200 ms.
      const each = (performance.now() - began) / 20;
      assert.ok(each < 100, `${each} ms for each message`);
      leave(listener, publisher);
    });
  }
}

for (const [transport, encoding] of [['http_stream', ENCODINGS[0]], ['http_stream', ENCODINGS[1]], ['sse', ENCODINGS[0]]]) {
  test(`commands of ${transport} in ${encoding.name} reach the node of their connection`, ONLY_REDIS, async () => {
    // Each request is a new one for the balancer: about half of them arrive at the other node.
    const user = freshUser();
    const sender = await connected(user, { transport, encoding });
    const channel = fresh();
    const { inbox } = await follow(sender, channel);
    const values = range(0, 40).map((number) => ({ number }));
    for (const value of values) await sender.publish(channel, encoding.pack(value));
    assert.deepEqual(await inbox.take(values.length), values);
    leave(sender);
  });
}

test('a command goes from a node to the one that has the session', ONLY_REDIS, async () => {
  // To each node itself, as a balancer would send it.
  const stream = await openStream(freshUser());
  const { session, node } = stream.reply.connect;
  const frames = [];
  stream.answer.on('data', (data) => frames.push(data));
  for (const [id, receiver] of nodes.entries()) {
    const data = `${JSON.stringify({ id: id + 2, subscribe: { channel: fresh() } })}\n`;
    const body = JSON.stringify({ session, node, data });
    const { status, text } = await receiver.ask('/emulation', { method: 'POST', body });
    assert.equal(status, 204, text);
    await until(() => (frames.join('').includes(`"id":${id + 2}`) ? true : undefined), `the reply over ${receiver.name}`);
  }
  stream.sent.destroy();
});

/** A stream over the balancer, as a plain HTTP request, after its connect reply. */
async function openStream(user, { headers = {}, path = '/connection/http_stream' } = {}) {
  const body = `${JSON.stringify({ id: 1, connect: { token: sign({ sub: user }, system.secret) } })}\n`;
  const sent = http.request(`${HTTP}${path}`, { method: 'POST', headers, agent: false });
  sent.on('error', () => {});
  sent.end(body);
  const answer = await within(new Promise((resolve) => sent.once('response', resolve)), 'the head of the stream');
  assert.equal(answer.statusCode, 200);
  answer.setEncoding('utf8');
  answer.on('error', () => {});
  const first = await within(new Promise((resolve) => answer.once('data', resolve)), 'the connect reply');
  return { sent, answer, reply: JSON.parse(first) };
}

test('a client that goes away is gone at its node', async () => {
  // There are no pings that would find it out.
  const user = freshUser();
  const streams = await Promise.all(range(0, 4).map(() => openStream(user)));
  await spread(user, 4);
  for (const { sent } of streams) sent.destroy();
  await spread(user, 0);
});

test('a node knows the address of its client', async () => {
  for (const localAddress of ['127.0.0.7', '127.0.9.7']) {
    for (const forged of [{}, { 'X-Forwarded-For': '192.0.2.66', Forwarded: 'for=192.0.2.67' }]) {
      const user = freshUser();
      const made = await connected(user, { localAddress, headers: forged });
      await spread(user, 1);
      const [seen] = (await Promise.all(nodes.map((node) => node.connections(user)))).flat();
      assert.equal(seen.address, localAddress);
      leave(made);
    }
  }
});

test('only paths of clients pass', ONLY_HTTP, async () => {
  for (const path of ['/', '/api', '/api/publish', '/metrics', '/health', '/admin/auth', '/emulations']) {
    assert.equal((await request(`${HTTP}${path}`)).status, 404, path);
  }
  // These are answered by a node.
  assert.equal((await request(`${HTTP}/emulation`)).status, 405);
  assert.equal((await request(`${HTTP}/connection/websocket`)).status, 400);
});

test('an address stays with its node', { skip: !BY_ADDRESS && 'addresses do not matter here' }, async () => {
  for (const localAddress of addresses.slice(0, 4)) {
    const user = freshUser();
    const all = await Promise.all(range(0, 6).map(() => connected(user, { localAddress })));
    assert.deepEqual((await spread(user, 6)).sort(), [0, 6]);
    leave(...all);
  }
});

test('a browser with a cookie stays with its node', { skip: !BY_COOKIE && 'there is no cookie here' }, async () => {
  const seen = new Set();
  for (const _ of range(0, 4)) {
    const user = freshUser();
    const first = await openStream(user);
    const cookie = first.answer.headers['set-cookie'].map((line) => line.split(';')[0]).join('; ');
    assert.match(cookie, /^roost=/);
    const headers = { Cookie: cookie };
    const streams = await Promise.all(range(0, 3).map(() => openStream(user, { headers })));
    const sockets = await Promise.all(range(0, 3).map(() => connected(user, { headers })));
    assert.deepEqual((await spread(user, 7)).sort(), [0, 7]);
    seen.add(cookie);
    for (const { sent } of [first, ...streams]) sent.destroy();
    leave(...sockets);
  }
});
