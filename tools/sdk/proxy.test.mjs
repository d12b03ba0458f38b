// Proxies: the application decides about connections, subscriptions, publications and calls.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer as createTlsServer } from 'node:tls';
import { after, before, test } from 'node:test';
import { App, HANG } from './app.mjs';
import {
  ALONE,
  ask,
  closedBy,
  collect,
  follow,
  freePort,
  fresh,
  JSON_ENCODING,
  message,
  messages,
  next,
  NODES,
  ONE_NODE,
  ONE_PROCESS,
  OVER_WEBSOCKET,
  PROTOBUF_ENCODING,
  range,
  refusedSubscribe,
  Roost,
  seconds,
  sign,
  subscribed,
  testEach,
  TRANSPORT,
  until,
  withRoost,
} from './harness.mjs';

const PROXY = 'timeout = "2s"\n';

const config = (app) => `
[client]
allow_anonymous_connect_without_token = false
ping_interval = "1s"
pong_timeout = "800ms"

[client.proxy.connect]
enabled = true
endpoint = "${app.url('connect')}"
${PROXY}
http_headers = ["Cookie", "X-Both"]
emulated_headers = ["X-Emulated", "X-Both"]
[client.proxy.connect.http]
static_headers = { X-Static = "\${ROOST_VAR_SECRET}", X-Both = "static" }
status_to_code_transforms = [
  { status_code = 402, to_error = { code = 402, message = "pay first", temporary = true } },
  { status_code = 403, to_disconnect = { code = 4903, reason = "go away" } },
]

[client.proxy.refresh]
enabled = true
endpoint = "${app.url('refresh')}"
include_connection_meta = true

[channel.proxy.subscribe]
endpoint = "${app.url('subscribe')}"
${PROXY}
include_connection_meta = true
http_headers = ["Cookie"]

[channel.proxy.publish]
endpoint = "${app.url('publish')}"
${PROXY}

[channel.proxy.sub_refresh]
endpoint = "${app.url('sub_refresh')}"

[[proxies]]
name = "calls"
endpoint = "${app.url('rpc')}"
timeout = "1s"

[[proxies]]
name = "binary"
endpoint = "${app.url('binary')}"
binary_encoding = true

[rpc.without_namespace]
proxy_enabled = true
proxy_name = "calls"

[[rpc.namespaces]]
name = "bin"
proxy_enabled = true
proxy_name = "binary"

[[rpc.namespaces]]
name = "off"

[[channel.namespaces]]
name = "asked"
subscribe_proxy_enabled = true
publish_proxy_enabled = true
sub_refresh_proxy_enabled = true
allow_user_limited_channels = true
presence = true
allow_presence_for_subscriber = true
history_size = 10
history_ttl = "300s"
allow_history_for_subscriber = true
`;

let app;
const roost = new Roost();

