//! The ways out of a shard: frames to its connections, mail to other shards.
//!
//! ```text
//!  Clients::x(&mut self, out: &mut Outlets<'_, D>, side: &mut LocalSide, ..)
//!                          |                        `- a group below that it changes
//!                          `- cx, net, post, codec: where effects go
//! ```
//! A group that stands above connections and mail gets them lent for the time of a call. It holds none
//! of the groups above: what those have to do is returned, or stands in [`Net::effects`].

use crate::base::id::ShardId;
use crate::io::Driver;
use crate::session::{Stop, WaitsFor};
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::net::Net;

/// The groups that take effects, lent for one call.
pub(crate) struct Outlets<'a, D: Driver> {
    pub(crate) cx: &'a Cx,
    pub(crate) net: &'a mut Net<D>,
    pub(crate) post: &'a mut Post,
    pub(crate) codec: &'a mut Codec,
}

/// Lends a shard's outlets, so that its other fields stay free to be used beside them.
macro_rules! outlets {
    ($shard:ident) => {
        $crate::shard::outlets::Outlets {
            cx: &$shard.cx,
            net: &mut $shard.net,
            post: &mut $shard.post,
            codec: &mut $shard.codec,
        }
    };
}
pub(crate) use outlets;

impl<D: Driver> Outlets<'_, D> {
    /// Takes credits for a request to `home`: the room that its answer may need.
    ///
    /// # Errors
    /// Without that many, the command waits for credit at this home.
    pub(crate) fn spend(&mut self, home: ShardId, credits: u8) -> Result<u8, Stop> {
        self.post.spend(home, credits).ok_or(Stop::Wait(WaitsFor::Credit(home)))
    }

    /// Puts a connection on the list of those that wait for credit at a home; once, however often it
    /// has to wait.
    pub(crate) fn wait_for_credit(&mut self, index: u32, home: ShardId) {
        let conn = &mut self.net[index];
        if !conn.flags.waiting() {
            conn.flags.set_waiting(true);
            self.post.wait_for_credit(home, conn.key(index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::fixture::{Plan, Wired};
    use crate::shard::mail::credits::Queue;

    #[test]
    fn without_credit_a_connection_waits_once() {
        let mut of = Wired::new(Plan::default());
        let (_, key) = of.connect_client();
        let home = ShardId(1);
        let mut out = of.outlets();
        let mut spent = 0;
        let stop = loop {
            match out.spend(home, 1) {
                Ok(credits) => spent += credits,
                Err(stop) => break stop,
            }
        };
        assert!(spent > 0);
        assert!(matches!(stop, Stop::Wait(WaitsFor::Credit(ShardId(1)))));
        out.wait_for_credit(key.index, home);
        out.wait_for_credit(key.index, home);
        assert!(out.net[key.index].flags.waiting());
        let queue = Queue::Shard(home);
        assert!(out.post.is_waited_for(queue));
        out.post.earn(home, spent);
        let allowance = out.post.allowance(queue, 0);
        assert_eq!(out.post.next_waiting(queue, &allowance).map(|(key, _)| key), Some(key));
        assert!(!out.post.is_waited_for(queue));
    }
}
