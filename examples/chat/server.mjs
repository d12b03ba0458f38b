// The application: serves the page and the SDK, and signs tokens for those who have a name.

import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';

// The same text as client.token.hmac_secret_key.
const SECRET = process.env.SECRET ?? 'a random text of at least 32 characters';
const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/chat.js': ['chat.js', 'text/javascript; charset=utf-8'],
  '/centrifuge.js': ['node_modules/centrifuge/dist/centrifuge.js', 'text/javascript; charset=utf-8'],
};

function token(user) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  // Short, so that who loses access is out soon: the SDK gets the next one by itself.
  const claims = { sub: user, exp: Math.floor(Date.now() / 1000) + 300 };
  const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}

createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/token') {
    // A real application looks at its session here, and not at what the page says.
    const name = (searchParams.get('name') ?? '').trim().slice(0, 40);
    response.writeHead(name ? 200 : 403, { 'content-type': 'application/json', 'cache-control': 'no-store' });
    response.end(JSON.stringify(name ? { token: token(name) } : {}));
    return;
  }
  const [file, type] = FILES[pathname] ?? [];
  response.writeHead(file ? 200 : 404, { 'content-type': type ?? 'text/plain' });
  response.end(file ? readFileSync(new URL(file, import.meta.url)) : 'not found\n');
}).listen(3000, '127.0.0.1', () => console.log('the chat is at http://localhost:3000'));