before(async () => {
  app = await App.start();
  await roost.begin({ flags: ['--shards', '2'], config: config(app), env: { ROOST_VAR_SECRET: 's3' } });
});
after(async () => {
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

/** A client that the application lets in as `user`. */
async function entered(user, { result = {}, node = roost, ...options } = {}) {
  app.on('connect', { result: { user, ...result } });
  const client = node.client(options);
  const connected = next(client, 'connected');
  client.connect();
  client.context = await connected;
  client.id = client.context.client;
  return client;
}

/** What a promise is rejected with. */
const failure = (promise) => promise.then(() => assert.fail('no error'), (error) => error);

testEach('connect: the application says who it is and what it gets', async (encoding) => {
  const [talk, kept] = [fresh(), fresh()];
  app.on('connect', {
    result: {
      user: 'ann',
      info: { name: 'Ann' },
      data: { hello: 'Ann' },
      channels: [talk],
      subs: { [kept]: { data: { to: 'kept' }, info: { role: 'host' } } },
    },
  });
  const client = roost.client({ encoding, data: encoding.pack({ from: 'client' }), name: 'sdk', version: '7' });
  const seen = collect(client, 'subscribed');
  const connected = next(client, 'connected');
  client.connect();
  const context = await connected;
  assert.deepEqual(encoding.unpack(context.data), { hello: 'Ann' });
  const contexts = await seen.take(2);
  assert.deepEqual(contexts.map(({ channel }) => channel).sort(), [talk, kept].sort());
  const [{ data }] = contexts.filter(({ channel }) => channel === kept);
  assert.deepEqual(encoding.unpack(data), { to: 'kept' });
  const { method, headers, body } = app.at('connect').at(-1);
  assert.equal(method, 'POST');
  assert.equal(headers['content-type'], 'application/json');
  assert.deepEqual(body, {
    client: context.client,
    transport: OVER_WEBSOCKET ? 'websocket' : TRANSPORT,
    protocol: encoding === JSON_ENCODING ? 'json' : 'protobuf',
    encoding: 'json',
    name: 'sdk',
    version: '7',
    data: { from: 'client' },
  });
});

test('connect: headers that are on the list are taken over, and no others', async () => {
  app.on('connect', { result: { user: 'ann' } });
  const emulated = { 'X-Emulated': 'e', 'X-Both': 'emulated', 'X-Other': 'o', cookie: 'forged=1' };
  const socket = await roost.socket({ headers: { Cookie: 'a=1', 'X-Other': 'o' } });
  await ask(socket, { id: 1, connect: { headers: emulated } });
  let { headers } = app.at('connect').at(-1);
  assert.deepEqual(
    [headers.cookie, headers['x-emulated'], headers['x-static'], headers['x-both'], headers['x-other']],
    ['a=1', 'e', 's3', 'emulated', undefined],
  );
  const another = await roost.socket({ headers: { 'x-both': ['http', 'twice'] } });
  await ask(another, { id: 1, connect: { headers: emulated } });
  ({ headers } = app.at('connect').at(-1));
  assert.deepEqual([headers.cookie, headers['x-both']], [undefined, 'http, twice']);
  // Later calls have them, too.
  app.on('subscribe', { result: {} });
  await ask(socket, { id: 2, subscribe: { channel: fresh('asked') } });
  ({ headers } = app.at('subscribe').at(-1));
  assert.deepEqual([headers.cookie, headers['x-static']], ['a=1', undefined]);
});

test('connect: errors and disconnects of the application', async () => {
  for (const [answer, expected] of [
    [{ error: { code: 1000, message: 'no seat' } }, [1000, 'no seat']],
    [{ error: { code: 1000, message: 'x' }, disconnect: { code: 4500, reason: 'gone' } }, [4500, 'gone']],
    [{ disconnect: { code: 4501, reason: 'for good' }, result: { user: 'ann' } }, [4501, 'for good']],
    [{ status: 403, text: '' }, [4903, 'go away']],
    // Nobody says who it is, and anonymous clients may not.
    [{}, [3501, 'bad request']],
  ]) {
    app.on('connect', answer);
    const { code, reason } = await roost.refused();
    assert.deepEqual([code, reason], expected, JSON.stringify(answer));
  }
  for (const [answer, code, temporary] of [
    [{ status: 402, text: '' }, 402, true],
    [{ status: 500, text: '' }, 100, true],
    [{ status: 200, text: '<html>' }, 100, true],
    [{ result: { user: 7 } }, 100, true],
    [{ error: { code: 3 } }, 100, true],
    [{ result: { user: 'ann', channels: ['none:x'] } }, 102, false],
    [{ result: { user: 'ann', expire_at: seconds() - 1 } }, 110, false],
  ]) {
    app.on('connect', answer);
    const socket = await roost.socket();
    const { error } = await ask(socket, { id: 1, connect: {} });
    assert.deepEqual([error.code, error.temporary ?? false], [code, temporary], JSON.stringify(answer));
  }
});

test('connect: a token is enough, and the application is not asked', async () => {
  const before = app.at('connect').length;
  await roost.connected('bob');
  assert.equal(app.at('connect').length, before);
});

test('connect: what stands behind it in the frame waits for the answer', async () => {
  let answer;
  app.on('connect', () => new Promise((resolve) => (answer = resolve)));
  const channel = fresh();
  const socket = await roost.socket();
  const before = app.at('connect').length;
  socket.send(`{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"${channel}"}}`);
  await app.took('connect', before + 1);
  assert.deepEqual(messages(socket), []);
  answer({ result: { user: 'ann' } });
  const reply = await message(socket, ({ id }) => id === 2, 'the second reply');
  assert.ok(reply.subscribe);
  assert.deepEqual(messages(socket).map(({ id }) => id), [1, 2]);
});

testEach('subscribe: the application allows, with options of its own', async (encoding) => {
  const ann = await entered('ann', { encoding, result: { meta: { plan: 'gold' } } });
  app.on('subscribe', {
    result: {
      info: { role: 'host' },
      data: { welcome: true },
      override: { force_positioning: { value: true } },
    },
  });
  const channel = fresh('asked');
  const { context, subscription } = await follow(ann, channel, { data: encoding.pack({ key: 1 }) });
  assert.deepEqual(encoding.unpack(context.data), { welcome: true });
  assert.equal(context.positioned, true);
  const { body } = app.at('subscribe').at(-1);
  assert.deepEqual(
    [body.user, body.channel, body.data, body.meta, body.client],
    ['ann', channel, { key: 1 }, { plan: 'gold' }, ann.id],
  );
  const { clients } = await subscription.presence();
  assert.deepEqual(encoding.unpack(clients[ann.id].chanInfo), { role: 'host' });
});

test('subscribe: refusals, and who is not asked', async () => {
  const ann = await entered('ann');
  const before = app.at('subscribe').length;
  for (const [answer, expected] of [
    [{ error: { code: 1001, message: 'not here' } }, [1001, 'not here']],
    [{}, [103, 'permission denied']],
    [{ result: { expire_at: seconds() - 1 } }, [110, 'expired']],
  ]) {
    app.on('subscribe', answer);
    const { code, reason } = await refusedSubscribe(ann, fresh('asked'));
    assert.deepEqual([code, reason], expected, JSON.stringify(answer));
  }
  assert.equal(app.at('subscribe').length, before + 3);
  // A token, a user-limited channel and a private one are decided here.
  const channel = fresh('asked');
  await subscribed(ann, channel, { token: sign({ sub: 'ann', channel }) });
  await subscribed(ann, 'asked:mine#ann');
  assert.equal((await refusedSubscribe(ann, 'asked:others#bob')).code, 103);
  assert.equal((await refusedSubscribe(ann, `$${fresh('asked')}`)).code, 103);
  assert.equal(app.at('subscribe').length, before + 3);
  app.on('subscribe', { disconnect: { code: 4502, reason: 'out' } });
  const ended = next(ann, 'disconnected');
  ann.newSubscription(fresh('asked')).subscribe();
  const { code, reason } = await ended;
  assert.deepEqual([code, reason], [4502, 'out']);
});

testEach('publish: the application may change what is published', async (encoding) => {
  const ann = await entered('ann', { encoding });
  app.on('subscribe', { result: {} });
  const channel = fresh('asked');
  const { subscription, inbox } = await follow(ann, channel);
  const publications = collect(subscription, 'publication');
  for (const [answer, expected] of [
    [{ result: {} }, 'sent'],
    [{ result: { data: 'changed' } }, 'changed'],
    [{ result: { tags: { kind: 'x' }, skip_history: true } }, 'sent'],
  ]) {
    app.on('publish', answer);
    const { length } = inbox.items;
    await subscription.publish(encoding.pack('sent'));
    const [last] = (await inbox.take(length + 1)).slice(-1);
    assert.equal(last, expected);
  }
  const [first, , third] = await publications.take(3);
  assert.equal(first.info.user, 'ann');
  assert.deepEqual(third.tags, { kind: 'x' });
  assert.equal((await subscription.history({ limit: 10 })).publications.length, 2);
  const { body } = app.at('publish').at(-1);
  assert.deepEqual([body.user, body.channel, body.data, body.meta], ['ann', channel, 'sent', undefined]);
  for (const [answer, code] of [
    [{ error: { code: 1002, message: 'rude' } }, 1002],
    [{}, 103],
    [{ status: 500, text: '' }, 100],
  ]) {
    app.on('publish', answer);
    assert.equal((await failure(subscription.publish(encoding.pack('x')))).code, code);
  }
  assert.equal(inbox.items.length, 3);
});

testEach('rpc: calls go to the application that their namespace names', async (encoding) => {
  const ann = await entered('ann', { encoding });
  app.on('rpc', ({ method, data }) => ({ result: { data: { method, data } } }));
  const { data } = await ann.rpc('sum', encoding.pack([1, 2]));
  assert.deepEqual(encoding.unpack(data), { method: 'sum', data: [1, 2] });
  assert.equal(app.at('rpc').at(-1).body.user, 'ann');
  app.on('binary', ({ b64data, encoding }) => ({ result: { b64data, data: encoding } }));
  const echoed = await ann.rpc('bin:echo', encoding.pack({ a: 1 }));
  assert.deepEqual(encoding.unpack(echoed.data), { a: 1 });
  app.on('rpc', {});
  assert.equal(encoding.unpack((await ann.rpc('nothing', encoding.pack({}))).data) ?? null, null);
  for (const [method, answer, code] of [
    ['x', { error: { code: 1003, message: 'no', temporary: true } }, 1003],
    ['x', { status: 418, text: '' }, 100],
    ['off:x', {}, 108],
    ['none:x', {}, 104],
    // More than may wait for a client.
    ['x', { result: { data: 'x'.repeat(1 << 20) } }, 106],
  ]) {
    app.on('rpc', answer);
    assert.equal((await failure(ann.rpc(method, encoding.pack({})))).code, code, method);
  }
});

test('rpc: calls of one connection are answered in their order', async () => {
  const ann = await entered('ann');
  app.on('rpc', async ({ data }) => {
    await new Promise((resolve) => setTimeout(resolve, 20 - data));
    return { result: { data } };
  });
  const replies = [];
  await Promise.all(
    range(0, 20).map(async (data) => replies.push((await ann.rpc('slow', data)).data)),
  );
  assert.deepEqual(replies, range(0, 20));
});

// Calls that take longer than a second fail with a takeover, and circuits begin anew.
test('with client.concurrency calls of one connection run beside each other', ONE_PROCESS, async () => {
  const own = await App.start();
  const options = `
[client]
concurrency = 8
[rpc.proxy]
endpoint = "${own.url('rpc')}"
timeout = "10s"
[rpc.without_namespace]
proxy_enabled = true
[channel.proxy.subscribe]
endpoint = "${own.url('subscribe')}"
timeout = "10s"
[[channel.namespaces]]
name = "asked"
subscribe_proxy_enabled = true
allow_publish_for_client = true
`;
  await withRoost({ config: options }, async (node) => {
    for (const encoding of [JSON_ENCODING, PROTOBUF_ENCODING]) {
      const ann = await node.connected('ann', { encoding });
      // None is answered before all that may be there are there.
      const inside = [];
      own.on('rpc', ({ data }) => new Promise((answer) => inside.push(() => answer({ result: { data } }))));
      const before = own.at('rpc').length;
      const call = (data) => ann.rpc('slow', encoding.pack(data));
      const calls = range(0, 8).map(call);
      await own.took('rpc', before + 8);
      // A command that asks nobody goes on meanwhile.
      await ann.publish(fresh('asked'), encoding.pack('beside'));
      // Four more are too many: they wait for their turn.
      calls.push(...range(8, 12).map(call));
      assert.equal(inside.length, 8);
      while (inside.length > 0) inside.pop()();
      await own.took('rpc', before + 12);
      while (inside.length > 0) inside.pop()();
      const replies = (await Promise.all(calls)).map(({ data }) => encoding.unpack(data));
      assert.deepEqual(replies, range(0, 12));
      // What ends a subscription waits for its beginning.
      let allow;
      own.on('subscribe', () => new Promise((answer) => (allow = answer)));
      const channel = fresh('asked');
      const subscription = ann.newSubscription(channel);
      const asked = own.at('subscribe').length;
      subscription.subscribe();
      await own.took('subscribe', asked + 1);
      subscription.unsubscribe();
      const after = ann.publish(channel, encoding.pack('after'));
      allow({ result: {} });
      await after;
      const none = async () => ((await node.counters()).subscriptions === 0 ? true : undefined);
      await until(none, 'the subscription to end');
      ann.disconnect();
    }
  });
  await own.die();
});

test('a binary payload goes only where it may', async () => {
  const ann = await entered('ann', { encoding: PROTOBUF_ENCODING });
  const bytes = new Uint8Array([0, 255, 10]);
  app.on('binary', ({ b64data }) => ({ result: { b64data } }));
  assert.deepEqual(new Uint8Array((await ann.rpc('bin:x', bytes)).data), bytes);
  // A proxy without binary_encoding takes JSON only.
  const before = app.at('rpc').length;
  assert.equal((await failure(ann.rpc('x', bytes))).code, 107);
  assert.equal(app.at('rpc').length, before);
  // What isn't JSON can't be shown to a JSON client.
  const bob = await entered('bob');
  app.on('binary', { result: { b64data: 'AP8=' } });
  const ended = next(bob, 'disconnected');
  failure(bob.rpc('bin:x', {}));
  assert.equal((await ended).code, 3506);
});

test('refresh: the application says how long a connection goes on', async () => {
  app.on('refresh', { result: { expire_at: seconds() + 3600 } });
  const ann = await entered('ann', { result: { expire_at: seconds() + 2, meta: { m: 1 } } });
  const before = app.at('refresh').length;
  const [{ body }] = (await app.took('refresh', before + 1)).slice(-1);
  assert.deepEqual([body.user, body.meta, body.client], ['ann', { m: 1 }, ann.id]);
  // It is not the client's business: no ttl in the reply, and a refresh command is a fault.
  const socket = await roost.session('bob');
  assert.equal(socket.reply.connect.expires, undefined);
  const { code } = await closedBy(socket, { id: 2, refresh: { token: sign({ sub: 'bob' }) } });
  assert.equal(code, 3501);
  await ann.publish(fresh('asked'), {}).catch(() => {});
  assert.equal(ann.state, 'connected');
  for (const answer of [{ result: { expired: true } }, {}, { error: { code: 1000 } }]) {
    app.on('refresh', answer);
    const eve = await entered('eve', { result: { expire_at: seconds() + 2 } });
    const { code } = await next(eve, 'connecting');
    assert.equal(code, 3005, JSON.stringify(answer));
    eve.disconnect();
  }
});

test('refresh: a call that fails gives the connection one more minute', async () => {
  app.on('refresh', { status: 500, text: '' });
  const before = app.at('refresh').length;
  const ann = await entered('ann', { result: { expire_at: seconds() + 2 } });
  await app.took('refresh', before + 1);
  await ann.ready();
  app.on('rpc', { result: { data: 1 } });
  await ann.rpc('x', {});
  assert.equal(app.at('refresh').length, before + 1);
});

test('refresh: more connections may expire at once than may be asked about', ONE_PROCESS, async () => {
  const count = 1500;
  // They have to be connected before they expire: on a busy machine they get more time for that.
  for (const delay of [5, 20, 60]) {
    const own = await App.start();
    const options = `
[client.proxy.refresh]
enabled = true
endpoint = "${own.url('refresh')}"
timeout = "10s"
`;
    own.on('refresh', () => ({ result: { expire_at: seconds() + 3600 } }));
    const inTime = await withRoost({ config: options, flags: ['--shards', '1'] }, async (node) => {
      const exp = seconds() + delay;
      const connected = async (at) => {
        const socket = await node.socket();
        await ask(socket, { id: 1, connect: { token: sign({ sub: `u${at}`, exp }) } });
        return socket;
      };
      // Some at a time: one that waits for all others before it connects is stale on a busy machine.
      const sockets = [];
      while (sockets.length < count) {
        sockets.push(...(await Promise.all(range(sockets.length, sockets.length + 100).map(connected))));
      }
      if (seconds() >= exp) return false;
      const calls = await own.took('refresh', count, (delay + 30) * 1000);
      assert.equal(new Set(calls.map(({ body }) => body.user)).size, count);
      for (const socket of [sockets[0], sockets[count - 1]]) {
        assert.ok((await ask(socket, { id: 2, publish: { channel: 'x', data: 1 } })).error);
      }
      assert.equal((await node.counters()).closed_expired, 0);
      assert.equal(own.at('refresh').length, count);
      return true;
    });
    await own.die();
    if (inTime) return;
  }
  assert.fail('the clients never were connected before they expired');
});

test('sub_refresh: the application says how long a subscription goes on', async () => {
  const ann = await entered('ann');
  app.on('subscribe', () => ({ result: { expire_at: seconds() + 2 } }));
  app.on('sub_refresh', { result: { expire_at: seconds() + 3600 } });
  const channel = fresh('asked');
  const { subscription } = await follow(ann, channel);
  const { body } = await app.tookOne('sub_refresh', (body) => body.channel === channel);
  assert.deepEqual([body.user, body.client], ['ann', ann.id]);
  app.on('publish', { result: {} });
  await subscription.publish({});
  assert.equal(subscription.state, 'subscribed');
  app.on('sub_refresh', { result: { expired: true } });
  const another = (await follow(ann, fresh('asked'))).subscription;
  const { code } = await next(another, 'subscribing');
  assert.equal(code, 2501);
  another.unsubscribe();
  const socket = await roost.session('bob');
  app.on('subscribe', () => ({ result: { expire_at: seconds() + 3600 } }));
  const named = fresh('asked');
  const { subscribe } = await ask(socket, { id: 2, subscribe: { channel: named } });
  assert.equal(subscribe.expires, undefined);
  assert.equal((await closedBy(socket, { id: 3, sub_refresh: { channel: named, token: 'x' } })).code, 3501);
});

test('an application that hangs costs its own client error 100, and nobody else', async () => {
  const ann = await entered('ann');
  const bob = await entered('bob');
  app.on('subscribe', { result: {} });
  app.on('publish', HANG);
  app.on('rpc', { result: { data: 'quick' } });
  const channel = fresh('asked');
  const hanging = failure(ann.publish(channel, {}));
  await app.took('publish', app.at('publish').length + 1);
  for (const _ of range(0, 20)) assert.equal((await bob.rpc('x', {})).data, 'quick');
  // Longer than the pong may take: a client that waits is not one that is gone.
  assert.equal((await hanging).code, 100);
  assert.equal(ann.state, 'connected');
  const again = await ann.rpc('x', {});
  assert.equal(again.data, 'quick');
});

test('an application that disappears is left alone, and asked again when it is back', ALONE, async () => {
  const own = await App.start();
  const options = `
[client.proxy.connect]
enabled = true
endpoint = "${own.url('connect')}"
[client.proxy.connect.roost]
breaker_failures = 3
breaker_pause = "500ms"
[prometheus]
enabled = true
`;
  await withRoost({ config: options }, async (node) => {
    own.on('connect', { result: { user: 'ann' } });
    assert.equal(await node.admits(), true);
    const circuit = async () => {
      const text = await (await fetch(`${node.origin}/metrics`)).text();
      const value = (name) => Number(text.match(new RegExp(`^${name} (.*)$`, 'm'))?.[1]);
      const count = (outcome) =>
        value(`roost_proxy_calls_total\\{proxy="client.proxy.connect",event="connect",outcome="${outcome}"\\}`);
      return {
        state: ['closed', 'half_open', 'open'][value('roost_proxy_circuit\\{proxy="client.proxy.connect"\\}')],
        result: count('result'),
        failed: count('failed'),
        open: count('open'),
      };
    };
    assert.deepEqual(await circuit(), { state: 'closed', result: 1, failed: 0, open: 0 });
    await own.die();
    const client = node.client();
    const errors = collect(client, 'error');
    client.connect();
    await errors.take(5);
    const { state, failed, open } = await until(async () => {
      const seen = await circuit();
      return seen.open > 0 ? seen : undefined;
    }, 'the breaker to open');
    assert.ok(failed >= 3 && open > 0, `${state} ${failed} ${open}`);
    await own.revive();
    await next(client, 'connected');
    assert.equal((await circuit()).state, 'closed');
  });
  await own.die();
});

test('strangers whom the application rejects do not shut out others', ONE_NODE, async () => {
  const own = await App.start();
  const options = `
[client.proxy.connect]
enabled = true
endpoint = "${own.url('connect')}"
http_headers = ["Cookie"]
[client.proxy.connect.roost]
breaker_failures = 3
breaker_pause = "60s"
[prometheus]
enabled = true
`;
  await withRoost({ config: options }, async (node) => {
    const statuses = { 'login=bad': 403, 'login=odd': 500 };
    own.on('connect', (_, { cookie }) =>
      statuses[cookie] ? { status: statuses[cookie], text: '' } : { result: { user: 'ann' } },
    );
    const reply = async (Cookie) => ask(await node.socket({ headers: { Cookie } }), { id: 1, connect: {} });
    for (const _ of range(0, 20)) assert.equal((await reply('login=bad')).error.code, 100);
    assert.ok((await reply('login=good')).connect);
    // Failures of fewer than half of the calls neither.
    for (const _ of range(0, 8)) assert.equal((await reply('login=odd')).error.code, 100);
    assert.ok((await reply('login=good')).connect);
    const text = await (await fetch(`${node.origin}/metrics`)).text();
    assert.match(text, /outcome="rejected"} 20(\.0)?$/m);
    assert.match(text, /outcome="failed"} 8(\.0)?$/m);
    assert.match(text, /outcome="open"} 0(\.0)?$/m);
  });
  await own.die();
});

