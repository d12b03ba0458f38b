//! Users at their home: how many connections each has, where an option limits that.

use std::sync::Arc;

use super::Home;
use crate::base::id::{ConnKey, ShardId};
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::mail::{Mail, UserConn};

impl Home {
    /// Admits one more connection of a user, or refuses it. With a single connection for each user the older
    /// ones are evicted.
    pub(super) fn user_enter(&mut self, cx: &Cx, from: ShardId, conn: &UserConn, out: &mut Post) {
        let client = Arc::clone(&cx.client);
        let single = client.single_connection();
        let limit = client.user_connection_limit as usize;
        let UserConn { user, asker } = conn;
        let entered = self.user_conns.enter(user, (from, asker.conn), limit, single);
        let admitted = entered.is_some();
        for (shard, conn) in entered.into_iter().flatten() {
            out.send(cx, shard, Mail::Evict { conn });
        }
        out.send(cx, from, Mail::UserEntered { asker: *asker, admitted });
    }

    /// A counted connection has gone.
    pub(super) fn user_leave(&mut self, from: ShardId, user: &str, conn: ConnKey) {
        self.user_conns.leave(user, (from, conn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, conn};
    use crate::shard::mail::Asker;

    fn driven(limit: u32) -> Driven {
        let mut plan = Plan::default();
        plan.client.user_connection_limit = limit;
        Driven::of(plan)
    }

    fn enters(driven: &mut Driven, user: &str, index: u32) -> bool {
        let asker = Asker::of(conn(index));
        driven.handle(1, Mail::UserEnter(UserConn { user: user.into(), asker }.into()));
        match driven.sent_to(1)[..] {
            [Mail::UserEntered { asker: of, admitted }] if of == asker => admitted,
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_has_a_limited_number_of_connections() {
        let mut driven = driven(2);
        assert!(enters(&mut driven, "ann", 1) && enters(&mut driven, "ann", 2));
        assert!(!enters(&mut driven, "ann", 3) && enters(&mut driven, "bob", 3));
        driven.handle(1, Mail::UserLeave { user: "ann".into(), conn: conn(1) });
        assert!(enters(&mut driven, "ann", 4));
        for (user, index) in [("ann", 2), ("ann", 4), ("bob", 3)] {
            driven.handle(1, Mail::UserLeave { user: user.into(), conn: conn(index) });
        }
        assert!(driven.home.left().iter().all(|(_, count)| *count == 0));
    }
}
