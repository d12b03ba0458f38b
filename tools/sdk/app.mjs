// An application as proxies ask it: a real HTTP server that answers, delays, fails, hangs and disappears.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { within } from './harness.mjs';

export class App {
  /** Starts one on a free port. `tls` makes it an HTTPS server. */
  static async start({ tls } = {}) {
    const app = new App();
    const handle = (request, response) => app.#handle(request, response);
    app.server = tls ? createSecureServer(tls, handle) : createServer(handle);
    app.scheme = tls ? 'https' : 'http';
    app.sockets = new Set();
    app.connections = 0;
    app.server.on(tls ? 'secureConnection' : 'connection', (socket) => {
      app.connections += 1;
      app.sockets.add(socket);
      socket.on('close', () => app.sockets.delete(socket));
      socket.on('error', () => {});
    });
    // A test must not be kept alive by it.
    app.server.unref();
    app.answers = {};
    app.calls = [];
    app.inside = 0;
    app.inside_max = 0;
    app.waiters = [];
    await app.listen(0);
    return app;
  }

  async listen(port) {
    this.server.listen(port, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = this.server.address().port;
  }

  url(path) {
    return `${this.scheme}://127.0.0.1:${this.port}/${path}`;
  }

  /**
   * What is said to the calls at a path: a value, or a function of body and headers that gives one.
   * `{status, text, location}` is a whole response, `HANG` is none, everything else a body in JSON.
   */
  on(path, answer) {
    this.answers[path] = typeof answer === 'function' ? answer : () => answer;
  }

  /** The calls that came to a path. */
  at(path) {
    return this.calls.filter((call) => call.path === path);
  }

  /** Waits for so many calls to a path in all. */
  async took(path, count, ms) {
    const there = (async () => {
      while (this.at(path).length < count) await new Promise((resolve) => this.waiters.push(resolve));
      return this.at(path);
    })();
    return within(there, `${count} calls to ${path}`, ms);
  }

  /** Waits for a call to a path whose body is as wanted: clients of earlier tests may still cause calls. */
  async tookOne(path, isWanted) {
    const found = () => this.at(path).find(({ body }) => isWanted(body));
    const there = (async () => {
      while (!found()) await new Promise((resolve) => this.waiters.push(resolve));
      return found();
    })();
    return within(there, `the call to ${path}`);
  }

  async #handle(request, response) {
    let text = '';
    for await (const chunk of request) text += chunk;
    const path = request.url.slice(1);
    const { method, headers } = request;
    const call = { path, method, headers, body: JSON.parse(text) };
    this.calls.push(call);
    for (const wake of this.waiters.splice(0)) wake();
    this.inside += 1;
    this.inside_max = Math.max(this.inside_max, this.inside);
    response.on('close', () => (this.inside -= 1));
    const answer = await this.answers[path]?.(call.body, headers);
    if (answer === HANG) return;
    const { status = 200, text: body = JSON.stringify(answer), location } = answer?.status ? answer : {};
    const more = location === undefined ? {} : { location };
    response.writeHead(answer === undefined ? 404 : status, { 'content-type': 'application/json', ...more });
    response.end(body);
  }

  /** Disappears: no connection is left, and none is taken. */
  async die() {
    const closed = once(this.server, 'close');
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
    await closed;
  }

  /** Comes back on the same port. */
  async revive() {
    await this.listen(this.port);
  }
}

/** No answer at all. */
export const HANG = Symbol('hang');
