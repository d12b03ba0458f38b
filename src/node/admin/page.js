// The admin page: signs in, follows the node's figures over its own WebSocket, and asks its API.

const byId = (id) => document.getElementById(id);

// --- Small things -----------------------------------------------------------------------------

/** An element with attributes, properties of `on` as listeners, and children (texts are never HTML). */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'on') {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (value !== false && value !== undefined && value !== null) {
      made.setAttribute(key, value === true ? '' : value);
    }
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

/** A table. A column is `[head, cell, isNumber]`; `cell` gives text or a node of a row. */
function table(columns, rows, nothing = 'None.') {
  if (rows.length === 0) return element('p', { class: 'quiet' }, nothing);
  const kind = (isNumber) => (isNumber ? { class: 'number' } : {});
  const head = columns.map(([name, , isNumber]) => element('th', { scope: 'col', ...kind(isNumber) }, name));
  const body = rows.map((row) =>
    element('tr', {}, ...columns.map(([, cell, isNumber]) => element('td', kind(isNumber), cell(row)))),
  );
  return element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body));
}

const number = (value) => Math.round(value ?? 0).toLocaleString('en');

/** A number in few characters: 12,345 as 12.3 k. */
function short(value) {
  const units = [
    [1e9, ' G'],
    [1e6, ' M'],
    [1e4, ' k'],
  ];
  const [size, unit] = units.find(([size]) => value >= size) ?? [1, ''];
  if (size === 1) return number(value);
  const scaled = value / (size === 1e4 ? 1e3 : size);
  return `${scaled.toFixed(scaled < 100 ? 1 : 0)}${unit}`;
}

function bytes(value = 0) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

function micros(value = 0) {
  if (value < 1000) return `${Math.round(value)} µs`;
  if (value < 1e6) return `${(value / 1000).toFixed(1)} ms`;
  return `${(value / 1e6).toFixed(2)} s`;
}

function span(seconds = 0) {
  const parts = [
    [86_400, 'd'],
    [3_600, 'h'],
    [60, 'min'],
    [1, 's'],
  ];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return '0 s';
  let rest = Math.floor(seconds);
  return parts
    .slice(first, first + 2)
    .map(([size, unit]) => {
      const count = Math.floor(rest / size);
      rest -= count * size;
      return `${count} ${unit}`;
    })
    .join(' ');
}

const words = (name) => name.replaceAll('_', ' ');

/** Asks once more before something that can't be undone: the button becomes the question. */
function confirmed(button, question, act) {
  const before = button.textContent;
  const back = () => {
    button.textContent = before;
    button.removeAttribute('data-asks');
  };
  if (!button.hasAttribute('data-asks')) {
    button.setAttribute('data-asks', '');
    button.textContent = question;
    button.addEventListener('blur', back, { once: true });
    return;
  }
  back();
  act();
}

// --- Signing in, and calls ----------------------------------------------------------------------

const session = {
  token: sessionStorage.getItem('roost-token') ?? '',
  keep(token) {
    session.token = token;
    if (token) sessionStorage.setItem('roost-token', token);
    else sessionStorage.removeItem('roost-token');
  },
  headers: () => (session.token ? { Authorization: `token ${session.token}` } : {}),
};

/** Result of a method of the API. Throws its error, as a text that may be shown. */
async function call(method, params = {}) {
  const response = await fetch('admin/api', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...session.headers() },
    body: JSON.stringify({ method, params }),
  });
  if (response.status === 401) {
    leave();
    throw new Error('signed out');
  }
  if (!response.ok) throw new Error(`status ${response.status}`);
  const { result, error } = await response.json();
  if (error) throw Object.assign(new Error(`${error.message} (${error.code})`), { code: error.code });
  return result;
}

/** A token for a password or for the link that a development node prints; undefined when it is wrong. */
async function enter(credentials) {
  const response = await fetch('admin/auth', { method: 'POST', body: new URLSearchParams(credentials) });
  if (response.status === 429) throw new Error('Too many wrong passwords just now. Try again in a moment.');
  if (!response.ok) return undefined;
  return (await response.json()).token;
}

