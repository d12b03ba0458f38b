// Subscriptions that the server makes: of tokens, and the personal channel of a user.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  closedBy,
  collect,
  everywhere,
  follow,
  fresh,
  Line,
  message,
  messages,
  next,
  ONE_NODE,
  publishAll,
  range,
  refusedSubscribe,
  seconds,
  shared,
  sign,
  testEach,
  until,
  withRoost,
} from './harness.mjs';

const CONFIG = `
[[channel.namespaces]]
name = "news"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "short"
history_size = 5
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "kept"
history_size = 100
history_ttl = "300s"
allow_publish_for_client = true

[[channel.namespaces]]
name = "talk"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_subscriber = true
allow_publish_for_subscriber = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "personal"
presence = true
allow_presence_for_subscriber = true
allow_publish_for_client = true
`;

const roost = shared({ flags: ['--shards', '2'], config: CONFIG });

/** A client that takes note of all that happens to its server-side subscriptions. */
async function listener(encoding, claims, { node = roost, ...options } = {}) {
  const client = node.client({ encoding, token: sign(claims), ...options });
  const seen = {};
  for (const event of ['subscribed', 'subscribing', 'unsubscribed', 'join', 'leave']) {
    seen[event] = collect(client, event);
  }
  seen.publications = collect(client, 'publication');
  seen.inbox = collect(client, 'publication', ({ channel, data }) => [channel, encoding.unpack(data)]);
  const connected = next(client, 'connected');
  client.connect();
  client.id = (await connected).client;
  return { client, ...seen };
}

const namesOf = (contexts) => contexts.map(({ channel }) => channel).sort();

testEach('channels of a token are subscribed with the connection', async (encoding) => {
  const channels = [fresh('news'), fresh('talk'), fresh('closed'), fresh()];
  const ann = await listener(encoding, { sub: 'ann', channels });
  assert.deepEqual(namesOf(await ann.subscribed.take(4)), [...channels].sort());
  const [news] = ann.subscribed.items.filter(({ channel }) => channel === channels[0]);
  assert.deepEqual([news.positioned, news.recoverable], [true, true]);
  assert.deepEqual([news.wasRecovering, news.recovered], [false, false]);
  const [talk] = ann.subscribed.items.filter(({ channel }) => channel === channels[1]);
  assert.deepEqual([talk.positioned, talk.recoverable], [false, false]);
  // A subscriber may publish where subscribers may, whoever subscribed it.
  await ann.client.publish(channels[1], encoding.pack('to talk'));
  const bob = await roost.connected('bob', { encoding });
  await bob.publish(channels[0], encoding.pack('to news'));
  const received = await ann.inbox.take(2);
  assert.deepEqual(received.sort(), [
    [channels[0], 'to news'],
    [channels[1], 'to talk'],
  ]);
  const [{ info, offset }] = ann.publications.items.filter(({ channel }) => channel === channels[0]);
  assert.deepEqual([info.user, info.client, offset], ['bob', bob.id, 1]);
});

testEach('a channel that the server subscribed can not be subscribed again', async (encoding) => {
  const channel = fresh('talk');
  const { client, subscribed } = await listener(encoding, { sub: 'ann', channels: [channel] });
  await subscribed.take(1);
  assert.equal((await refusedSubscribe(client, channel)).code, 105);
});

testEach('subs of a token have infos, data and options of their own', async (encoding) => {
  const talk = fresh('talk');
  const kept = fresh('kept');
  const subs = {
    [talk]: { info: { role: 'host' }, data: { welcome: 'ann' } },
    [kept]: { override: { force_recovery: { value: true } } },
  };
  // Options of `subs` win over `channels` without any.
  const claims = { sub: 'ann', info: { name: 'Ann' }, subs, channels: [talk] };
  const { client, subscribed, publications } = await listener(encoding, claims);
  const contexts = await subscribed.take(2);
  assert.deepEqual(namesOf(contexts), [kept, talk].sort());
  for (const context of contexts) {
    const expected = context.channel === talk ? { welcome: 'ann' } : undefined;
    assert.deepEqual(encoding.unpack(context.data), expected, context.channel);
    assert.equal(context.recoverable, context.channel === kept, context.channel);
  }
  await client.publish(talk, encoding.pack('hello'));
  const [{ info }] = await publications.take(1);
  assert.deepEqual(encoding.unpack(info.connInfo), { name: 'Ann' });
  assert.deepEqual(encoding.unpack(info.chanInfo), { role: 'host' });
  const { clients } = await client.presence(talk);
  assert.deepEqual(encoding.unpack(clients[client.id].chanInfo), { role: 'host' });
});

