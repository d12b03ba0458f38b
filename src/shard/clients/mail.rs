//! Mail for clients: answers of homes and of the application, and publications for their subscriptions.

use crate::base::id::ShardId;
use crate::io::Driver;
use crate::proto::client::Reply;
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::mail::Mail;
use crate::shard::outlets::Outlets;

impl Clients {
    /// Handles mail for clients. An answer gives its credits back; commands that wait for credit continue at
    /// the end of the turn.
    pub(crate) fn handle_mail<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        from: ShardId,
        mail: Mail,
    ) {
        match mail {
            Mail::Deliver { local, parcel } => self.deliver(out, side, local, &parcel),
            Mail::Gap { local } => self.gap(out, side, local),
            Mail::Lapse { local } => self.lapse(out, side, local),
            Mail::Subscribed(subscribed) => {
                out.post.earn(from, subscribed.asker.credits);
                self.subscribed(out, side, &subscribed);
            }
            Mail::Unsubscribed { local, asker } => {
                out.post.earn(from, asker.map_or(0, |asker| asker.credits));
                self.unsubscribed(out, side, local, asker);
            }
            Mail::Published { asker, .. } => {
                out.post.earn(from, asker.credits);
                if self.takes_answer(out, asker) {
                    let (index, id) = (asker.conn.index, asker.command);
                    out.net.reply(out.cx, out.codec, index, id, &Reply::Publish);
                }
            }
            Mail::Answer { asker, answer } => {
                out.post.earn(from, asker.credits);
                self.answered(out, side, asker, &answer);
            }
            Mail::UserEntered { asker, admitted } => {
                out.post.earn(from, asker.credits);
                self.user_entered(out, side, asker, admitted);
            }
            Mail::Verified { asker, hash, signed } => {
                out.post.earn(from, asker.credits);
                self.verified(out, asker, hash, signed);
            }
            Mail::Evict { conn } => self.evict(out, side, conn),
            Mail::Emulate(emulate) => self.take_emulated(out, side, *emulate),
            Mail::AppReply(reply) => self.take_app_reply(out, side, *reply),
            _ => debug_assert!(false, "this mail is for another group: {mail:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::history::Position;
    use crate::session::testing::session;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::mail::Asker;

    #[test]
    fn an_answer_brings_the_reply_and_gives_its_credit_back() {
        let mut of = Wired::new(Plan::default());
        let (mut clients, mut side) = (Clients::new(&of.cx), LocalSide::new(&of.cx));
        let (link, key) = of.connect_client();
        let home = ShardId(1);
        let credits = of.outlets().spend(home, 1).unwrap();
        let mut session = session("alice");
        session.unanswered = 1;
        of.net.conn(key).unwrap().session = clients.sessions.insert(session) as u32;
        let asker = Asker { command: 7, credits, ..Asker::of(key) };
        let mail = Mail::Published { asker, position: Position { offset: 1, epoch: None } };
        clients.handle_mail(&mut of.outlets(), &mut side, home, mail);
        let got = of.received(link);
        assert!(got.contains(r#"{"id":7,"publish":{}}"#), "{got}");
        assert_eq!(clients.session_of(&of.net, key.index).unwrap().unanswered, 0);
        let spent = std::iter::from_fn(|| of.outlets().spend(home, 1).ok()).count();
        assert_eq!(spent, 4, "all credits of the fixture are free");
    }
}
