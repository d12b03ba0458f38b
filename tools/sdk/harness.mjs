// What the SDK tests share: a roost under test as a child process, tokens, SDK and raw clients.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHmac, sign as signature } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Centrifuge } from 'centrifuge';
import { Centrifuge as CentrifugeProtobuf } from 'centrifuge/build/protobuf';
import { EventSource } from 'eventsource';
import WebSocket from 'ws';

export const SECRET = 'a secret of the tests, 32 bytes+';

/**
 * What SDK clients come over: `websocket`, `compressed` (the same, with permessage-deflate), `http_stream` or
 * `sse`. Each test has to pass over all of them, unless it says what it needs.
 */
export const TRANSPORT = process.env.TRANSPORT ?? 'websocket';

/** Over a WebSocket, compressed or not. */
export const OVER_WEBSOCKET = TRANSPORT === 'websocket' || TRANSPORT === 'compressed';

/**
 * How many nodes a roost under test has: one, or two on one Redis or NATS and behind nginx. tools/sdk/run starts
 * that server.
 */
export const NODES = Number(process.env.SDK_NODES ?? 1);

/** What keeps channels: memory, a kind of Redis, or nats. */
export const BROKER =
  NODES > 1 ? JSON.parse(readFileSync(process.env.ROOST_CLUSTER, 'utf8')).redis.kind : 'memory';

/** Variables for NATS, with histories on JetStream and presence by nodes. */
function natsVariables({ url, jetstream }, prefix) {
  return {
    ROOST_BROKER_ENABLED: 'true',
    ROOST_BROKER_TYPE: 'nats',
    ROOST_BROKER_NATS_URL: url,
    ROOST_BROKER_NATS_PREFIX: prefix,
    ROOST_BROKER_NATS_JETSTREAM_ENABLED: 'true',
    ROOST_BROKER_NATS_JETSTREAM_STORAGE: jetstream.storage,
    ROOST_PRESENCE_MANAGER_ENABLED: 'true',
    ROOST_PRESENCE_MANAGER_TYPE: 'nodes',
  };
}

/** For tests of what a node does by itself. */
export const ONE_NODE = { skip: NODES > 1 && 'about a node on its own' };

/** For tests of the size of a message as it comes in a frame. */
export const FRAMES_ARE_MESSAGES = { skip: TRANSPORT !== 'websocket' && 'a message is no plain frame here' };

/**
 * With TAKEOVER_EVERY_MS a new process takes over all connections of a node under test, again and again, of two nodes
 * in turn: clients notice nothing. Counters begin anew with each process.
 */
export const TAKEOVER_EVERY_MS = Number(process.env.TAKEOVER_EVERY_MS ?? 0);

/** For tests of one process: its counters, the signals to it. */
export const ONE_PROCESS = { skip: TAKEOVER_EVERY_MS > 0 && 'about a process, which is replaced all the time' };

/** For tests of both: what one process counts and remembers. */
export const ALONE = { skip: ONE_NODE.skip || ONE_PROCESS.skip };

/** Every wait is bounded: what has not come by then is a failure. */
const WAIT_MS_MAX = 15_000;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const program = path.resolve(process.env.PROGRAM ?? path.join(root, 'target/release/roost'));

/** A folder with cert.pem and key.pem, if nodes listen with TLS: SECURE. */
export const SECURE = process.env.SECURE || undefined;

const TLS = SECURE && `tls = { enabled = true, cert_pem = "${SECURE}/cert.pem", key_pem = "${SECURE}/key.pem" }`;

const CONFIG = `
[http_server]
address = "127.0.0.1"
${TLS ?? ''}

[client.token]
hmac_secret_key = "${SECRET}"

[websocket]
compression = ${TRANSPORT === 'compressed'}

[http_stream]
enabled = true

[sse]
enabled = true

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

/** A namespace of which everything is recovered, for tests that look at transports. */
export const KEPT = `
[[channel.namespaces]]
name = "kept"
allow_subscribe_for_client = true
allow_publish_for_client = true
force_recovery = true
history_size = 100
history_ttl = "10m"
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