test('credentials in an endpoint are sent, and redirects of its origin followed', async () => {
  const [own, other] = [await App.start(), await App.start()];
  const hits = (app) => app.calls.map(({ path, method, headers }) => [path, method, headers.authorization]);
  const basic = `Basic ${btoa('node:p@ss')}`;
  const options = `
[client.proxy.connect]
enabled = true
endpoint = "${own.url('connect').replace('://', '://node:p%40ss@')}"
[log]
level = "debug"
`;
  await withRoost({ config: options }, async (node) => {
    const reply = async () => ask(await node.socket(), { id: 1, connect: {} });
    for (const [location, status, works] of [
      ['/moved', 307, true],
      [own.url('moved'), 308, true],
      ['moved', 308, true],
      ['/moved', 302, false],
      [other.url('moved'), 307, false],
      [other.url('moved').replace('://', '://x@'), 307, false],
      ['/connect', 307, false],
    ]) {
      own.calls = [];
      own.on('connect', { status, location, text: '' });
      for (const app of [own, other]) app.on('moved', { result: { user: 'ann' } });
      const { connect, error } = await reply();
      assert.equal(connect !== undefined, works, `${location} ${status}`);
      if (!works) assert.equal(error.code, 100);
      assert.deepEqual(hits(own)[0], ['connect', 'POST', basic]);
      if (works) {
        assert.deepEqual(hits(own)[1], ['moved', 'POST', basic]);
        assert.deepEqual(own.calls[1].body, own.calls[0].body);
      }
      if (location === '/connect') assert.equal(own.calls.length, 6);
    }
    assert.deepEqual(other.calls, []);
    const log = node.log.join('\n');
    for (const secret of ['p@ss', 'p%40ss', basic]) assert.ok(!log.includes(secret), log);
  });
  await Promise.all([own.die(), other.die()]);
});