async function begin() {
  const link = new URLSearchParams(location.hash.slice(1)).get('link');
  if (link) {
    history.replaceState(null, '', location.pathname + location.search);
    const token = await enter({ link }).catch(() => undefined);
    if (token) session.keep(token);
  }
  const response = await fetch('admin/init', { headers: session.headers() });
  const init = await response.json();
  byId('insecure').hidden = !init.insecure;
  if (!init.authenticated) {
    leave();
    if (link) byId('login-result').textContent = 'That link was used before, or is not of this start of the node.';
    return;
  }
  byId('login').hidden = true;
  byId('inside').hidden = false;
  byId('sign-out').hidden = init.insecure;
  feed.open();
}

/** Back to the form. */
function leave() {
  session.keep('');
  feed.close();
  byId('inside').hidden = true;
  byId('sign-out').hidden = true;
  byId('login').hidden = false;
  byId('password').focus();
}

byId('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  const said = byId('login-result');
  said.textContent = '';
  try {
    const token = await enter({ password: byId('password').value });
    if (!token) {
      said.textContent = 'Wrong password.';
      return;
    }
    byId('password').value = '';
    session.keep(token);
    await begin();
  } catch (error) {
    said.textContent = error.message;
  }
});

byId('sign-out').addEventListener('click', leave);

// --- Figures ------------------------------------------------------------------------------------

const RETRY_MS = { min: 500, max: 5_000 };

/** Follows the node's figures over its client protocol, in JSON. */
const feed = {
  socket: undefined,
  retry_ms: RETRY_MS.min,
  timer: undefined,

  open() {
    clearTimeout(feed.timer);
    // Beside the page's other files, whatever path a reverse proxy has put before them.
    const place = new URL('admin/websocket', document.baseURI);
    place.protocol = place.protocol === 'https:' ? 'wss:' : 'ws:';
    const socket = new WebSocket(place);
    feed.socket = socket;
    feed.say('connecting');
    socket.addEventListener('open', () => {
      socket.send(JSON.stringify({ id: 1, connect: { token: session.token, name: 'admin' } }));
    });
    socket.addEventListener('message', ({ data }) => {
      for (const line of data.split('\n').filter(Boolean)) feed.take(socket, JSON.parse(line));
    });
    socket.addEventListener('close', ({ code }) => {
      if (feed.socket !== socket) return;
      if (code === 3500 || code === 3501) return leave();
      feed.say('reconnecting', 'bad');
      feed.timer = setTimeout(begin_again, feed.retry_ms);
      feed.retry_ms = Math.min(feed.retry_ms * 2, RETRY_MS.max);
    });
  },

  take(socket, message) {
    if (Object.keys(message).length === 0) {
      socket.send('{}');
      return;
    }
    if (message.connect) {
      feed.retry_ms = RETRY_MS.min;
      feed.say('live', 'good');
    }
    const figures = message.push?.pub?.data;
    if (figures) show(figures);
  },

  say(text, kind = '') {
    const badge = byId('feed-state');
    badge.textContent = text;
    badge.className = `badge ${kind}`;
  },

  close() {
    const { socket } = feed;
    feed.socket = undefined;
    clearTimeout(feed.timer);
    socket?.close();
    feed.say('not connected');
  },
};

/** The node may have been started anew, and then the token may be worth nothing. */
function begin_again() {
  begin().catch(() => {
    feed.timer = setTimeout(begin_again, feed.retry_ms);
    feed.retry_ms = Math.min(feed.retry_ms * 2, RETRY_MS.max);
  });
}

/** Figures of the last two minutes. */
const KEPT = 120;
const past = [];
let drawing = false;

function show(figures) {
  past.push({ at: Date.now(), ...figures });
  if (past.length > KEPT + 1) past.shift();
  // A hidden page draws when it is seen again.
  if (document.hidden || drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && past.length > 0) requestAnimationFrame(draw);
});

const latest = () => past[past.length - 1] ?? {};