/**
 * Collects contexts of an event, as `read` sees them; `take(n)` resolves with the first `n` once
 * they are there.
 */
export function collect(emitter, event, read = (item) => item) {
  const items = [];
  let wake = () => {};
  emitter.on(event, (item) => {
    items.push(read(item));
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

/**
 * Asks again and again until the answer is not undefined: for what the server does by itself and
 * tells nobody.
 */
export async function until(ask, what, ms = WAIT_MS_MAX) {
  const deadline = Date.now() + ms;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (Date.now() > deadline) throw new Error(`waited ${ms} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/**
 * What an SDK client may speak. `pack` makes a payload of a value; `unpack` gives the value back,
 * or undefined where there was no payload.
 */
export const JSON_ENCODING = {
  name: 'JSON',
  Client: Centrifuge,
  pack: (value) => value,
  unpack: (payload) => payload,
};
export const PROTOBUF_ENCODING = {
  name: 'Protobuf',
  Client: CentrifugeProtobuf,
  pack: (value) => new TextEncoder().encode(JSON.stringify(value)),
  unpack: (bytes) =>
    bytes === undefined || bytes.length === 0 ? undefined : JSON.parse(new TextDecoder().decode(bytes)),
};
export const ENCODINGS = [JSON_ENCODING, PROTOBUF_ENCODING];

/**
 * A `fetch` for one client whose requests to the up-link go one after another: those that are on their way
 * together may overtake each other, and tests look at the order of what they publish.
 */
function inOrder() {
  let last = Promise.resolve();
  return (url, init) => {
    if (!String(url).endsWith('/emulation')) return fetch(url, init);
    const answered = last.then(() => fetch(url, init));
    last = answered.catch(() => {});
    return answered;
  };
}

/** What an SDK client is made with to come over a transport, from the URL for WebSockets. */
export function endpointsOf(url, transport) {
  const at = new URL(url.replace(/^ws/, 'http'));
  if (transport === 'websocket' || transport === 'compressed') return [url, {}];
  const endpoint = new URL(`/connection/${transport}`, at).href;
  const emulationEndpoint = new URL('/emulation', at).href;
  return [[{ transport, endpoint }], { emulationEndpoint, eventsource: EventSource, fetch: inOrder(), readableStream: ReadableStream }];
}

/** One test for each encoding that the transport has: there is no Protobuf over server-sent events. */
export function testEach(name, body, options = {}) {
  const encodings = TRANSPORT === 'sse' ? [JSON_ENCODING] : ENCODINGS;
  for (const encoding of encodings) test(`${name} (${encoding.name})`, options, () => body(encoding));
}

/** Collects the payloads of publications, as values. */
export function payloads(emitter, { unpack }) {
  return collect(emitter, 'publication', (publication) => unpack(publication.data));
}

let names = 0;

/** A channel that no other test uses. */
export function fresh(namespace = '') {
  names += 1;
  return `${namespace}${namespace && ':'}channel-${names}`;
}

/** The numbers from `from` up to, but without, `to`. */
export const range = (from, to) => Array.from({ length: to - from }, (_, index) => from + index);

/** Reads of a history of the numbers 1 to 10 with what they return. `at` is the position of a number. */
export const readsOfTen = (at) => [
  [{ limit: 3 }, [1, 2, 3]],
  [{ limit: 30 }, range(1, 11)],
  [{ limit: -1 }, range(1, 11)],
  [{ limit: 3, since: at(0) }, [1, 2, 3]],
  [{ limit: 3, since: at(5) }, [6, 7, 8]],
  [{ limit: 30, since: at(8) }, [9, 10]],
  [{ limit: 3, since: at(10) }, []],
  [{ limit: 3, since: { offset: at(5).offset } }, [6, 7, 8]],
  [{ limit: 3, reverse: true }, [10, 9, 8]],
  [{ limit: 30, reverse: true }, range(1, 11).reverse()],
  [{ limit: -1, reverse: true }, range(1, 11).reverse()],
  [{ limit: 3, reverse: true, since: at(5) }, [4, 3, 2]],
  [{ limit: 30, reverse: true, since: at(3) }, [2, 1]],
  [{ limit: 3, reverse: true, since: at(1) }, []],
  [{ limit: 0, since: at(5) }, []],
];

/** All publications of a history, read page by page. */
export async function pages(subscription, { limit, reverse }) {
  const seen = [];
  let since;
  for (;;) {
    const { publications, epoch } = await subscription.history({ limit, reverse, since });
    if (publications.length === 0) return seen;
    seen.push(...publications);
    since = { offset: publications.at(-1).offset, epoch };
  }
}

const base64url = (value) => Buffer.from(value).toString('base64url');

/** The part of a JWT that is signed. */
function signed(claims, header) {
  return `${base64url(JSON.stringify({ typ: 'JWT', ...header }))}.${base64url(JSON.stringify(claims))}`;
}

/** A JWT of these claims, HS256, HS384 or HS512. */
export function sign(claims, secret = SECRET, alg = 'HS256') {
  const body = signed(claims, { alg });
  const digest = createHmac(`sha${alg.slice(2)}`, secret).update(body).digest('base64url');
  return `${body}.${digest}`;
}

/** A JWT that is signed with a private key: RS..., ES... or EdDSA. */
export function signWith(key, alg, claims, header = {}) {
  const body = signed(claims, { alg, ...header });
  const hash = alg === 'EdDSA' ? null : `sha${alg.slice(2)}`;
  const bytes = signature(hash, Buffer.from(body), { key, dsaEncoding: 'ieee-p1363' });
  return `${body}.${base64url(bytes)}`;
}

/** Now, in the seconds of a JWT. */
export const seconds = () => Math.floor(Date.now() / 1000);

/** Ports that `freePort` has given out. */
const ports = new Set();

/**
 * A port that nothing listens on, below the usual range of outgoing connections. Another process may take it
 * before it is used: what listens on it has to begin anew then (`isPortTaken`).
 */
export async function freePort() {
  for (let tries = 0; tries < 200; tries += 1) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    if (ports.has(port)) continue;
    ports.add(port);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error('found no free port');
}

/** Whether a process could not start since another one listens on its port. */
const isPortTaken = (error) => /in use/i.test(error.message);

/** The environment less what would configure roost, but for the driver: all tests pass with each. */
function cleanEnvironment(extra) {
  const kept = Object.entries(process.env).filter(([key]) => !/^(ROOST_(?!IO$)|CENTRIFUGO_)/.test(key));
  return { ...Object.fromEntries(kept), ...extra };
}

/**
 * A TCP proxy in front of a node, to break connections off as networks do; without `upgrades` whatever wants to
 * become a WebSocket is broken off, as some proxies do.
 */
export class Line {
  static async to(roost, { upgrades = true } = {}) {
    const line = new Line();
    line.sockets = new Set();
    line.broken = false;
    line.upgrades = upgrades;
    line.upgradesSeen = 0;
    line.server = createServer((near) => line.#pass(near, roost.port));
    line.server.listen(0, '127.0.0.1');
    await once(line.server, 'listening');
    // A line must not keep a finished test run alive.
    line.server.unref();
    line.at = `127.0.0.1:${line.server.address().port}`;
    line.url = `${roost.secure ? 'wss' : 'ws'}://${line.at}/connection/websocket`;
    return line;
  }

  #pass(near, port) {
    if (this.broken) {
      near.destroy();
      return;
    }
    const far = connect(port, '127.0.0.1');
    if (!this.upgrades) {
      near.on('data', (data) => {
        if (!/upgrade: websocket/i.test(data.toString('latin1'))) return;
        this.upgradesSeen += 1;
        near.destroy();
      });
    }
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ]) {
      this.sockets.add(socket);
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('close', () => {
        this.sockets.delete(socket);
        other.destroySoon();
      });
      socket.pipe(other);
    }
  }

  /** Breaks off all connections, without a word to either side, and lets none through. */
  cut() {
    this.broken = true;
    for (const socket of this.sockets) socket.destroy();
  }

  /** Lets connections through again. */
  heal() {
    this.broken = false;
  }
}

