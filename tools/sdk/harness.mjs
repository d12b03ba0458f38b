// What the SDK tests share: a roost under test as a child process, tokens, SDK and raw clients.

import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

export const SECRET = 'a secret of the tests, 32 bytes+';

/** Every wait is bounded: what has not come by then is a failure. */
const WAIT_MS_MAX = 15_000;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const program = process.env.PROGRAM ?? path.join(root, 'target/release/roost');

const CONFIG = `
[http_server]
address = "127.0.0.1"

[client.token]
hmac_secret_key = "${SECRET}"

[channel.without_namespace]
allow_subscribe_for_client = true
allow_publish_for_subscriber = true

[[channel.namespaces]]
name = "closed"

[[channel.namespaces]]
name = "lobby"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
`;

/** The promise's value, or a failure that names what was waited for. */
export function within(promise, what, ms = WAIT_MS_MAX) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${ms} ms for ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The context of the next `event` of an SDK client or subscription. */
export function next(emitter, event, ms) {
  return within(new Promise((resolve) => emitter.once(event, resolve)), `"${event}"`, ms);
}

/** Collects contexts of an event; `take(n)` resolves with the first `n` once they are there. */
export function collect(emitter, event) {
  const items = [];
  let wake = () => {};
  emitter.on(event, (item) => {
    items.push(item);
    wake();
  });
  return {
    items,
    async take(count) {
      const there = (async () => {
        while (items.length < count) await new Promise((resolve) => (wake = resolve));
      })();
      await within(there, `${count} of "${event}"`).catch((error) => {
        throw new Error(`${error.message}, got ${items.length}`);
      });
      return items.slice(0, count);
    },
  };
}

const base64url = (value) => Buffer.from(value).toString('base64url');

/** A JWT of these claims, HS256. */
export function sign(claims, secret = SECRET) {
  const head = base64url(JSON.stringify({ alg: 'HS256', typ: 'JWT' }));
  const body = `${head}.${base64url(JSON.stringify(claims))}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}

/** Now, in the seconds of a JWT. */
export const seconds = () => Math.floor(Date.now() / 1000);

/** A port that nothing listens on, below the usual range of outgoing connections. */
async function freePort() {
  for (let tries = 0; tries < 200; tries += 1) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error('found no free port');
}

/** The environment less what would configure roost. */
function cleanEnvironment(extra) {
  const kept = Object.entries(process.env).filter(([key]) => !/^(ROOST|CENTRIFUGO)_/.test(key));
  return { ...Object.fromEntries(kept), ...extra };
}

/** A roost under test. It is ended by its process id, at the latest when this process ends. */
export class Roost {
  /** Starts a node. `config` is TOML that is added to the tests' own. */
  static async start({ config = '', flags = [], env = {} } = {}) {
    const roost = new Roost();
    roost.folder = mkdtempSync(path.join(tmpdir(), 'roost-sdk-'));
    roost.file = path.join(roost.folder, 'roost.toml');
    writeFileSync(roost.file, CONFIG + config);
    roost.flags = flags;
    roost.env = env;
    roost.port = await freePort();
    roost.clients = [];
    roost.sockets = [];
    await roost.up();
    return roost;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/connection/websocket`;
  }

  /** Starts the process, on the same port as before, and waits until it listens. */
  async up() {
    const args = ['serve', '-c', this.file, '--http_server.port', String(this.port), ...this.flags];
    const child = spawn(program, args, {
      env: cleanEnvironment(this.env),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.child = child;
    this.ended = once(child, 'exit');
    this.kill = () => child.kill('SIGKILL');
    process.once('exit', this.kill);
    this.output = createInterface({ input: child.stdout });
    const log = [];
    const listening = new Promise((resolve, reject) => {
      createInterface({ input: child.stderr }).on('line', (line) => {
        log.push(line);
        if (line.includes(`listening on 127.0.0.1:${this.port}`)) resolve();
      });
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`roost ended with ${code}:\n${log.join('\n')}`)));
    });
    await within(listening, 'roost to listen');
  }

  /** Ends the process and waits for it: its exit code, or the signal that ended it. */
  async down(signal = 'SIGTERM') {
    this.child.kill(signal);
    const [code, by] = await within(this.ended, 'roost to end', 30_000);
    process.removeListener('exit', this.kill);
    return code ?? by;
  }

  /** Disconnects the clients that were made here. */
  leave() {
    for (const client of this.clients) client.disconnect();
    for (const socket of this.sockets) socket.terminate();
  }

  /** Disconnects the clients that were made here, ends the process and removes its files. */
  async stop() {
    this.leave();
    const code = this.child.exitCode ?? this.child.signalCode ?? (await this.down());
    rmSync(this.folder, { recursive: true });
    return code;
  }

  /** All counters, as the node prints them on SIGUSR1. */
  async counters() {
    const line = once(this.output, 'line');
    this.child.kill('SIGUSR1');
    return JSON.parse((await within(line, 'the counters'))[0]);
  }

  /** The output of `roost token` with these flags. */
  async token(...flags) {
    const child = spawn(program, ['token', '-c', this.file, ...flags], {
      env: cleanEnvironment(this.env),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    child.stdout.on('data', (data) => (text += data));
    const [code] = await within(once(child, 'close'), '"roost token"');
    if (code !== 0) throw new Error(`roost token ended with ${code}`);
    return text.trim();
  }

  /** An SDK client that is not yet connecting. */
  client(options = {}) {
    const client = new Centrifuge(this.url, {
      websocket: WebSocket,
      minReconnectDelay: 50,
      maxReconnectDelay: 500,
      ...options,
    });
    this.clients.push(client);
    return client;
  }

  /** A connected SDK client of this user. */
  async connected(user, options = {}) {
    const client = this.client({ token: sign({ sub: user }), ...options });
    const connected = next(client, 'connected');
    client.connect();
    client.id = (await connected).client;
    return client;
  }

  /** A bare WebSocket, open, with the frames that came in `frames` and its end in `closed`. */
  async socket({ url = this.url, ...options } = {}) {
    const socket = new WebSocket(url, options);
    this.sockets.push(socket);
    socket.frames = collect(
      { on: (_, receive) => socket.on('message', (data) => receive(data.toString())) },
      'frame',
    );
    socket.closed = new Promise((resolve) => {
      socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() }));
    });
    await within(once(socket, 'open'), 'a WebSocket to open');
    return socket;
  }

  /** A bare WebSocket after its connect command. */
  async session(user) {
    const socket = await this.socket();
    socket.send(JSON.stringify({ id: 1, connect: { token: sign({ sub: user }) } }));
    const [reply] = await socket.frames.take(1);
    socket.reply = JSON.parse(reply);
    return socket;
  }
}

/** A subscription that is through. */
export async function subscribed(client, channel, options) {
  const subscription = client.newSubscription(channel, options);
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  return subscription;
}
