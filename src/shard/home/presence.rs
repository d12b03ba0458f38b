//! Presence and join and leave events that a broker keeps: the changes of a turn go together, as one command
//! for each channel, and events behind them.

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::events::EVENTS_SEARCHED;
use super::seam::{command, command_to};
use crate::base::id::ShardId;
use crate::base::info::ClientInfo;
use crate::hub::broker::{Command, PresenceChange, PresenceUpdate, Ticket};
use crate::hub::home::Homes;
use crate::hub::members::Members;
use crate::shard::context::Cx;
use crate::shard::mail::BROKER;
use crate::shard::mail::post::Post;

/// A change that the broker doesn't know of yet.
#[derive(Debug)]
enum Change {
    Presence(PresenceChange),
    Event { joined: bool },
}

/// Changes of a turn, and how far the refreshing of all members has come.
#[derive(Debug)]
pub(super) struct Changes {
    /// The broker of presence; none: the home keeps it itself.
    pub(super) broker: Option<ShardId>,
    /// That broker can be reached.
    pub(super) is_connected: bool,
    /// The broker of channels, which carries the events, can be reached.
    pub(super) carries_events: bool,
    /// Of channels whose changes of this turn are to be answered.
    tickets: HashMap<CompactString, Ticket, FixedState>,
    /// By channel, in order, with packed infos.
    list: Vec<(CompactString, Change, Box<[u8]>)>,
    /// The number of the channel that is refreshed next.
    refresh_at: usize,
    /// Seconds in which all members are to be refreshed now, as after a connection was lost.
    hurry: u32,
    /// Seconds in which all members are refreshed usually.
    refresh_s: u32,
    /// So many channels from `refresh_at` on are entered and announced again instead.
    enter_again: usize,
}

impl Changes {
    /// No changes. Presence is kept by this broker, for so many seconds without a refresh, or by the home itself.
    pub(super) fn new(broker: Option<ShardId>, ttl_s: u32) -> Self {
        let (is_connected, carries_events) = (false, false);
        Self {
            broker,
            is_connected,
            carries_events,
            tickets: HashMap::default(),
            list: Vec::new(),
            refresh_at: 0,
            hurry: 0,
            refresh_s: (ttl_s / REFRESHES).max(1),
            enter_again: 0,
        }
    }

    /// Who is present changes.
    pub(super) fn presence(&mut self, channel: &CompactString, of: PresenceChange, info: &[u8]) {
        if self.broker.is_some() {
            self.list.push((channel.clone(), Change::Presence(of), info.into()));
        }
    }

    /// The ticket that is answered when the broker has the changes of this turn of a channel, made by `new`;
    /// none where there is no such broker, or it can't be reached.
    pub(super) fn ticket(
        &mut self,
        channel: &CompactString,
        new: impl FnOnce() -> Ticket,
    ) -> Option<Ticket> {
        if self.broker.is_none() || !self.is_connected {
            return None;
        }
        Some(*self.tickets.entry(channel.clone()).or_insert_with(new))
    }

    /// Others are to see a client join or leave.
    pub(super) fn event(&mut self, channel: &CompactString, joined: bool, info: Box<[u8]>) {
        self.list.push((channel.clone(), Change::Event { joined }, info));
    }

    /// The number of the channel that is refreshed next.
    pub(super) fn refreshed(&self) -> usize {
        self.refresh_at
    }

    /// Goes on from another process, whose brokers can be reached. `carries_events`: that of channels is one.
    pub(super) fn inherit(&mut self, carries_events: bool, refreshed: usize) {
        (self.is_connected, self.carries_events) = (self.broker.is_some(), carries_events);
        self.refresh_at = refreshed;
    }