function draw() {
  drawing = false;
  const now = latest();
  drawHead(now.node ?? {});
  if (byId('overview').hidden) return;
  drawTiles(now);
  charts.forEach((chart) => chart.draw());
  drawLimits(now);
  drawMemory(now.memory ?? {});
  drawReasons();
  drawShards(now.shards ?? []);
  drawBroker(now.broker);
  drawProxies(now.proxies ?? []);
  drawCertificates(now.certificates ?? { list: [], errors: [] });
}

function drawHead({ name = '', version = '', uptime_s, fault }) {
  byId('node-name').textContent = `${name} ${version}`;
  document.title = `${name || 'roost'}: roost`;
  byId('uptime').textContent = `up ${span(uptime_s)}`;
  const health = byId('health');
  health.textContent = fault ?? 'healthy';
  health.className = `badge ${fault ? 'bad' : 'good'}`;
}

const TILES = [
  ['connections', 'Connections', ({ totals }) => short(totals.connections)],
  ['clients', 'Clients', ({ totals }) => short(totals.clients)],
  ['users', 'Users', ({ totals }) => short(totals.users)],
  ['subscriptions', 'Subscriptions', ({ totals }) => short(totals.subscriptions)],
  ['channels', 'Channels', ({ totals }) => short(totals.channels)],
  ['messages-out', 'Messages out /s', ({ rates }) => short(rates.messages_out)],
  ['deliveries', 'Deliveries /s', ({ rates }) => short(rates.deliveries)],
  ['bytes-out', 'Bytes out /s', ({ rates }) => bytes(rates.bytes_out)],
  ['queued', 'Waiting for clients', ({ totals }) => bytes(totals.queued_bytes)],
  ['loop-lag', 'Loop lag p99', ({ latency_us }) => micros(latency_us.loop_lag_p99)],
];

const tiles = TILES.map(([id, label, read]) => {
  const value = element('dd', { 'data-test': `tile-${id}` }, '–');
  byId('tiles').append(element('div', {}, element('dt', {}, label), value));
  return [value, read];
});

function drawTiles(now) {
  for (const [value, read] of tiles) {
    const text = now.totals ? read(now) : '–';
    if (value.textContent !== text) value.textContent = text;
  }
}

// --- Charts -------------------------------------------------------------------------------------

/** A colour of the style sheet as the canvas wants it. */
const probe = document.body.appendChild(element('span', { class: 'hidden', 'aria-hidden': 'true' }));
function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

