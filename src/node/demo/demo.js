// Clients that talk: who is here, who said what and when, and how a cut connection recovers.

const byId = (id) => document.getElementById(id);

const CHANNEL = 'demo';
const SHOWN_MAX = 100;
const TOKEN_SECONDS = 3600;

/** Without a way to the registry the node has no SDK to serve. */
const HAS_SDK = typeof Centrifuge !== 'undefined';
const Client = HAS_SDK ? Centrifuge : SmallClient;

const isSecure = location.protocol === 'https:';
const http = (path) => `${location.origin}${path}`;
const socket = (path) => `${isSecure ? 'wss' : 'ws'}://${location.host}${path}`;

const TRANSPORTS = {
  websocket: 'WebSocket',
  http_stream: 'HTTP streaming (http_stream)',
  sse: 'Server-sent events (sse)',
};

/** A class of WebSockets for one client: the last one shows whether its messages are compressed. */
const watched = () =>
  class Watched extends WebSocket {
    static last;

    constructor(...parameters) {
      super(...parameters);
      Watched.last = this;
    }
  };

const base64url = (bytes) =>
  btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');

/** A token of a user, signed with the secret of development nodes; '' where there is none. */
async function token(user, secret) {
  // Browsers sign only for pages of this machine or over TLS.
  if (!secret || !crypto.subtle) return '';
  const encode = (text) => new TextEncoder().encode(text);
  const part = (value) => base64url(encode(JSON.stringify(value)));
  const exp = Math.floor(Date.now() / 1000) + TOKEN_SECONDS;
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: user, exp })}`;
  const algorithm = { name: 'HMAC', hash: 'SHA-256' };
  const key = await crypto.subtle.importKey('raw', encode(secret), algorithm, false, ['sign']);
  return `${signed}.${base64url(new Uint8Array(await crypto.subtle.sign('HMAC', key, encode(signed))))}`;
}

/** An element with attributes and children. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A card: the parts of it that change. */
function card(name, offered) {
  const id = name.toLowerCase();
  const part = (tag, kind, attributes = {}, ...children) =>
    element(tag, { 'data-test': `${kind}-${id}`, ...attributes }, ...children);
  const parts = {
    state: part('span', 'state', { class: 'state', role: 'status' }),
    here: part('p', 'here', { class: 'here' }, 'Here: nobody'),
    list: part('ol', 'messages', { 'aria-live': 'polite', 'aria-label': `Messages to ${name}`, tabindex: 0 }),
    input: part('input', 'input', { 'aria-label': `Message from ${name}`, placeholder: 'Say something' }),
    transport: part('select', 'transport', { 'aria-label': `Transport of ${name}` }),
    cut: part('button', 'cut', { type: 'button', class: 'cut', 'aria-pressed': 'false' }, 'Cut connection'),
    form: element('form', { class: 'row' }),
  };
  for (const transport of offered) parts.transport.append(new Option(TRANSPORTS[transport], transport));
  parts.form.append(parts.input, part('button', 'send', { class: 'send' }, 'Send'));
  byId('panes').append(
    part('div', 'pane', { class: 'pane' },
      element('h2', {}, name, parts.state),
      element('div', { class: 'row' }, element('label', {}, parts.transport), parts.cut),
      parts.here, parts.list, parts.form),
  );
  return parts;
}

/** A member of the channel: its user, or where it has none, the beginning of its client id. */
const label = ({ user, client }) => user || `client ${client.slice(0, 6)}`;

const clock = (date) => date.toLocaleTimeString([], { hour12: false });

/** A pane with a client of its own. */
class Pane {
  constructor(name, options) {
    this.name = name;
    this.options = options;
    this.members = new Map();
    this.isRecovering = false;
    const offered = ['websocket', ...options.streams.map(({ transport }) => transport)];
    this.parts = card(name, offered);
    const { form, cut, transport } = this.parts;
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.send();
    });
    cut.addEventListener('click', () => this.cutOrConnect());
    transport.addEventListener('change', () => this.connect(transport.value));
    this.connect('websocket');
  }

  /** Opens a connection over a transport, in place of the one that was there. */
  connect(transport) {
    this.client?.disconnect();
    this.cut(false);
    const stream = this.options.streams.find((other) => other.transport === transport);
    const endpoint = stream ? http(stream.path) : socket(this.options.websocket);
    const sockets = watched();
    const client = new Client([{ transport, endpoint }], {
      emulationEndpoint: http(this.options.emulation),
      websocket: sockets,
      token: this.options.token,
    });
    this.client = client;
    const channel = client.newSubscription(CHANNEL, { joinLeave: true });
    this.channel = channel;
    // Events of an earlier connection come late, and change nothing.
    const on = (emitter, event, act) =>
      emitter.on(event, (context) => this.client === client && act(context));
    for (const event of ['connecting', 'connected', 'disconnected']) on(client, event, () => this.show());
    for (const event of ['subscribing', 'unsubscribed']) on(channel, event, () => this.show());
    on(client, 'connected', () => {
      // Browsers always offer compression; the node decides (websocket.compression).
      const extensions = transport === 'websocket' ? sockets.last.extensions : '';
      this.isCompressed = extensions.includes('permessage-deflate');
    });
    on(client, 'error', ({ error }) => this.event(`Error: ${error.message}`));
    on(channel, 'subscribed', (context) => this.subscribed(context));
    on(channel, 'publication', (publication) => this.publication(publication));
    on(channel, 'join', ({ info }) => this.member(info, true));
    on(channel, 'leave', ({ info }) => this.member(info, false));
    channel.subscribe();
    client.connect();
  }

  show() {
    const isHere = this.channel.state === 'subscribed';
    const state = isHere ? 'connected' : this.client.state === 'connected' ? 'connecting' : this.client.state;
    this.parts.state.dataset.state = state;
    this.parts.state.textContent = isHere && this.isCompressed ? `${state}, compressed` : state;
    if (!isHere) this.parts.here.textContent = 'Here: unknown while the connection is cut';
  }

  async subscribed({ wasRecovering, recovered }) {
    this.show();
    if (wasRecovering && !recovered) this.event('Some messages are lost: the history is too short', 'lost');
    // The recovered publications come in the same turn as this event.
    this.isRecovering = wasRecovering && recovered;
    this.recovered = 0;
    setTimeout(() => {
      if (this.isRecovering) this.event(`Connected again: recovered ${this.recovered} missed messages`);
      this.isRecovering = false;
    });
    this.members.clear();
    try {
      const { clients } = await this.channel.presence();
      for (const [id, info] of Object.entries(clients)) this.members.set(id, info);
    } catch {
      // A node with other options: nobody may see who is here.
    }
    this.showMembers();
  }

  member(info, isHere) {
    if (isHere) this.members.set(info.client, info);
    else this.members.delete(info.client);
    this.event(`${label(info)} ${isHere ? 'joined' : 'left'}`);
    this.showMembers();
  }

  showMembers() {
    const names = [...this.members.values()].map(label);
    this.parts.here.textContent = `Here: ${names.sort().join(', ') || 'nobody'}`;
  }

  publication({ data, info, offset }) {
    // The node vouches for the user of a client; a publication of the server API has none.
    const from = info?.user || data?.from || '?';
    const item = element('li', offset ? { title: `offset ${offset}` } : {});
    item.append(element('time', {}, clock(data?.at ? new Date(data.at) : new Date())));
    item.append(`${from}: ${data?.text ?? JSON.stringify(data)}`);
    if (this.isRecovering) {
      this.recovered += 1;
      item.className = 'recovered';
      item.append(element('small', {}, 'recovered'));
    }
    this.append(item);
  }

  event(text, kind = '') {
    this.append(element('li', { class: `event ${kind}` }, element('time', {}, clock(new Date())), text));
  }

  append(item) {
    const { list } = this.parts;
    list.append(item);
    if (list.childElementCount > SHOWN_MAX) list.firstElementChild.remove();
    list.scrollTop = list.scrollHeight;
  }

  async send() {
    const text = this.parts.input.value;
    if (!text) return;
    if (this.client.state !== 'connected') {
      this.event('Not sent: the connection is cut', 'lost');
      return;
    }
    this.parts.input.value = '';
    try {
      await this.channel.publish({ from: this.name, text, at: Date.now() });
    } catch (error) {
      this.event(`Not sent: ${error.message}`, 'lost');
    }
  }

  cutOrConnect() {
    const isCut = this.client.state === 'disconnected';
    this.cut(!isCut);
    if (isCut) {
      this.client.connect();
    } else {
      this.client.disconnect();
      this.event('Connection cut');
    }
  }

  cut(isCut) {
    this.parts.cut.setAttribute('aria-pressed', String(isCut));
    this.parts.cut.textContent = isCut ? 'Connect again' : 'Cut connection';
  }
}

async function begin() {
  const options = await (await fetch('/demo/snippet.json')).json();
  byId('html').textContent = options.html;
  if (options.curl) {
    byId('curl').textContent = options.curl;
    byId('shell').hidden = false;
  }
  if (options.admin) {
    byId('admin').href = options.admin;
    byId('admin').hidden = false;
  }
  byId('missing').hidden = HAS_SDK;
  for (const name of ['Ada', 'Grace']) new Pane(name, { ...options, token: await token(name, options.secret) });
}

for (const button of document.querySelectorAll('[data-copies]')) {
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(byId(button.dataset.copies).textContent);
    button.textContent = 'Copied';
    setTimeout(() => (button.textContent = 'Copy'), 2000);
  });
}

begin();