    /// Changes that have not been sent.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The broker of presence can be reached, or not any more: entries expire, and it may have lost those of
    /// this node.
    pub(super) fn connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.tickets.clear();
        self.list.retain(|(_, change, _)| matches!(change, Change::Event { .. }));
        self.hurry = if is_connected { HURRY_SECONDS } else { 0 };
    }

    /// All who are present enter again, as if they had just come; others see them join where `joins`.
    pub(super) fn enter_members(
        &mut self,
        channel: &CompactString,
        members: &Members,
        joins: bool,
    ) {
        for (info, announces) in members.present_and_announcing() {
            self.presence(channel, PresenceChange::Enter { announces }, &info);
            if joins && announces {
                self.event(channel, true, info.into());
            }
        }
    }

    /// Other nodes removed all entries of this one, and announced leaves: in the next round of `numbers`
    /// channels all enter again.
    pub(super) fn enter_all_again(&mut self, numbers: usize) {
        self.enter_again = numbers;
        self.hurry = HURRY_SECONDS;
    }

    /// The broker of channels can be reached, or not any more: events of before have no meaning.
    pub(super) fn carries_events(&mut self, carries_events: bool) {
        self.carries_events = carries_events;
        self.list.retain(|(_, change, _)| matches!(change, Change::Presence(_)));
    }

    /// Sends what is there if events of a channel may be among it: a publication of the channel comes behind
    /// them.
    pub(super) fn send_before(&mut self, cx: &Cx, channel: &str, out: &mut Post) {
        let is_event = |(of, change, _): &(CompactString, Change, _)| {
            matches!(change, Change::Event { .. }) && of == channel
        };
        if self.list.len() > EVENTS_SEARCHED || self.list.iter().any(is_event) {
            self.send(cx, out);
        }
    }

    /// Sends what is there, and drops that for which there is no connection.
    pub(super) fn send(&mut self, cx: &Cx, out: &mut Post) {
        if self.list.is_empty() {
            return;
        }
        let mut list = std::mem::take(&mut self.list);
        let mut tickets = std::mem::take(&mut self.tickets);
        let (is_connected, carries_events) = (self.is_connected, self.carries_events);
        list.retain(|(_, change, _)| match change {
            Change::Presence(_) => is_connected,
            Change::Event { .. } => carries_events,
        });
        let broker = self.broker.unwrap_or(BROKER);
        // Stable: those of one channel stay in order.
        list.sort_by(|a, b| a.0.cmp(&b.0));
        let mut list = list.into_iter().peekable();
        while let Some((channel, change, info)) = list.next() {
            let mut of_channel = vec![(change, info)];
            while let Some((_, change, info)) = list.next_if(|next| next.0 == channel) {
                of_channel.push((change, info));
            }
            let ticket = tickets.remove(&channel);
            send_channel(cx, broker, (channel, ticket), of_channel, out);
        }
    }

    /// Once a second: refreshes a part of all members, so that each is refreshed well before it expires.
    pub(super) fn refresh(&mut self, cx: &Cx, channels: &Homes, out: &mut Post) {
        let Some(broker) = self.broker.filter(|broker| self.is_connected && !out.is_full(*broker))
        else {
            return;
        };
        let numbers = channels.numbers();
        let usual = self.refresh_s;
        let seconds = if self.hurry > 0 { HURRY_SECONDS.min(usual) } else { usual };
        self.hurry = self.hurry.saturating_sub(1);
        for _ in 0..numbers.div_ceil(seconds as usize) {
            self.refresh_at = if self.refresh_at < numbers { self.refresh_at } else { 0 };
            let at = self.refresh_at as u32;
            self.refresh_at += 1;
            let enters = self.enter_again > 0;
            self.enter_again = self.enter_again.saturating_sub(1);
            let Some(members) = channels.members(at) else { continue };
            let channel = CompactString::new(channels.name(at));
            if enters {
                self.enter_members(&channel, members, true);
                continue;
            }
            let present = members.present().map(|info| (PresenceChange::Refresh, info.into()));
            send_update(cx, broker, (&channel, None), present.collect(), out);
        }
        self.send(cx, out);
    }
}

