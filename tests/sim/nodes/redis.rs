//! A simulated Redis: one thread that runs the very scripts of `src/cluster/scripts` over a [`Keyspace`], and
//! connections that bring requests and carry replies and PUB/SUB messages away, late and in order.
//!
//! It can freeze (and carry out afterwards what arrived meanwhile, also from connections that were given up),
//! be slow, go away and come back with its data, empty, or as a copy that lacks the latest writes. A PUB/SUB
//! connection that isn't read is cut when too much waits for it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use mlua::{Function, Lua, Table, Value};
use roost::base::rng::Rng;
use roost::cluster::operations::{Operations, Reply, Request};
use roost::cluster::scripts::Script;

use super::broker::{Broker, REDIS};
use super::keyspace::Keyspace;

/// Bytes that wait for a PUB/SUB connection at most: Redis has 32 MB, a run has less to say.
const OUTPUT_BYTES_MAX: usize = 5_000;

/// The publications of a channel that Redis still knows of, by their numbers: those that it has forgotten, too,
/// but for those that a failover lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) all: Vec<u64>,
    newest: u64,
}

/// All that a copy has.
#[derive(Clone, Default)]
struct Data {
    keys: Keyspace,
    logs: BTreeMap<String, Log>,
}

/// News about streams, for the checker.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    /// A publication is in a stream, behind that one (0: it is the first).
    Published { number: u64, before: u64 },
    /// A stream stands at this position, with this publication as its newest.
    Stands { channel: String, epoch: String, offset: u64, newest: u64 },
    /// A publication without history went out.
    Sent { number: u64 },
    /// Publications are lost.
    Lost { channel: String, numbers: Vec<u64> },
    /// A channel may have lost its history, its position or its results of keys.
    Forgotten { channel: String },
}

/// Things on their way, in order.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    items: VecDeque<(u64, T)>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { items: VecDeque::new() }
    }
}

impl<T> Lane<T> {
    pub(crate) fn push(&mut self, at: u64, item: T) {
        let at = self.items.back().map_or(at, |(last, _)| at.max(*last));
        self.items.push_back((at, item));
    }

    pub(crate) fn pop(&mut self, now: u64) -> Option<T> {
        self.items.pop_front_if(|(at, _)| *at <= now).map(|(_, item)| item)
    }

    pub(crate) fn due(&self) -> Option<u64> {
        self.items.front().map(|(at, _)| *at)
    }
}

/// In the place of the node that a message is from.
const EXCHANGED: usize = usize::MAX;

impl Lane<Push> {
    /// The last message comes before the one before it, if that is another node's and as new. Once for each.
    fn exchange(&mut self, now: u64) {
        let [.., (before, first), (_, second)] = self.items.make_contiguous() else { return };
        let (Push::Message { from: one, .. }, Push::Message { from: other, .. }) =
            (&mut *first, &mut *second)
        else {
            return;
        };
        if one != other && *one != EXCHANGED && *before >= now {
            (*one, *other) = (EXCHANGED, EXCHANGED);
            std::mem::swap(first, second);
        }
    }
}

/// What a PUB/SUB connection carries to a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Push {
    /// These names are subscribed, or no more.
    Changed { names: Vec<String>, is_on: bool },
    /// A message.
    Message { name: String, payload: Vec<u8>, from: usize },
}

/// A connection: requests of a node, and what goes to it.
#[derive(Debug)]
enum Conn {
    Commands {
        requests: Lane<Request>,
        replies: Lane<Reply>,
    },
    PubSub {
        changes: Lane<(Vec<String>, bool)>,
        names: BTreeSet<String>,
        pushes: Lane<Push>,
        bytes: usize,
        is_deaf: bool,
    },
}

#[derive(Debug)]
struct Ends {
    conn: Conn,
    /// Which node has it.
    node: usize,
    /// The node has given it up: what has arrived is carried out, and nobody reads the replies.
    is_given_up: bool,
}

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(u64);

