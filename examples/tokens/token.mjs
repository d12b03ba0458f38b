// A token for a user, or for one channel of a user: node token.mjs USER [CHANNEL]
// The key is in SECRET: the same text as client.token.hmac_secret_key.

import { createHmac } from 'node:crypto';

const [user, channel] = process.argv.slice(2);
const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

const claims = { sub: user, exp: Math.floor(Date.now() / 1000) + 3600 };
if (channel) claims.channel = channel;

const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
const signature = createHmac('sha256', process.env.SECRET).update(signed).digest('base64url');
console.log(`${signed}.${signature}`);
