//! Which connections and users there are here: for orders of the control thread and for its lists.

use crate::base::id::{ConnKey, ShardId};
use crate::io::Driver;
use crate::session::Session;
use crate::shard::clients::Clients;
use crate::shard::context::Cx;
use crate::shard::mail::{Listed, Order};
use crate::shard::net::Net;
use crate::shard::net::record::NONE;
use crate::shard::orders::TURN_LISTED_MAX;

impl Clients {
    /// Connections here that an order is about.
    pub(crate) fn connections_for<D: Driver>(
        &self,
        cx: &Cx,
        net: &Net<D>,
        order: &Order,
    ) -> Vec<ConnKey> {
        let Order { user, all_users, client, session, .. } = order;
        if !all_users || !client.is_empty() || !session.is_empty() {
            let user = (!all_users).then_some(user.as_str());
            return self.connections_of(cx, net, user, client, session, usize::MAX);
        }
        let conn = |session: &Session| Some(net.at(session.conn)?.key(session.conn));
        let sessions = self.sessions.iter().filter(|(_, session)| !session.flags.hidden());
        sessions.filter_map(|(_, session)| conn(session)).collect()
    }

    /// Connections here of a user, or of any user where a client or session names one connection.
    pub(crate) fn connections_of<D: Driver>(
        &self,
        cx: &Cx,
        net: &Net<D>,
        user: Option<&str>,
        client: &str,
        session: &str,
        max: usize,
    ) -> Vec<ConnKey> {
        if !client.is_empty() || !session.is_empty() {
            let rules = &cx.node.rules;
            let by_client = rules.client_ids.open(client);
            let by_session = rules.session_ids.open_secret(session);
            let found = match (client.is_empty(), session.is_empty()) {
                (false, true) => by_client,
                (true, _) => by_session.filter(|of| has_session_id(cx, net, *of)),
                (false, false) => by_client.filter(|of| by_session == Some(*of)),
            };
            let key = found.filter(|(shard, _)| *shard == cx.id).map(|(_, key)| key);
            let is_theirs = |key: &ConnKey| {
                let conn = net.at(key.index);
                let conn = conn.filter(|conn| conn.generation == key.generation);
                let session = conn.and_then(|conn| self.sessions.get(conn.session as usize));
                session.is_some_and(|session| user.is_none_or(|user| session.user == user))
            };
            return key.filter(is_theirs).into_iter().collect();
        }
        let Some(user) = user else { return Vec::new() };
        let hash = cx.node.names.hash(user);
        let sessions = &self.sessions;
        let first = self.users.first(hash, |at| sessions[*at as usize].user == user);
        let chain = std::iter::successors(first, |at| {
            Some(sessions[*at as usize].user_links.next).filter(|next| *next != NONE)
        });
        chain
            .take(max)
            .filter_map(|at| {
                let index = sessions[at as usize].conn;
                Some(net.at(index)?.key(index))
            })
            .collect()
    }

    /// Hashes of some users with connections here: of those whose first session is in the next slots.
    pub(crate) fn list_users(&self, cx: &Cx, cursor: u32, zeros: u32, listed: &mut Listed) {
        let end = cursor.saturating_add(TURN_LISTED_MAX as u32);
        for at in cursor..end.min(self.sessions.capacity() as u32) {
            let Some(session) = self.sessions.get(at as usize) else { continue };
            let flags = session.flags;
            if flags.detached() || flags.hidden() || session.user_links.prev != NONE {
                continue;
            }
            let hash = cx.node.names.hash(&session.user);
            if hash.trailing_zeros() >= zeros {
                listed.users.push(hash);
            }
        }
        listed.next = ((end as usize) < self.sessions.capacity()).then_some(end);
    }
}

/// Whether a connection's session has an id: not over a two-way WebSocket.
fn has_session_id<D: Driver>(cx: &Cx, net: &Net<D>, (shard, key): (ShardId, ConnKey)) -> bool {
    let conn = net.at(key.index).filter(|_| shard == cx.id);
    conn.is_some_and(|conn| conn.form.transport().has_session_ids())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::session;
    use crate::shard::fixture::Plan;

    #[test]
    fn a_list_names_each_user_once_and_no_hidden_ones() {
        let cx = Plan::default().cx();
        let mut clients = Clients::new(&cx);
        for (user, prev, hidden) in
            [("alice", NONE, false), ("alice", 0, false), ("bob", NONE, false), ("", NONE, true)]
        {
            let mut session = session(user);
            session.user_links.prev = prev;
            session.flags.set_hidden(hidden);
            clients.sessions.insert(session);
        }
        let mut listed = Listed::default();
        clients.list_users(&cx, 0, 0, &mut listed);
        assert_eq!(listed.users, ["alice", "bob"].map(|user| cx.node.names.hash(user)));
        // A sample leaves out those whose hash has too few zeros.
        let mut none = Listed::default();
        clients.list_users(&cx, 0, 65, &mut none);
        assert!(none.users.is_empty());
    }
}