pub(crate) struct Redis {
    data: Rc<RefCell<Data>>,
    lua: Lua,
    scripts: Vec<Function>,
    /// A copy that a failover goes back to.
    copy: Data,
    conns: BTreeMap<ConnId, Ends>,
    next: u64,
    rng: Rng,
    /// Channels by the keys of their histories, and by the names of their messages.
    channels: BTreeMap<String, String>,
    /// Nothing is done before that.
    pub(crate) frozen_until: u64,
    /// Nobody can connect before that.
    pub(crate) away_until: u64,
    /// Milliseconds between two requests, at most.
    pub(crate) slowness: u64,
    /// Milliseconds on the way, at most.
    pub(crate) delay: u64,
    busy_until: u64,
    pub(crate) facts: Vec<Fact>,
    /// Connections that were cut since they were not read.
    pub(crate) cut: u64,
    /// The next messages go out twice.
    pub(crate) doubles: u64,
    /// Milliseconds that messages to a node take longer.
    pub(crate) lag: Vec<u64>,
    /// Unix milliseconds at the zero of the simulation's time.
    clock: u64,
    /// What it is like.
    pub(crate) kind: &'static Broker,
}

/// The number in a payload.
pub(crate) fn number_in(payload: &[u8]) -> Option<u64> {
    let from = payload.windows(4).position(|of| of == b"\"n\":")? + 4;
    let digits = payload[from..].iter().take_while(|byte| byte.is_ascii_digit());
    let text: String = digits.map(|byte| char::from(*byte)).collect();
    text.parse().ok()
}

fn to_lua(lua: &Lua, reply: Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        Reply::Int(of) => Value::Integer(of),
        Reply::Bytes(of) => Value::String(lua.create_string(of)?),
        Reply::List(of) => {
            let table = lua.create_table()?;
            for (at, reply) in of.into_iter().enumerate() {
                table.set(at + 1, to_lua(lua, reply)?)?;
            }
            Value::Table(table)
        }
        Reply::Error(text) => {
            let table = lua.create_table()?;
            table.set("err", text)?;
            Value::Table(table)
        }
    })
}

fn from_lua(value: Value) -> Reply {
    match value {
        Value::Integer(of) => Reply::Int(of),
        Value::Number(of) => Reply::Int(of as i64),
        Value::Boolean(true) => Reply::Int(1),
        Value::String(of) => Reply::Bytes(of.as_bytes().to_vec()),
        Value::Table(of) => match of.get::<Option<mlua::LuaString>>("err") {
            Ok(Some(text)) => Reply::Error(text.to_string_lossy()),
            _ => Reply::List(of.sequence_values().map(|of| from_lua(of.unwrap())).collect()),
        },
        _ => Reply::Nil,
    }
}

/// An argument of `redis.call`: numbers become texts.
fn argument(value: Value) -> Vec<u8> {
    match value {
        Value::Integer(of) => of.to_string().into(),
        Value::Number(of) => format!("{of:.0}").into(),
        Value::String(of) => of.as_bytes().to_vec(),
        other => panic!("redis.call with {other:?}"),
    }
}

/// A PUB/SUB message: its name and its payload.
type Message = (Vec<u8>, Vec<u8>);

impl Redis {
    pub(crate) fn new(seed: u64, nodes: usize, operations: &Operations, channels: &[&str]) -> Self {
        let data = Rc::new(RefCell::new(Data::default()));
        let lua = Lua::new();
        let table = lua.create_table().unwrap();
        for (name, raises) in [("call", true), ("pcall", false)] {
            let data = data.clone();
            let call = move |lua: &Lua, arguments: mlua::Variadic<Value>| {
                let arguments: Vec<_> = arguments.into_iter().map(argument).collect();
                match data.borrow_mut().keys.call(&arguments) {
                    Reply::Error(text) if raises => Err(mlua::Error::runtime(text)),
                    reply => to_lua(lua, reply),
                }
            };
            table.set(name, lua.create_function(call).unwrap()).unwrap();
        }
        lua.globals().set("redis", table).unwrap();
        let load = |script: &Script| lua.load(script.text()).into_function().unwrap();
        let scripts = Script::ALL.iter().map(load).collect();
        let names = &operations.names;
        let channels = channels.iter().flat_map(|of| {
            let keys = [names.stream(of), names.list(of), names.messages(of)];
            keys.map(|key| (key, (*of).to_owned()))
        });
        Self {
            data,
            lua,
            scripts,
            copy: Data::default(),
            conns: BTreeMap::new(),
            next: 0,
            rng: Rng::new(seed),
            channels: channels.collect(),
            frozen_until: 0,
            away_until: 0,
            slowness: 0,
            delay: 1,
            busy_until: 0,
            facts: Vec::new(),
            cut: 0,
            doubles: 0,
            lag: vec![0; nodes],
            clock: 1_700_000_000_000,
            kind: &REDIS,
        }
    }

