// A small client of the protocol in JSON, for a page without the SDK: one subscription, recovery, three
// transports. Applications take the SDK: it backs off, refreshes tokens, queues calls and knows much more.

const RECONNECT_MS = 1000;

/** Handlers by event. */
class Emitter {
  handlers = {};

  on(event, act) {
    (this.handlers[event] ??= []).push(act);
  }

  emit(event, context = {}) {
    for (const act of this.handlers[event] ?? []) act(context);
  }
}

/** Lines of a response, as they come. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const all = (rest + value).split('\n');
    rest = all.pop();
    yield* all;
  }
}

/**
 * How commands leave and replies come, by transport. Each sends the first command, gives every reply to
 * `receive`, calls `ended` once, and returns functions to send and to close.
 */
const LINKS = {
  websocket(url, { sockets, first, receive, ended }) {
    const socket = new sockets(url);
    socket.onopen = () => socket.send(first);
    socket.onmessage = ({ data }) => data.split('\n').filter(Boolean).forEach(receive);
    socket.onclose = ({ code, reason }) => ended(code, reason);
    return { send: (text) => socket.send(text), close: () => socket.close() };
  },

  http_stream(url, { first, receive, ended, up }) {
    const abort = new AbortController();
    (async () => {
      const response = await fetch(url, { method: 'POST', body: first, signal: abort.signal });
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      for await (const line of lines(response.body)) if (line) receive(line);
    })().then(() => ended(0, 'stream ended'), (error) => ended(0, error.message));
    return { send: up, close: () => abort.abort() };
  },

  sse(url, { first, receive, ended, up }) {
    const source = new EventSource(`${url}?cf_connect=${encodeURIComponent(first)}`);
    source.onmessage = ({ data }) => receive(data);
    // It would come again with the old position: the client does that itself.
    source.onerror = () => {
      source.close();
      ended(0, 'stream ended');
    };
    return { send: up, close: () => source.close() };
  },
};

class SmallClient extends Emitter {
  state = 'disconnected';
  waiting = new Map();
  lastId = 0;

  constructor([{ transport, endpoint }], options) {
    super();
    Object.assign(this, { transport, endpoint, options });
  }

  newSubscription(channel) {
    this.subscription = new SmallSubscription(this, channel);
    return this.subscription;
  }

  connect() {
    clearTimeout(this.timer);
    this.become('connecting');
    this.subscription.become('subscribing');
    const id = (this.lastId += 1);
    this.waiting.set(id, { resolve: (reply) => this.opened(reply), reject: ({ code }) => this.ended(this.link, code) });
    const link = {};
    this.link = link;
    Object.assign(link, LINKS[this.transport](this.endpoint, {
      sockets: this.options.websocket,
      first: JSON.stringify({ id, connect: { token: this.options.token || undefined } }),
      receive: (line) => this.link === link && this.receive(JSON.parse(line)),
      ended: (code, reason) => this.ended(link, code, reason),
      up: (data) => this.up(data),
    }));
  }

  /** A command of a stream goes in a request of its own. */
  up(data) {
    const body = JSON.stringify({ session: this.session, node: this.node, data });
    fetch(this.options.emulationEndpoint, { method: 'POST', body }).catch(() => {});
  }

  disconnect() {
    clearTimeout(this.timer);
    const { link } = this;
    this.link = undefined;
    link?.close();
    this.rejectAll();
    this.subscription.become('subscribing');
    this.become('disconnected');
  }

  opened({ connect: { client, session, node } }) {
    Object.assign(this, { client, session, node });
    this.become('connected');
    this.subscription.request();
  }

  /** The connection is lost: it is made anew, unless a code says that this is of no use. */
  ended(link, code, reason = '') {
    if (this.link !== link) return;
    this.disconnect();
    const isFinal = (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
    if (isFinal) this.emit('error', { error: new Error(`${code} ${reason}`) });
    else this.timer = setTimeout(() => this.connect(), RECONNECT_MS);
  }

  receive(reply) {
    const { id, push, error } = reply;
    if (id) {
      const call = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) call?.reject(error);
      else call?.resolve(reply);
    } else if (push?.disconnect) {
      this.ended(this.link, push.disconnect.code, push.disconnect.reason);
    } else if (push) {
      this.subscription.push(push);
    } else {
      // A ping.
      this.link.send('{}');
    }
  }

  call(method, request) {
    return new Promise((resolve, reject) => {
      const id = (this.lastId += 1);
      this.waiting.set(id, { resolve, reject });
      this.link.send(JSON.stringify({ id, [method]: request }));
    });
  }

  rejectAll() {
    const calls = [...this.waiting.values()];
    this.waiting.clear();
    for (const { reject } of calls) reject(new Error('the connection is lost'));
  }

  become(state) {
    if (this.state === state) return;
    this.state = state;
    this.emit(state);
  }
}

class SmallSubscription extends Emitter {
  state = 'unsubscribed';
  /** Offset and epoch, once the channel has told them. */
  position = undefined;

  constructor(client, channel) {
    super();
    Object.assign(this, { client, channel });
  }

  /** The client subscribes when it is connected. */
  subscribe() {}

  async request() {
    const recover = this.position ? { recover: true, ...this.position } : {};
    try {
      const request = { channel: this.channel, join_leave: true, ...recover };
      const { subscribe } = await this.client.call('subscribe', request);
      const { epoch, offset = 0, publications = [], recovered = false, was_recovering = false } = subscribe;
      this.become('subscribed', { wasRecovering: was_recovering, recovered });
      for (const publication of publications) this.emit('publication', this.of(publication));
      if (subscribe.recoverable) this.position = { epoch, offset };
    } catch (error) {
      this.client.emit('error', { error });
    }
  }

  push({ pub, join, leave, unsubscribe }) {
    if (pub) {
      if (pub.offset && this.position) this.position.offset = pub.offset;
      this.emit('publication', this.of(pub));
    }
    if (join) this.emit('join', { info: this.of(join).info });
    if (leave) this.emit('leave', { info: this.of(leave).info });
    // Publications are lost (2500): the channel is subscribed again, and recovers.
    if (unsubscribe) this.request();
  }

  /** A publication or an event, where an empty user of its info isn't left out. */
  of({ info, ...rest }) {
    return { ...rest, info: info && { user: '', ...info } };
  }

  async presence() {
    const { presence } = await this.client.call('presence', { channel: this.channel });
    return { clients: presence.presence ?? {} };
  }

  publish(data) {
    return this.client.call('publish', { channel: this.channel, data });
  }

  become(state, context) {
    this.state = state;
    this.emit(state, context);
  }
}