/** A process of a roost under test. */
class Process {
  /** Starts it and waits until a line of its standard error says that it is ready. */
  static async start(command, words, options, isReady) {
    const started = new Process();
    const child = spawn(command, words, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
    started.child = child;
    started.ended = once(child, 'exit');
    started.kill = () => child.kill('SIGKILL');
    process.once('exit', started.kill);
    started.output = createInterface({ input: child.stdout });
    // Lines of its standard error.
    started.log = [];
    const ready = new Promise((resolve, reject) => {
      createInterface({ input: child.stderr }).on('line', (line) => {
        started.log.push(line);
        if (isReady(line)) resolve();
      });
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`${command} ended with ${code}:\n${started.log.join('\n')}`)));
    });
    try {
      await within(ready, `${path.basename(command)} to listen`);
    } catch (error) {
      // A process that is left behind would keep the tests from ending.
      started.kill();
      await started.end();
      throw error;
    }
    return started;
  }

  /** Waits for its end: its exit code, or the signal that ended it. */
  async end() {
    const [code, by] = await within(this.ended, 'roost to end', 30_000);
    process.removeListener('exit', this.kill);
    return code ?? by;
  }
}

/** nginx in front of two nodes. */
async function balance(folder, port, [first, second]) {
  const text = readFileSync(new URL('nginx.conf', import.meta.url), 'utf8');
  const ports = { FIRST: first, SECOND: second, PORT: port };
  const file = path.join(folder, 'nginx.conf');
  writeFileSync(file, text.replace(/\b(FIRST|SECOND|PORT)\b/g, (name) => ports[name]));
  const globals = `daemon off; master_process off; pid ${folder}/nginx.pid; error_log stderr notice;`;
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
  return Process.start('nginx', ['-c', file, '-g', globals], { env }, (line) => line.includes('RLIMIT_NOFILE'));
}