    /// A new connection of a node; none while Redis is away.
    pub(crate) fn connect(&mut self, now: u64, node: usize, is_pubsub: bool) -> Option<ConnId> {
        if now < self.away_until {
            return None;
        }
        self.next += 1;
        let id = ConnId(self.next);
        let conn = if is_pubsub {
            let (changes, pushes) = (Lane::default(), Lane::default());
            Conn::PubSub { changes, names: BTreeSet::new(), pushes, bytes: 0, is_deaf: false }
        } else {
            Conn::Commands { requests: Lane::default(), replies: Lane::default() }
        };
        self.conns.insert(id, Ends { conn, node, is_given_up: false });
        Some(id)
    }

    /// Whether the node still has the connection.
    pub(crate) fn is_open(&self, id: ConnId) -> bool {
        self.conns.get(&id).is_some_and(|ends| !ends.is_given_up)
    }

    /// The connection ends for the node. Requests on their way still arrive.
    pub(crate) fn give_up(&mut self, id: ConnId) {
        let Some(ends) = self.conns.get_mut(&id) else { return };
        ends.is_given_up = true;
        match &ends.conn {
            Conn::Commands { requests, .. } if requests.due().is_some() => {}
            _ => drop(self.conns.remove(&id)),
        }
    }

    fn arrival(&mut self, now: u64) -> u64 {
        now + self.rng.below(self.delay + 1)
    }

    pub(crate) fn request(&mut self, now: u64, id: ConnId, request: Request) {
        let at = self.arrival(now);
        if let Some(Ends { conn: Conn::Commands { requests, .. }, .. }) = self.conns.get_mut(&id) {
            requests.push(at, request);
        }
    }

    pub(crate) fn change(&mut self, now: u64, id: ConnId, names: Vec<String>, is_on: bool) {
        let at = self.arrival(now);
        if let Some(Ends { conn: Conn::PubSub { changes, .. }, .. }) = self.conns.get_mut(&id) {
            changes.push(at, (names, is_on));
        }
    }

    pub(crate) fn reply(&mut self, now: u64, id: ConnId) -> Option<Reply> {
        match &mut self.conns.get_mut(&id)?.conn {
            Conn::Commands { replies, .. } => replies.pop(now),
            Conn::PubSub { .. } => None,
        }
    }

    pub(crate) fn push(&mut self, now: u64, id: ConnId) -> Option<Push> {
        let Conn::PubSub { pushes, bytes, .. } = &mut self.conns.get_mut(&id)?.conn else {
            return None;
        };
        let push = pushes.pop(now)?;
        if let Push::Message { payload, .. } = &push {
            *bytes -= payload.len();
        }
        Some(push)
    }

    /// When a node has something to read on a connection.
    pub(crate) fn readable_at(&self, id: ConnId) -> Option<u64> {
        match self.conns.get(&id).filter(|ends| !ends.is_given_up).map(|ends| &ends.conn) {
            // The end is seen at once.
            None => Some(0),
            Some(Conn::Commands { replies, .. }) => replies.due(),
            Some(Conn::PubSub { pushes, .. }) => pushes.due(),
        }
    }

    /// When Redis has something to do.
    pub(crate) fn next_at(&self) -> Option<u64> {
        let due = |ends: &Ends| match &ends.conn {
            Conn::Commands { requests, .. } => requests.due(),
            Conn::PubSub { changes, .. } => changes.due(),
        };
        let first = self.conns.values().filter_map(due).min()?;
        Some(first.max(self.frozen_until).max(self.busy_until))
    }

