//! Positions of event sources: an event source that loses its connection comes back with the last one.

use crate::base::frame::SharedFrame;
use crate::base::id::ConnKey;
use crate::base::limits::LAST_EVENT_ID_BYTES_MAX;
use crate::io::Driver;
use crate::proto::{client, framing};
use crate::session::{Sub, SubState};
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::outlets::Outlets;

impl Clients {
    /// Sends their positions to event sources that got publications in this turn or have just connected,
    /// and answers polls that got publications.
    pub(crate) fn mark_positions<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) {
        let mut to_mark = out.net.take_to_mark();
        if to_mark.is_empty() {
            return out.net.give_back_to_mark(to_mark);
        }
        // A connection that got publications of several channels gets one event.
        to_mark.sort_unstable_by_key(|key| key.index);
        to_mark.dedup();
        for key in to_mark.drain(..) {
            self.mark_position(out, side, key);
        }
        out.net.give_back_to_mark(to_mark);
    }

    fn mark_position<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        key: ConnKey,
    ) {
        let Some(conn) = out.net.conn(key) else { return };
        let (form, at) = (conn.form, conn.session);
        if form.is_poll() {
            return self.answer_poll(out, side, key.index);
        }
        let Some(session) = self.sessions.get(at as usize) else { return };
        if session.extra.as_ref().is_some_and(|extra| extra.connecting.is_some()) {
            // The reply to its `connect` brings the first position.
            return;
        }
        // An event of a type and with (no) data, since some sources forget the id of what is no event.
        let mut id = b"event: position\nid: {".to_vec();
        let empty = id.len();
        let live = |sub: &&Sub| sub.flags.recoverable() && sub.state == SubState::Live;
        for sub in session.subs.as_slice().iter().filter(live) {
            let Some((name, epoch, offset)) = side.locals.position(sub.channel, sub.place) else {
                continue;
            };
            let before = id.len();
            if before > empty {
                id.push(b',');
            }
            client::put_position(&mut id, name, epoch.as_str(), offset);
            if id.len() > LAST_EVENT_ID_BYTES_MAX {
                // The id comes back in a request header: the other channels begin anew then.
                out.cx.counters().positions_left_out.inc();
                id.truncate(before);
                break;
            }
        }
        if id.len() == empty {
            return;
        }
        id.extend_from_slice(b"}\ndata:\n\n");
        let mut event = Vec::new();
        framing::put_raw(&mut event, form, &id);
        out.net.enqueue(out.cx, key.index, SharedFrame::new(&event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::{Form, Framing};
    use crate::hub::history::{Epoch, Position};
    use crate::hub::subscribers::{Subscriber, Traits};
    use crate::session::SubFlags;
    use crate::session::testing::session;
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn an_event_source_gets_one_id_with_the_positions_of_its_channels() {
        let mut of = Wired::new(Plan::default());
        let (mut clients, mut side) = (Clients::new(&of.cx), LocalSide::new(&of.cx));
        let (link, key) = of.connect_client();
        let mut session = session("alice");
        for (name, recoverable) in [("a", true), ("b", false)] {
            let channel = side.locals.find_or_insert(name, 0);
            let traits = Traits::new(Form::JSON.subscriber(false, false));
            let record = side.locals.get(channel).unwrap();
            let place = record.subscribers.add(Subscriber { conn: key.index, traits });
            let position = Position { offset: 7, epoch: Some(Epoch::of_eight(*b"abcdefgh")) };
            side.locals.begin_at(channel, &position);
            let mut flags = SubFlags::default();
            flags.set_recoverable(recoverable);
            session.subs.push(Sub { channel, place, state: SubState::Live, flags });
        }
        let conn = of.net.conn(key).unwrap();
        conn.form = Form::one_way(Framing::BareEvents);
        conn.session = clients.sessions.insert(session) as u32;
        of.net.list_to_mark(key.index);
        of.net.list_to_mark(key.index);
        clients.mark_positions(&mut of.outlets(), &mut side);
        let got = of.received(link);
        assert_eq!(got.matches("event: position\nid: {\"a\":").count(), 1, "{got}");
        assert!(!got.contains("\"b\""), "{got}");
        clients.mark_positions(&mut of.outlets(), &mut side);
        assert_eq!(of.received(link), "", "the list is empty");
    }
}
