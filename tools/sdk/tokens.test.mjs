// Tokens: who gets in, for how long, and how that is renewed.

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import path from 'node:path';
import { test } from 'node:test';
import {
  ask,
  closedBy,
  collect,
  follow,
  fresh,
  message,
  next,
  refusedSubscribe,
  SECRET,
  seconds,
  shared,
  sign,
  signWith,
  subscribed,
  testEach,
  until,
  within,
  withRoost,
} from './harness.mjs';

const OTHER_SECRET = 'another secret of 32 bytes and+';

const roost = shared({
  config: `
[client]
expired_close_delay = "3s"
expired_sub_close_delay = "3s"

[[channel.namespaces]]
name = "stream"
history_size = 10
history_ttl = "300s"
`,
});

/** Claims of a token that ends in so many seconds. */
const ending = (inSeconds, claims) => ({ ...claims, exp: seconds() + inSeconds });

/** Connects a client and returns it with the claims' traces: who published what it published. */
async function publisher(options, node = roost) {
  const client = await node.connected('', options);
  const channel = fresh();
  const subscription = await subscribed(client, channel);
  const publications = collect(subscription, 'publication');
  await subscription.publish(client.encoding.pack({ by: 'me' }));
  const [{ info }] = await publications.take(1);
  return { client, info };
}

testEach('HS256, HS384 and HS512 connect', async (encoding) => {
  for (const alg of ['HS256', 'HS384', 'HS512']) {
    const token = sign({ sub: `user of ${alg}` }, SECRET, alg);
    const { info } = await publisher({ encoding, token });
    assert.equal(info.user, `user of ${alg}`);
  }
});

testEach('the info of a token goes with what its client publishes', async (encoding) => {
  const conn = { name: 'Ann Ä', tags: [1, 2] };
  const b64info = Buffer.from(JSON.stringify(conn)).toString('base64');
  for (const claims of [{ info: conn }, { b64info }]) {
    const { info } = await publisher({ encoding, token: sign({ sub: 'ann', ...claims }) });
    assert.deepEqual(encoding.unpack(info.connInfo), conn);
    assert.equal(encoding.unpack(info.chanInfo), undefined);
  }
});

testEach('a token that is not valid ends the client with 3500', async (encoding) => {
  const good = sign({ sub: 'ann' });
  const tokens = {
    'other key': sign({ sub: 'ann' }, OTHER_SECRET),
    'not a token': 'abc',
    'a subscription token': sign({ sub: 'ann', channel: '$gold' }),
    'cut short': good.slice(0, -2),
    'other claims': `${good.split('.')[0]}.${sign({ sub: 'bob' }).split('.')[1]}.${good.split('.')[2]}`,
    'an algorithm without a key': signWith(
      generateKeyPairSync('ed25519').privateKey,
      'EdDSA',
      { sub: 'ann' },
    ),
  };
  for (const [what, token] of Object.entries(tokens)) {
    const context = await roost.refused({ encoding, token });
    assert.deepEqual([context.code, context.reason], [3500, 'invalid token'], what);
  }
});

testEach('tokens past their exp or before their nbf are renewed by getToken', async (encoding) => {
  for (const claims of [ending(-10, { sub: 'ann' }), { sub: 'ann', nbf: seconds() + 3600 }]) {
    let asked = 0;
    const client = roost.client({
      encoding,
      token: sign(claims),
      getToken: async () => {
        asked += 1;
        return sign(ending(3600, { sub: 'ann' }));
      },
    });
    const errors = collect(client, 'error');
    const connected = next(client, 'connected');
    client.connect();
    await connected;
    assert.equal(asked, 1);
    assert.equal(errors.items[0].error.code, 109);
  }
});

testEach('an expired token that nobody renews ends the client as unauthorized', async (encoding) => {
  const context = await roost.refused({ encoding, token: sign(ending(-10, { sub: 'ann' })) });
  // 1 is the SDK's own code for that.
  assert.equal(context.code, 1);
});

