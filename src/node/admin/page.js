// The admin page: signs in, follows the node's figures over its own WebSocket, and calls its API. The part behind
// # in the address is the view and what it shows, so that links and Back work.

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

/** A table. A column is `[head, cell, isNumber]`; `cell` gives text or a node of a row, `kind` its class. */
function table(columns, rows, nothing = 'None.') {
  if (rows.length === 0) return element('p', { class: 'quiet' }, nothing);
  const kind = (isNumber) => (isNumber ? { class: 'number' } : {});
  const head = columns.map(([name, , isNumber]) => element('th', { scope: 'col', ...kind(isNumber) }, name));
  const body = rows.map((row) =>
    element('tr', { class: row.kind }, ...columns.map(([, cell, isNumber]) => element('td', kind(isNumber), cell(row)))),
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

/** A number with its noun: 1 client, 2 clients. */
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? '' : 's'}`;

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
  const link = location.hash.startsWith('#/') ? null : new URLSearchParams(location.hash.slice(1)).get('link');
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
  await readSeries().catch(() => {});
  show_view();
}

/** Back to the form. */
function leave() {
  session.keep('');
  feed.close();
  byId('inside').hidden = true;
  byId('sign-out').hidden = true;
  for (const id of ['health', 'feed-state']) byId(id).hidden = true;
  byId('uptime').textContent = '';
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
    badge.hidden = byId('inside').hidden && kind !== 'bad';
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

/** Figures of the last 15 minutes, one of each second. */
const KEPT = 900;
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

/** Fills the charts with the seconds that the node has kept. What the page has seen itself stays behind them. */
async function readSeries() {
  const { seconds, series } = await call('series');
  const own = past.filter(({ rates }) => rates?.commands !== undefined).slice(-1);
  const at = (name, second) => series[name][second];
  past.length = 0;
  for (let second = 0; second < seconds; second += 1) {
    past.push({
      totals: {
        connections: at('connections', second),
        clients: at('clients', second),
        queued_bytes: at('queued_bytes', second),
      },
      rates: Object.fromEntries(
        ['messages_in', 'messages_out', 'deliveries', 'publications', 'bytes_in', 'bytes_out', 'accepted', 'closed'].map(
          (name) => [name, at(name, second)],
        ),
      ),
      latency_us: Object.fromEntries(
        ['fan_out_p50', 'fan_out_p99', 'loop_lag_p50', 'loop_lag_p99'].map((name) => [name, at(name, second)]),
      ),
      memory: { classes: { resident: at('resident', second) } },
      isKept: true,
    });
  }
  past.push(...own);
  while (past.length > KEPT + 1) past.shift();
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && past.length > 0) requestAnimationFrame(draw);
});

const latest = () => past.findLast(({ isKept }) => !isKept) ?? {};

function draw() {
  drawing = false;
  const now = latest();
  if (!now.node || byId('inside').hidden) return;
  drawHead(now.node ?? {});
  if (byId('overview').hidden) return;
  drawTiles(now);
  charts.forEach((chart) => chart.draw());
  drawLimits(now);
  drawMemory(now.memory ?? {});
  drawReasons();
  drawSoftware(now);
  drawShards(now.shards ?? []);
  drawTakeover(now.takeover);
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
  health.hidden = false;
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
  ['queued', 'Queued for clients', ({ totals }) => bytes(totals.queued_bytes)],
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

/**
 * The values that an axis names, from 0 to above the largest: a step of 1, 2 or 5 times a power of ten, or of two
 * where bytes are counted, so that each label is exact.
 */
function ticks(value, isBinary) {
  const base = isBinary ? 1024 ** Math.max(0, Math.floor(Math.log(Math.max(value, 1)) / Math.log(1024))) : 1;
  const scaled = Math.max(value / base, 1);
  const power = 10 ** Math.floor(Math.log10(scaled));
  const steps = [power / 5, power / 2, power, power * 2, power * 5].filter((step) => step >= 1 || isBinary);
  const step = steps.find((step) => scaled / step <= 4) ?? power;
  const count = Math.max(1, Math.ceil(scaled / step));
  return Array.from({ length: count + 1 }, (_, at) => at * step * base);
}

const SERIES_COLOURS = 8;

/**
 * A chart of the last minutes. `series` are `[label, read]` of the node's figures; `shard` reads one
 * shard's figure, where there is one.
 */
class Chart {
  constructor({ id, title, format, series, shard, shardName = 'shard' }) {
    Object.assign(this, { title, format, series, shard, shardName, left: 40 });
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
      this.point(Math.round((1 - (offsetX - left) / width) * range_s));
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
    const { left } = this;
    return { left, top: 8, width: Math.max(10, clientWidth - left - 8), height: Math.max(10, clientHeight - 28) };
  }

  point(back) {
    this.back = back === undefined ? undefined : Math.min(Math.max(back, 0), past.length - 1);
    this.draw();
  }

  /** Label and values of each line. */
  lines() {
    const { shards } = latest();
    const shown = past.slice(-range_s - 1);
    if (byShard && this.shard && shards) {
      return shards.map((_, at) => [
        `${this.shardName} ${at}`,
        shown.map(({ shards = [] }) => (shards[at] ? this.shard(shards[at]) : undefined)),
      ]);
    }
    return this.series.map(([label, read]) => [label, shown.map((now) => (now.totals ? read(now) : undefined))]);
  }

  draw() {
    const { canvas, format } = this;
    const lines = this.lines();
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext('2d');
    context.scale(ratio, ratio);
    context.font = '11px system-ui, sans-serif';
    const values = lines.flatMap(([, values]) => values).filter((value) => value !== undefined);
    const named = ticks(Math.max(0, ...values), format === bytes);
    const top = named[named.length - 1];
    // Room for the longest label.
    this.left = 12 + Math.ceil(Math.max(...named.map((value) => context.measureText(this.tick(value)).width)));
    const { box } = this;
    const x = (back) => box.left + box.width * (1 - back / range_s);
    const y = (value) => box.top + box.height * (1 - value / top);
    this.axes(context, x, y, named);
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
    const at = (lines[0]?.[1].length ?? 0) - 1 - (this.back ?? 0);
    const told = lines.map(([label, values]) => [label, values[at] === undefined ? '–' : format(values[at])]);
    this.readout.textContent = this.back === undefined ? '' : `${span(this.back)} ago`;
    this.tell(told);
    canvas.setAttribute('aria-label', `${this.title}: ${told.map((pair) => pair.join(' ')).join(', ')}`);
  }

  /** A label of the axis: without the digits that say nothing. */
  tick(value) {
    return this.format(value).replace(/\.0+(?= |$)/, '');
  }

  axes(context, x, y, named) {
    const { box } = this;
    context.strokeStyle = colour('--line');
    context.fillStyle = colour('--quiet');
    context.lineWidth = 1;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const value of named) {
      const at = Math.round(y(value)) + 0.5;
      context.beginPath();
      context.moveTo(box.left, at);
      context.lineTo(box.left + box.width, at);
      context.stroke();
      context.fillText(this.tick(value), box.left - 6, at);
    }
    context.textBaseline = 'top';
    for (const [back, align] of [
      [range_s, 'left'],
      [range_s / 2, 'center'],
      [0, 'right'],
    ]) {
      context.textAlign = align;
      const text = back === 0 ? 'now' : back % 60 === 0 ? `${back / 60} min ago` : `${(back / 60).toFixed(1)} min ago`;
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

/** Seconds that charts show. */
let range_s = KEPT;

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
  new Chart({
    id: 'changes',
    title: 'Connections begun and ended per second',
    format: short,
    series: [
      ['begun', ({ rates }) => rates.accepted],
      ['ended', ({ rates }) => rates.closed],
    ],
    shard: ({ closed }) => closed,
    shardName: 'ended on shard',
  }),
  new Chart({
    id: 'memory',
    title: 'Memory',
    format: bytes,
    series: [
      ['resident', ({ memory }) => memory?.classes.resident],
      ['queued for clients', ({ totals }) => totals.queued_bytes],
    ],
    shard: ({ queued_bytes }) => queued_bytes,
    shardName: 'queued on shard',
  }),
];

/** What the charts show is part of the address. */
for (const [id, choose] of [
  ['by-node', (shown) => ({ ...shown, charts: '' })],
  ['by-shard', (shown) => ({ ...shown, charts: 'shards' })],
  ['range-15', (shown) => ({ ...shown, range: '' })],
  ['range-2', (shown) => ({ ...shown, range: '2' })],
]) {
  byId(id).addEventListener('click', () => {
    const shown = { charts: byShard ? 'shards' : '', range: range_s === KEPT ? '' : '2' };
    visit('overview', choose(shown));
  });
}

function showOverview({ charts: by = '', range = '' }) {
  byShard = by === 'shards';
  range_s = range === '2' ? 120 : KEPT;
  for (const [id, isPressed] of [
    ['by-node', !byShard],
    ['by-shard', byShard],
    ['range-15', range_s === KEPT],
    ['range-2', range_s !== KEPT],
  ]) {
    byId(id).setAttribute('aria-pressed', String(isPressed));
  }
  draw();
}

// --- The rest of the overview -------------------------------------------------------------------

function drawLimits({ limits = [], node = {} }) {
  const names = {
    connections: 'connections',
    clients: 'clients',
    memory_bytes: 'memory',
  };
  const text = ({ name }, value) => (name === 'memory_bytes' ? bytes(value) : number(value));
  const share = ({ used, limit }) => (limit > 0 ? Math.min(1, used / limit) : 0);
  const meter = (row) => {
    if (row.limit === 0) return undefined;
    const bar = element('div');
    bar.style.width = `${share(row) * 100}%`;
    const near = share(row) >= 0.95 ? 'full' : share(row) >= 0.8 ? 'near' : '';
    return element('div', { class: `meter ${near}`, 'aria-hidden': 'true' }, bar);
  };
  byId('limits').replaceChildren(
    table(
      [
        ['limit', (row) => element('div', {}, names[row.name] ?? words(row.name), meter(row))],
        ['in use', (row) => text(row, row.used), true],
        ['at most', (row) => (row.limit > 0 ? text(row, row.limit) : 'no limit'), true],
        ['share', (row) => (row.limit > 0 ? `${(share(row) * 100).toFixed(share(row) < 0.1 ? 1 : 0)} %` : ''), true],
      ],
      limits,
    ),
  );
  const plan = byId('plan');
  if (plan.childElementCount === 0) plan.append(...(node.plan ?? []).map(planLine));
}

/** A line of the plan stands in columns, as it does in a terminal. */
const planLine = (line) => element('li', {}, line.trim().split(/\s{2,}/).join(' · '));

/** Parts of what the allocator has handed out, by class. */
const MEMORY_PARTS = {
  connections: 'connections',
  sessions: 'sessions',
  subscriptions: 'subscriptions',
  history: 'history',
  filters: 'tag filters',
  queues: 'queues of clients',
  mailboxes: 'mail between shards',
  closes: 'remembered closes',
};

/** Beyond so many connections the memory for each says something; below, the program itself is most of it. */
const CONNECTIONS_MANY = 1_000;

function drawMemory({ classes = {}, limit = 0, bytes_per_connection = 0 }) {
  const { resident = 0, allocated = 0, kernel_sockets = 0 } = classes;
  const parts = Object.entries(MEMORY_PARTS).map(([name, text]) => ({
    text,
    value: classes[name] ?? 0,
    kind: 'part',
  }));
  const named = parts.reduce((sum, { value }) => sum + value, 0);
  const rows = [
    ...parts,
    { text: 'other allocations (tables, channels, buffers)', value: Math.max(0, allocated - named), kind: 'part' },
    { text: 'program, stacks, free memory of the allocator', value: Math.max(0, resident - allocated), kind: 'part' },
    { text: 'resident', value: resident, kind: 'sum' },
    { text: 'beside it: sockets in the kernel, estimated', value: kernel_sockets },
  ];
  const share = ({ value, kind }) => (kind && resident > 0 ? `${((value / resident) * 100).toFixed(1)} %` : '');
  const connections = latest().totals?.connections ?? 0;
  const each =
    connections >= CONNECTIONS_MANY ? ` ${bytes(bytes_per_connection)} resident for each connection.` : '';
  byId('memory').replaceChildren(
    table(
      [
        ['part', ({ text }) => text],
        ['bytes', ({ value }) => bytes(value), true],
        ['of resident', share, true],
      ],
      rows,
    ),
    element('p', { class: 'quiet' }, `${limit > 0 ? `Limit ${bytes(limit)}.` : 'No limit.'}${each}`),
  );
}

/** Names and versions of connected clients. */
function drawSoftware({ software = [], round_trip_us: trips = {} }) {
  const name = ({ name, version }) => (name || version ? `${name} ${version}`.trim() : 'not given');
  byId('software').replaceChildren(
    table(
      [
        ['name and version', name],
        ['clients', ({ clients }) => number(clients), true],
      ],
      software,
      'No client is connected.',
    ),
    element(
      'p',
      { class: 'quiet' },
      trips.count > 0
        ? `Round trip of pings since the start: p50 ${micros(trips.p50)}, p99 ${micros(trips.p99)}.`
        : 'No ping was answered yet.',
    ),
  );
}

/** How much was added to a total in the last minute. */
function added(kind, reason) {
  const minute = past.slice(-61).find((figures) => !figures.isKept) ?? {};
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
  byId('closes-by-reason').replaceChildren(
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
        ['queued for clients', ({ queued_bytes }) => bytes(queued_bytes), true],
        ['batches of mail', ({ mailbox_batches }) => number(mailbox_batches), true],
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

/** The last takeover of all connections by a new process, where there was one or an attempt failed. */
function drawTakeover(takeover) {
  byId('takeover-card').hidden = !takeover;
  if (!takeover) return;
  const when = takeover.at ? new Date(takeover.at * 1000).toISOString().slice(0, 19).replace('T', ' ') : 'never';
  const rows = [
    ['when', when],
    ['connections', number(takeover.connections)],
    ['pause', micros(takeover.pause_us)],
    ['state', bytes(takeover.bytes)],
    ['takeovers since the first start', number(takeover.count)],
    ['attempts that failed', number(takeover.failed)],
  ];
  byId('takeover').replaceChildren(table([['', ([name]) => name], ['', ([, value]) => value, true]], rows));
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
  const states = { closed: 'called', open: 'not called: calls failed', half_open: 'some calls probe it' };
  byId('proxies').replaceChildren(
    table(
      [
        ['proxy', ({ name }) => name],
        ['state', ({ state }) => states[state] ?? state],
        ['calls', ({ calls }) => number(calls), true],
        ['failures', ({ failures }) => number(failures), true],
        ['in flight', ({ in_flight }) => number(in_flight), true],
      ],
      proxies,
    ),
  );
}

// --- Channels -----------------------------------------------------------------------------------

/** The answer that each place waits for: an answer that comes late doesn't cover a newer one. */
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
      element('a', { href: address('channels', { pattern: given, channel: name }), 'data-test': 'channel-open' }, name);
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
  byId('channel-connections').href = address('connections', { by: 'channel', value: name });
  byId('publish-channel').value = name;
  byId('publish-result').textContent = '';
  historyPage.newest();
  await readChannel();
  byId('channel').scrollIntoView({ block: 'nearest' });
}

/** Publications on one page of a history. */
const HISTORY_PAGE = 10;

/** The page of the history that is shown: the position behind its newest publication; undefined: the end. */
const historyPage = {
  before: [],
  since: undefined,
  last: undefined,

  newest() {
    historyPage.before = [];
    historyPage.since = undefined;
  },
};

async function readChannel() {
  const channel = byId('channel-name').textContent;
  await Promise.all([
    fill(byId('presence'), async () => {
      const { presence } = await call('presence', { channel });
      const rows = Object.values(presence);
      return [
        element('p', { class: 'quiet' }, counted(rows.length, 'client')),
        table(
          [
            ['user', ({ user }) => userLink(user ?? '')],
            ['client', ({ client }) => clientLink(client)],
            ['info', ({ conn_info, chan_info }) => json(conn_info ?? chan_info)],
            // Where the namespace keeps times (roost.subscribed_at).
            ...(rows.some(({ subscribed_at: at }) => at)
              ? [['since', ({ subscribed_at: at }) => (at ? when(at) : '')]]
              : []),
          ],
          rows.slice(0, SHOWN_MAX),
          'Nobody is here.',
        ),
      ];
    }),
    fill(byId('history'), () => readHistory(channel)),
  ]);
}

async function readHistory(channel) {
  const { since } = historyPage;
  const { publications = [], offset = 0, epoch = '' } = await call('history', {
    channel,
    limit: HISTORY_PAGE + 1,
    reverse: true,
    ...(since && { since }),
  });
  const shown = publications.slice(0, HISTORY_PAGE);
  const last = shown[shown.length - 1];
  historyPage.last = publications.length > HISTORY_PAGE && last ? { offset: last.offset, epoch } : undefined;
  byId('history-older').disabled = !historyPage.last;
  byId('history-newer').disabled = historyPage.before.length === 0;
  const range = shown.length > 0 ? `, shown ${number(last.offset)} to ${number(shown[0].offset)}` : '';
  return [
    element('p', { class: 'quiet' }, `latest offset ${number(offset)}, epoch ${epoch || '–'}${range}`),
    table(
      [
        ['offset', ({ offset }) => number(offset), true],
        // Where the namespace keeps times (roost.history_time).
        ...(shown.some(({ time }) => time) ? [['time', ({ time }) => (time ? when(time / 1000) : '')]] : []),
        ['data', ({ data }) => json(data)],
        ['from', ({ info }) => (info?.user ? userLink(info.user) : '')],
      ],
      shown,
      'Nothing is kept.',
    ),
  ];
}

const userLink = (user) =>
  element('a', { href: address('connections', { by: 'user', value: user }) }, user || '(anonymous)');

for (const [id, turn] of [
  ['history-older', () => {
    historyPage.before.push(historyPage.since);
    historyPage.since = historyPage.last;
  }],
  ['history-newer', () => (historyPage.since = historyPage.before.pop())],
]) {
  byId(id).addEventListener('click', () => {
    turn();
    fill(byId('history'), () => readHistory(byId('channel-name').textContent));
  });
}

const json = (value) => (value === undefined ? '' : element('pre', {}, JSON.stringify(value)));

byId('channel-find').addEventListener('submit', (event) => {
  event.preventDefault();
  visit('channels', { pattern: byId('pattern').value.trim() });
});

byId('channel-again').addEventListener('click', () => {
  historyPage.newest();
  readChannel();
});

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

const clientLink = (client) =>
  element('a', { href: address('connections', { by: 'client', value: client }) }, element('code', {}, client));

/** The label of the value that connections are found by; those without one need none. */
const VALUE_LABELS = {
  user: 'User id, empty for anonymous ones',
  client: 'Client id',
  channel: 'Channel',
  address: 'IP address',
};

function showValueField() {
  const label = VALUE_LABELS[byId('connection-by').value];
  byId('connection-value-field').hidden = !label;
  byId('connection-value-label').textContent = label ?? '';
}

byId('connection-by').addEventListener('change', showValueField);

function findConnections(by, value) {
  return fill(byId('connection-list'), async () => {
    const { connections, found, more, partial } = await call('connections', { by, value });
    if (connections.length === 0) {
      return element('p', { class: 'quiet' }, 'There is no connection of that kind on this node.');
    }
    const all = partial ? 'The search was cut short.' : `There are ${number(found)}.`;
    return [
      more && element('p', { class: 'quiet' }, `${number(connections.length)} are shown. ${all}`),
      ...connections.map(connectionCard),
    ].filter(Boolean);
  });
}

/** Name and version of a client's software. */
const software = ({ name, version }) => `${name} ${version}`.trim();

function connectionCard(connection) {
  const { client, user, address: at, shard, transport, protocol, age_s, round_trip_ms, paused } = connection;
  const { queued_bytes, unanswered, expires, num_subscriptions } = connection;
  const facts = [
    `since ${when(Date.now() / 1000 - age_s)} (${span(age_s)})`,
    `${words(transport)}, ${protocol}`,
    software(connection) || 'software not given',
    round_trip_ms !== null && `round trip ${number(round_trip_ms)} ms`,
    counted(num_subscriptions, 'subscription'),
    `${bytes(queued_bytes)} queued`,
    unanswered > 0 && `${counted(unanswered, 'command')} in progress`,
    expires && `expires ${when(expires)}`,
    paused && 'reading is paused',
    `shard ${shard}`,
  ].filter(Boolean);
  const result = element('span', { role: 'status' });
  const close = element('button', { type: 'button', class: 'danger', 'data-test': 'connection-close' }, 'Close it');
  close.addEventListener('click', () =>
    confirmed(close, 'Close it? Click again', async () => {
      try {
        await call('disconnect', { user, client });
        result.textContent = 'closed';
        close.disabled = true;
      } catch (error) {
        result.textContent = error.message;
      }
    }),
  );
  const channelLink = ({ channel }) => element('a', { href: address('channels', { channel }) }, channel);
  const subscriptions = table(
    [
      ['channel', channelLink],
      ['state', ({ state }) => (state === 'live' ? 'subscribed' : 'in progress')],
      ['subscribed by', ({ server }) => (server ? 'the server' : 'the client')],
      ['position', ({ positioned }) => (positioned ? 'checked' : 'not checked')],
    ],
    connection.subscriptions,
  );
  return element(
    'div',
    { class: 'card', 'data-test': 'connection' },
    element(
      'p',
      { class: 'line' },
      element('strong', {}, 'User ', userLink(user)),
      at ? element('a', { href: address('connections', { by: 'address', value: at }) }, at) : 'no address',
      clientLink(client),
      close,
      result,
    ),
    element('p', {}, ...facts.map((fact) => element('span', { class: 'chip' }, fact))),
    element('p', {}, element('a', { href: address('closes', { user }) }, 'Earlier connections of this user')),
    element('details', {}, element('summary', {}, 'Subscriptions'), element('div', { class: 'scroll' }, subscriptions)),
  );
}

byId('connection-find').addEventListener('submit', (event) => {
  event.preventDefault();
  visit('connections', { by: byId('connection-by').value, value: byId('connection-value').value, find: '1' });
});

function showConnections({ by = 'user', value = '', find = '' }) {
  byId('connection-by').value = by;
  byId('connection-value').value = value;
  showValueField();
  if (find || value || !VALUE_LABELS[by]) return findConnections(by, value);
  byId('connection-list').replaceChildren();
}

// --- Closes -------------------------------------------------------------------------------------

/** A time as this browser's place has it, with the day when it is another one. */
function when(seconds) {
  const date = new Date(seconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString() : date.toLocaleString();
}

function showCloses({ user = '', address: from = '', code = '' }) {
  byId('close-user').value = user;
  byId('close-address').value = from;
  byId('close-code').value = code;
  return fill(byId('close-list'), async () => {
    const { closes, found } = await call('closes', { user, address: from, code: Number(code) || 0, limit: 100 });
    const reason = ({ code, reason, detail, by_client }) => {
      const text = [code > 0 && code, reason].filter(Boolean).join(' ');
      const more = detail && detail !== reason ? element('div', { class: 'quiet' }, detail) : undefined;
      return element('div', {}, text || (by_client ? 'no code' : '–'), more);
    };
    return [
      element('p', { class: 'quiet' }, `${number(closes.length)} of ${number(found)} that the node remembers.`),
      table(
        [
          ['time', ({ at }) => when(at)],
          ['user', ({ user }) => element('a', { href: address('closes', { user }) }, user || '(none)')],
          [
            'address',
            ({ address: at }) => (at ? element('a', { href: address('closes', { address: at }) }, at) : '–'),
          ],
          ['closed by', ({ by_client }) => (by_client ? 'the client' : 'the node')],
          ['why', reason],
          ['open for', ({ lasted_s }) => span(lasted_s)],
          ['transport', ({ transport }) => words(transport)],
          ['software', (close) => software(close) || '–'],
          ['client', ({ client }) => (client ? element('code', {}, client) : 'not connected')],
        ],
        closes,
        'No connection has ended.',
      ),
    ];
  });
}

byId('close-find').addEventListener('submit', (event) => {
  event.preventDefault();
  visit('closes', {
    user: byId('close-user').value,
    address: byId('close-address').value.trim(),
    code: byId('close-code').value.trim(),
  });
});

// --- Nodes --------------------------------------------------------------------------------------

const readNodes = () =>
  fill(byId('node-list'), async () => {
    const { nodes } = await call('info');
    // Right after a reload no figures have come yet.
    const own = latest().node?.name ?? (nodes.length === 1 ? nodes[0].name : undefined);
    return [
      element(
        'p',
        { class: 'quiet' },
        nodes.length > 1
          ? `${number(nodes.length)} nodes share a broker. The other sections of this page show the node ${own ?? ''} alone.`
          : 'This node is on its own.',
      ),
      table(
        [
          ['name', ({ name }) => `${name}${name === own ? ' (this one)' : ''}`],
          ['version', ({ version }) => version],
          ['clients', ({ num_clients }) => number(num_clients), true],
          ['users', ({ num_users }) => number(num_users), true],
          ['subscriptions', ({ num_subs }) => number(num_subs), true],
          ['channels', ({ num_channels }) => number(num_channels), true],
          ['up', ({ uptime }) => span(uptime), true],
          ['id', ({ uid }) => element('code', {}, uid)],
        ],
        nodes,
      ),
    ];
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

/** How each section shows itself with the parameters of the address. */
const VIEWS = {
  overview: showOverview,
  channels: showChannels,
  connections: showConnections,
  closes: showCloses,
  nodes: readNodes,
  namespaces: readNamespaces,
};

function showChannels({ pattern = '', channel = '' }) {
  byId('pattern').value = pattern;
  byId('channel').hidden = channel === '';
  return Promise.all([findChannels(), channel && openChannel(channel)]);
}

/** The address of a section with parameters; empty ones are left out. */
function address(view, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  const query = new URLSearchParams(given).toString();
  return `#/${view}${query && `?${query}`}`;
}

/** Goes to a section. The same address shows it again. */
function visit(view, parameters) {
  const to = address(view, parameters);
  // Nothing fires for it, so that what is shown follows at once.
  if (location.hash !== to) history.pushState(null, '', to);
  show_view();
}

/** Shows what the address names. */
function show_view() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?', 2);
  const name = path in VIEWS ? path : 'overview';
  for (const other of Object.keys(VIEWS)) byId(other).hidden = other !== name;
  for (const link of document.querySelectorAll('[data-view]')) {
    if (link.dataset.view === name) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (!byId('inside').hidden) VIEWS[name](Object.fromEntries(new URLSearchParams(query)));
}

addEventListener('hashchange', show_view);

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
show_view();
begin().catch(() => feed.say('the node does not answer', 'bad'));