    /// Handles the next request of some connection.
    pub(crate) fn step(&mut self, now: u64) {
        if self.next_at().is_none_or(|at| at > now) {
            return;
        }
        self.data.borrow_mut().keys.advance_to(self.clock + now);
        let due = |(id, ends): (&ConnId, &Ends)| {
            let at = match &ends.conn {
                Conn::Commands { requests, .. } => requests.due(),
                Conn::PubSub { changes, .. } => changes.due(),
            };
            at.is_some_and(|at| at <= now).then_some(*id)
        };
        let due: Vec<ConnId> = self.conns.iter().filter_map(due).collect();
        let id = due[self.rng.below(due.len() as u64) as usize];
        let at = self.arrival(now);
        if self.slowness > 0 {
            self.busy_until = now + self.rng.below(self.slowness + 1);
        }
        let Some(ends) = self.conns.get_mut(&id) else { return };
        match &mut ends.conn {
            Conn::Commands { requests, .. } => {
                let Some(request) = requests.pop(now) else { return };
                let from = ends.node;
                let (reply, messages) = self.carry_out(&request);
                let Some(ends) = self.conns.get_mut(&id) else { return };
                if let Conn::Commands { requests, replies } = &mut ends.conn {
                    replies.push(at, reply);
                    if ends.is_given_up && requests.due().is_none() {
                        self.conns.remove(&id);
                    }
                }
                for (name, payload) in messages {
                    self.deliver(now, from, (name, payload));
                }
            }
            Conn::PubSub { changes, names, pushes, .. } => {
                let Some((changed, is_on)) = changes.pop(now) else { return };
                for name in &changed {
                    let _ = if is_on { names.insert(name.clone()) } else { names.remove(name) };
                }
                pushes.push(at, Push::Changed { names: changed, is_on });
            }
        }
    }

    /// A message for all that have subscribed to its name.
    fn deliver(&mut self, now: u64, from: usize, (name, payload): Message) {
        let name = String::from_utf8(name).unwrap();
        let has_position = payload.starts_with(b"__p") || payload.starts_with(b"__d");
        let mut times = 1;
        if has_position && self.doubles > 0 {
            self.doubles -= 1;
            times = 2;
        }
        let mut cut = Vec::new();
        let (delay, has_order) = (self.delay, self.kind.has_order);
        for (id, ends) in &mut self.conns {
            let Conn::PubSub { names, pushes, bytes, is_deaf, .. } = &mut ends.conn else {
                continue;
            };
            if !names.contains(&name) || *is_deaf {
                continue;
            }
            for _ in 0..times {
                let at = now + self.lag[ends.node] + self.rng.below(delay + 1);
                *bytes += payload.len();
                let message = Push::Message { name: name.clone(), payload: payload.clone(), from };
                pushes.push(at, message);
                if !has_order && self.lag[ends.node] == 0 && self.rng.one_in(4) {
                    pushes.exchange(now);
                }
            }
            if *bytes > OUTPUT_BYTES_MAX {
                cut.push(*id);
            }
        }
        self.cut += cut.len() as u64;
        cut.iter().for_each(|id| drop(self.conns.remove(id)));
    }

    /// Carries out a request: its reply, and the messages that it sent.
    fn carry_out(&mut self, request: &Request) -> (Reply, Vec<Message>) {
        let reply = match request {
            Request::Plain { name, arguments } => {
                let name = name.as_bytes().to_vec();
                let all: Vec<_> = [name].into_iter().chain(arguments.iter().cloned()).collect();
                self.data.borrow_mut().keys.call(&all)
            }
            Request::Script { script, keys, arguments } => {
                let globals: Table = self.lua.globals();
                globals.set("KEYS", keys.clone()).unwrap();
                let texts = arguments.iter().map(|of| self.lua.create_string(of).unwrap());
                globals.set("ARGV", texts.collect::<Vec<_>>()).unwrap();
                match self.scripts[*script as usize].call::<Value>(()) {
                    Ok(value) => from_lua(value),
                    Err(error) => Reply::Error(format!("ERR {error}")),
                }
            }
        };
        let messages = std::mem::take(&mut self.data.borrow_mut().keys.messages);
        self.note(request, &reply, &messages);
        (reply, messages)
    }