testEach('a connection that would end before it begins is refused with 110', async (encoding) => {
  const token = sign(ending(3600, { sub: 'ann', expire_at: seconds() - 10 }));
  assert.equal((await roost.refused({ encoding, token })).code, 110);
});

test('expire_at is the end of the connection, exp that of the token', async () => {
  const never = await roost.session('', { token: sign(ending(60, { sub: 'ann', expire_at: 0 })) });
  assert.equal(never.reply.connect.expires, undefined);
  assert.equal(never.reply.connect.ttl, undefined);
  const claims = { sub: 'ann', expire_at: seconds() + 3600 };
  const later = await roost.session('', { token: sign(ending(60, claims)) });
  assert.equal(later.reply.connect.expires, true);
  const { ttl } = later.reply.connect;
  assert.ok(ttl > 3500 && ttl <= 3600, `ttl ${ttl}`);
});

testEach('a connection is refreshed and lives on', async (encoding) => {
  let asked = 0;
  const client = await roost.connected('', {
    encoding,
    token: sign(ending(2, { sub: 'ann' })),
    getToken: async () => {
      asked += 1;
      return sign(ending(3600, { sub: 'ann' }));
    },
  });
  const losses = collect(client, 'connecting');
  // Ends later than the other one would have, so the other one was refreshed.
  const idle = await roost.session('', { token: sign(ending(3, { sub: 'bob' })) });
  const { code, reason } = await within(idle.closed, 'the close of the connection not refreshed');
  assert.deepEqual([code, reason], [3005, 'connection expired']);
  const { inbox } = await follow(client, fresh());
  assert.deepEqual(inbox.items, []);
  assert.equal(client.state, 'connected');
  assert.equal(losses.items.length, 0);
  assert.equal(asked, 1);
});

testEach('a connection that is not refreshed in time comes back with a new token', async (encoding) => {
  let asked = 0;
  let begun = false;
  const client = await roost.connected('', {
    encoding,
    token: sign(ending(1, { sub: 'ann' })),
    getToken: async () => {
      // On a busy machine a second is over before the connection begins.
      if (!begun) return sign(ending(1, { sub: 'ann' }));
      asked += 1;
      // The first one is still being fetched when the server's patience ends.
      return asked === 1 ? new Promise(() => {}) : sign(ending(3600, { sub: 'ann' }));
    },
  });
  begun = true;
  const lost = next(client, 'connecting');
  const again = next(client, 'connected');
  assert.equal((await lost).code, 3005);
  await again;
  assert.equal(asked, 2);
});

test('refresh says how long the connection lives from now on', async () => {
  const socket = await roost.session('', { token: sign(ending(60, { sub: 'ann' })) });
  const longer = await ask(socket, {
    id: 2,
    refresh: { token: sign(ending(3600, { sub: 'ann' })) },
  });
  assert.equal(longer.refresh.expires, true);
  assert.ok(longer.refresh.ttl > 3500 && longer.refresh.ttl <= 3600, `ttl ${longer.refresh.ttl}`);
  const past = sign(ending(3600, { sub: 'ann', expire_at: seconds() - 10 }));
  assert.equal((await ask(socket, { id: 3, refresh: { token: past } })).error.code, 110);
  const forEver = await ask(socket, { id: 4, refresh: { token: sign({ sub: 'ann' }) } });
  assert.deepEqual(forEver, { id: 4, refresh: {} });
});

test('a refresh that must not be closes the connection', async () => {
  const tokens = [
    ['', 3501],
    ['abc', 3500],
    [sign(ending(3600, { sub: 'ann' }), OTHER_SECRET), 3500],
    [sign(ending(3600, { sub: 'bob' })), 3500],
    [sign(ending(-10, { sub: 'ann' })), 3005],
  ];
  for (const [token, expected] of tokens) {
    const socket = await roost.session('', { token: sign(ending(60, { sub: 'ann' })) });
    assert.equal((await closedBy(socket, { id: 2, refresh: { token } })).code, expected, token);
  }
});