testEach('overrides switch presence, joins and leaves', async (encoding) => {
  const channel = fresh('talk');
  const off = { presence: { value: false }, join_leave: { value: false } };
  const watcher = await roost.connected('watcher', { encoding });
  const { subscription, inbox } = await follow(watcher, channel);
  const joins = collect(subscription, 'join', ({ info }) => info.user);
  const hidden = await listener(encoding, { sub: 'hidden', subs: { [channel]: { override: off } } });
  await hidden.subscribed.take(1);
  const { numClients } = await subscription.presenceStats();
  assert.equal(numClients, 1);
  const shown = await listener(encoding, { sub: 'shown', channels: [channel] });
  await shown.subscribed.take(1);
  assert.equal((await subscription.presenceStats()).numClients, 2);
  await shown.client.publish(channel, encoding.pack('end'));
  await inbox.take(1);
  assert.deepEqual(joins.items.filter((user) => user !== 'watcher'), ['shown']);
});

testEach('a token with an unknown namespace does not connect', async (encoding) => {
  for (const claims of [{ channels: ['nowhere:news'] }, { subs: { 'nowhere:news': {} } }]) {
    const token = sign({ sub: 'ann', ...claims });
    assert.equal((await roost.refused({ encoding, token })).code, 102);
  }
});

testEach('server-side subscriptions recover over several cuts', async (encoding) => {
  const line = await Line.to(roost);
  const channels = [fresh('news'), fresh('news')];
  const claims = { sub: 'ann', channels };
  const ann = await listener(encoding, claims, { url: line.url });
  await ann.subscribed.take(2);
  const bob = await roost.connected('bob', { encoding });
  let count = 0;
  const publish = async (more) => {
    const from = count;
    count += more;
    const numbers = range(from, count);
    await Promise.all(channels.map((channel) => publishAll(bob, channel, numbers)));
  };
  for (let turn = 1; turn <= 4; turn += 1) {
    await publish(10);
    const lost = next(ann.client, 'connecting');
    line.cut();
    await lost;
    await publish(10);
    const more = publish(10);
    line.heal();
    const contexts = (await ann.subscribed.take(2 * (turn + 1))).slice(-2);
    await more;
    for (const { wasRecovering, recovered } of contexts) {
      assert.deepEqual([wasRecovering, recovered], [true, true], `turn ${turn}`);
    }
  }
  await publish(1);
  await ann.inbox.take(2 * count);
  for (const channel of channels) {
    const values = ann.inbox.items.filter(([name]) => name === channel).map(([, value]) => value);
    assert.deepEqual(values, range(0, count));
  }
  assert.deepEqual(ann.unsubscribed.items, []);
});

testEach('a server-side subscription whose history is too short says so', async (encoding) => {
  const line = await Line.to(roost);
  const channel = fresh('short');
  const ann = await listener(encoding, { sub: 'ann', channels: [channel] }, { url: line.url });
  await ann.subscribed.take(1);
  const bob = await roost.connected('bob', { encoding });
  await publishAll(bob, channel, [1, 2]);
  await ann.inbox.take(2);
  const lost = next(ann.client, 'connecting');
  line.cut();
  await lost;
  await publishAll(bob, channel, range(3, 9));
  await everywhere(roost, channel, 8);
  line.heal();
  const [, { wasRecovering, recovered, streamPosition }] = await ann.subscribed.take(2);
  assert.deepEqual([wasRecovering, recovered, streamPosition.offset], [true, false, 8]);
  await publishAll(bob, channel, [9]);
  const values = (await ann.inbox.take(3)).map(([, value]) => value);
  assert.deepEqual(values, [1, 2, 9]);
});