/** The next round number for the top of an axis: 1, 2 or 5 times a power of ten. */
function roundUp(value) {
  if (value <= 2) return 2;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

const SERIES_COLOURS = 8;

/**
 * A chart of the last two minutes. `series` are `[label, read]` of the node's figures; `shard` reads one
 * shard's figure, where there is one.
 */
class Chart {
  constructor({ id, title, format, series, shard, shardName = 'shard' }) {
    Object.assign(this, { title, format, series, shard, shardName });
    this.canvas = element('canvas', { tabindex: '0', role: 'img' });
    this.legend = element('p', { class: 'legend' });
    this.readout = element('span', { class: 'quiet', role: 'status' });
    const caption = element('figcaption', {}, element('strong', {}, title), this.readout);
    const figure = element('figure', {}, caption, this.canvas, this.legend);
    byId('charts').append(element('div', { class: 'card', 'data-test': `chart-${id}` }, figure));
    // Which sample is pointed at, counted from the last.
    this.back = undefined;
    this.canvas.addEventListener('pointermove', ({ offsetX }) => {
      const { left, width } = this.box;
      this.point(Math.round((1 - (offsetX - left) / width) * KEPT));
    });
    this.canvas.addEventListener('pointerleave', () => this.point(undefined));
    this.canvas.addEventListener('blur', () => this.point(undefined));
    this.canvas.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.point((this.back ?? 0) + step);
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  get box() {
    const { clientWidth, clientHeight } = this.canvas;
    return { left: 52, top: 8, width: Math.max(10, clientWidth - 60), height: Math.max(10, clientHeight - 28) };
  }

  point(back) {
    this.back = back === undefined ? undefined : Math.min(Math.max(back, 0), past.length - 1);
    this.draw();
  }

  /** Label and values of each line. */
  lines() {
    const { shards } = latest();
    if (byShard && this.shard && shards) {
      return shards.map((_, at) => [
        `${this.shardName} ${at}`,
        past.map(({ shards = [] }) => (shards[at] ? this.shard(shards[at]) : undefined)),
      ]);
    }
    return this.series.map(([label, read]) => [label, past.map((now) => (now.totals ? read(now) : undefined))]);
  }

  draw() {
    const { canvas, format, box } = this;
    const lines = this.lines();
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext('2d');
    context.scale(ratio, ratio);
    context.font = '11px system-ui, sans-serif';
    const values = lines.flatMap(([, values]) => values).filter((value) => value !== undefined);
    const top = roundUp(Math.max(0, ...values));
    const x = (back) => box.left + box.width * (1 - back / KEPT);
    const y = (value) => box.top + box.height * (1 - value / top);
    this.axes(context, x, y, top);
    lines.forEach(([, values], at) => {
      context.strokeStyle = colour(`--series-${at % SERIES_COLOURS}`);
      context.lineWidth = 1.5;
      context.beginPath();
      let isDown = false;
      values.forEach((value, index) => {
        if (value === undefined) {
          isDown = false;
          return;
        }
        const to = [x(values.length - 1 - index), y(value)];
        if (isDown) context.lineTo(...to);
        else context.moveTo(...to);
        isDown = true;
      });
      context.stroke();
    });
    if (this.back !== undefined) {
      context.strokeStyle = colour('--quiet');
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x(this.back), box.top);
      context.lineTo(x(this.back), box.top + box.height);
      context.stroke();
    }
    const at = past.length - 1 - (this.back ?? 0);
    const told = lines.map(([label, values]) => [label, values[at] === undefined ? '–' : format(values[at])]);
    this.readout.textContent = this.back === undefined ? '' : `${this.back} s ago`;
    this.tell(told);
    canvas.setAttribute('aria-label', `${this.title}: ${told.map((pair) => pair.join(' ')).join(', ')}`);
  }

  axes(context, x, y, top) {
    const { box, format } = this;
    context.strokeStyle = colour('--line');
    context.fillStyle = colour('--quiet');
    context.lineWidth = 1;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const share of [0, 0.5, 1]) {
      const at = Math.round(y(top * share)) + 0.5;
      context.beginPath();
      context.moveTo(box.left, at);
      context.lineTo(box.left + box.width, at);
      context.stroke();
      context.fillText(format(top * share), box.left - 6, at);
    }
    context.textBaseline = 'top';
    for (const [back, text, align] of [
      [KEPT, '2 min ago', 'left'],
      [KEPT / 2, '1 min', 'center'],
      [0, 'now', 'right'],
    ]) {
      context.textAlign = align;
      context.fillText(text, x(back), box.top + box.height + 6);
    }
  }

  /** The legend with the values that are pointed at, or the last ones. */
  tell(told) {
    while (this.legend.children.length > told.length) this.legend.lastChild.remove();
    told.forEach(([label, value], at) => {
      const item = this.legend.children[at] ?? this.legend.appendChild(element('span'));
      item.style.setProperty('--swatch', `var(--series-${at % SERIES_COLOURS})`);
      const text = `${label} ${value}`;
      if (item.textContent !== text) item.textContent = text;
    });
  }
}

let byShard = false;