testEach('a private channel opens with a subscription token', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  const claims = { sub: 'ann', channel, info: { role: 'editor' }, data: { hello: 'ann' } };
  const { subscription, inbox, context } = await follow(client, channel, { token: sign(claims) });
  assert.deepEqual(encoding.unpack(context.data), { hello: 'ann' });
  const publications = collect(subscription, 'publication');
  await subscription.publish(encoding.pack({ price: 1 }));
  assert.deepEqual(await inbox.take(1), [{ price: 1 }]);
  const [{ info }] = await publications.take(1);
  assert.deepEqual(encoding.unpack(info.chanInfo), { role: 'editor' });

  const closed = fresh('closed');
  const getToken = async ({ channel: asked }) => sign({ sub: 'ann', channel: asked });
  await subscribed(client, closed, { getToken });
});

testEach('a forged subscription token is refused with 103', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  for (const token of [sign({ sub: 'ann', channel }, OTHER_SECRET), 'abc', sign({ sub: 'ann' })]) {
    assert.equal((await refusedSubscribe(client, channel, { token })).code, 103, token);
  }
  assert.equal(client.state, 'connected');
});

testEach("another channel's or user's subscription token ends the client with 3500", async (encoding) => {
  const channel = `$${fresh()}`;
  const wrong = [
    { sub: 'ann', channel: `${channel}-other` },
    { sub: 'bob', channel },
    { channel },
    { sub: 'ann', channel, client: '00000000-0000-4000-8000-000000000000' },
  ];
  for (const claims of wrong) {
    const client = await roost.connected('ann', { encoding });
    const ended = next(client, 'disconnected');
    client.newSubscription(channel, { token: sign(claims) }).subscribe();
    assert.equal((await ended).code, 3500, JSON.stringify(claims));
  }
});

testEach('an expired subscription token is renewed by getToken', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  let asked = 0;
  const subscription = client.newSubscription(channel, {
    minResubscribeDelay: 10,
    maxResubscribeDelay: 50,
    token: sign(ending(-10, { sub: 'ann', channel })),
    getToken: async () => {
      asked += 1;
      return sign(ending(3600, { sub: 'ann', channel }));
    },
  });
  const errors = collect(subscription, 'error');
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  assert.equal(asked, 1);
  assert.equal(errors.items[0].error.code, 109);
});

testEach('a subscription that would end before it begins is refused with 110', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  const token = sign(ending(3600, { sub: 'ann', channel, expire_at: seconds() - 10 }));
  assert.equal((await refusedSubscribe(client, channel, { token })).code, 110);
});

testEach('a subscription is refreshed and lives on', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  let asked = 0;
  const { subscription, inbox } = await follow(client, channel, {
    token: sign(ending(2, { sub: 'ann', channel })),
    getToken: async () => {
      asked += 1;
      return sign(ending(3600, { sub: 'ann', channel }));
    },
  });
  const losses = collect(subscription, 'subscribing');
  // Ends later than the other one would have, so the other one was refreshed.
  const idle = await roost.session('bob');
  const token = sign(ending(3, { sub: 'bob', channel }));
  const reply = await ask(idle, { id: 2, subscribe: { channel, token } });
  assert.equal(reply.subscribe.expires, true);
  const ended = await message(idle, ({ push }) => push?.unsubscribe, 'an unsubscribe');
  assert.equal(ended.push.channel, channel);
  assert.equal(ended.push.unsubscribe.code, 2501);
  await subscription.publish(encoding.pack({ still: 'there' }));
  assert.deepEqual(await inbox.take(1), [{ still: 'there' }]);
  assert.equal(losses.items.length, 0);
  assert.equal(asked, 1);
});