testEach('joins and leaves reach server-side subscriptions', async (encoding) => {
  const channel = fresh('talk');
  const ann = await listener(encoding, { sub: 'ann', channels: [channel] });
  const bob = await listener(encoding, { sub: 'bob', channels: [channel] });
  await bob.subscribed.take(1);
  bob.client.disconnect();
  const [{ info }] = await ann.leave.take(1);
  assert.deepEqual([info.user, info.client], ['bob', bob.client.id]);
  const joined = ann.join.items.map((context) => context.info.user);
  assert.deepEqual(joined, ['ann', 'bob']);
  const { numClients, numUsers } = await ann.client.presenceStats(channel);
  assert.deepEqual([numClients, numUsers], [1, 1]);
});

testEach('a channel that a new token lacks is reported as left', async (encoding) => {
  const line = await Line.to(roost);
  const channels = [fresh('news'), fresh('news')];
  const ann = await listener(encoding, { sub: 'ann', channels }, { url: line.url });
  await ann.subscribed.take(2);
  ann.client.setToken(sign({ sub: 'ann', channels: channels.slice(1) }));
  const lost = next(ann.client, 'connecting');
  line.cut();
  await lost;
  line.heal();
  const [left] = await ann.unsubscribed.take(1);
  assert.equal(left.channel, channels[0]);
});

test('the connect reply has all that is known of server-side subscriptions', async () => {
  const channel = fresh('news');
  const writer = await roost.connected('bob');
  await publishAll(writer, channel, ['a', 'b', 'c']);
  const token = sign({ sub: 'ann', channels: [channel] });
  const first = await roost.session('', { token });
  const { subs } = first.reply.connect;
  assert.deepEqual(Object.keys(subs), [channel]);
  const { epoch } = subs[channel];
  assert.deepEqual(subs[channel], { recoverable: true, positioned: true, epoch, offset: 3 });
  const again = await roost.session('', {
    token,
    subs: { [channel]: { recover: true, offset: 1, epoch } },
  });
  const recovered = again.reply.connect.subs[channel];
  assert.deepEqual([recovered.was_recovering, recovered.recovered], [true, true]);
  assert.deepEqual([recovered.offset, recovered.epoch], [1, epoch]);
  assert.deepEqual(recovered.publications.map(({ data }) => data), ['b', 'c']);
});

test('a client names server-side subscriptions that it could make itself', async () => {
  const open = fresh('lobby');
  const closed = fresh('closed');
  const socket = await roost.session('ann', {
    subs: { [open]: {}, [closed]: {}, [`$${fresh()}`]: {} },
  });
  assert.deepEqual(Object.keys(socket.reply.connect.subs), [open]);
  const writer = await roost.connected('bob');
  await follow(writer, open);
  await writer.publish(open, { hello: 'ann' });
  const { push } = await message(socket, (line) => line.push?.pub, 'a publication');
  assert.deepEqual([push.channel, push.pub.data], [open, { hello: 'ann' }]);

  const stranger = await roost.socket();
  const request = { token: sign({ sub: 'ann' }), subs: { 'nowhere:news': {} } };
  assert.equal((await closedBy(stranger, { id: 1, connect: request })).code, 3501);
});

test('an unsubscribe of a server-side subscription is honoured', async () => {
  const channel = fresh('talk');
  const socket = await roost.session('', { token: sign({ sub: 'ann', channels: [channel] }) });
  assert.ok(socket.reply.connect.subs[channel]);
  assert.deepEqual(await ask(socket, { id: 2, unsubscribe: { channel } }), {
    id: 2,
    unsubscribe: {},
  });
  const writer = await roost.connected('bob');
  const { subscription } = await follow(writer, channel);
  assert.equal((await subscription.presenceStats()).numClients, 1);
  await subscription.publish('missed');
  await ask(socket, { id: 3, subscribe: { channel } });
  await subscription.publish('seen');
  const { push } = await message(socket, (line) => line.push?.pub, 'a publication');
  assert.equal(push.pub.data, 'seen');
});