const charts = [
  new Chart({
    id: 'connections',
    title: 'Connections',
    format: short,
    series: [
      ['connections', ({ totals }) => totals.connections],
      ['clients', ({ totals }) => totals.clients],
    ],
    shard: ({ connections }) => connections,
  }),
  new Chart({
    id: 'messages',
    title: 'Messages per second',
    format: short,
    series: [
      ['in', ({ rates }) => rates.messages_in],
      ['out', ({ rates }) => rates.messages_out],
      ['deliveries', ({ rates }) => rates.deliveries],
    ],
    shard: ({ messages_out }) => messages_out,
    shardName: 'out of shard',
  }),
  new Chart({
    id: 'latency',
    title: 'Latency: publication to last write',
    format: micros,
    series: [
      ['p50', ({ latency_us }) => latency_us.fan_out_p50],
      ['p99', ({ latency_us }) => latency_us.fan_out_p99],
    ],
    shard: ({ fan_out_p99_us }) => fan_out_p99_us,
    shardName: 'p99 of shard',
  }),
  new Chart({
    id: 'lag',
    title: 'Loop lag',
    format: micros,
    series: [
      ['p50', ({ latency_us }) => latency_us.loop_lag_p50],
      ['p99', ({ latency_us }) => latency_us.loop_lag_p99],
    ],
    shard: ({ loop_lag_p99_us }) => loop_lag_p99_us,
    shardName: 'p99 of shard',
  }),
];

for (const [id, value] of [
  ['by-node', false],
  ['by-shard', true],
]) {
  byId(id).addEventListener('click', () => {
    byShard = value;
    byId('by-node').setAttribute('aria-pressed', String(!value));
    byId('by-shard').setAttribute('aria-pressed', String(value));
    charts.forEach((chart) => chart.draw());
  });
}

// --- The rest of the overview -------------------------------------------------------------------

function drawLimits({ limits = [], node = {} }) {
  const bars = limits
    .filter(({ limit }) => limit > 0)
    .map(({ name, used, limit }) => {
      const share = Math.min(1, used / limit);
      const told = name === 'memory_bytes' ? bytes : number;
      const bar = element('div');
      bar.style.width = `${share * 100}%`;
      const near = share >= 0.95 ? 'full' : share >= 0.8 ? 'near' : '';
      return element(
        'div',
        { class: `meter ${near}` },
        element(
          'p',
          {},
          element('span', {}, words(name.replace('_bytes', ''))),
          element('span', {}, `${told(used)} of ${told(limit)}, ${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`),
        ),
        element('div', { 'aria-hidden': 'true' }, bar),
      );
    });
  byId('limits').replaceChildren(...bars);
  const plan = byId('plan');
  if (plan.childElementCount === 0) plan.append(...(node.plan ?? []).map(planLine));
}

/** A line of the plan stands in columns, as it does in a terminal. */
const planLine = (line) => element('li', {}, line.trim().split(/\s{2,}/).join(' · '));

function drawMemory({ classes = {}, limit = 0, bytes_per_connection = 0 }) {
  const whole = classes.resident || 1;
  const rows = Object.entries(classes).map(([name, value]) => ({ name, value }));
  const share = ({ name, value }) =>
    name === 'resident' || name === 'kernel_sockets' ? '' : `${((value / whole) * 100).toFixed(1)} %`;
  byId('memory').replaceChildren(
    table(
      [
        ['class', ({ name }) => words(name)],
        ['bytes', ({ value }) => bytes(value), true],
        ['of resident', share, true],
      ],
      rows,
    ),
    element('p', { class: 'quiet' }, `Limit ${bytes(limit)}; ${bytes(bytes_per_connection)} resident per connection.`),
  );
}

/** How much was added to a total in the last minute. */
function added(kind, reason) {
  const minute = past[Math.max(0, past.length - 61)];
  return (latest()[kind]?.[reason] ?? 0) - (minute[kind]?.[reason] ?? 0);
}

function drawReasons() {
  const rows = (kinds) =>
    kinds.flatMap((kind) =>
      Object.entries(latest()[kind] ?? {}).map(([reason, total]) => ({ kind, reason, total })),
    );
  const columns = (head) => [
    [head, ({ kind, reason }) => (kind === 'refused' ? `refused: ${words(reason)}` : words(reason))],
    ['last minute', ({ kind, reason }) => number(added(kind, reason)), true],
    ['since the start', ({ total }) => number(total), true],
  ];
  byId('closes').replaceChildren(
    table(columns('reason'), rows(['closes', 'faults', 'refused']), 'No connection was closed by the node.'),
  );
  byId('errors').replaceChildren(table(columns('code'), rows(['errors']), 'No command was answered with an error.'));
}

