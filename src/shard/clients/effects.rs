//! Effects of Net on clients, carried out right behind the call that led to them.

use crate::io::Driver;
use crate::proto::client::Disconnect;
use crate::shard::clients::Clients;
use crate::shard::clients::aside::Admin;
use crate::shard::local::LocalSide;
use crate::shard::net::effects::Effect;
use crate::shard::outlets::Outlets;

impl Clients {
    /// Carries out the effects of a call of Net, in their order. Due behind each call that may have some.
    pub(crate) fn after_net<D: Driver>(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide) {
        while let Some(effect) = out.net.next_effect() {
            match effect {
                Effect::Client { index, user, headers } => {
                    let aside = self.asides.entry(index);
                    aside.header_user = user.unwrap_or_default();
                    aside.headers = headers;
                }
                Effect::Slow(index) => self.disconnect(out, side, index, Disconnect::Slow),
                Effect::Lost(index, dropped) => {
                    let subs = self.session_of(out.net, index).map(|session| &session.subs);
                    side.lost(out.cx, subs, &dropped);
                }
                Effect::Admin(index) => {
                    self.asides.entry(index).admin = Some(Admin::Upgraded);
                }
                Effect::Message { key, message } => self.first_message(out, side, key, &message),
            }
        }
    }

    /// Continues with the bytes behind requests that were answered at once. One request of each connection
    /// in a turn: thousands may wait, and handling one inside the other would need a stack for all.
    pub(crate) fn continue_answered<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
    ) {
        for key in out.net.http.take_answered() {
            out.net.request_done(out.cx, out.codec, out.post, key);
            self.after_net(out, side);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::net::record::Phase;

    #[test]
    fn effects_are_carried_out_in_their_order_and_once() {
        let mut of = Wired::new(Plan::default());
        let (mut clients, mut side) = (Clients::new(&of.cx), LocalSide::new(&of.cx));
        let (_, key) = of.connect_client();
        let index = key.index;
        of.net.effect(Effect::Client { index, user: Some("alice".into()), headers: None });
        of.net.effect(Effect::Admin(index));
        of.net.effect(Effect::Slow(index));
        clients.after_net(&mut of.outlets(), &mut side);
        assert_eq!(clients.asides.header_user(index).map(|user| user.as_str()), Some("alice"));
        assert!(clients.asides.is_admin(index));
        assert!(of.net.conn(key).is_some_and(|conn| conn.phase == Phase::Closing));
        assert!(of.net.next_effect().is_none());
    }
}