test('a refresh has to name the channels of the connection', async () => {
  const [one, two, three] = [fresh('news'), fresh('talk'), fresh('news')];
  const claims = { sub: 'ann', exp: seconds() + 60 };
  const later = (more) => sign({ ...claims, exp: seconds() + 3600, ...more });
  const connect = () =>
    roost.session('', { token: sign({ ...claims, subs: { [one]: {}, [two]: {} } }) });
  const stays = await connect();
  for (const [id, more] of [
    [2, { channels: [one, two] }],
    [3, { subs: { [one]: {}, [two]: {} } }],
    // Where both are named the options count.
    [4, { channels: [three], subs: { [one]: {}, [two]: {} } }],
  ]) {
    const reply = await ask(stays, { id, refresh: { token: later(more) } });
    assert.equal(reply.refresh.expires, true, JSON.stringify(more));
  }
  for (const more of [{}, { channels: [one] }, { channels: [one, two, three] }]) {
    const socket = await connect();
    const { code, reason } = await closedBy(socket, { id: 2, refresh: { token: later(more) } });
    assert.deepEqual([code, reason], [3010, 'insufficient state'], JSON.stringify(more));
  }
  // What the client subscribed itself is not the token's business.
  const own = fresh('talk');
  await ask(stays, { id: 5, subscribe: { channel: own } });
  const reply = await ask(stays, { id: 6, refresh: { token: later({ channels: [one, two] }) } });
  assert.equal(reply.refresh.expires, true);
});

testEach('more server-side subscriptions than allowed close with 3505', async (encoding) => {
  await withRoost({ config: `${CONFIG}\n[client]\nchannel_limit = 2\n` }, async (node) => {
    const channels = [fresh('talk'), fresh('talk'), fresh('talk')];
    const token = sign({ sub: 'ann', channels });
    assert.equal((await node.refused({ encoding, token })).code, 3505);
    const claims = { sub: 'ann', channels: channels.slice(1) };
    const { client, subscribed } = await listener(encoding, claims, { node });
    await subscribed.take(2);
    assert.equal((await refusedSubscribe(client, channels[0])).code, 106, 'they count for the limit');
  });
});

const PERSONAL = 'CENTRIFUGO_CLIENT_SUBSCRIBE_TO_USER_PERSONAL_CHANNEL';

testEach('every user has a personal channel where that is enabled', async (encoding) => {
  const env = {
    [`${PERSONAL}_ENABLED`]: 'true',
    CENTRIFUGO_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN: 'true',
  };
  await withRoost({ config: CONFIG, env }, async (node) => {
    const ann = await listener(encoding, { sub: 'ann' }, { node });
    const other = await listener(encoding, { sub: 'ann', channels: ['#ann'] }, { node });
    const bob = await listener(encoding, { sub: 'bob' }, { node });
    assert.deepEqual(namesOf(await ann.subscribed.take(1)), ['#ann']);
    assert.deepEqual(namesOf(await other.subscribed.take(1)), ['#ann']);
    assert.deepEqual(namesOf(await bob.subscribed.take(1)), ['#bob']);
    await ann.client.publish('#ann', encoding.pack('to ann'));
    await assert.rejects(ann.client.publish('#bob', encoding.pack('to bob')), { code: 103 });
    assert.deepEqual(await ann.inbox.take(1), [['#ann', 'to ann']]);
    assert.deepEqual(await other.inbox.take(1), [['#ann', 'to ann']]);
    assert.deepEqual(bob.inbox.items, []);

    const socket = await node.socket();
    const { connect } = await ask(socket, { id: 1, connect: {} });
    assert.equal(connect.subs, undefined, 'who is nobody has no channel');
  });
});