testEach('a subscription that is not refreshed in time comes back with a new token', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = `$${fresh()}`;
  let asked = 0;
  const { subscription } = await follow(client, channel, {
    minResubscribeDelay: 10,
    maxResubscribeDelay: 50,
    token: sign(ending(1, { sub: 'ann', channel })),
    getToken: async () => {
      asked += 1;
      // The first one is still being fetched when the server's patience ends.
      return asked === 1 ? new Promise(() => {}) : sign(ending(3600, { sub: 'ann', channel }));
    },
  });
  const lost = next(subscription, 'subscribing');
  const again = next(subscription, 'subscribed');
  const context = await lost;
  assert.deepEqual([context.code, context.reason], [2501, 'subscription expired']);
  await again;
  assert.equal(asked, 2);
  assert.equal(client.state, 'connected');
});

test('sub_refresh says how long the subscription lives from now on', async () => {
  const channel = `$${fresh()}`;
  const socket = await roost.session('ann');
  const token = sign(ending(60, { sub: 'ann', channel }));
  const { subscribe } = await ask(socket, { id: 2, subscribe: { channel, token } });
  assert.equal(subscribe.expires, true);
  assert.ok(subscribe.ttl > 50 && subscribe.ttl <= 60, `ttl ${subscribe.ttl}`);

  let id = 2;
  const refresh = async (claims, to = channel) => {
    id += 1;
    const request = { channel: to, token: claims && sign(claims) };
    return ask(socket, { id, sub_refresh: request });
  };
  const longer = await refresh(ending(3600, { sub: 'ann', channel }));
  assert.equal(longer.sub_refresh.expires, true);
  const { ttl } = longer.sub_refresh;
  assert.ok(ttl > 3500 && ttl <= 3600, `ttl ${ttl}`);
  assert.equal((await refresh(undefined)).error.code, 107, 'no token');
  const expired = await refresh(ending(-10, { sub: 'ann', channel }));
  assert.equal(expired.error.code, 109);
  // So that SDKs try again with a new token, and don't give the subscription up.
  assert.equal(expired.error.temporary, true);
  const past = ending(3600, { sub: 'ann', channel, expire_at: seconds() - 10 });
  assert.equal((await refresh(past)).error.code, 110);
  const other = `$${fresh()}`;
  const elsewhere = await refresh(ending(3600, { sub: 'ann', channel: other }), other);
  assert.equal(elsewhere.error.code, 103, 'not subscribed');
  assert.deepEqual(await refresh({ sub: 'ann', channel }), { id, sub_refresh: {} });
});

test('a sub_refresh with a wrong token closes with 3500', async () => {
  const channel = `$${fresh()}`;
  const tokens = [
    'abc',
    sign({ sub: 'ann', channel }, OTHER_SECRET),
    sign({ sub: 'ann', channel: `${channel}-other` }),
    sign({ sub: 'bob', channel }),
  ];
  for (const token of tokens) {
    const socket = await roost.session('ann');
    const own = sign(ending(60, { sub: 'ann', channel }));
    await ask(socket, { id: 2, subscribe: { channel, token: own } });
    assert.equal((await closedBy(socket, { id: 3, sub_refresh: { channel, token } })).code, 3500, token);
  }
});

testEach('a subscription token overrides options of the namespace', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh('stream');
  const override = { force_recovery: { value: true } };
  const token = sign({ sub: 'ann', channel, override });
  const { context } = await follow(client, channel, { token });
  assert.equal(context.recoverable, true);
  assert.equal(context.positioned, true);
  const plain = fresh('stream');
  const without = await follow(client, plain, { token: sign({ sub: 'ann', channel: plain }) });
  assert.equal(without.context.recoverable, false);
});

