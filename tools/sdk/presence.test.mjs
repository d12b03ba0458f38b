// Who is in a channel: presence that is exact right after a reply, and join and leave events.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  collect,
  follow,
  fresh,
  Line,
  message,
  next,
  refusedSubscribe,
  shared,
  sign,
  subscribed,
  testEach,
  unsubscribed,
} from './harness.mjs';

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_subscriber = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "quiet"
presence = true
join_leave = true
allow_presence_for_subscriber = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "deaf"
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "window"
presence = true
allow_presence_for_client = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "off"
allow_presence_for_client = true
allow_subscribe_for_client = true
`,
});

/** The statistics as [connections, users]. */
async function stats(subscription) {
  const { numClients, numUsers } = await subscription.presenceStats();
  return [numClients, numUsers];
}

testEach('counts are exact right after every reply', async (encoding) => {
  const channel = fresh('room');
  const watcher = await subscribed(await roost.connected('watcher', { encoding }), channel);
  assert.deepEqual(await stats(watcher), [1, 1]);
  const members = [];
  for (const [user, expected] of [
    ['ann', [2, 2]],
    ['ann', [3, 2]],
    ['bob', [4, 3]],
    ['watcher', [5, 3]],
  ]) {
    const client = await roost.connected(user, { encoding });
    members.push(await subscribed(client, channel));
    assert.deepEqual(await stats(watcher), expected, `${user} came`);
    assert.deepEqual(await stats(members.at(-1)), expected, `${user} sees itself`);
  }
  for (const expected of [[4, 3], [3, 2], [2, 2], [1, 1]]) {
    await unsubscribed(members.pop());
    assert.deepEqual(await stats(watcher), expected);
  }
});

testEach('presence shows who is there, with the infos of their tokens', async (encoding) => {
  const channel = fresh('room');
  const bob = await roost.connected('bob', { encoding });
  const token = sign({ sub: 'ann', info: { name: 'Ann' } });
  const ann = await roost.connected('ann', { encoding, token });
  const claims = { sub: 'ann', channel, info: { role: 'editor' } };
  const subscription = await subscribed(ann, channel, { token: sign(claims) });
  const other = await subscribed(bob, channel);
  const expected = {
    [ann.id]: { user: 'ann', client: ann.id, conn: { name: 'Ann' }, chan: { role: 'editor' } },
    [bob.id]: { user: 'bob', client: bob.id, conn: undefined, chan: undefined },
  };
  for (const watcher of [subscription, other]) {
    const { clients } = await watcher.presence();
    const seen = Object.entries(clients).map(([id, { user, client, connInfo, chanInfo }]) => [
      id,
      { user, client, conn: encoding.unpack(connInfo), chan: encoding.unpack(chanInfo) },
    ]);
    assert.deepEqual(Object.fromEntries(seen), expected);
  }
});

testEach('who disconnects is gone when the others hear that it left', async (encoding) => {
  const channel = fresh('room');
  const watcher = await subscribed(await roost.connected('watcher', { encoding }), channel);
  const line = await Line.to(roost);
  for (const end of ['disconnect', 'cut']) {
    const client = await roost.connected('ann', { encoding, url: line.url });
    await subscribed(client, channel);
    assert.deepEqual(await stats(watcher), [2, 2]);
    const left = next(watcher, 'leave');
    if (end === 'cut') line.cut();
    client.disconnect();
    assert.equal((await left).info.client, client.id, end);
    assert.deepEqual(await stats(watcher), [1, 1], end);
    const { clients } = await watcher.presence();
    assert.equal(clients[client.id], undefined);
  }
});

testEach('joins and leaves come in their order, the own join too', async (encoding) => {
  const channel = fresh('room');
  const client = await roost.connected('watcher', { encoding });
  const watcher = client.newSubscription(channel);
  const events = collect(watcher, 'join', ({ info }) => `+${info.user}`);
  watcher.on('leave', ({ info }) => events.items.push(`-${info.user}`));
  const joined = next(watcher, 'join');
  watcher.subscribe();
  const { info, channel: where } = await joined;
  assert.deepEqual([info.user, info.client, where], ['watcher', client.id, channel]);
  assert.equal(watcher.state, 'subscribed', 'the reply comes before the own join');

  const ann = await roost.connected('ann', { encoding });
  const bob = await roost.connected('bob', { encoding });
  const annThere = await subscribed(ann, channel);
  const bobThere = await subscribed(bob, channel);
  await unsubscribed(annThere);
  await unsubscribed(bobThere);
  annThere.subscribe();
  await annThere.ready(5000);
  await events.take(6);
  assert.deepEqual(events.items, ['+watcher', '+ann', '+bob', '-ann', '-bob', '+ann']);
});

testEach('a client that comes and goes joins before it leaves, each time', async (encoding) => {
  const channel = fresh('room');
  const watcher = await subscribed(await roost.connected('watcher', { encoding }), channel);
  const events = [];
  let done;
  const all = new Promise((resolve) => (done = resolve));
  for (const [event, sign] of [
    ['join', '+'],
    ['leave', '-'],
  ]) {
    watcher.on(event, ({ info }) => {
      if (info.user === 'ann') events.push(sign);
      if (info.user === 'bob' && event === 'join') done();
    });
  }
  const ann = await roost.connected('ann', { encoding });
  const subscription = ann.newSubscription(channel);
  for (let turn = 0; turn < 30; turn += 1) {
    const there = next(subscription, 'subscribed');
    subscription.subscribe();
    await there;
    if (turn < 29) subscription.unsubscribe();
    else await unsubscribed(subscription);
  }
  await subscribed(await roost.connected('bob', { encoding }), channel);
  await all;
  assert.equal(events.join(''), '+-'.repeat(30));
});

testEach('events go to those who ask for them where they are not for all', async (encoding) => {
  const channel = fresh('quiet');
  const deaf = fresh('deaf');
  const asking = await roost.connected('asking', { encoding });
  const silent = await roost.connected('silent', { encoding });
  const told = await follow(asking, channel, { joinLeave: true });
  const untold = await follow(silent, channel);
  // Who may not see who is there isn't told who comes, and may subscribe all the same.
  const refused = await follow(asking, deaf, { joinLeave: true });
  const joins = collect(told.subscription, 'join', ({ info }) => info.user);
  const leaves = collect(told.subscription, 'leave', ({ info }) => info.user);
  const others = [untold.subscription, refused.subscription].flatMap((subscription) => [
    collect(subscription, 'join'),
    collect(subscription, 'leave'),
  ]);
  const ann = await roost.connected('ann', { encoding });
  const subscription = await subscribed(ann, channel);
  await subscribed(ann, deaf);
  await unsubscribed(subscription);
  await leaves.take(1);
  assert.deepEqual(leaves.items, ['ann']);
  assert.deepEqual(joins.items.slice(-1), ['ann']);
  // A publication comes behind all events of its channel.
  await ann.publish(channel, encoding.pack('end'));
  await ann.publish(deaf, encoding.pack('end'));
  assert.deepEqual(await untold.inbox.take(1), ['end']);
  assert.deepEqual(await refused.inbox.take(1), ['end']);
  for (const { items } of others) assert.deepEqual(items, []);
});

testEach('presence is refused with the code that says why', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const refused = async (channel, code, what) => {
    await assert.rejects(client.presence(channel), { code }, what);
    await assert.rejects(client.presenceStats(channel), { code }, what);
  };
  await refused('nowhere:news', 102, 'unknown namespace');
  await refused(fresh('off'), 108, 'no presence');
  await refused(fresh(), 108, 'no presence without a namespace');
  await refused(fresh('room'), 103, 'not subscribed');
  const deaf = fresh('deaf');
  await subscribed(client, deaf);
  await refused(deaf, 103, 'no permission');
  const room = fresh('room');
  const subscription = await subscribed(client, room);
  assert.deepEqual(await stats(subscription), [1, 1]);
  await unsubscribed(subscription);
  await refused(room, 103, 'no longer subscribed');
  assert.equal(client.state, 'connected');
});

testEach('who may look from outside is not there itself', async (encoding) => {
  const channel = fresh('window');
  const client = await roost.connected('ann', { encoding });
  const empty = await client.presenceStats(channel);
  assert.deepEqual([empty.numClients, empty.numUsers], [0, 0]);
  assert.deepEqual((await client.presence(channel)).clients, {});
  const other = await roost.connected('bob', { encoding });
  await subscribed(other, channel);
  const one = await client.presenceStats(channel);
  assert.deepEqual([one.numClients, one.numUsers], [1, 1]);
  assert.deepEqual(Object.keys((await client.presence(channel)).clients), [other.id]);
});

testEach('a refused subscribe leaves nobody behind', async (encoding) => {
  const channel = `$${fresh('room')}`;
  const client = await roost.connected('ann', { encoding });
  const token = sign({ sub: 'watcher', channel });
  const watcher = await roost.connected('watcher', { encoding });
  const { subscription } = await follow(watcher, channel, { token });
  assert.equal((await refusedSubscribe(client, channel)).code, 103);
  assert.deepEqual(await stats(subscription), [1, 1]);
});

testEach('a crowd is counted', async (encoding) => {
  const channel = fresh('window');
  const clients = await Promise.all(
    Array.from({ length: 60 }, (_, number) => roost.connected(`user-${number % 20}`, { encoding })),
  );
  await Promise.all(clients.map((client) => subscribed(client, channel)));
  const { numClients, numUsers } = await clients[0].presenceStats(channel);
  assert.deepEqual([numClients, numUsers], [60, 20]);
  const seen = Object.keys((await clients[0].presence(channel)).clients).sort();
  assert.deepEqual(seen, clients.map(({ id }) => id).sort());
  for (const client of clients) client.disconnect();
});

test('in JSON the fields of presence are always written', async () => {
  const channel = fresh('window');
  const socket = await roost.session('ann');
  assert.deepEqual(await ask(socket, { id: 2, presence: { channel } }), {
    id: 2,
    presence: { presence: {} },
  });
  assert.deepEqual(await ask(socket, { id: 3, presence_stats: { channel } }), {
    id: 3,
    presence_stats: { num_clients: 0, num_users: 0 },
  });
});

test('join and leave say who, and no more than is known', async () => {
  const channel = fresh('room');
  const watcher = await roost.session('watcher');
  await ask(watcher, { id: 2, subscribe: { channel } });
  const ann = await roost.session('ann', { token: sign({ sub: 'ann', info: { name: 'Ann' } }) });
  await ask(ann, { id: 2, subscribe: { channel } });
  ann.close();
  const { client } = ann.reply.connect;
  const info = { user: 'ann', client, conn_info: { name: 'Ann' } };
  const left = await message(watcher, ({ push }) => push?.leave, 'a leave');
  assert.deepEqual(left, { push: { channel, leave: { info } } });
  const is = ({ push }) => push?.join?.info.user === 'ann';
  assert.deepEqual(await message(watcher, is, 'the join'), { push: { channel, join: { info } } });
});