testEach('the personal channel may be in a namespace', async (encoding) => {
  const env = {
    [`${PERSONAL}_ENABLED`]: 'true',
    [`${PERSONAL}_PERSONAL_CHANNEL_NAMESPACE`]: 'personal',
  };
  await withRoost({ config: CONFIG, env }, async (node) => {
    const ann = await listener(encoding, { sub: 'ann' }, { node });
    const bob = await listener(encoding, { sub: 'bob' }, { node });
    assert.deepEqual(namesOf(await ann.subscribed.take(1)), ['personal:#ann']);
    await bob.client.publish('personal:#ann', encoding.pack('hello'));
    assert.deepEqual(await ann.inbox.take(1), [['personal:#ann', 'hello']]);
    const { numClients } = await ann.client.presenceStats('personal:#ann');
    assert.equal(numClients, 1);
  });
});

testEach('with single_connection the older connection is closed with 3504', async (encoding) => {
  const env = {
    [`${PERSONAL}_ENABLED`]: 'true',
    [`${PERSONAL}_PERSONAL_CHANNEL_NAMESPACE`]: 'personal',
    [`${PERSONAL}_SINGLE_CONNECTION`]: 'true',
  };
  await withRoost({ config: CONFIG, env, flags: ['--shards', '2'] }, async (node) => {
    const bob = await node.connected('bob', { encoding });
    let current = await node.connected('ann', { encoding });
    for (let turn = 0; turn < 5; turn += 1) {
      const ended = next(current, 'disconnected');
      const newer = await node.connected('ann', { encoding });
      const { code, reason } = await ended;
      assert.deepEqual([code, reason], [3504, 'connection limit']);
      current = newer;
    }
    await until(async () => {
      const { numClients } = await current.presenceStats('personal:#ann');
      return numClients === 1 ? true : undefined;
    }, 'the older ones to be gone');
    assert.equal(current.state, 'connected');
    assert.equal(bob.state, 'connected');
  });
}, ONE_NODE);

testEach('a user has so many connections and no more', async (encoding) => {
  const config = `${CONFIG}\n[client]\nuser_connection_limit = 2\n`;
  const env = { CENTRIFUGO_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN: 'true' };
  await withRoost({ config, env, flags: ['--shards', '2'] }, async (node) => {
    const token = sign({ sub: 'ann' });
    const first = await node.connected('ann', { encoding });
    const second = await node.connected('ann', { encoding });
    for (let turn = 0; turn < 3; turn += 1) {
      const { code, reason } = await node.refused({ encoding, token });
      assert.deepEqual([code, reason], [3504, 'connection limit']);
    }
    // Others, and those who are nobody, don't count.
    await node.connected('bob', { encoding });
    for (let count = 0; count < 3; count += 1) await node.connected('', { encoding, token: '' });
    assert.equal(first.state, 'connected');
    assert.equal(second.state, 'connected');
    first.disconnect();
    await until(() => node.admits({ encoding, token }), 'the place of the one that left');
  });
}, ONE_NODE);

test('only the connect reply comes before the pushes of server-side subscriptions', async () => {
  const channel = fresh('news');
  const writer = await roost.connected('bob');
  const publishing = publishAll(writer, channel, range(0, 200));
  const sockets = [];
  for (let count = 0; count < 5; count += 1) {
    sockets.push(await roost.session('', { token: sign({ sub: 'ann', channels: [channel] }) }));
  }
  await publishing;
  await publishAll(writer, channel, ['end']);
  for (const socket of sockets) {
    const is = ({ push }) => push?.pub?.data === 'end';
    await message(socket, is, 'the last publication');
    const [first, ...pushes] = messages(socket);
    assert.equal(first.id, 1);
    const { offset } = first.connect.subs[channel];
    const offsets = pushes.map(({ push }) => push.pub.offset);
    assert.deepEqual(offsets, range((offset ?? 0) + 1, 202), 'no gap behind the reply');
  }
});