function drawShards(shards) {
  const rows = shards.map((shard, at) => ({ at, ...shard }));
  byId('shards').replaceChildren(
    table(
      [
        ['shard', ({ at }) => String(at)],
        ['connections', ({ connections }) => number(connections), true],
        ['subscriptions', ({ subscriptions }) => number(subscriptions), true],
        ['messages in /s', ({ messages_in }) => number(messages_in), true],
        ['messages out /s', ({ messages_out }) => number(messages_out), true],
        ['waiting', ({ queued_bytes }) => bytes(queued_bytes), true],
        ['mailbox', ({ mailbox_batches }) => number(mailbox_batches), true],
        ['loop lag p99', ({ loop_lag_p99_us }) => micros(loop_lag_p99_us), true],
      ],
      rows,
    ),
  );
}

/** Days before its end from which on a certificate is marked. */
const DAYS_LEFT = 14;

function drawCertificates({ list, errors }) {
  byId('certificates-card').hidden = list.length === 0 && errors.length === 0;
  const days = ({ days: left }) =>
    element('span', { class: `badge ${left < DAYS_LEFT ? 'bad' : 'good'}` }, left < 0 ? 'expired' : `${left} days`);
  byId('certificates').replaceChildren(
    table(
      [
        ['name', ({ name }) => name],
        ['option', ({ option }) => option],
        ['ends', ({ not_after: end }) => new Date(end * 1000).toISOString().slice(0, 16).replace('T', ' ')],
        ['left', days],
      ],
      list,
    ),
    ...errors.map((fault) => element('p', { class: 'badge bad' }, fault)),
  );
}

/** The broker that keeps channels for several nodes, where there is one. */
function drawBroker(broker) {
  byId('broker-card').hidden = !broker;
  if (!broker) return;
  const gaps = Object.entries(broker.gaps).filter(([, count]) => count > 0);
  const rows = [
    ['state', broker.fault ?? 'ready'],
    ['servers without a connection', number(broker.servers_away)],
    ['connections that subscribe again', number(broker.resubscribing)],
    ['latency p50, p99', `${micros(broker.latency_p50_us)}, ${micros(broker.latency_p99_us)}`],
    ['silence of the PUB/SUB connections', `${(broker.probe_age_ms / 1000).toFixed(1)} s`],
    ['commands that wait', bytes(broker.queue_bytes)],
    ['channels followed', number(broker.channels)],
    ['publications for recoveries', bytes(broker.window_bytes)],
    ['publications repaired', number(broker.repaired)],
    ['gaps', gaps.map(([cause, count]) => `${cause} ${number(count)}`).join(', ') || '0'],
    ['timeouts, replies lost, errors', [broker.timeouts, broker.replies_lost, broker.errors].map(number).join(', ')],
  ];
  byId('broker').replaceChildren(table([['', ([name]) => name], ['', ([, value]) => value, true]], rows));
}

function drawProxies(proxies) {
  byId('proxies-card').hidden = proxies.length === 0;
  const states = { closed: 'asked', open: 'left alone', half_open: 'being tried' };
  byId('proxies').replaceChildren(
    table(
      [
        ['proxy', ({ name }) => name],
        ['state', ({ state }) => states[state] ?? state],
        ['calls', ({ calls }) => number(calls), true],
        ['failures', ({ failures }) => number(failures), true],
        ['on their way', ({ in_flight }) => number(in_flight), true],
      ],
      proxies,
    ),
  );
}

// --- Channels -----------------------------------------------------------------------------------

/** What each place waits for: an answer that comes late doesn't cover a newer one. */
const awaited = new Map();