test('subscription tokens may have a key of their own', async () => {
  const env = {
    CENTRIFUGO_CLIENT_SUBSCRIPTION_TOKEN_ENABLED: 'true',
    CENTRIFUGO_CLIENT_SUBSCRIPTION_TOKEN_HMAC_SECRET_KEY: OTHER_SECRET,
  };
  await withRoost({ env }, async (node) => {
    const client = await node.connected('ann');
    const token = sign({ sub: 'ann', channel: '$gold' });
    assert.equal((await refusedSubscribe(client, '$gold', { token })).code, 103);
    await subscribed(client, '$gold', {
      token: sign({ sub: 'ann', channel: '$gold' }, OTHER_SECRET),
    });
  });
});

test('the HMAC key of before is accepted for its time', async () => {
  const until = seconds() + 3600;
  const env = {
    CENTRIFUGO_CLIENT_TOKEN_HMAC_PREVIOUS_SECRET_KEY: OTHER_SECRET,
    CENTRIFUGO_CLIENT_TOKEN_HMAC_PREVIOUS_SECRET_KEY_VALID_UNTIL: String(until),
  };
  await withRoost({ env }, async (node) => {
    await node.connected('ann');
    await node.connected('ann', { token: sign({ sub: 'ann', iat: seconds() }, OTHER_SECRET) });
    const late = sign({ sub: 'ann', iat: until + 10 }, OTHER_SECRET);
    assert.equal((await node.refused({ token: late })).code, 3500);
    const neither = sign({ sub: 'ann' }, 'a third secret of 32 bytes and +');
    assert.equal((await node.refused({ token: neither })).code, 3500);
  });
});

test('audience and issuer have to be those that are expected', async () => {
  const env = {
    CENTRIFUGO_CLIENT_TOKEN_AUDIENCE: 'edge',
    CENTRIFUGO_CLIENT_TOKEN_ISSUER: 'https://example.org',
  };
  const right = { sub: 'ann', aud: 'edge', iss: 'https://example.org' };
  await withRoost({ env }, async (node) => {
    await node.connected('ann', { token: sign(right) });
    const client = await node.connected('ann', {
      token: sign({ ...right, aud: ['elsewhere', 'edge'] }),
    });
    for (const wrong of [{ aud: 'elsewhere' }, { aud: undefined }, { iss: 'x' }, { iss: undefined }]) {
      const token = sign({ ...right, ...wrong });
      assert.equal((await node.refused({ token })).code, 3500, JSON.stringify(wrong));
    }
    const claims = { sub: 'ann', channel: '$gold' };
    assert.equal((await refusedSubscribe(client, '$gold', { token: sign(claims) })).code, 103);
    await subscribed(client, '$gold', { token: sign({ ...right, ...claims }) });
  });
});

test('audience and issuer may be patterns', async () => {
  const env = {
    CENTRIFUGO_CLIENT_TOKEN_AUDIENCE_REGEX: '^edge-[0-9]+$',
    CENTRIFUGO_CLIENT_TOKEN_ISSUER_REGEX: '^https://[a-z]+\\.example\\.org$',
  };
  const right = { sub: 'ann', aud: 'edge-17', iss: 'https://shop.example.org' };
  await withRoost({ env }, async (node) => {
    await node.connected('ann', { token: sign(right) });
    const wrong = [{ aud: 'edge-' }, { aud: undefined }, { iss: 'https://shop.example.com' }];
    for (const claims of wrong) {
      const token = sign({ ...right, ...claims });
      assert.equal((await node.refused({ token })).code, 3500, JSON.stringify(claims));
    }
  });
});

test('the user may stand in another claim', async () => {
  const env = { CENTRIFUGO_CLIENT_TOKEN_USER_ID_CLAIM: 'uid' };
  await withRoost({ env }, async (node) => {
    const { info } = await publisher({ token: sign({ sub: 'not ann', uid: 'ann' }) }, node);
    assert.equal(info.user, 'ann');
  });
});

const pem = (key) => key.export({ type: 'spki', format: 'pem' });