/** The sums of numbers in objects of the same form. */
function added(all) {
  if (typeof all[0] === 'number') return all.reduce((sum, number) => sum + number, 0);
  if (typeof all[0] !== 'object' || all[0] === null) return all[0];
  const keys = Object.keys(all[0]);
  const values = keys.map((key) => [key, added(all.map((each) => each[key]))]);
  return Array.isArray(all[0]) ? values.map(([, value]) => value) : Object.fromEntries(values);
}

let roosts = 0;

/** Attempts to start with a port that another process takes meanwhile. */
const STARTS_MAX = 5;

/**
 * A roost under test: a node, or two behind a balancer. It is ended by its process ids, at the latest when this
 * process ends.
 */
export class Roost {
  /** Starts a node. For options see `begin`. */
  static async start(options) {
    const roost = new Roost();
    await roost.begin(options);
    return roost;
  }

  /**
   * Starts the node. `config` is TOML that is added to the tests' own; null: there is no file,
   * and all options come from `flags` and `env`.
   */
  async begin({ config = '', flags = [], env = {} } = {}) {
    this.folder = mkdtempSync(path.join(tmpdir(), 'roost-sdk-'));
    this.flags = flags;
    this.env = env;
    if (config !== null) {
      this.file = path.join(this.folder, 'roost.toml');
      writeFileSync(this.file, CONFIG + config);
      this.flags = ['-c', this.file, ...flags];
    }
    if (NODES > 1) this.env = { ...this.#broker(), ...env };
    this.clients = [];
    this.sockets = [];
    for (let tries = 1; ; tries += 1) {
      this.port = await freePort();
      this.ports = NODES > 1 ? await Promise.all([freePort(), freePort()]) : [this.port];
      try {
        return await this.#listen();
      } catch (error) {
        if (tries === STARTS_MAX || !isPortTaken(error)) throw error;
      }
    }
  }

  /** Starts each node, and the balancer of two. */
  async #listen() {
    await this.#start();
    if (NODES === 1) return;
    try {
      this.balancer = await balance(this.folder, this.port, this.ports);
    } catch (error) {
      await this.down('SIGKILL');
      throw error;
    }
  }