test('the example of the documentation works', async () => {
  const guide = readFileSync(new URL('../../docs/proxies.md', import.meta.url), 'utf8');
  const block = (kind) => guide.split('```' + kind + '\n')[1].split('```')[0];
  const port = await freePort();
  const here = (text) => text.replaceAll('3000', String(port));
  const child = spawn(process.execPath, ['-e', here(block('js'))], { stdio: ['ignore', 'inherit', 'inherit'] });
  const ended = once(child, 'exit');
  try {
    const listens = async () => ((await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', body: '{}' }).catch(() => {})) ? true : undefined);
    await until(listens, 'the example to listen');
    await withRoost({ config: here(block('toml')) }, async (node) => {
      const ann = await node.socket({ headers: { Cookie: 'session=ann' } });
      const { connect } = await ask(ann, { id: 1, connect: {} });
      assert.ok(connect.client);
      assert.ok((await ask(ann, { id: 2, subscribe: { channel: 'room:ann' } })).subscribe);
      assert.equal((await ask(ann, { id: 3, subscribe: { channel: 'room:bob' } })).error.code, 403);
      assert.ok((await ask(ann, { id: 4, publish: { channel: 'room:ann', data: { text: 'hello' } } })).publish);
      const push = await message(ann, (seen) => seen.push, 'the publication');
      assert.deepEqual(push.push.pub.data, { text: 'hello', from: 'ann' });
      const { rpc } = await ask(ann, { id: 5, rpc: { method: 'sum', data: [1] } });
      assert.deepEqual(rpc.data, { method: 'sum', data: [1] });
      const nobody = await node.socket();
      assert.equal((await closedBy(nobody, { id: 1, connect: {} })).code, 4501);
    });
  } finally {
    child.kill();
    await ended;
  }
});

test('other proxies hold from a hangup on', async () => {
  const [older, newer] = [await App.start(), await App.start()];
  const options = (app) => `
[rpc.proxy]
endpoint = "${app.url('rpc')}"
[rpc.without_namespace]
proxy_enabled = true
`;
  older.on('rpc', { result: { data: 'older' } });
  newer.on('rpc', { result: { data: 'newer' } });
  await withRoost({ config: options(older) }, async (node) => {
    const ann = await node.connected('ann');
    assert.equal((await ann.rpc('x', {})).data, 'older');
    writeFileSync(node.file, readFileSync(node.file, 'utf8').replace(older.url('rpc'), newer.url('rpc')));
    node.signal('SIGHUP');
    await until(async () => ((await ann.rpc('x', {})).data === 'newer' ? true : undefined), 'the other application');
  });
  await older.die();
  await newer.die();
});

test('calls are bounded, and share connections', ONE_PROCESS, async () => {
  const own = await App.start();
  const options = `
[rpc.proxy]
endpoint = "${own.url('rpc')}"
timeout = "10s"
[rpc.proxy.roost]
concurrency = 4
[rpc.without_namespace]
proxy_enabled = true
`;
  await withRoost({ config: options, flags: ['--shards', '2'] }, async (node) => {
    own.on('rpc', async ({ data }) => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return { result: { data } };
    });
    const clients = await Promise.all(range(0, 40).map((at) => node.connected(`u${at}`)));
    const calls = clients.flatMap((client) => range(0, 5).map((data) => client.rpc('x', data)));
    assert.equal((await Promise.all(calls)).length, 200);
    // Each node keeps to it.
    assert.ok(own.inside_max <= 4 * NODES && own.inside_max >= 4, `${own.inside_max} at once`);
    assert.ok(own.connections <= 8 * NODES, `${own.connections} connections`);
  });
  await own.die();
});

test('TLS: only the application whose certificate is known is asked', async () => {
  const pem = (name) => readFileSync(new URL(`tls/${name}.pem`, import.meta.url), 'utf8');
  const own = await App.start({
    tls: { key: pem('server-key'), cert: pem('server'), ca: pem('ca'), requestCert: true, rejectUnauthorized: true },
  });
  own.on('connect', { result: { user: 'ann' } });
  const file = (name) => new URL(`tls/${name}.pem`, import.meta.url).pathname;
  const options = (tls) => `
[client.proxy.connect]
enabled = true
endpoint = "${own.url('connect')}"
[client.proxy.connect.http.tls]
enabled = true
${tls}
`;
  const whole = `server_ca_pem = "${file('ca')}"\ncert_pem = "${file('client')}"\nkey_pem = "${file('client-key')}"\n`;
  for (const [tls, expected] of [
    [`${whole}server_name = "app.test"`, true],
    // The certificate names app.test only.
    [whole, false],
    [`server_ca_pem = "${file('ca')}"\nserver_name = "app.test"`, false],
    [`server_name = "app.test"`, false],
    [`${whole.replace(file('ca'), file('itself'))}server_name = "app.test"`, false],
    [`cert_pem = "${file('client')}"\nkey_pem = "${file('client-key')}"\ninsecure_skip_verify = true`, true],
  ]) {
    await withRoost({ config: options(tls) }, async (node) => {
      const socket = await node.socket();
      const reply = await ask(socket, { id: 1, connect: {} });
      assert.equal(reply.connect !== undefined, expected, JSON.stringify(reply));
    });
  }
  await own.die();
});

test('TLS: a certificate that is itself configured is good', async () => {
  const pem = (name) => readFileSync(new URL(`tls/${name}.pem`, import.meta.url), 'utf8');
  const tls = { key: pem('itself-key'), cert: pem('itself') };
  const own = await App.start({ tls });
  own.on('connect', { result: { user: 'ann' } });
  const file = new URL('tls/itself.pem', import.meta.url).pathname;
  for (const [server_name, expected] of [
    ['app.test', true],
    ['other.test', false],
  ]) {
    const options = `
[client.proxy.connect]
enabled = true
endpoint = "${own.url('connect')}"
http.tls = { enabled = true, server_ca_pem = "${file}", server_name = "${server_name}" }
`;
    await withRoost({ config: options }, async (node) => {
      const reply = await ask(await node.socket(), { id: 1, connect: {} });
      assert.equal(reply.connect !== undefined, expected, JSON.stringify(reply));
    });
  }
  await own.die();
});

test('TLS: an answer may end with its connection, if it is whole', async () => {
  const pem = (name) => readFileSync(new URL(`tls/${name}.pem`, import.meta.url), 'utf8');
  let text = '';
  // Of HTTP/1.0, without a length, and the connection is dropped behind it without a word.
  const server = createTlsServer({ key: pem('itself-key'), cert: pem('itself') }, (socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.write(`HTTP/1.0 200 OK\r\n\r\n${text}`, () => socket.destroy()));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const file = new URL('tls/itself.pem', import.meta.url).pathname;
  const options = `
[client.proxy.connect]
enabled = true
endpoint = "https://127.0.0.1:${server.address().port}/"
http.tls = { enabled = true, server_ca_pem = "${file}", server_name = "app.test" }
`;
  await withRoost({ config: options }, async (node) => {
    for (const [answer, expected] of [
      ['{"result":{"user":"ann"}}', true],
      ['{"result":{"user":"ann"}', false],
    ]) {
      text = answer;
      const reply = await ask(await node.socket(), { id: 1, connect: {} });
      assert.equal(reply.connect !== undefined, expected, JSON.stringify(reply));
    }
  });
  server.close();
});