test('RS256, RS384 and RS512 connect with a key given as text, in base64 or as a file', async () => {
  const key = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const other = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const ways = {
    text: async () => pem(key.publicKey),
    base64: async () => Buffer.from(pem(key.publicKey)).toString('base64'),
    file: async () => {
      const file = path.join(roost.folder, 'rsa.pem');
      writeFileSync(file, pem(key.publicKey));
      return file;
    },
  };
  for (const [way, given] of Object.entries(ways)) {
    const env = { CENTRIFUGO_CLIENT_TOKEN_RSA_PUBLIC_KEY: await given() };
    await withRoost({ env }, async (node) => {
      for (const alg of ['RS256', 'RS384', 'RS512']) {
        const token = signWith(key.privateKey, alg, { sub: `${alg} ${way}` });
        const { client, info } = await publisher({ token }, node);
        assert.equal(info.user, `${alg} ${way}`);
        const channel = `$${fresh()}`;
        const claims = { sub: info.user, channel };
        await subscribed(client, channel, { token: signWith(key.privateKey, alg, claims) });
        const forged = `$${fresh()}`;
        const wrong = signWith(other.privateKey, alg, { sub: info.user, channel: forged });
        assert.equal((await refusedSubscribe(client, forged, { token: wrong })).code, 103);
      }
      // HMAC goes on beside it, but never with what is public.
      await node.connected('ann');
      const refused = [
        signWith(other.privateKey, 'RS256', { sub: 'ann' }),
        sign({ sub: 'ann' }, pem(key.publicKey)),
        signWith(key.privateKey, 'RS256', { sub: 'ann' }).slice(0, -4),
      ];
      for (const token of refused) assert.equal((await node.refused({ token })).code, 3500);
      const expired = signWith(key.privateKey, 'RS256', ending(-10, { sub: 'ann' }));
      const fetched = signWith(key.privateKey, 'RS256', ending(3600, { sub: 'ann' }));
      await node.connected('ann', { token: expired, getToken: async () => fetched });
    });
  }
});

test('ES256, ES384 and ES512 connect with a key of their curve', async () => {
  const curves = { ES256: 'P-256', ES384: 'P-384', ES512: 'P-521' };
  const pairs = Object.entries(curves).map(([alg, namedCurve]) => [
    alg,
    generateKeyPairSync('ec', { namedCurve }),
  ]);
  for (const [alg, { publicKey, privateKey }] of pairs) {
    const env = { CENTRIFUGO_CLIENT_TOKEN_ECDSA_PUBLIC_KEY: pem(publicKey) };
    await withRoost({ env }, async (node) => {
      const { info } = await publisher({ token: signWith(privateKey, alg, { sub: alg }) }, node);
      assert.equal(info.user, alg);
      for (const [otherAlg, other] of pairs) {
        if (otherAlg === alg) continue;
        const token = signWith(other.privateKey, otherAlg, { sub: 'ann' });
        assert.equal((await node.refused({ token })).code, 3500, `${otherAlg} for ${alg}`);
      }
      const stranger = generateKeyPairSync('ec', { namedCurve: curves[alg] });
      const token = signWith(stranger.privateKey, alg, { sub: 'ann' });
      assert.equal((await node.refused({ token })).code, 3500);
    });
  }
});

