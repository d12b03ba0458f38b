// The server API with cent.js, and with curl, beside SDK clients that see what it does.

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { CentClient } from 'cent.js';
import { follow, next, NODES, seconds, testEach, until, withRoost } from './harness.mjs';

const KEY = 'the key of the tests';

const CONFIG = `
[http_api]
key = "${KEY}"

[[channel.namespaces]]
name = "room"
allow_subscribe_for_client = true
presence = true
history_size = 10
history_ttl = "60s"
force_recovery = true
`;

/** Runs a body with a node, its API's address, and a client of the API. */
function withApi(body) {
  return withRoost({ config: CONFIG, flags: ['--shards', '2'] }, (roost) => {
    const url = `${roost.origin}/api`;
    return body(roost, new CentClient({ url, apiKey: KEY }), url);
  });
}

testEach('what the API publishes reaches SDK clients', async (encoding) => {
  await withApi(async (roost, api) => {
    const client = await roost.connected('ann', { encoding });
    const { inbox } = await follow(client, 'room:a');
    const first = await api.publish({ channel: 'room:a', data: { n: 1 } });
    assert.equal(first.offset, 1);
    const { responses } = await api.broadcast({ channels: ['room:a', 'nobody:b'], data: { n: 2 } });
    assert.deepEqual(responses[0].result, { offset: 2, epoch: first.epoch });
    assert.deepEqual(responses[1].error, { code: 102, message: 'unknown channel' });
    assert.deepEqual(await inbox.take(2), [{ n: 1 }, { n: 2 }]);
  });
});

testEach('the API moves users into channels and out of them', async (encoding) => {
  await withApi(async (roost, api) => {
    const client = await roost.connected('ann', { encoding });
    const subscribed = next(client, 'subscribed');
    assert.deepEqual(await api.subscribe({ user: 'ann', channel: 'room:a' }), {});
    assert.equal((await subscribed).channel, 'room:a');
    const publication = next(client, 'publication');
    await api.publish({ channel: 'room:a', data: 'hello' });
    assert.equal(encoding.unpack((await publication).data), 'hello');
    const unsubscribed = next(client, 'unsubscribed');
    await api.unsubscribe({ user: 'ann', channel: 'room:a' });
    assert.equal((await unsubscribed).channel, 'room:a');
    const { subscription } = await follow(client, 'room:b');
    const ended = next(subscription, 'unsubscribed');
    // Without a channel it means all of them, on a node alone.
    await api.unsubscribe({ user: 'ann', channel: NODES > 1 ? 'room:b' : '' });
    assert.equal((await ended).code, 2000);
    await api.refresh({ user: 'ann', expire_at: seconds() + 600 });
    const disconnected = next(client, 'disconnected');
    await api.disconnect({ user: 'ann', disconnect: { code: 4500, reason: 'enough' } });
    const { code, reason } = await disconnected;
    assert.deepEqual([code, reason], [4500, 'enough']);
  });
});

test('a client that is disconnected with a code below 3500 comes back and misses nothing', async () => {
  await withApi(async (roost, api) => {
    const client = await roost.connected('ann');
    const { inbox } = await follow(client, 'room:a');
    await api.publish({ channel: 'room:a', data: 1 });
    await api.disconnect({ user: 'ann', disconnect: { code: 3011, reason: 'again' } });
    await api.publish({ channel: 'room:a', data: 2 });
    assert.deepEqual(await inbox.take(2), [1, 2]);
  });
});

test('presence, history, channels and info', async () => {
  await withApi(async (roost, api) => {
    const client = await roost.connected('ann');
    await follow(client, 'room:a');
    const { presence } = await api.getPresence({ channel: 'room:a' });
    assert.deepEqual(Object.values(presence).map(({ user }) => user), ['ann']);
    assert.deepEqual(await api.getPresenceStats({ channel: 'room:a' }), { num_clients: 1, num_users: 1 });
    assert.deepEqual(await api.getPresence({ channel: 'room:empty' }), { presence: {} });
    for (const data of [1, 2, 3]) await api.publish({ channel: 'room:a', data });
    const { publications, offset } = await api.getHistory({ channel: 'room:a', limit: 2, reverse: true });
    assert.deepEqual([publications.map(({ data }) => data), offset], [[3, 2], 3]);
    await api.removeHistory({ channel: 'room:a' });
    assert.deepEqual((await api.getHistory({ channel: 'room:a', limit: 9 })).publications, []);
    assert.deepEqual(await api.getChannels(), { channels: { 'room:a': { num_clients: 1 } } });
    // Nodes report their counts every few seconds.
    const counted = async () => {
      const { nodes } = await api.getInfo();
      assert.equal(nodes.length, NODES);
      return nodes.reduce((sum, { num_clients: some }) => sum + some, 0) === 1 ? true : undefined;
    };
    await until(counted, 'one client of all nodes');
  });
});

test('a pipeline is answered command by command', async () => {
  await withApi(async (roost, api) => {
    const results = await api.pipeline([
      { method: 'publish', params: { channel: 'room:a', data: 1 } },
      { method: 'publish', params: { channel: 'room:a', data: 2 } },
      { method: 'history', params: { channel: 'room:a', limit: 1, reverse: true } },
    ]);
    assert.deepEqual(results.slice(0, 2).map(({ offset }) => offset), [1, 2]);
    assert.equal(results[2].publications[0].data, 2);
  });
});

test('errors are thrown', async () => {
  await withApi(async (roost, api, url) => {
    // What is thrown says nothing of what was answered.
    await assert.rejects(api.publish({ channel: 'nobody:a', data: 1 }), Error);
    await assert.rejects(api.getHistory({ channel: 'plain' }), Error);
    // An empty body, with status 401.
    await assert.rejects(new CentClient({ url, apiKey: 'another' }).getInfo(), SyntaxError);
  });
});

const hasCurl = spawnSync('curl', ['--version']).status === 0;

test('curl, over one connection and with a large body', { skip: !hasCurl && 'no curl' }, async () => {
  await withApi(async (roost, api, url) => {
    const curl = async (...args) => (await promisify(execFile)('curl', ['-sS', ...args])).stdout;
    const body = JSON.stringify({ channel: 'room:a', data: 'x' });
    const ways = [
      [`${url}/publish`, '-H', `X-API-Key: ${KEY}`],
      [`${url}/publish`, '-H', `Authorization: apikey ${KEY}`],
      [`${url}/publish?api_key=${encodeURIComponent(KEY)}`],
    ];
    const once = (way) => ['-d', body, '-w', ' %{http_code} %{num_connects}\n', ...way];
    const args = ways.flatMap((way, at) => (at > 0 ? ['--next', '-sS', ...once(way)] : once(way)));
    const lines = (await curl(...args)).trim().split('\n');
    const expected = [1, 0, 0].map((connects) => `200 ${connects}`);
    assert.deepEqual(lines.map((line) => line.split(' ').slice(1).join(' ')), expected);
    assert.deepEqual(lines.map((line) => JSON.parse(line.split(' ')[0]).result.offset), [1, 2, 3]);
    const large = JSON.stringify({ channel: 'room:a', data: 'x'.repeat(2_000_000) });
    const child = promisify(execFile)('curl', ['-sS', '--data-binary', '@-', ...ways[0]]);
    child.child.stdin.end(large);
    assert.equal(JSON.parse((await child).stdout).result.offset, 4);
    const refused = await curl('-o', '/dev/null', '-w', '%{http_code}', '-d', body, `${url}/publish`);
    assert.equal(refused, '401');
  });
});
