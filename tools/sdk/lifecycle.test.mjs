// What happens around a connection: pings, restarts, other ways to be let in.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import { collect, next, sign, subscribed, within, withRoost } from './harness.mjs';

const PINGS = `
[client]
ping_interval = "2s"
pong_timeout = "1s"
`;

/** SDK clients of several users, all subscribed to one channel. */
async function crowd(roost, count, channel) {
  return Promise.all(
    Array.from({ length: count }, async (_, number) => {
      const client = await roost.connected(`user-${number}`);
      const subscription = await subscribed(client, channel);
      return { client, subscription, inbox: collect(subscription, 'publication') };
    }),
  );
}

test('who answers pings stays, who does not is closed with 3012', async () => {
  await withRoost({ config: PINGS }, async (roost) => {
    let pings = 0;
    let threePings;
    const survived = new Promise((resolve) => (threePings = resolve));
    class Listening extends WebSocket {
      constructor(...args) {
        super(...args);
        this.on('message', (data) => {
          pings += data.toString().split('\n').filter((line) => line === '{}').length;
          if (pings === 4) threePings();
        });
      }
    }
    const client = await roost.connected('ann', { websocket: Listening });
    const losses = collect(client, 'connecting');
    const silent = await roost.session('silent');
    assert.deepEqual([silent.reply.connect.ping, silent.reply.connect.pong], [2, true]);

    // Ordinary traffic is no pong.
    const [, ping] = await silent.frames.take(2);
    assert.equal(ping, '{}');
    silent.send('{"id":5,"subscribe":{"channel":"chatter"}}');
    const { code, reason } = await within(silent.closed, 'the close of the silent client');
    assert.deepEqual([code, reason], [3012, 'no pong']);

    const eager = await roost.session('eager');
    await eager.frames.take(2);
    eager.send('{}');
    eager.send('{}');
    assert.equal((await within(eager.closed, 'the close of the eager client')).code, 3501);

    // The fourth ping comes only to a client whose three pongs were taken.
    await within(survived, 'four pings');
    assert.equal(client.state, 'connected');
    assert.equal(losses.items.length, 0);
  });
});

for (const signal of ['SIGTERM', 'SIGKILL']) {
  test(`clients come back by themselves after ${signal} and a new start`, async () => {
    await withRoost({ flags: ['--shards', '2'] }, async (roost) => {
      const members = await crowd(roost, 20, 'room');
      await members[0].client.publish('room', { before: true });
      await Promise.all(members.map(({ inbox }) => inbox.take(1)));
      const lost = members.map(({ client }) => next(client, 'connecting'));
      const again = members.map(({ subscription }) => next(subscription, 'subscribed', 60_000));

      const code = await roost.down(signal);
      assert.equal(code, signal === 'SIGTERM' ? 0 : 'SIGKILL');
      for (const context of await Promise.all(lost)) {
        // 1 is the SDK's own code for a transport that broke off.
        assert.equal(context.code, signal === 'SIGTERM' ? 3001 : 1);
        if (signal === 'SIGTERM') assert.equal(context.reason, 'shutdown');
      }
      await roost.up();
      await Promise.all(again);
      await members[0].client.publish('room', { after: true });
      for (const { inbox } of members) {
        const data = (await inbox.take(2)).map((publication) => publication.data);
        assert.deepEqual(data, [{ before: true }, { after: true }]);
      }
    });
  });
}

test('what was published before SIGTERM still goes out', async () => {
  await withRoost({}, async (roost) => {
    const socket = await roost.session('ann');
    socket.send('{"id":2,"subscribe":{"channel":"last-words"}}');
    await socket.frames.take(2);
    const commands = Array.from({ length: 50 }, (_, number) =>
      JSON.stringify({ id: number + 3, publish: { channel: 'last-words', data: number } }),
    );
    socket.send(commands.join('\n'));
    const count = () => socket.frames.items.join('\n').split('\n').filter((line) => line.includes('"pub"'));
    // The reply to the last one says that the server has taken them all.
    for (let frame = 3; !socket.frames.items.join('\n').includes('"id":52,'); frame += 1) {
      await socket.frames.take(frame);
    }
    assert.equal(await roost.down(), 0);
    const { code, reason } = await within(socket.closed, 'the close');
    assert.deepEqual([code, reason], [3001, 'shutdown']);
    assert.equal(count().length, 50);
  });
});

test('anonymous clients are let in where the configuration says so', async () => {
  const env = { CENTRIFUGO_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN: 'true' };
  await withRoost({ env }, async (roost) => {
    const client = await roost.connected('', { token: '' });
    const subscription = await subscribed(client, 'lobby:chat');
    const publications = collect(subscription, 'publication');
    await subscription.publish({ hello: 'all' });
    const [publication] = await publications.take(1);
    assert.deepEqual(publication.info, { user: '', client: client.id });
    const refused = client.newSubscription('members');
    const context = next(refused, 'unsubscribed');
    refused.subscribe();
    assert.equal((await context).code, 103);
  });
});

test('the insecure mode grants everything but private channels', async () => {
  await withRoost({ flags: ['--client.insecure'] }, async (roost) => {
    const client = await roost.connected('', { token: '' });
    const subscription = await subscribed(client, 'closed:news');
    const publications = collect(subscription, 'publication');
    await client.publish('closed:news', [1]);
    assert.deepEqual((await publications.take(1))[0].data, [1]);
    const refused = client.newSubscription('$gold');
    const context = next(refused, 'unsubscribed');
    refused.subscribe();
    assert.equal((await context).code, 103);
  });
});

test('allowed origins are let in', async () => {
  const config = '\n[client]\nallowed_origins = ["https://*.example.org"]\n';
  await withRoost({ config }, async (roost) => {
    const socket = await roost.socket({ origin: 'https://shop.EXAMPLE.org' });
    socket.send(JSON.stringify({ id: 1, connect: { token: sign({ sub: 'ann' }) } }));
    assert.ok(JSON.parse((await socket.frames.take(1))[0]).connect.client);
    socket.close();
  });
});

test('who never connects is closed with 3502', async () => {
  const config = '\n[client]\nstale_close_delay = "500ms"\n';
  await withRoost({ config }, async (roost) => {
    const socket = await roost.socket();
    const { code, reason } = await within(socket.closed, 'the close');
    assert.deepEqual([code, reason], [3502, 'stale']);
  });
});