/** A key set's server: what stands in `sets` under a path is what it answers. */
async function keyServer() {
  const sets = {};
  const asked = [];
  const server = createServer((request, response) => {
    asked.push(request.url);
    const keys = sets[request.url];
    response.writeHead(keys ? 200 : 404, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ keys: keys ?? [] }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  server.unref();
  return { sets, asked, url: `http://127.0.0.1:${server.address().port}` };
}

/** An entry of a key set. */
const entry = ({ publicKey }, kid, alg) => ({
  ...publicKey.export({ format: 'jwk' }),
  kid,
  alg,
  use: 'sig',
});

test('keys come from a key set, by kid', async () => {
  const server = await keyServer();
  const pairs = {
    RS256: generateKeyPairSync('rsa', { modulusLength: 2048 }),
    ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    ES384: generateKeyPairSync('ec', { namedCurve: 'P-384' }),
    ES512: generateKeyPairSync('ec', { namedCurve: 'P-521' }),
    EdDSA: generateKeyPairSync('ed25519'),
  };
  server.sets['/keys'] = Object.entries(pairs).map(([alg, pair]) => entry(pair, `key ${alg}`, alg));
  const env = { CENTRIFUGO_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT: `${server.url}/keys` };
  await withRoost({ env }, async (node) => {
    for (const [alg, { privateKey }] of Object.entries(pairs)) {
      const kid = `key ${alg}`;
      const { client, info } = await publisher(
        { token: signWith(privateKey, alg, { sub: alg }, { kid }) },
        node,
      );
      assert.equal(info.user, alg);
      const token = signWith(privateKey, alg, { sub: alg, channel: '$gold' }, { kid });
      await subscribed(client, '$gold', { token });
    }
    const stranger = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const refused = {
      "another's signature": signWith(stranger.privateKey, 'RS256', { sub: 'ann' }, { kid: 'key RS256' }),
      'no kid': signWith(pairs.RS256.privateKey, 'RS256', { sub: 'ann' }),
      'an unknown kid': signWith(pairs.RS256.privateKey, 'RS256', { sub: 'ann' }, { kid: 'none' }),
      "another key's kid": signWith(pairs.ES256.privateKey, 'ES256', { sub: 'ann' }, { kid: 'key ES384' }),
    };
    for (const [what, token] of Object.entries(refused)) {
      assert.equal((await node.refused({ token })).code, 3500, what);
    }
    assert.deepEqual([...new Set(server.asked)], ['/keys']);
  });
});

test('a key that joins the key set is found', async () => {
  const server = await keyServer();
  const first = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const second = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  server.sets['/keys'] = [entry(first, 'first', 'ES256')];
  const env = { CENTRIFUGO_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT: `${server.url}/keys` };
  await withRoost({ env }, async (node) => {
    const token = signWith(first.privateKey, 'ES256', { sub: 'ann' }, { kid: 'first' });
    await node.connected('ann', { token });
    server.sets['/keys'] = [entry(second, 'second', 'ES256')];
    const later = signWith(second.privateKey, 'ES256', { sub: 'ann' }, { kid: 'second' });
    // A server may ask only now and then because of kids that it doesn't know.
    await until(() => node.admits({ token: later }), 'the new key to be found', 40_000);
  });
});

test("the issuer's name may be part of the key set's address", async () => {
  const server = await keyServer();
  const pairs = {
    red: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    blue: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
  };
  for (const [tenant, pair] of Object.entries(pairs)) {
    server.sets[`/${tenant}/keys`] = [entry(pair, 'one', 'ES256')];
  }
  const env = {
    CENTRIFUGO_CLIENT_TOKEN_ISSUER_REGEX: '^https://(?P<tenant>[a-z]+)\\.example\\.org$',
    CENTRIFUGO_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT: `${server.url}/{{tenant}}/keys`,
  };
  await withRoost({ env }, async (node) => {
    const token = (tenant, { privateKey }) =>
      signWith(
        privateKey,
        'ES256',
        { sub: tenant, iss: `https://${tenant}.example.org` },
        { kid: 'one' },
      );
    for (const [tenant, pair] of Object.entries(pairs)) {
      const { info } = await publisher({ token: token(tenant, pair) }, node);
      assert.equal(info.user, tenant);
    }
    assert.equal((await node.refused({ token: token('red', pairs.blue) })).code, 3500);
    assert.deepEqual([...new Set(server.asked)].sort(), ['/blue/keys', '/red/keys']);
  });
});
