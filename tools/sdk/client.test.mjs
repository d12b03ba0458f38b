// The everyday life of an SDK client: connect, subscribe, publish, receive, be refused.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import {
  collect,
  FRAMES_ARE_MESSAGES,
  next,
  BROKER,
  NODES,
  ONE_PROCESS,
  OVER_WEBSOCKET,
  refusedSubscribe,
  seconds,
  shared,
  sign,
  subscribed,
  TRANSPORT,
  within,
} from './harness.mjs';

const MESSAGE_BYTES_MAX = 65_536;

const roost = shared({ flags: ['--shards', '2'] });

test('a token of `roost token` connects', async () => {
  const client = roost.client({ token: await roost.token('--user', 'ann') });
  const connected = next(client, 'connected');
  client.connect();
  const context = await connected;
  assert.match(context.client, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.equal(context.transport, OVER_WEBSOCKET ? 'websocket' : TRANSPORT);
});

test('a token that lives on makes a connection that expires later', async () => {
  const socket = await roost.socket();
  const token = sign({ sub: 'ann', exp: seconds() + 3600 });
  socket.send(JSON.stringify({ id: 7, connect: { token } }));
  const reply = JSON.parse((await socket.frames.take(1))[0]);
  assert.equal(reply.id, 7);
  assert.equal(reply.connect.expires, true);
  assert.ok(reply.connect.ttl > 3500 && reply.connect.ttl <= 3600, `ttl ${reply.connect.ttl}`);
  assert.equal(reply.connect.ping, 25);
  assert.equal(reply.connect.pong, true);
  socket.close();
});

test('a publication comes back to its publisher, with who published it', async () => {
  const client = await roost.connected('ann');
  const subscription = await subscribed(client, 'own');
  const publications = collect(subscription, 'publication');
  const data = { text: 'grüße 🦆 \n "quoted" \u2028', list: [1, 2.5, null, true], nested: { a: {} } };
  await subscription.publish(data);
  const [publication] = await publications.take(1);
  assert.deepEqual(publication.data, data);
  assert.equal(publication.channel, 'own');
  assert.equal(publication.info.user, 'ann');
  assert.equal(publication.info.client, client.id);
  assert.equal(publication.offset, undefined, 'no history, no offset');
});

test('payloads of every JSON type arrive as they are', async () => {
  const client = await roost.connected('ann');
  const subscription = await subscribed(client, 'types');
  const publications = collect(subscription, 'publication');
  const payloads = [{}, [], '', 'text', 0, -1.5e300, true, false, { '': null }];
  for (const payload of payloads) await subscription.publish(payload);
  const received = (await publications.take(payloads.length)).map((publication) => publication.data);
  assert.deepEqual(received, payloads);
});

test('order is kept over several channels and publishers', async () => {
  const channels = ['order-1', 'order-2', 'order-3', 'order-4'];
  const each = 250;
  const clients = [await roost.connected('ann'), await roost.connected('bob')];
  const inboxes = [];
  for (const client of clients) {
    for (const channel of channels) {
      const subscription = await subscribed(client, channel);
      inboxes.push({ channel, inbox: collect(subscription, 'publication') });
    }
  }
  // Open loop: nothing waits for a reply, so what the server holds in flight stays ordered too.
  const replies = [];
  for (let number = 0; number < each; number += 1) {
    for (const channel of channels) {
      for (const [from, client] of clients.entries()) {
        replies.push(client.publish(channel, { from, number }));
      }
    }
  }
  await within(Promise.all(replies), 'replies to all publishes', 60_000);
  const seen = new Map();
  for (const { channel, inbox } of inboxes) {
    const data = (await inbox.take(each * clients.length)).map((publication) => publication.data);
    for (const from of clients.keys()) {
      const numbers = data.filter((item) => item.from === from).map((item) => item.number);
      assert.deepEqual(numbers, [...Array(each).keys()], `${channel} from ${from}`);
    }
    // Every subscriber of a channel sees one and the same order. NATS has none in common for two publishers.
    if (seen.has(channel) && BROKER !== 'nats') assert.deepEqual(data, seen.get(channel), channel);
    seen.set(channel, data);
  }
  for (const { inbox } of inboxes) assert.equal(inbox.items.length, each * clients.length);
});

test('one publication reaches every subscriber once', async () => {
  const clients = await Promise.all(
    Array.from({ length: 200 }, (_, number) => roost.connected(`user-${number}`)),
  );
  const inboxes = await Promise.all(
    clients.map(async (client) => collect(await subscribed(client, 'crowd'), 'publication')),
  );
  for (const number of [1, 2, 3]) await clients[0].publish('crowd', { number });
  for (const inbox of inboxes) {
    const numbers = (await inbox.take(3)).map((publication) => publication.data.number);
    assert.deepEqual(numbers, [1, 2, 3]);
  }
  for (const inbox of inboxes) assert.equal(inbox.items.length, 3);
  for (const client of clients) client.disconnect();
});

test('subscribing is refused with the code that says why', async () => {
  const client = await roost.connected('ann');
  const codes = {
    'nowhere:news': 102,
    'closed:news': 103,
    $gold: 103,
    'nön-ascii': 107,
    ['x'.repeat(256)]: 107,
  };
  for (const [channel, code] of Object.entries(codes)) {
    assert.equal((await refusedSubscribe(client, channel)).code, code, channel.slice(0, 20));
  }
  await subscribed(client, 'x'.repeat(255));
  assert.equal(client.state, 'connected');
});

test('publishing is refused to who is not subscribed', async () => {
  const client = await roost.connected('ann');
  await assert.rejects(client.publish('quiet', {}), { code: 103 });
  await assert.rejects(client.publish('nowhere:news', {}), { code: 102 });
  await subscribed(client, 'quiet');
  await client.publish('quiet', {});
});

test('an expired token is renewed by getToken', async () => {
  let asked = 0;
  const client = roost.client({
    token: sign({ sub: 'ann', exp: seconds() - 10 }),
    getToken: async () => {
      asked += 1;
      return sign({ sub: 'ann', exp: seconds() + 3600 });
    },
  });
  const errors = collect(client, 'error');
  const connected = next(client, 'connected');
  client.connect();
  await connected;
  assert.equal(asked, 1);
  assert.equal(errors.items[0].error.code, 109);
});

test('a token that is not valid ends the client with 3500', async () => {
  const unsigned = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${Buffer.from(
    '{"sub":"ann"}',
  ).toString('base64url')}.`;
  const tokens = {
    'other key': sign({ sub: 'ann' }, 'another secret of 32 bytes and+'),
    'not a token': 'abc',
    unsigned,
    'a subscription token': sign({ sub: 'ann', channel: '$gold' }),
    'cut short': sign({ sub: 'ann' }).slice(0, -2),
  };
  for (const [what, token] of Object.entries(tokens)) {
    const context = await roost.refused({ token });
    assert.deepEqual([context.code, context.reason], [3500, 'invalid token'], what);
  }
});

test('no credentials end the client with 3501', async () => {
  const context = await roost.refused({});
  assert.deepEqual([context.code, context.reason], [3501, 'bad request']);
});

test('a private channel opens with a subscription token', async () => {
  const client = await roost.connected('ann');
  const token = await roost.token('--user', 'ann', '--channel', '$gold');
  const subscription = await subscribed(client, '$gold', { token });
  const publications = collect(subscription, 'publication');
  await subscription.publish({ price: 1 });
  assert.deepEqual((await publications.take(1))[0].data, { price: 1 });

  const claims = { sub: 'ann', channel: 'closed:club' };
  await subscribed(client, 'closed:club', { getToken: async () => sign(claims) });
  const forged = sign({ sub: 'ann', channel: '$forged' }, 'another secret of 32 bytes and+');
  assert.equal((await refusedSubscribe(client, '$forged', { token: forged })).code, 103);
});

test('an expired subscription token is renewed by getToken', async () => {
  const client = await roost.connected('ann');
  let asked = 0;
  const subscription = client.newSubscription('$silver', {
    minResubscribeDelay: 10,
    maxResubscribeDelay: 50,
    token: sign({ sub: 'ann', channel: '$silver', exp: seconds() - 10 }),
    getToken: async () => {
      asked += 1;
      return sign({ sub: 'ann', channel: '$silver', exp: seconds() + 3600 });
    },
  });
  const errors = collect(subscription, 'error');
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  assert.equal(asked, 1);
  assert.equal(errors.items[0].error.code, 109);
});

test("another channel's or another user's subscription token ends the client with 3500", async () => {
  for (const claims of [{ sub: 'ann', channel: '$other' }, { sub: 'bob', channel: '$mine' }]) {
    const client = await roost.connected('ann');
    const ended = next(client, 'disconnected');
    client.newSubscription('$mine', { token: sign(claims) }).subscribe();
    assert.equal((await ended).code, 3500);
  }
});

test('unsubscribing and subscribing in a loop', async () => {
  const client = await roost.connected('ann');
  const other = await roost.connected('bob');
  await subscribed(other, 'loop');
  const subscription = client.newSubscription('loop');
  const publications = collect(subscription, 'publication');
  for (let turn = 0; turn < 100; turn += 1) {
    const done = next(subscription, 'subscribed');
    subscription.subscribe();
    await done;
    await other.publish('loop', { turn });
    await publications.take(turn + 1);
    subscription.unsubscribe();
    // Refused, and so the server is past the unsubscribe, which the SDK doesn't wait for.
    await assert.rejects(client.publish('loop', {}), { code: 103 });
    // Between nodes, a publication without history may arrive when the client has come back already.
    if (NODES === 1) await other.publish('loop', { turn, missed: true });
  }
  // The SDK sends subscribe right behind an unsubscribe that is not yet answered.
  for (let turn = 0; turn < 50; turn += 1) {
    const done = next(subscription, 'subscribed');
    subscription.subscribe();
    await done;
    subscription.unsubscribe();
  }
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  await other.publish('loop', { turn: 'last' });
  await publications.take(101);
  const turns = publications.items.map((publication) => publication.data.turn);
  assert.deepEqual(turns, [...Array(100).keys(), 'last']);
  assert.ok(publications.items.every((publication) => !publication.data.missed));
});

test('a batch travels in one frame and every command is answered', async () => {
  let frames = 0;
  class Counting extends WebSocket {
    send(...args) {
      frames += 1;
      return super.send(...args);
    }
  }
  const client = await roost.connected('ann', { websocket: Counting });
  const subscription = await subscribed(client, 'batch');
  const publications = collect(subscription, 'publication');
  frames = 0;
  client.startBatching();
  const replies = Array.from({ length: 100 }, (_, number) => client.publish('batch', { number }));
  await new Promise(setImmediate);
  client.stopBatching();
  await within(Promise.all(replies), 'replies to the batch');
  assert.equal(frames, 1);
  const numbers = (await publications.take(100)).map((publication) => publication.data.number);
  assert.deepEqual(numbers, [...Array(100).keys()]);
});

test('connect, subscribe and publish in one frame', async () => {
  const socket = await roost.socket();
  const commands = [
    { id: 1, connect: { token: sign({ sub: 'ann' }) } },
    { id: 2, subscribe: { channel: 'together', flag: 1 } },
    { id: 3, subscribe: { channel: 'nowhere:x' } },
    // Lawful only for a subscriber: the commands are carried out in order.
    { id: 4, publish: { channel: 'together', data: { a: 1 } } },
    { id: 5, subscribe: { channel: 'together' } },
  ];
  socket.send(`${commands.map((command) => JSON.stringify(command)).join('\n')}\n`);
  const replies = new Map();
  const pushes = [];
  let frames = 0;
  const read = async () => {
    frames += 1;
    for (const line of (await socket.frames.take(frames)).at(-1).split('\n')) {
      const message = JSON.parse(line);
      if (message.id) replies.set(message.id, message);
      else pushes.push(message.push);
    }
  };
  while (replies.size < commands.length) await read();
  const { client } = replies.get(1).connect;
  assert.ok(replies.get(2).subscribe);
  assert.deepEqual(replies.get(3).error, { code: 102, message: 'unknown channel' });
  assert.deepEqual(replies.get(4), { id: 4, publish: {} });
  assert.equal(replies.get(5).error.code, 105);
  while (pushes.length < 1) await read();
  const pub = { data: { a: 1 }, info: { user: 'ann', client } };
  assert.deepEqual(pushes, [{ channel: 'together', pub }]);

  for (const id of [6, 7]) {
    // Also when it was not subscribed.
    socket.send(JSON.stringify({ id, unsubscribe: { channel: 'together' } }));
    await read();
    assert.deepEqual(replies.get(id), { id, unsubscribe: {} });
  }
  socket.close(1000);
  assert.equal((await within(socket.closed, 'the close')).code, 1000);
});

/** A publish command of exactly this many bytes. */
function publishOf(bytes, channel) {
  const empty = JSON.stringify({ id: 3, publish: { channel, data: '' } }).length;
  return JSON.stringify({ id: 3, publish: { channel, data: 'x'.repeat(bytes - empty) } });
}

test('a message at the size limit passes, one byte more closes with 1009', FRAMES_ARE_MESSAGES, async () => {
  const socket = await roost.session('ann');
  socket.send(JSON.stringify({ id: 2, subscribe: { channel: 'large' } }));
  await socket.frames.take(2);
  const command = publishOf(MESSAGE_BYTES_MAX, 'large');
  assert.equal(command.length, MESSAGE_BYTES_MAX);
  socket.send(command);
  let text = '';
  for (let frame = 3; !(text.includes('"pub"') && text.includes('"publish"')); frame += 1) {
    text += `${(await socket.frames.take(frame))[frame - 1]}\n`;
  }
  const push = text.trim().split('\n').map((line) => JSON.parse(line)).find((line) => line.push);
  assert.equal(push.push.pub.data, JSON.parse(command).publish.data);
  socket.send(publishOf(MESSAGE_BYTES_MAX + 1, 'large'));
  assert.equal((await within(socket.closed, 'the close')).code, 1009);
});

test('the SDK stops at a message above the size limit, and others are served on', FRAMES_ARE_MESSAGES, async () => {
  const client = await roost.connected('ann');
  const other = await roost.connected('bob');
  const subscription = await subscribed(other, 'large-2');
  await subscribed(client, 'large-2');
  const publications = collect(subscription, 'publication');
  const text = 'y'.repeat(MESSAGE_BYTES_MAX - 200);
  await client.publish('large-2', { text });
  assert.equal((await publications.take(1))[0].data.text, text);
  const ended = next(client, 'disconnected');
  client.publish('large-2', { text: text.repeat(2) }).catch(() => {});
  // 3 is the SDK's own code for a close with 1009.
  assert.equal((await ended).code, 3);
  await other.publish('large-2', { after: true });
  assert.deepEqual((await publications.take(2))[1].data, { after: true });
});

test('what breaks the protocol closes with 3501, and only that connection', async () => {
  const bystander = await roost.connected('bob');
  const subscription = await subscribed(bystander, 'bystander');
  const publications = collect(subscription, 'publication');
  const unconnected = [
    '{"id":1,"subscribe":{"channel":"early"}}',
    '{"connect":{}}{}',
    'not JSON',
    '',
    '{}',
    '{"id":1}',
  ];
  for (const frame of unconnected) {
    const socket = await roost.socket();
    socket.send(frame);
    const { code, reason } = await within(socket.closed, `the close after ${frame}`);
    assert.deepEqual([code, reason], [3501, 'bad request'], frame);
  }
  const connected = [
    '{"id":2,"connect":{}}',
    '{"id":2,"subscribe":{}}',
    '{"id":2,"publish":{"data":{}}}',
    '{"id":2,"unsubscribe":{}}',
    '{"id":2,"subscribe":{"channel":"a"}}\n\n{"id":3,"subscribe":{"channel":"b"}}',
    '{"id":2}',
    '{}',
  ];
  for (const frame of connected) {
    const socket = await roost.session('ann');
    assert.ok(socket.reply.connect, 'connected');
    socket.send(frame);
    const { code } = await within(socket.closed, `the close after ${frame}`);
    assert.equal(code, 3501, frame);
  }
  await subscription.publish({ still: 'served' });
  assert.deepEqual((await publications.take(1))[0].data, { still: 'served' });
});

test('an origin that is not listed is refused before the upgrade', async () => {
  const refused = new WebSocket(roost.url, { origin: 'https://example.org' });
  const status = new Promise((resolve, reject) => {
    refused.once('unexpected-response', (_, response) => resolve(response.statusCode));
    refused.once('open', () => reject(new Error('it was let in')));
    refused.once('error', reject);
  });
  assert.equal(await within(status, 'the refusal'), 403);
  refused.on('error', () => {});
  refused.terminate();
});

test('the counters tell what went on, and return to their baseline', ONE_PROCESS, async () => {
  roost.leave();
  const gauges = [
    'channels_home',
    'channels_local',
    'clients',
    'connections_leaving',
    'connections_open',
    'queued_bytes',
    'sessions_open',
    'slots_in_use',
    'subscriptions',
    'users',
  ];
  const deadline = Date.now() + 15_000;
  let counters;
  do {
    counters = await roost.counters();
  } while (gauges.some((gauge) => counters[gauge] > 0) && Date.now() < deadline);
  for (const gauge of gauges) assert.equal(counters[gauge], 0, gauge);
  assert.equal(counters.connections_accepted, counters.connections_closed);
  // All but the first were provoked above.
  const seen = [
    'closed_shutdown',
    'faults_bad_request',
    'faults_token',
    'faults_too_long',
    'refused_origin',
  ].filter((counter) => counters[counter] > 0);
  const tooLong = FRAMES_ARE_MESSAGES.skip ? [] : ['faults_too_long'];
  assert.deepEqual(seen, ['faults_bad_request', 'faults_token', ...tooLong, 'refused_origin']);
  for (const loss of ['gaps_fanout', 'gaps_mail', 'mail_full']) assert.equal(counters[loss], 0, loss);
});
