//! The opening of mail: the one place where each kind of mail meets the group that handles it.

use crate::base::limits::{TURN_BATCHES_MAX, TURN_MAIL_BYTES_MAX};
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::mail::{Batch, CONTROL, List, ListOf, Mail};
use crate::shard::orders::Subjects;
use crate::shard::outlets::outlets;

impl<D: Driver> Shard<D> {
    /// Opens some of the mail.
    pub(crate) fn open_mail(&mut self) {
        self.open_loopback();
        let mut bytes = 0;
        for _ in 0..TURN_BATCHES_MAX {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.post.take_batch() else { break };
            bytes += batch.bytes;
            self.open_batch(*batch);
        }
        self.post.ring_turned_away();
    }

    /// Opens some of the mail to itself: no more batches than there are now, since others have their turn.
    fn open_loopback(&mut self) {
        let mut bytes = 0;
        let mut opened = 0;
        for _ in 0..self.post.own_batches() {
            if bytes >= TURN_MAIL_BYTES_MAX {
                break;
            }
            let Some(batch) = self.post.take_own_batch() else { break };
            bytes += batch.bytes;
            opened += 1;
            self.open_batch(*batch);
        }
        self.orders.batches_opened(opened);
    }

    /// Opens the mail to itself that this turn's reading and mail have led to. A request to a home that is
    /// here is answered by the reply that the same turn writes, and a publication goes on to its
    /// subscribers.
    pub(crate) fn open_own_mail(&mut self) {
        for _ in 0..OWN_MAIL_ROUNDS {
            self.post.flush_to(&self.cx, self.cx.id);
            if self.post.own_batches() == 0 {
                return;
            }
            self.open_loopback();
        }
    }

    fn open_batch(&mut self, batch: Batch) {
        self.cx.counters().mail_batches.add(1);
        self.cx.counters().mail.add(batch.mail.len() as u64);
        let from = batch.from;
        for mail in batch.mail {
            match mail {
                Mail::Subscribe(_)
                | Mail::Unsubscribe(_)
                | Mail::Publish(_)
                | Mail::Read(_)
                | Mail::Reinform { .. }
                | Mail::UserEnter(_)
                | Mail::UserLeave { .. }
                | Mail::Verify { .. }
                | Mail::Signed { .. }
                | Mail::BrokerEvent(_)
                | Mail::Pass { .. }
                | Mail::List(List { of: ListOf::Channels, .. }) => {
                    self.home.handle(&self.cx, from, mail, &mut self.post, &mut self.codec);
                }
                Mail::Deliver { .. }
                | Mail::Gap { .. }
                | Mail::Lapse { .. }
                | Mail::Subscribed(_)
                | Mail::Unsubscribed { .. }
                | Mail::Published { .. }
                | Mail::Answer { .. }
                | Mail::UserEntered { .. }
                | Mail::Evict { .. }
                | Mail::Verified { .. }
                | Mail::Emulate(_)
                | Mail::AppReply(_) => {
                    self.clients.handle_mail(&mut outlets!(self), &mut self.local, from, mail);
                }
                Mail::Order(_) | Mail::Passed { .. } | Mail::Inspect(_) | Mail::List(_) => {
                    let mut subjects =
                        Subjects { clients: &mut self.clients, side: &mut self.local };
                    self.orders.handle_mail(&mut outlets!(self), &mut subjects, from, mail);
                }
                Mail::Response { asker, bytes, keep_alive } => {
                    match from == CONTROL {
                        true => self.post.earn(from, asker.credits),
                        false => self.post.end_emulation(from),
                    }
                    let out = &mut outlets!(self);
                    let (conn, to) = (asker.conn, &mut *out.net);
                    to.web_response(out.cx, out.codec, out.post, conn, bytes, keep_alive);
                    self.clients.after_net(out, &mut self.local);
                }
                // Only the control thread gets these.
                Mail::Request(_)
                | Mail::Emulated { .. }
                | Mail::EmulateElsewhere(_)
                | Mail::AppCall(_)
                | Mail::AppEvents(_)
                | Mail::Inspected { .. }
                | Mail::Listed { .. }
                | Mail::Ordered { .. }
                | Mail::Command(_) => {}
                Mail::Handover(step) => self.life.steps.push_back(*step),
                Mail::Drain { per_second } => self.net.drain(&self.cx, per_second),
                Mail::Stop => self.life.stop(),
            }
        }
    }
}

/// From a request to the home, and from there to the answer.
const OWN_MAIL_ROUNDS: usize = 2;

#[cfg(test)]
mod tests {
    use crate::base::time::Millis;
    use crate::shard::fixture::{Plan, shard};
    use crate::shard::mail::{CONTROL, Mail};

    #[test]
    fn mail_reaches_the_group_that_handles_it() {
        let (mut shard, mut lane, _) = shard(Plan::default());
        lane.push(Mail::Drain { per_second: 5 });
        lane.push(Mail::Gap { local: 7 });
        lane.push(Mail::Pass { order: 3 });
        lane.flush(CONTROL);
        assert!(shard.turn_after(Some(Millis(0))), "the shard goes on");
        assert!(shard.net.is_draining());
        assert_eq!(shard.cx.counters().mail.get(), 3);
        assert_eq!(shard.is_quiescent(), Ok(()));
        lane.push(Mail::Stop);
        lane.flush(CONTROL);
        assert!(!shard.turn_after(Some(Millis(0))), "the shard has stopped");
    }
}
