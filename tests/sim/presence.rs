//! Clients that must be in a channel or cannot be, as far as the clients themselves know.
//!
//! A client whose subscribe was answered is in, until it asks to leave or its connection ends. The
//! server may know of that end first. So one that is missing is a suspect at first: it is a fault when
//! the client hears of its session, by the answer to something that it asked later.

use std::collections::BTreeMap;

/// Somebody who must be in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    serial: u64,
    user: String,
    asked: u64,
}

#[derive(Debug)]
struct Suspect {
    channel: String,
    client: String,
    step: u64,
}

/// Clients that must be in, and that cannot be, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    members: BTreeMap<String, u64>,
    left: BTreeMap<String, u64>,
}

#[derive(Default)]
pub(crate) struct Presence {
    next: u64,
    members: BTreeMap<(String, String), Member>,
    left: BTreeMap<(String, String), u64>,
    /// Whose a client id is.
    users: BTreeMap<String, String>,
    suspects: Vec<Suspect>,
}

fn of<'a, T>(
    all: &'a BTreeMap<(String, String), T>,
    channel: &str,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    let channel = channel.to_owned();
    let from = (channel.clone(), String::new());
    all.range(from..).take_while(move |((c, _), _)| *c == channel).map(|((_, id), t)| (id, t))
}

impl Presence {
    /// A connection has its id.
    pub(crate) fn named(&mut self, client: &str, user: &str) -> Result<(), String> {
        match self.users.insert(client.to_owned(), user.to_owned()) {
            None => Ok(()),
            Some(_) => Err(format!("{client} is the id of two connections")),
        }
    }

    /// A subscribe that was sent at `asked` is answered.
    pub(crate) fn entered(&mut self, channel: &str, client: &str, user: &str, asked: u64) {
        self.next += 1;
        let member = Member { serial: self.next, user: user.to_owned(), asked };
        self.members.insert((channel.to_owned(), client.to_owned()), member);
    }

    /// Asks to be in, or to leave: from now on both may be.
    pub(crate) fn asks(&mut self, channel: &str, client: &str) {
        let key = (channel.to_owned(), client.to_owned());
        self.members.remove(&key);
        self.left.remove(&key);
    }

    /// Its unsubscribe is answered.
    pub(crate) fn left(&mut self, channel: &str, client: &str) {
        self.next += 1;
        self.left.insert((channel.to_owned(), client.to_owned()), self.next);
    }

    /// The server ended the subscription.
    pub(crate) fn told(&mut self, channel: &str, client: &str) {
        self.asks(channel, client);
        self.suspects.retain(|s| s.client != client || s.channel != channel);
    }

    /// The connection has ended.
    pub(crate) fn gone(&mut self, client: &str) {
        self.members.retain(|(_, id), _| id != client);
        self.suspects.retain(|suspect| suspect.client != client);
    }

    pub(crate) fn snapshot(&self, channel: &str) -> Snapshot {
        Snapshot {
            members: of(&self.members, channel).map(|(id, m)| (id.clone(), m.serial)).collect(),
            left: of(&self.left, channel).map(|(id, serial)| (id.clone(), *serial)).collect(),
        }
    }

    /// Who was told to be present, in answer to something asked at the time of `asked`.
    pub(crate) fn shown(
        &mut self,
        channel: &str,
        asked: &Snapshot,
        by: &str,
        present: &BTreeMap<String, String>,
        step: u64,
    ) -> Result<(), String> {
        let now = self.snapshot(channel);
        for (client, serial) in &asked.members {
            if now.members.get(client) != Some(serial) || present.contains_key(client) {
                continue;
            }
            if client == by {
                return Err(format!("{client} isn't shown to itself in {channel}"));
            }
            self.suspects.push(Suspect {
                channel: channel.to_owned(),
                client: client.clone(),
                step,
            });
        }
        for (client, user) in present {
            let left = asked.left.get(client);
            if left.is_some() && left == now.left.get(client) {
                return Err(format!("{client} had left {channel}"));
            }
            if self.users.get(client).is_some_and(|known| known != user) {
                return Err(format!("{client} is shown as a connection of {user:?}"));
            }
        }
        Ok(())
    }

    /// A client has the answer to what it asked at `sent`: its session was alive then.
    pub(crate) fn heard(&self, client: &str, sent: u64) -> Result<(), String> {
        match self.suspects.iter().find(|s| s.client == client && s.step < sent) {
            Some(suspect) => Err(format!("it was missing from presence: {suspect:?}")),
            None => Ok(()),
        }
    }

    /// Clients that must be in a channel, and subscribed behind `step`.
    pub(crate) fn came_since(&self, channel: &str, step: u64) -> impl Iterator<Item = &str> {
        let members = of(&self.members, channel);
        members.filter(move |(_, member)| member.asked > step).map(|(id, _)| id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(presence: &mut Presence, asked: &Snapshot, present: &[&str]) -> Result<(), String> {
        let present = present.iter().map(|id| ((*id).to_owned(), String::new())).collect();
        presence.shown("a", asked, "by", &present, 5)
    }

    #[test]
    fn a_missing_live_member_is_a_fault() {
        let mut presence = Presence::default();
        presence.entered("a", "x", "", 1);
        let asked = presence.snapshot("a");
        shown(&mut presence, &asked, &["x", "y"]).unwrap();
        shown(&mut presence, &asked, &[]).unwrap();
        assert_eq!(presence.heard("x", 5), Ok(()));
        assert!(presence.heard("x", 6).is_err());
        presence.told("a", "x");
        assert_eq!(presence.heard("x", 6), Ok(()));
    }

    #[test]
    fn a_member_that_left_is_not_shown() {
        let mut presence = Presence::default();
        presence.left("a", "x");
        let asked = presence.snapshot("a");
        shown(&mut presence, &asked, &["y"]).unwrap();
        assert!(shown(&mut presence, &asked, &["x"]).is_err());
        presence.asks("a", "x");
        shown(&mut presence, &asked, &["x"]).unwrap();
        // It has come and left meanwhile.
        presence.left("a", "x");
        shown(&mut presence, &asked, &["x"]).unwrap();
    }

    #[test]
    fn a_reader_of_presence_sees_itself() {
        let mut presence = Presence::default();
        presence.entered("a", "by", "", 1);
        let asked = presence.snapshot("a");
        assert!(shown(&mut presence, &asked, &[]).is_err());
    }
}