  /** Variables for the Redis or NATS of these tests, with names that no other roost has. */
  #broker() {
    const { redis } = JSON.parse(readFileSync(process.env.ROOST_CLUSTER, 'utf8'));
    const prefix = `sdk-${process.pid}-${(roosts += 1)}`;
    if (redis.kind === 'nats') return natsVariables(redis.options, prefix);
    const options = Object.entries({ ...redis.options, ...redis.user, prefix });
    const variables = options.map(([name, value]) => [`ROOST_ENGINE_REDIS_${name.toUpperCase()}`, String(value)]);
    return { ROOST_ENGINE_TYPE: 'redis', ...Object.fromEntries(variables) };
  }

  /** Whether it listens with TLS: a node without a file of ours has the options of its environment alone. */
  get secure() {
    return SECURE !== undefined && this.file !== undefined;
  }

  get url() {
    return `${this.secure ? 'wss' : 'ws'}://127.0.0.1:${this.port}/connection/websocket`;
  }

  /** Where its paths begin. */
  get origin() {
    return `${this.secure ? 'https' : 'http'}://127.0.0.1:${this.port}`;
  }

  /** Starts each node anew, on the same port as before, and waits until it listens. */
  async up() {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#start();
      } catch (error) {
        // Another process looks whether the port is free, or had it for a moment.
        if (tries === STARTS_MAX || !isPortTaken(error)) throw error;
        await sleep(200);
      }
    }
  }

  /** Starts each node and waits until it listens. Where one can't, the others end. */
  async #start() {
    const results = await Promise.allSettled(this.#starts());
    this.nodes = results.flatMap(({ value }) => value ?? []);
    const failed = results.find(({ status }) => status === 'rejected');
    if (failed) {
      await this.down('SIGKILL');
      throw failed.reason;
    }
    if (TAKEOVER_EVERY_MS > 0) this.takeovers = this.#replaceAgainAndAgain((this.stays = {}));
  }

  /** The processes of the nodes, which begin. With takeovers a process takes over from one that runs. */
  #starts() {
    return this.ports.map((port) => this.#launch(port));
  }

  /** A process of the node at a port. */
  #launch(port) {
    // Without a file the port is in the environment, too: all options can be.
    const flags = this.file ? [...this.flags, '--http_server.port', String(port)] : this.flags;
    const takeover = TAKEOVER_EVERY_MS > 0 ? { ROOST_TAKEOVER: path.join(this.folder, `takeover-${port}`) } : {};
    const own = { ...takeover, ...this.env };
    const env = this.file ? own : { CENTRIFUGO_HTTP_SERVER_PORT: String(port), ...own };
    const options = { cwd: this.folder, env: cleanEnvironment(env) };
    return Process.start(program, ['serve', ...flags], options, (line) => line.includes(`listening on 127.0.0.1:${port}`));
  }

  /** Replaces the processes of the nodes in turn until `until.now` says that they stay. */
  async #replaceAgainAndAgain(until) {
    for (let at = 0; ; at = (at + 1) % this.ports.length) {
      await sleep(TAKEOVER_EVERY_MS);
      if (until.now) return;
      const before = this.nodes[at];
      const node = await this.#launch(this.ports[at]);
      assert.equal(await before.end(), 0, 'the process before ends by itself');
      node.log.unshift(...before.log);
      this.nodes[at] = node;
    }
  }

  /** No process takes over from here on. */
  async #stay() {
    if (!this.takeovers) return;
    this.stays.now = true;
    await this.takeovers;
    this.takeovers = undefined;
  }

  /** Lines of the nodes' standard error. */
  get log() {
    return this.nodes.flatMap(({ log }) => log);
  }

  /** Sends a signal to each node. */
  signal(signal) {
    for (const { child } of this.nodes) child.kill(signal);
  }

  /** Ends each node and waits for it: the exit code, or the signal that ended it. */
  async down(signal = 'SIGTERM') {
    await this.#stay();
    this.signal(signal);
    const codes = await Promise.all(this.nodes.map((node) => node.end()));
    return codes.find((code) => code !== 0) ?? 0;
  }

  /** Disconnects the clients that were made here. */
  leave() {
    for (const client of this.clients) client.disconnect();
    for (const socket of this.sockets) socket.terminate();
  }

  /** Disconnects the clients that were made here, ends the process and removes its files. */
  async stop() {
    this.leave();
    await this.#stay();
    const [{ child }] = this.nodes;
    const code = child.exitCode ?? child.signalCode ?? (await this.down());
    if (this.balancer) {
      this.balancer.child.kill('SIGTERM');
      await this.balancer.end();
    }
    rmSync(this.folder, { recursive: true });
    return code;
  }

  /** All counters, as a node prints them on SIGUSR1; of two nodes their sums. */
  async counters() {
    const lines = this.nodes.map(({ output }) => once(output, 'line'));
    this.signal('SIGUSR1');
    const each = await within(Promise.all(lines), 'the counters');
    return added(each.map(([line]) => JSON.parse(line)));
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
  client({ encoding = JSON_ENCODING, url = this.url, transport = TRANSPORT, ...options } = {}) {
    // A test that looks at frames needs some, and so does Protobuf beside server-sent events.
    const needs = options.websocket || this.file === undefined || (transport === 'sse' && encoding === PROTOBUF_ENCODING);
    const [endpoints, others] = endpointsOf(url, needs ? 'websocket' : transport);
    const client = new encoding.Client(endpoints, {
      websocket: WebSocket,
      ...others,
      minReconnectDelay: 50,
      maxReconnectDelay: 500,
      // No test is about the SDK's own five seconds for a command: a busy machine may need more for a burst.
      timeout: 30_000,
      ...options,
    });
    client.encoding = encoding;
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

  /** Connects and returns the context of the end that the server is expected to make of it. */
  async refused(options) {
    const client = this.client(options);
    const ended = next(client, 'disconnected');
    client.connect();
    return ended;
  }

  /**
   * A bare WebSocket, open, with the frames that came in `frames` (texts as strings, the others as
   * buffers) and its end in `closed`.
   */
  async socket({ url = this.url, protocols = [], ...options } = {}) {
    const socket = new WebSocket(url, protocols, options);
    this.sockets.push(socket);
    const listen = (receive) =>
      socket.on('message', (data, binary) => receive(binary ? data : data.toString()));
    socket.frames = collect({ on: (_, receive) => listen(receive) }, 'frame');
    socket.closed = new Promise((resolve) => {
      socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() }));
    });
    await within(once(socket, 'open'), 'a WebSocket to open');
    return socket;
  }

  /** Whether a client is let in: true, or undefined when it was sent away for good. */
  async admits(options) {
    const client = this.client(options);
    const connected = new Promise((resolve) => client.once('connected', () => resolve(true)));
    const ended = new Promise((resolve) => client.once('disconnected', () => resolve(undefined)));
    client.connect();
    return within(Promise.race([connected, ended]), 'a client to be let in or not');
  }

  /** A bare WebSocket after its connect command. */
  async session(user, { token = sign({ sub: user }), ...request } = {}) {
    const socket = await this.socket();
    socket.reply = await ask(socket, { id: 1, connect: { token, ...request } });
    return socket;
  }
}

