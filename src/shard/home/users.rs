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