    /// What a request did to streams.
    fn note(&mut self, request: &Request, reply: &Reply, messages: &[(Vec<u8>, Vec<u8>)]) {
        for (name, payload) in messages {
            let channel = self.channels.get(std::str::from_utf8(name).unwrap());
            if channel.is_some()
                && !payload.starts_with(b"__")
                && let Some(number) = number_in(payload)
            {
                self.facts.push(Fact::Sent { number });
            }
        }
        let Request::Script { script, keys, arguments } = request else { return };
        let (Some(channel), Reply::List(values)) = (self.channels.get(&keys[0]), reply) else {
            return;
        };
        let text = |of: Option<&Reply>| match of {
            Some(Reply::Bytes(of)) => String::from_utf8(of.clone()).unwrap(),
            Some(Reply::Int(of)) => of.to_string(),
            other => panic!("{script:?} answered {other:?}"),
        };
        let is_publish = matches!(script, Script::PublishStream | Script::PublishList);
        let (offset, epoch) = (text(values.first()).parse().unwrap(), text(values.get(1)));
        let mut data = self.data.borrow_mut();
        let log = data.logs.entry(channel.clone()).or_default();
        if is_publish && (text(values.get(2)), text(values.get(3))) == ("0".into(), "0".into()) {
            let number = number_in(&arguments[0]).unwrap();
            let before = if offset == 1 { 0 } else { log.newest };
            (log.newest, _) = (number, log.all.push(number));
            self.facts.push(Fact::Published { number, before });
        } else if is_publish {
            // An earlier position, or one that didn't change.
            return;
        }
        let newest = if offset == 0 { 0 } else { log.newest };
        let offset = self.kind.offset(offset);
        self.facts.push(Fact::Stands { channel: channel.clone(), epoch, offset, newest });
    }

    /// Publications of a channel that Redis knows of.
    pub(crate) fn log(&self, channel: &str) -> Log {
        self.data.borrow().logs.get(channel).cloned().unwrap_or_default()
    }

    /// Fields of a hash.
    pub(crate) fn fields(&self, now: u64, key: &str) -> BTreeMap<String, Vec<u8>> {
        self.data.borrow_mut().keys.advance_to(self.clock + now);
        self.data.borrow().keys.fields(key)
    }

    /// Takes the copy for the next failover.
    pub(crate) fn copy(&mut self) {
        self.copy = self.data.borrow().clone();
    }

    /// All connections end: what they carried is lost, but for requests that have arrived.
    pub(crate) fn disconnect_all(&mut self) {
        self.conns.clear();
    }

    /// The connections of a kind end: those of PUB/SUB, or those of commands; of one node, or of all. Requests
    /// that were sent are still carried out, if they `arrive`; their replies are lost.
    pub(crate) fn disconnect(&mut self, of_pubsub: bool, node: Option<usize>, arrive: bool) {
        let is_meant = |ends: &Ends| {
            let is_pubsub = matches!(ends.conn, Conn::PubSub { .. });
            is_pubsub == of_pubsub && node.is_none_or(|node| node == ends.node)
        };
        let meant = self.conns.iter().filter(|(_, ends)| is_meant(ends)).map(|(id, _)| *id);
        for id in meant.collect::<Vec<_>>() {
            if arrive {
                self.give_up(id);
            } else {
                self.conns.remove(&id);
            }
        }
    }

    /// PUB/SUB connections of a node carry nothing any more, and don't end.
    pub(crate) fn deafen(&mut self, node: usize) {
        for ends in self.conns.values_mut().filter(|ends| ends.node == node) {
            if let Conn::PubSub { is_deaf, .. } = &mut ends.conn {
                *is_deaf = true;
            }
        }
    }

    /// The copy takes over.
    pub(crate) fn fail_over(&mut self) {
        self.disconnect_all();
        let copy = self.copy.clone();
        let mut data = self.data.borrow_mut();
        for (channel, log) in &data.logs {
            let kept = copy.logs.get(channel).map_or(&[][..], |log| &log.all);
            // A copy is a prefix of what was written, but for a restart without data between the two.
            let numbers: Vec<u64> =
                log.all.iter().filter(|number| !kept.contains(number)).copied().collect();
            if !numbers.is_empty() {
                self.facts.push(Fact::Lost { channel: channel.clone(), numbers });
            }
        }
        *data = copy;
        drop(data);
        self.forget_results();
    }

    /// Each channel may have lost results of keys, those without history too.
    fn forget_results(&mut self) {
        let channels: BTreeSet<String> = self.channels.values().cloned().collect();
        self.facts.extend(channels.into_iter().map(|channel| Fact::Forgotten { channel }));
    }

    /// A restart without data.
    pub(crate) fn forget_all(&mut self) {
        self.disconnect_all();
        let old = std::mem::take(&mut *self.data.borrow_mut());
        for (channel, log) in old.logs {
            self.facts.push(Fact::Lost { channel, numbers: log.all });
        }
        self.forget_results();
        self.copy();
    }

    /// Keys that hold part of a channel are evicted.
    pub(crate) fn evict(&mut self, channel: &str, key: &str) {
        self.data.borrow_mut().keys.remove(key);
        self.facts.push(Fact::Forgotten { channel: channel.to_owned() });
    }
}