/** A node for all tests of a file. */
export function shared(options) {
  const roost = new Roost();
  before(() => roost.begin(options));
  after(async () => {
    if (roost.nodes?.length) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
  });
  return roost;
}

/** Runs `body` with a roost of its own, which must end well, and returns its result. */
export async function withRoost(options, body) {
  const roost = await Roost.start(options);
  let code;
  let result;
  try {
    result = await body(roost);
  } finally {
    code = await roost.stop();
  }
  assert.equal(code, 0, 'exit code after SIGTERM');
  return result;
}

/** All messages that came over a bare WebSocket, without the pings. */
export function messages(socket) {
  const lines = socket.frames.items.flatMap((frame) => frame.split('\n'));
  return lines.map((line) => JSON.parse(line)).filter((message) => Object.keys(message).length > 0);
}

/** The first message over a bare WebSocket that `is` what is waited for. */
export async function message(socket, is, what) {
  for (let frames = socket.frames.items.length; ; frames += 1) {
    const found = messages(socket).find(is);
    if (found) return found;
    await socket.frames.take(frames + 1).catch((error) => {
      throw new Error(`${error.message}, none was ${what}`);
    });
  }
}

/** Sends a command over a bare WebSocket, and returns its reply. */
export async function ask(socket, command) {
  socket.send(JSON.stringify(command));
  return message(socket, ({ id }) => id === command.id, `the reply ${command.id}`);
}

