//! Subscriptions that have ended: their homes count one subscriber less.

use crate::io::Driver;
use crate::session::Sub;
use crate::shard::local::LocalSide;
use crate::shard::local::traits::traits_of;
use crate::shard::mail::{Asker, Mail, Unsubscribe};
use crate::shard::outlets::Outlets;

impl LocalSide {
    /// Informs the home that a subscription of a dead session has ended, if there is room for the mail.
    pub(crate) fn leave_home_if_room<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        sub: &Sub,
    ) -> Result<(), ()> {
        let Some(local) = self.locals.get(sub.channel) else { return Ok(()) };
        if out.post.is_full(local.home) {
            return Err(());
        }
        self.leave_home(out, index, sub, None);
        Ok(())
    }

    /// Informs the home that a subscription has ended. `asker` waits for the answer, and has spent the credit;
    /// without one nobody does, and the mail is not held back by a full lane.
    pub(crate) fn leave_home<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        index: u32,
        sub: &Sub,
        asker: Option<Asker>,
    ) {
        let traits = traits_of(out.net.form(index), sub.flags);
        let Some(conn) = out.net.at(index) else { return };
        let member = sub.flags.member().then(|| conn.key(index));
        let Some(local) = self.locals.get(sub.channel) else { return };
        local.claims -= 1;
        let (home, channel) = (local.home, local.name.clone());
        self.locals.ask(sub.channel);
        let unsubscribe = Unsubscribe { local: sub.channel, channel, asker, traits, member };
        out.post.send(out.cx, home, Mail::Unsubscribe(Box::new(unsubscribe)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{SubFlags, SubState};
    use crate::shard::fixture::{Plan, Wired};

    #[test]
    fn a_home_hears_of_an_ended_subscription_when_there_is_room() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect_client();
        let mut side = LocalSide::new(&of.cx);
        let channel = side.locals.find_or_insert("news", 0);
        let home = side.locals.get(channel).map(|local| {
            local.claims = 2;
            local.home
        });
        let home = home.unwrap();
        let sub = Sub { channel, place: 0, state: SubState::Owed, flags: SubFlags::default() };
        assert_eq!(side.leave_home_if_room(&mut of.outlets(), key.index, &sub), Ok(()));
        of.posts.post.flush_to(&of.cx, home);
        let mail = of.posts.sent_to(home.0);
        assert!(
            matches!(&mail[..], [Mail::Unsubscribe(mail)] if mail.local == channel && mail.asker.is_none())
        );
        let claims = side.locals.get(channel).map(|record| record.claims);
        assert_eq!((claims, side.locals.asked(channel)), (Some(1), 1));
        // Mail that can't leave fills the lane.
        while !of.posts.post.is_full(home) {
            of.posts.post.send(&of.cx, home, Mail::Gap { local: 0 });
        }
        assert_eq!(side.leave_home_if_room(&mut of.outlets(), key.index, &sub), Err(()));
        assert_eq!(side.locals.get(channel).map(|record| record.claims), Some(1));
    }
}