/** Puts what a call gives into a place, or why it gives nothing. */
async function fill(place, work) {
  const answer = work().catch(({ code, message }) => {
    const isAbsent = code === 108;
    return element('p', { class: isAbsent ? 'quiet' : 'bad' }, isAbsent ? 'Not kept in this namespace.' : message);
  });
  awaited.set(place, answer);
  const shown = [await answer].flat();
  if (awaited.get(place) === answer) place.replaceChildren(...shown);
}

const SHOWN_MAX = 200;

function findChannels() {
  const given = byId('pattern').value.trim();
  return fill(byId('channel-list'), async () => {
    const { channels } = await call('channels', { pattern: given });
    const rows = Object.entries(channels)
      .map(([name, { num_clients }]) => ({ name, clients: num_clients ?? 0 }))
      .sort((a, b) => b.clients - a.clients || a.name.localeCompare(b.name));
    const open = ({ name }) =>
      element('button', { type: 'button', 'data-test': 'channel-open', on: { click: () => openChannel(name) } }, name);
    const shown = table(
      [
        ['channel', open],
        ['subscribers', ({ clients }) => number(clients), true],
      ],
      rows.slice(0, SHOWN_MAX),
      'No channel of that name has subscribers.',
    );
    const isName = given !== '' && !/[*?[{]/.test(given) && !(given in channels);
    return [
      shown,
      rows.length > SHOWN_MAX && element('p', { class: 'quiet' }, `${number(rows.length - SHOWN_MAX)} more.`),
      isName && element('p', {}, 'Without subscribers: ', open({ name: given })),
    ].filter(Boolean);
  });
}

async function openChannel(name) {
  byId('channel').hidden = false;
  byId('channel-name').textContent = name;
  byId('publish-channel').value = name;
  byId('publish-result').textContent = '';
  await readChannel();
  byId('channel').scrollIntoView({ block: 'nearest' });
}

async function readChannel() {
  const channel = byId('channel-name').textContent;
  await Promise.all([
    fill(byId('presence'), async () => {
      const { presence } = await call('presence', { channel });
      const rows = Object.values(presence);
      return [
        element('p', { class: 'quiet' }, `${number(rows.length)} clients`),
        table(
          [
            ['user', ({ user }) => user || '(anonymous)'],
            ['client', ({ client }) => element('code', {}, client)],
            ['info', ({ conn_info, chan_info }) => json(conn_info ?? chan_info)],
          ],
          rows.slice(0, SHOWN_MAX),
          'Nobody is here.',
        ),
      ];
    }),
    fill(byId('history'), async () => {
      const { publications = [], offset = 0, epoch = '' } = await call('history', { channel, limit: 50, reverse: true });
      return [
        element('p', { class: 'quiet' }, `offset ${number(offset)}, epoch ${epoch || '–'}`),
        table(
          [
            ['offset', ({ offset }) => number(offset), true],
            ['data', ({ data }) => json(data)],
            ['from', ({ info }) => info?.user ?? ''],
          ],
          publications,
          'Nothing is kept.',
        ),
      ];
    }),
  ]);
}

const json = (value) => (value === undefined ? '' : element('pre', {}, JSON.stringify(value)));

byId('channel-find').addEventListener('submit', (event) => {
  event.preventDefault();
  findChannels();
});

byId('channel-again').addEventListener('click', readChannel);

byId('history-remove').addEventListener('click', ({ currentTarget }) => {
  confirmed(currentTarget, 'Remove it? Click again', async () => {
    await fill(byId('history'), async () => {
      await call('history_remove', { channel: byId('channel-name').textContent });
      return element('p', {}, 'Removed.');
    });
  });
});

byId('publish').addEventListener('submit', async (event) => {
  event.preventDefault();
  const said = byId('publish-result');
  said.className = '';
  const channel = byId('publish-channel').value;
  let data;
  try {
    data = JSON.parse(byId('publish-data').value);
  } catch (error) {
    said.className = 'bad';
    said.textContent = `That is not JSON: ${error.message}`;
    return;
  }
  try {
    const { offset, epoch } = await call('publish', { channel, data });
    said.textContent = offset ? `Published: offset ${offset}, epoch ${epoch}` : 'Published.';
    if (channel === byId('channel-name').textContent) await readChannel();
  } catch (error) {
    said.className = 'bad';
    said.textContent = error.message;
  }
});

// --- Connections --------------------------------------------------------------------------------

function findConnections() {
  const user = byId('user').value;
  return fill(byId('connection-list'), async () => {
    const { connections, more } = await call('connections', { user });
    if (connections.length === 0) return element('p', { class: 'quiet' }, 'This user has no connection here.');
    return [
      ...connections.map((connection) => connectionCard(user, connection)),
      more && element('p', { class: 'quiet' }, 'There are more.'),
    ].filter(Boolean);
  });
}

function connectionCard(user, connection) {
  const { client, address, shard, protocol, paused, queued_bytes, unanswered, expires, num_subscriptions } = connection;
  const facts = [
    address,
    `shard ${shard}`,
    protocol,
    `${number(num_subscriptions)} subscriptions`,
    `${bytes(queued_bytes)} waiting`,
    `${number(unanswered)} commands unanswered`,
    expires && `expires ${new Date(expires * 1000).toLocaleString()}`,
    paused && 'not read now',
  ].filter(Boolean);
  const said = element('span', { role: 'status' });
  const close = element('button', { type: 'button', class: 'danger', 'data-test': 'connection-close' }, 'Close it');
  close.addEventListener('click', () =>
    confirmed(close, 'Close it? Click again', async () => {
      try {
        await call('disconnect', { user, client });
        said.textContent = 'closed';
        close.disabled = true;
      } catch (error) {
        said.textContent = error.message;
      }
    }),
  );
  const subscriptions = table(
    [
      ['channel', ({ channel }) => channel],
      ['state', ({ state }) => state],
      ['made by', ({ server }) => (server ? 'the server' : 'the client')],
      ['position', ({ positioned }) => (positioned ? 'checked' : '–')],
    ],
    connection.subscriptions,
  );
  return element(
    'div',
    { class: 'card' },
    element('p', { class: 'line' }, element('code', {}, client), close, said),
    element('p', {}, ...facts.map((fact) => element('span', { class: 'chip' }, fact))),
    element('details', {}, element('summary', {}, 'Subscriptions'), element('div', { class: 'scroll' }, subscriptions)),
  );
}

byId('connection-find').addEventListener('submit', (event) => {
  event.preventDefault();
  findConnections();
});

// --- Namespaces ---------------------------------------------------------------------------------

const readNamespaces = () =>
  fill(byId('namespace-list'), async () => {
    const { namespaces } = await call('namespaces');
    const chips = ({ options }) => {
      const all = Object.entries(options).map(([name, value]) =>
        element('span', { class: 'chip' }, value === true ? name : `${name} = ${value}`),
      );
      return all.length > 0 ? element('div', {}, ...all) : element('span', { class: 'quiet' }, 'all defaults');
    };
    return table(
      [
        ['namespace', ({ name }) => name || '(without namespace)'],
        ['options that are not the default', chips],
      ],
      namespaces,
    );
  });

// --- Views and colours --------------------------------------------------------------------------

const VIEWS = { overview: draw, channels: findChannels, connections: () => {}, namespaces: readNamespaces };

function view(name) {
  for (const other of Object.keys(VIEWS)) byId(other).hidden = other !== name;
  for (const button of document.querySelectorAll('[data-view]')) {
    if (button.dataset.view === name) button.setAttribute('aria-current', 'page');
    else button.removeAttribute('aria-current');
  }
  if (!byId('inside').hidden) VIEWS[name]();
}

for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => view(button.dataset.view));
}

const theme = byId('theme');
theme.value = localStorage.getItem('roost-theme') ?? 'auto';
function paint() {
  if (theme.value === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
  charts.forEach((chart) => chart.draw());
}
theme.addEventListener('change', () => {
  localStorage.setItem('roost-theme', theme.value);
  paint();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);

paint();
view('overview');
begin().catch(() => feed.say('the node does not answer', 'bad'));