/** Sends a command over a bare WebSocket, and returns code and reason of the close that it brings. */
export async function closedBy(socket, command) {
  socket.send(JSON.stringify(command));
  return within(socket.closed, `the close after ${JSON.stringify(command)}`);
}

/** A subscription that is through. */
export async function subscribed(client, channel, options) {
  const subscription = client.newSubscription(channel, options);
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  return subscription;
}

/**
 * A subscription that is through, with its `context`, and in `inbox` the values of all
 * publications: also of those that were recovered with the subscribe itself.
 */
export async function follow(client, channel, options) {
  const subscription = client.newSubscription(channel, options);
  const inbox = payloads(subscription, client.encoding);
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  return { subscription, inbox, context: await done };
}

/** Leaves a channel, and returns when the server has answered. */
export async function unsubscribed(subscription) {
  subscription.unsubscribe();
  // The SDK tells nobody when the reply is there: this is where it waits for it.
  await within(subscription._unsubPromise, 'the reply to an unsubscribe');
}

/**
 * Returns when each node has a channel's publication with that offset. Another node may have it a little later than
 * the publisher its acknowledgement: until then a recovery there ends with the one before, and the last one follows.
 */
export async function everywhere(roost, channel, offset) {
  // The balancer gives connections to the nodes in turn; others connect meanwhile.
  for (let turn = 0; NODES > 1 && turn < 2 * NODES; turn += 1) {
    const client = await roost.connected('watcher');
    const begun = Date.now();
    for (let last = -1; last < offset; ) {
      if (Date.now() - begun > WAIT_MS_MAX) throw new Error(`no offset ${offset} of ${channel}`);
      const { subscription, context } = await follow(client, channel, { positioned: true });
      await unsubscribed(subscription);
      client.removeSubscription(subscription);
      last = context.streamPosition.offset;
    }
    client.disconnect();
  }
}

/** Subscribes and returns the context of the refusal. */
export async function refusedSubscribe(client, channel, options) {
  const subscription = client.newSubscription(channel, options);
  const ended = next(subscription, 'unsubscribed');
  subscription.subscribe();
  const context = await ended;
  client.removeSubscription(subscription);
  return context;
}

/** Publishes values in their order, all at once, and waits until the server took them. */
export async function publishAll(client, channel, values) {
  const replies = values.map((value) => client.publish(channel, client.encoding.pack(value)));
  await within(Promise.all(replies), `replies to ${values.length} publishes`, 60_000);
}
