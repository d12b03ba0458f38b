// What tests of a running system share: its nodes, which can be ended and started again, and clients that come
// over its balancer.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { after } from 'node:test';
import { endpointsOf, JSON_ENCODING, next, range, sign, until } from '../sdk/harness.mjs';

const ofSdk = createRequire(new URL('../sdk/harness.mjs', import.meta.url));
const WebSocket = ofSdk('ws');

/** The system, as tools/cluster describes it. */
export const system = JSON.parse(readFileSync(process.env.ROOST_CLUSTER, 'utf8'));

export const balancer = system.balancer;

/** The balancer passes TCP on: it sees no request. */
export const PASSES_TCP = balancer.file.includes('-tcp.');

/** The nodes are one system. */
export const HAS_REDIS = system.redis !== null;

/** For tests of clients of several nodes. */
export const ONLY_REDIS = { skip: !HAS_REDIS && 'nodes without Redis know nothing of each other' };

/** An answer to an HTTP request: its status, its headers and its body. */
export function request(url, { method = 'GET', headers = {}, body, localAddress } = {}) {
  return new Promise((resolve, reject) => {
    const sent = http.request(url, { method, headers, localAddress, agent: false, timeout: 15_000 });
    sent.on('response', (answer) => {
      let text = '';
      answer.setEncoding('utf8');
      answer.on('data', (data) => (text += data));
      answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, text }));
      answer.on('error', reject);
    });
    sent.on('error', reject);
    sent.on('timeout', () => sent.destroy(new Error(`no answer from ${url}`)));
    sent.end(body);
  });
}

const started = new Set();
process.on('exit', () => {
  for (const child of started) child.kill('SIGKILL');
});

/** A node of the system. */
class Node {
  constructor(described) {
    Object.assign(this, described);
  }

  /** An answer of the node itself, past the balancer. */
  ask(path, options) {
    return request(`http://${this.address}${path}`, { localAddress: system.aside, ...options });
  }

  /** The result of a call of the server API. */
  async api(method, params) {
    const headers = { 'X-API-Key': system.api_key };
    const { status, text } = await this.ask(`/api/${method}`, { method: 'POST', headers, body: JSON.stringify(params) });
    if (status !== 200) throw new Error(`${method}: ${status} ${text}`);
    const { result, error } = JSON.parse(text);
    if (error) throw new Error(`${method}: ${JSON.stringify(error)}`);
    return result;
  }

  /** Connections of a user to this node, as its admin page shows them. */
  async connections(user) {
    this.token ??= await this.#login();
    const body = JSON.stringify({ method: 'connections', params: { user } });
    const headers = { authorization: `token ${this.token}`, 'content-type': 'application/json' };
    const { status, text } = await this.ask('/admin/api', { method: 'POST', headers, body });
    if (status !== 200) throw new Error(`connections: ${status} ${text}`);
    return JSON.parse(text).result.connections;
  }

  async #login() {
    const headers = { 'content-type': 'application/x-www-form-urlencoded' };
    const body = `password=${system.admin_password}`;
    return JSON.parse((await this.ask('/admin/auth', { method: 'POST', headers, body })).text).token;
  }

  /** Figures of its metrics, added up over their labels. */
  async metrics() {
    const found = {};
    for (const line of (await this.ask('/metrics')).text.split('\n')) {
      const [, name, value] = /^([a-z_]+)(?:\{.*\})? ([0-9.e+-]+)$/.exec(line) ?? [];
      if (name) found[name] = (found[name] ?? 0) + Number(value);
    }
    return found;
  }

  /** Whether it listens. */
  listens() {
    const [host, port] = this.address.split(':');
    return new Promise((resolve) => {
      const socket = connect({ host, port, localAddress: system.aside });
      socket.on('connect', () => {
        socket.destroy();
        resolve(true);
      });
      socket.on('error', () => resolve(false));
    });
  }

  signal(name) {
    process.kill(this.pid, name);
  }

  /** Waits until it listens no more. */
  async ended() {
    await until(async () => ((await this.listens()) ? undefined : true), `the end of ${this.name}`, 40_000);
  }

  /** Starts it again after its end. */
  async start() {
    const [program, ...words] = this.argv;
    const environment = Object.fromEntries(
      Object.entries(process.env).filter(([key]) => !/^(ROOST_(?!IO$)|CENTRIFUGO_)/.test(key)),
    );
    const child = spawn(program, words, { env: { ...environment, ...this.environment }, stdio: 'ignore' });
    started.add(child);
    child.unref();
    this.pid = child.pid;
    this.token = undefined;
    await until(async () => ((await this.listens()) ? true : undefined), `${this.name} to listen`);
  }
}

export const nodes = system.nodes.map((described) => new Node(described));

let users = 0;

/** A user that no other test has. */
export const freshUser = () => `user-${(users += 1)}-${process.pid}`;

/** A WebSocket from a local address, or with headers. */
const webSocketWith = (options) =>
  class extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols, options);
    }
  };

const clients = new Set();

/** An SDK client over the balancer, that is not yet connecting. */
export function client(user, { transport = 'websocket', encoding = JSON_ENCODING, localAddress, headers, ...options } = {}) {
  const [endpoints, others] = endpointsOf(`ws://${balancer.address}/connection/websocket`, transport);
  const made = new encoding.Client(endpoints, {
    websocket: webSocketWith({ localAddress, headers }),
    ...others,
    token: sign({ sub: user }, system.secret),
    minReconnectDelay: 50,
    maxReconnectDelay: 500,
    timeout: 30_000,
    ...options,
  });
  made.encoding = encoding;
  clients.add(made);
  return made;
}

/** The same, connected. */
export async function connected(user, options) {
  const made = client(user, options);
  const done = next(made, 'connected');
  made.connect();
  await done;
  return made;
}

/** Disconnects the clients of a test. */
export function leave(...which) {
  for (const made of which) {
    made.disconnect();
    clients.delete(made);
  }
}

after(() => leave(...clients));

/** How many connections each node has of a user, once they are `count` in all. */
export function spread(user, count) {
  return until(async () => {
    const each = await Promise.all(nodes.map((node) => node.connections(user)));
    const counts = each.map((connections) => connections.length);
    return counts.reduce((sum, some) => sum + some, 0) === count ? counts : undefined;
  }, `${count} connections of ${user}`);
}

/** Local addresses that differ for a balancer that looks at the first three numbers. */
export const addresses = range(1, 17).map((number) => `127.0.${number}.1`);

/** Clients of a user, one from each address; the balancer must have given some to each node. */
export async function clientsOfBoth(user, options) {
  const all = [];
  for (const localAddress of addresses) all.push(await connected(user, { ...options, localAddress }));
  const counts = await spread(user, all.length);
  assert.ok(counts.every((count) => count > 0), `clients of each node: ${counts}`);
  return all;
}
