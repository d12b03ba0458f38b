//! The data of a simulated Redis: keys with their types and expiry, and the commands that scripts and requests
//! use. A command behaves as Redis documents it, errors included; one that is not here panics, so that no
//! script passes by a gap of this model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use roost::cluster::operations::Reply;

type Bytes = Vec<u8>;

/// A value by its type.
#[derive(Clone, Debug)]
enum Value {
    /// Fields, each with the moment at which it expires.
    Hash(BTreeMap<Bytes, (Bytes, Option<u64>)>),
    /// The field `d` of each entry by the first half of its id, and the last id that was given.
    Stream(BTreeMap<u64, Bytes>, u64),
    /// The head first.
    List(VecDeque<Bytes>),
    /// Members with scores.
    Sorted(BTreeMap<Bytes, u64>),
    /// Members.
    Set(BTreeSet<Bytes>),
}

impl Value {
    fn is_empty(&self) -> bool {
        match self {
            Self::Hash(of) => of.is_empty(),
            Self::List(of) => of.is_empty(),
            Self::Sorted(of) => of.is_empty(),
            Self::Set(of) => of.is_empty(),
            Self::Stream(..) => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Key {
    value: Value,
    expires: Option<u64>,
}

/// All keys. A clone is a copy, as a replica has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyspace {
    keys: BTreeMap<Bytes, Key>,
    /// Unix milliseconds.
    now: u64,
    /// No key and no field expires before that.
    sweep_at: Option<u64>,
    /// Messages of PUBLISH since they were last taken.
    pub(crate) messages: Vec<(Bytes, Bytes)>,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_else(|_| panic!("no text: {bytes:?}"))
}

fn number(bytes: &[u8]) -> i64 {
    text(bytes).parse().unwrap_or_else(|_| panic!("no number: {}", text(bytes)))
}

fn entry(id: u64, payload: &[u8]) -> Reply {
    let fields = vec![Reply::Bytes(b"d".into()), Reply::Bytes(payload.into())];
    Reply::List(vec![Reply::Bytes(format!("{id}-0").into()), Reply::List(fields)])
}

fn found(value: Option<&Bytes>) -> Reply {
    value.map_or(Reply::Nil, |value| Reply::Bytes(value.clone()))
}

/// The value of one type under a key, made if it isn't there.
macro_rules! typed {
    ($name:ident, $type:ty, $pattern:pat => $value:expr, $new:expr) => {
        fn $name(&mut self, key: &[u8]) -> Result<&mut $type, Reply> {
            let new = || Key { value: $new, expires: None };
            match &mut self.keys.entry(key.to_vec()).or_insert_with(new).value {
                $pattern => Ok($value),
                _ => Err(Reply::Error(WRONG_TYPE.into())),
            }
        }
    };
}

impl Keyspace {
    typed!(hash, BTreeMap<Bytes, (Bytes, Option<u64>)>, Value::Hash(of) => of, Value::Hash(BTreeMap::new()));
    typed!(list, VecDeque<Bytes>, Value::List(of) => of, Value::List(VecDeque::new()));
    typed!(sorted, BTreeMap<Bytes, u64>, Value::Sorted(of) => of, Value::Sorted(BTreeMap::new()));

    typed!(set, BTreeSet<Bytes>, Value::Set(of) => of, Value::Set(BTreeSet::new()));

    /// The clock goes on: what has expired is gone.
    pub(crate) fn advance_to(&mut self, now: u64) {
        self.now = now;
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let is_alive = |expires: Option<u64>| expires.is_none_or(|at| at > now);
        for key in self.keys.values_mut() {
            if let Value::Hash(fields) = &mut key.value {
                fields.retain(|_, (_, expires)| is_alive(*expires));
            }
        }
        self.keys.retain(|_, key| is_alive(key.expires) && !key.value.is_empty());
        let of_fields = |key: &Key| match &key.value {
            Value::Hash(fields) => fields.values().filter_map(|(_, expires)| *expires).min(),
            _ => None,
        };
        let next = |key: &Key| key.expires.into_iter().chain(of_fields(key)).min();
        self.sweep_at = self.keys.values().filter_map(next).min();
    }

    fn expire_at(&mut self, at: u64) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Fields of a hash, for the checker.
    pub(crate) fn fields(&self, key: &str) -> BTreeMap<String, Bytes> {
        let Some(Key { value: Value::Hash(fields), .. }) = self.keys.get(key.as_bytes()) else {
            return BTreeMap::new();
        };
        fields.iter().map(|(name, (value, _))| (text(name).to_owned(), value.clone())).collect()
    }

    /// Names of all keys, for the checker.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(|name| text(name))
    }

    /// Removes a key, as eviction does.
    pub(crate) fn remove(&mut self, key: &str) {
        self.keys.remove(key.as_bytes());
    }

    /// Carries out a command.
    pub(crate) fn call(&mut self, arguments: &[Bytes]) -> Reply {
        let result = self.carry_out(arguments);
        // Redis removes a hash, list or set that has become empty.
        if let Some(key) = arguments.get(1)
            && self.keys.get(key).is_some_and(|key| key.value.is_empty())
        {
            self.keys.remove(key);
        }
        result.unwrap_or_else(|error| error)
    }

    fn carry_out(&mut self, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let name = text(&arguments[0]).to_ascii_uppercase();
        let arguments = &arguments[1..];
        Ok(match name.as_str() {
            "PING" => Reply::Bytes(b"PONG".into()),
            "TIME" => {
                let part = |of: u64| Reply::Bytes(of.to_string().into());
                Reply::List(vec![part(self.now / 1_000), part(self.now % 1_000 * 1_000)])
            }
            "PUBLISH" | "SPUBLISH" => {
                self.messages.push((arguments[0].clone(), arguments[1].clone()));
                Reply::Int(1)
            }
            "DEL" => Reply::Int(i64::from(self.keys.remove(&arguments[0]).is_some())),
            "EXISTS" => Reply::Int(i64::from(self.keys.contains_key(&arguments[0]))),
            "EXPIRE" => {
                let expires = Some(self.now + number(&arguments[1]) as u64 * 1_000);
                expires.into_iter().for_each(|at| self.expire_at(at));
                let key = self.keys.get_mut(&arguments[0]);
                Reply::Int(i64::from(key.map(|key| key.expires = expires).is_some()))
            }
            "SADD" => {
                let set = self.set(&arguments[0])?;
                let added = arguments[1..].iter().filter(|member| set.insert((*member).clone()));
                Reply::Int(added.count() as i64)
            }
            "SREM" => {
                let set = self.set(&arguments[0])?;
                let removed = arguments[1..].iter().filter(|member| set.remove(*member));
                Reply::Int(removed.count() as i64)
            }
            "SPOP" => {
                let set = self.set(&arguments[0])?;
                let count = number(&arguments[1]);
                let popped = (0..count).map_while(|_| set.pop_first());
                Reply::List(popped.map(Reply::Bytes).collect())
            }
            name if name.starts_with('H') => return self.hash_command(name, arguments),
            name if name.starts_with('X') => return self.stream_command(name, arguments),
            name if name.starts_with('L') => return self.list_command(name, arguments),
            name if name.starts_with('Z') => return self.sorted_command(name, arguments),
            other => panic!("the simulated Redis has no {other}"),
        })
    }

    fn hash_command(&mut self, name: &str, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let now = self.now;
        if name == "HEXPIRE" {
            self.expire_at(now + number(&arguments[1]) as u64 * 1_000);
        }
        let (hash, rest) = (self.hash(&arguments[0])?, &arguments[1..]);
        let get = |of: &BTreeMap<Bytes, (Bytes, Option<u64>)>, field: &Bytes| {
            found(of.get(field).map(|(value, _)| value))
        };
        Ok(match name {
            "HGET" => get(hash, &rest[0]),
            "HMGET" => Reply::List(rest.iter().map(|field| get(hash, field)).collect()),
            "HSET" => {
                let set = |pair: &[Bytes]| {
                    hash.insert(pair[0].clone(), (pair[1].clone(), None)).is_none()
                };
                Reply::Int(rest.chunks(2).map(set).filter(|is_new| *is_new).count() as i64)
            }
            "HDEL" => {
                let removed = rest.iter().filter(|field| hash.remove(*field).is_some());
                Reply::Int(removed.count() as i64)
            }
            "HEXISTS" => Reply::Int(i64::from(hash.contains_key(&rest[0]))),
            "HLEN" => Reply::Int(hash.len() as i64),
            "HGETALL" => {
                let pairs = hash.iter().flat_map(|(field, (value, _))| [field, value]);
                Reply::List(pairs.map(|of| Reply::Bytes(of.clone())).collect())
            }
            "HINCRBY" => {
                let new = || (b"0".into(), None);
                let value = &mut hash.entry(rest[0].clone()).or_insert_with(new).0;
                let sum = number(value) + number(&rest[1]);
                *value = sum.to_string().into();
                Reply::Int(sum)
            }
            "HEXPIRE" => {
                // Key, seconds, FIELDS, count, fields.
                let expires = Some(now + number(&rest[0]) as u64 * 1_000);
                let set = |field| match hash.get_mut(field) {
                    Some(value) => {
                        value.1 = expires;
                        Reply::Int(1)
                    }
                    None => Reply::Int(-2),
                };
                Reply::List(rest[3..].iter().map(set).collect())
            }
            other => panic!("the simulated Redis has no {other}"),
        })
    }

    fn stream_command(&mut self, name: &str, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let key = &arguments[0];
        if name == "XADD" {
            let [_, maxlen, size, id, field, payload] = arguments else { panic!("{arguments:?}") };
            assert_eq!((text(maxlen), text(field)), ("MAXLEN", "d"));
            let id = text(id).strip_suffix("-0").and_then(|id| id.parse().ok()).unwrap();
            let new = || Key { value: Value::Stream(BTreeMap::new(), 0), expires: None };
            let known = self.keys.entry(key.clone()).or_insert_with(new);
            let Value::Stream(entries, last) = &mut known.value else {
                return Err(Reply::Error(WRONG_TYPE.into()));
            };
            if id <= *last {
                let text = "ERR The ID specified in XADD is equal or smaller than the target \
                            stream top item";
                return Err(Reply::Error(text.into()));
            }
            entries.insert(id, payload.clone());
            *last = id;
            while entries.len() > number(size) as usize {
                entries.pop_first();
            }
            return Ok(Reply::Bytes(format!("{id}-0").into()));
        }
        let entries = match self.keys.get(key).map(|key| &key.value) {
            None => &BTreeMap::new(),
            Some(Value::Stream(entries, _)) => entries,
            Some(_) => return Err(Reply::Error(WRONG_TYPE.into())),
        };
        let bound = |text: &str| match text {
            "-" => 0,
            "+" => u64::MAX,
            id => id.split('-').next().and_then(|id| id.parse().ok()).unwrap(),
        };
        let (one, two) = (bound(text(&arguments[1])), bound(text(&arguments[2])));
        let count = match arguments.get(3).map(|count| text(count)) {
            Some("COUNT") => number(&arguments[4]) as usize,
            _ => usize::MAX,
        };
        let of = |(id, payload): (&u64, &Bytes)| entry(*id, payload);
        Ok(Reply::List(match name {
            "XRANGE" if one > two => Vec::new(),
            "XRANGE" => entries.range(one..=two).take(count).map(of).collect(),
            "XREVRANGE" if two > one => Vec::new(),
            "XREVRANGE" => entries.range(two..=one).rev().take(count).map(of).collect(),
            other => panic!("the simulated Redis has no {other}"),
        }))
    }

    fn list_command(&mut self, name: &str, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let (list, rest) = (self.list(&arguments[0])?, &arguments[1..]);
        let place = |of: &Bytes, len: usize| match number(of) {
            at if at < 0 => (len as i64 + at).max(0) as usize,
            at => at as usize,
        };
        Ok(match name {
            "LPUSH" => {
                list.push_front(rest[0].clone());
                Reply::Int(list.len() as i64)
            }
            "LTRIM" => {
                assert_eq!(number(&rest[0]), 0);
                list.truncate(place(&rest[1], list.len()) + 1);
                Reply::Bytes(b"OK".into())
            }
            "LINDEX" => found(list.get(place(&rest[0], list.len()))),
            "LRANGE" => {
                let (from, to) = (place(&rest[0], list.len()), place(&rest[1], list.len()));
                let part = list.iter().skip(from).take(to + 1 - from);
                Reply::List(part.map(|of| Reply::Bytes(of.clone())).collect())
            }
            other => panic!("the simulated Redis has no {other}"),
        })
    }

    fn sorted_command(&mut self, name: &str, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let (sorted, rest) = (self.sorted(&arguments[0])?, &arguments[1..]);
        Ok(match name {
            "ZADD" => {
                let add = |pair: &[Bytes]| {
                    sorted.insert(pair[1].clone(), number(&pair[0]) as u64).is_none()
                };
                Reply::Int(rest.chunks(2).map(add).filter(|is_new| *is_new).count() as i64)
            }
            "ZCARD" => Reply::Int(sorted.len() as i64),
            "ZREM" => {
                let removed = rest.iter().filter(|member| sorted.remove(*member).is_some());
                Reply::Int(removed.count() as i64)
            }
            "ZRANGEBYSCORE" | "ZREMRANGEBYSCORE" => {
                assert_eq!(text(&rest[0]), "-inf");
                let max = number(&rest[1]) as u64;
                let mut due: Vec<_> = sorted.iter().filter(|(_, score)| **score <= max).collect();
                due.sort_by_key(|(_, score)| **score);
                let due: Vec<Bytes> = due.into_iter().map(|(member, _)| member.clone()).collect();
                if name == "ZRANGEBYSCORE" {
                    return Ok(Reply::List(due.into_iter().map(Reply::Bytes).collect()));
                }
                due.iter().for_each(|member| _ = sorted.remove(member));
                Reply::Int(due.len() as i64)
            }
            other => panic!("the simulated Redis has no {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(keys: &mut Keyspace, line: &str) -> Reply {
        keys.call(&line.split(' ').map(|of| of.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    fn bytes(of: &str) -> Reply {
        Reply::Bytes(of.into())
    }

    #[test]
    fn keys_expire_and_empty_ones_are_gone() {
        let mut keys = Keyspace::default();
        assert_eq!(call(&mut keys, "HSET h a 1 b 2"), Reply::Int(2));
        assert_eq!(call(&mut keys, "EXPIRE h 5"), Reply::Int(1));
        keys.advance_to(4_999);
        assert_eq!(call(&mut keys, "EXISTS h"), Reply::Int(1));
        keys.advance_to(5_000);
        assert_eq!(call(&mut keys, "EXISTS h"), Reply::Int(0));
        call(&mut keys, "HSET h a 1 b 2");
        call(&mut keys, "HEXPIRE h 5 FIELDS 1 a");
        keys.advance_to(10_000);
        assert_eq!(call(&mut keys, "HGETALL h"), Reply::List(vec![bytes("b"), bytes("2")]));
        call(&mut keys, "HDEL h b");
        assert_eq!(keys.names().count(), 0);
    }

    #[test]
    fn a_stream_keeps_its_newest_and_gives_no_id_twice() {
        let mut keys = Keyspace::default();
        for id in 1..=4 {
            call(&mut keys, &format!("XADD s MAXLEN 2 {id}-0 d p{id}"));
        }
        let both = Reply::List(vec![entry(3, b"p3"), entry(4, b"p4")]);
        assert_eq!(call(&mut keys, "XRANGE s 1 9"), both);
        assert_eq!(call(&mut keys, "XREVRANGE s + - COUNT 1"), Reply::List(vec![entry(4, b"p4")]));
        assert!(matches!(call(&mut keys, "XADD s MAXLEN 2 4-0 d p"), Reply::Error(_)));
        assert!(matches!(call(&mut keys, "HGET s a"), Reply::Error(of) if of == WRONG_TYPE));
    }

    #[test]
    fn lists_and_sorted_sets_are_read_in_order() {
        let mut keys = Keyspace::default();
        ["a", "b", "c"].iter().for_each(|of| drop(call(&mut keys, &format!("LPUSH l {of}"))));
        call(&mut keys, "LTRIM l 0 1");
        assert_eq!(call(&mut keys, "LRANGE l 0 -1"), Reply::List(vec![bytes("c"), bytes("b")]));
        assert_eq!(call(&mut keys, "LINDEX l 0"), bytes("c"));
        call(&mut keys, "ZADD z 7 x 5 y 9 w");
        let due = Reply::List(vec![bytes("y"), bytes("x")]);
        assert_eq!(call(&mut keys, "ZRANGEBYSCORE z -inf 7"), due);
        assert_eq!(call(&mut keys, "ZREMRANGEBYSCORE z -inf 7"), Reply::Int(2));
        assert_eq!(call(&mut keys, "ZREM z w"), Reply::Int(1));
        assert_eq!(keys.names().collect::<Vec<_>>(), ["l"]);
    }
}
