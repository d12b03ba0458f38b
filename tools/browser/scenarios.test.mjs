// What SDKs do, in a real browser: the same over each transport and in both encodings.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Roost, sign, within } from '../sdk/harness.mjs';
import { emptyPage, launch, SDKS, servePages } from './browser.mjs';

const CONFIG = `
[client]
allowed_origins = ["http://localhost:*"]
[http_api]
key = "k"
[rpc.ping]
enabled = true
[[channel.namespaces]]
name = "tour"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
allow_presence_for_subscriber = true
presence = true
join_leave = true
allow_recovery = true
allow_positioning = true
history_size = 100
history_ttl = "10m"
allowed_delta_types = ["fossil"]
delta_publish = true
allow_tags_filter = true
[[channel.namespaces]]
name = "shut"
`;

const roost = new Roost();
let browser;
let pages;

before(async () => {
  browser = await launch();
  await roost.begin({ config: CONFIG });
  pages = await servePages();
});
after(async () => {
  await browser?.close();
  pages?.close();
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

async function api(method, request) {
  const answer = await fetch(`${roost.origin}/api/${method}`, {
    method: 'POST',
    headers: { 'X-API-Key': 'k' },
    body: JSON.stringify(request),
  });
  const { error, result } = await answer.json();
  assert.equal(error, undefined, method);
  return result;
}

/** On the page: a client, and what it can be told to do. All data are JSON texts, whatever the encoding. */
function prepare(transports, emulationEndpoint, tokens, channel, binary) {
  const encode = (value) => (binary ? new TextEncoder().encode(JSON.stringify(value)) : value);
  const decode = (data) => (binary ? JSON.parse(new TextDecoder().decode(data)) : data);
  const events = [];
  let waiting = [];
  const note = (...event) => {
    events.push(event);
    waiting = waiting.filter((look) => !look());
  };
  /** Resolves with the events of a kind once there are so many of them. */
  const saw = (kind, count) =>
    new Promise((resolve) => {
      const look = () => {
        const found = events.filter(([of]) => of === kind);
        if (found.length < count) return false;
        resolve(found.map(([, ...rest]) => rest));
        return true;
      };
      if (!look()) waiting.push(look);
    });
  const code = (promise) => promise.then(() => 0, (error) => error.code);
  const client = new Centrifuge(transports, {
    emulationEndpoint,
    getToken: async () => {
      note('token');
      return tokens.shift();
    },
    minReconnectDelay: 50,
    maxReconnectDelay: 200,
  });
  client.on('connected', ({ transport }) => note('connected', transport));
  client.on('disconnected', ({ code, reason }) => note('disconnected', code, reason));
  client.on('subscribed', (ctx) => note('serverSubscribed', ctx.channel));
  client.on('publication', (ctx) => note('serverPublication', ctx.channel, decode(ctx.data)));
  const subscribe = (name, options = {}) => {
    const sub = client.newSubscription(name, options);
    sub.on('subscribed', ({ wasRecovering, recovered, positioned, recoverable }) =>
      note('subscribed', name, { wasRecovering, recovered, positioned, recoverable }),
    );
    sub.on('unsubscribed', ({ code }) => note('unsubscribed', name, code));
    sub.on('publication', ({ data, offset, info }) => note('publication', name, decode(data), offset, info?.user));
    sub.on('join', ({ info }) => note('join', name, info.user));
    sub.on('leave', ({ info }) => note('leave', name, info.user));
    sub.on('error', ({ error }) => note('error', name, error.code));
    sub.subscribe();
    return sub;
  };
  Object.assign(globalThis, { client, channel, encode, decode, events, saw, code, subscribe });
}

/** On the page: what there is to see of one channel, of its own and of others' publications. */
async function tour() {
  client.connect();
  const [[transport]] = await saw('connected', 1);
  const sub = subscribe(channel, { recoverable: true, positioned: true, joinLeave: true });
  const [[, subscribed]] = await saw('subscribed', 1);
  const [[, came]] = await saw('join', 1);
  const payloads = [{ text: 'Grüße, 世界 🙂' }, ['a', 1, null, true], 'x'.repeat(50_000), 0];
  for (const payload of payloads) await sub.publish(encode(payload));
  const publications = await saw('publication', payloads.length);
  const history = await sub.history({ limit: 2 });
  const since = await sub.history({ limit: -1, since: { offset: 2, epoch: history.epoch } });
  const backwards = await sub.history({ limit: 1, reverse: true });
  const presence = await sub.presence();
  const stats = await sub.presenceStats();
  const errors = [
    await code(client.publish('shut:x', encode(1))),
    await code(client.history('shut:x', {})),
    await code(client.rpc('nope', encode(1))),
    await code(client.publish('nowhere:x', encode(1))),
  ];
  const { data: answer } = await client.rpc('ping', encode({}));
  const ping = answer?.length ? decode(answer) : null;
  return {
    transport,
    subscribed,
    came,
    same: publications.map(([, data]) => JSON.stringify(data)).join() === payloads.map((of) => JSON.stringify(of)).join(),
    offsets: publications.map(([, , offset]) => offset),
    users: publications.map(([, , , user]) => user),
    history: history.publications.map(({ offset }) => offset),
    top: history.offset,
    since: since.publications.map(({ data }) => decode(data)).at(-1),
    backwards: backwards.publications.map(({ offset }) => offset),
    presence: Object.values(presence.clients).map(({ user }) => user),
    stats: [stats.numClients, stats.numUsers],
    errors,
    ping,
  };
}

for (const [transport, encoding] of [
  ['websocket', 'json'],
  ['websocket', 'protobuf'],
  ['http_stream', 'json'],
  ['http_stream', 'protobuf'],
  ['sse', 'json'],
]) {
  test(`a tour over ${transport} (${encoding})`, async () => {
    const at = await emptyPage(browser, pages, SDKS[encoding]);
    const base = transport === 'websocket' ? roost.origin.replace(/^http/, 'ws') : roost.origin;
    const user = `ann-${transport}-${encoding}`;
    const now = Math.floor(Date.now() / 1000);
    const [channel, own] = [`tour:${transport}-${encoding}`, `tour:own-${transport}-${encoding}`];
    // The first one lives for a moment, so that it is renewed on the way.
    const tokens = [
      sign({ sub: user, channels: [own], exp: now + 3 }),
      sign({ sub: user, channels: [own], exp: now + 600 }),
    ];
    await at.evaluate(
      prepare,
      [{ transport, endpoint: `${base}/connection/${transport}` }],
      `${roost.origin}/emulation`,
      tokens,
      channel,
      encoding === 'protobuf',
    );
    assert.deepEqual(await within(at.evaluate(tour), 'the tour'), {
      transport,
      subscribed: { wasRecovering: false, recovered: false, positioned: true, recoverable: true },
      came: user,
      same: true,
      offsets: [1, 2, 3, 4],
      users: [user, user, user, user],
      history: [1, 2],
      top: 4,
      since: 0,
      backwards: [4],
      presence: [user],
      stats: [1, 1],
      errors: [103, 108, 104, 102],
      ping: null,
    });

    // What others publish: patches, tags that are let through or not, a channel of the token.
    await at.evaluate(async (filtered, delta) => {
      subscribe(filtered, { tagsFilter: { key: 'kind', cmp: 'eq', val: 'good' } });
      subscribe(delta, { delta: 'fossil', recoverable: true });
      await saw('subscribed', 3);
    }, `${channel}-filtered`, `${channel}-delta`);
    const text = 'the quick brown fox jumps over the lazy dog '.repeat(20);
    for (const n of [1, 2, 3]) {
      const tags = { kind: n === 2 ? 'bad' : 'good' };
      await api('publish', { channel: `${channel}-filtered`, data: { n }, tags });
      await api('publish', { channel: `${channel}-delta`, data: { n, text }, delta: true });
    }
    await api('publish', { channel: own, data: { own: true } });
    const seen = await within(
      at.evaluate(async (filtered, delta) => {
        const publications = (await saw('publication', 4 + 2 + 3)).slice(4);
        const of = (name) => publications.filter(([found]) => found === name).map(([, data]) => data);
        return [of(filtered), of(delta), await saw('serverPublication', 1), await saw('serverSubscribed', 1)];
      }, `${channel}-filtered`, `${channel}-delta`),
      'publications of others',
    );
    assert.deepEqual(seen, [
      [{ n: 1 }, { n: 3 }],
      [1, 2, 3].map((n) => ({ n, text })),
      [[own, { own: true }]],
      [[own]],
    ]);

    // Out and in again, with what was missed; refused; the token is renewed meanwhile; the end.
    await within(at.evaluate(async () => {
      client.getSubscription(channel).unsubscribe();
      await saw('unsubscribed', 1);
    }), 'unsubscribed');
    await api('publish', { channel, data: 'missed' });
    const again = await within(
      at.evaluate(async () => {
        const before = events.length;
        client.getSubscription(channel).subscribe();
        subscribe('shut:x');
        await saw('subscribed', 4);
        await saw('unsubscribed', 2);
        return events.slice(before).filter(([kind]) => ['subscribed', 'unsubscribed', 'publication'].includes(kind));
      }),
      'subscribed again',
    );
    const [subscribed] = again.filter(([kind]) => kind === 'subscribed');
    assert.deepEqual(subscribed, ['subscribed', channel, { wasRecovering: true, recovered: true, positioned: true, recoverable: true }]);
    assert.deepEqual(again.filter(([kind]) => kind === 'publication'), [['publication', channel, 'missed', 5, null]]);
    assert.deepEqual(again.filter(([kind]) => kind === 'unsubscribed'), [['unsubscribed', 'shut:x', 103]]);
    const connects = await within(
      at.evaluate(async () => {
        await saw('token', 2);
        await client.rpc('ping', encode({}));
        return (await saw('connected', 1)).length;
      }),
      'the second token',
    );
    assert.equal(connects, 1, 'it never reconnected');
    await api('disconnect', { user, disconnect: { code: 4500, reason: 'enough' } });
    assert.deepEqual(await within(at.evaluate(() => saw('disconnected', 1)), 'the end'), [[4500, 'enough']]);
    await at.close();
  });
}