/// Sends the changes of one channel: who is present first, since that is read when an event comes.
fn send_channel(
    cx: &Cx,
    broker: ShardId,
    (channel, ticket): (CompactString, Option<Ticket>),
    changes: Vec<(Change, Box<[u8]>)>,
    out: &mut Post,
) {
    let mut update: Vec<(PresenceChange, Box<[u8]>)> = Vec::new();
    // Only the latest change of a client counts.
    let mut places: HashMap<CompactString, usize, FixedState> = HashMap::default();
    let mut events = Vec::new();
    for (change, info) in changes {
        match change {
            Change::Event { joined } => events.push((joined, info)),
            Change::Presence(change) => {
                let Some(client) = ClientInfo::unpack(&info).map(|of| of.client.into()) else {
                    continue;
                };
                let place = *places.entry(client).or_insert(update.len());
                match update.get_mut(place) {
                    Some(known) => *known = (change, info),
                    None => update.push((change, info)),
                }
            }
        }
    }
    send_update(cx, broker, (&channel, ticket), update, out);
    for (joined, info) in events {
        command(cx, out, Command::Announce { channel: channel.clone(), joined, info });
    }
}

fn send_update(
    cx: &Cx,
    broker: ShardId,
    (channel, ticket): (&CompactString, Option<Ticket>),
    mut changes: Vec<(PresenceChange, Box<[u8]>)>,
    out: &mut Post,
) {
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(CHANGES_MAX));
        // The last one is answered: it comes behind the others.
        let ticket = ticket.filter(|_| rest.is_empty());
        let update = PresenceUpdate { channel: channel.clone(), ticket, changes };
        command_to(cx, out, broker, Command::Presence(Box::new(update)));
        changes = rest;
    }
}

/// Refreshes within the time for which an entry is kept: one that comes late, or not at all while a connection is
/// made anew, loses nothing.
const REFRESHES: u32 = 2;

/// All members are refreshed within so many seconds after a connection was lost.
const HURRY_SECONDS: u32 = 5;

/// Changes of one command.
const CHANGES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Posts};
    use crate::shard::home::driven::info;
    use crate::shard::mail::{Mail, PRESENCE_BROKER};

    #[test]
    fn the_latest_change_of_a_client_counts_and_events_come_behind() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 8);
        let mut changes = Changes::new(Some(BROKER), 60);
        changes.connected(true);
        changes.carries_events(true);
        let news: CompactString = "news".into();
        let (ann, bob) = (info("ann", "1"), info("bob", "2"));
        changes.event(&news, true, ann.clone());
        let enter = PresenceChange::Enter { announces: true };
        changes.presence(&news, enter, &ann);
        changes.presence(&"other".into(), enter, &ann);
        changes.presence(&news, enter, &bob);
        changes.presence(&news, PresenceChange::Leave, &ann);
        changes.send(&cx, &mut posts.post);
        assert_eq!(changes.len(), 0);
        posts.post.flush(&cx);
        let sent: Vec<String> = posts
            .sent_to(BROKER.0)
            .into_iter()
            .map(|mail| match mail {
                Mail::Command(command) => match *command {
                    Command::Presence(update) => {
                        let kinds: Vec<_> = update.changes.iter().map(|(kind, _)| kind).collect();
                        format!("{} {kinds:?}", update.channel)
                    }
                    Command::Announce { channel, joined, .. } => format!("{channel} {joined}"),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            sent,
            [
                "news [Leave, Enter { announces: true }]",
                "news true",
                "other [Enter { announces: true }]"
            ]
        );
    }

    #[test]
    fn presence_has_a_broker_of_its_own_or_none() {
        let cx = Plan::default().cx();
        let mut posts = Posts::new(2, 8);
        let (news, ann): (CompactString, _) = ("news".into(), info("ann", "1"));
        let mut sent = |changes: &mut Changes| {
            changes.presence(&news, PresenceChange::Enter { announces: true }, &ann);
            changes.event(&news, true, ann.clone());
            changes.send(&cx, &mut posts.post);
            posts.post.flush(&cx);
            [BROKER, PRESENCE_BROKER].map(|broker| posts.sent_to(broker.0).len())
        };
        let mut apart = Changes::new(Some(PRESENCE_BROKER), 60);
        assert_eq!(sent(&mut apart), [0, 0], "neither can be reached");
        apart.connected(true);
        assert_eq!(sent(&mut apart), [0, 1]);
        apart.carries_events(true);
        assert_eq!(sent(&mut apart), [1, 1]);
        let mut here = Changes::new(None, 60);
        here.carries_events(true);
        assert_eq!(sent(&mut here), [1, 0]);
    }
}
