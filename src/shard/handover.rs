//! A shard that is handed over to another process: its image, its sockets, and the orders for it. It stays whole
//! until the other process has it.

use crate::base::id::ConnKey;
use crate::base::time::Millis;
use crate::io::Driver;
use crate::shard::Shard;
use crate::shard::copying::Copying;
pub use crate::shard::copying::{Slice, SliceMax};
use crate::shard::home::handover::ChannelNames;
use crate::shard::mail::HandoverStep;

/// A shard, as the process sees it that hands it over.
pub struct HandingOver<'a, D: Driver>(&'a mut Shard<D>);

impl<D: Driver> Shard<D> {
    /// For what a handover to another process needs of the shard.
    pub fn handing_over(&mut self) -> HandingOver<'_, D> {
        HandingOver(self)
    }
}

impl<D: Driver> HandingOver<'_, D> {
    /// Writes the shard, which has settled, and keeps it. Either it or a shard that is made of the image goes
    /// on ([`Shard::go_on`], [`Shard::thaw`]), never both: they would seal records under one nonce.
    ///
    /// # Errors
    /// All that [`Shard::unsettled`] names.
    pub fn image(&mut self) -> Result<Vec<u8>, Vec<(&'static str, usize)>> {
        self.begin_copy();
        self.begin_last()?;
        let slice = self.next_slice(SliceMax::NONE);
        self.0.life.copying = None;
        Ok(slice.map(|slice| slice.part).unwrap_or_default())
    }

    /// Begins to write the shard in slices, while it runs. Returns the moment from which times in them are
    /// distances.
    pub fn begin_copy(&mut self) -> Millis {
        let now = self.0.cx.now;
        self.0.life.copying = Some(Box::new(Copying::new(now)));
        self.0.net.driver.share(true);
        now
    }

    /// Writes the next slice; `None` behind the last one.
    pub fn next_slice(&mut self, max: SliceMax) -> Option<Slice> {
        let mut copying = self.0.life.copying.take()?;
        let slice = copying.next(self.0, max);
        self.0.life.copying = Some(copying);
        slice
    }

    /// Begins once more, while the shard runs: the slices that follow have what has changed.
    pub fn begin_again(&mut self) {
        if let Some(copying) = &mut self.0.life.copying {
            copying.begin_again(false);
        }
    }

    /// The same for the last time, of a shard that has settled. The slices that follow make the ones before them
    /// whole. The shard has no turn until it goes on ([`Shard::go_on`]), or ends.
    ///
    /// # Errors
    /// All that [`Shard::unsettled`] names.
    pub fn begin_last(&mut self) -> Result<(), Vec<(&'static str, usize)>> {
        let left = self.0.unsettled();
        if !left.is_empty() {
            return Err(left);
        }
        if let Some(copying) = &mut self.0.life.copying {
            copying.begin_again(true);
        }
        Ok(())
    }

    /// The socket of a connection.
    pub fn socket(&self, key: ConnKey) -> Option<&D::Socket> {
        self.0.net.socket(key)
    }

    /// The time of the last turn.
    pub fn now(&self) -> Millis {
        self.0.cx.now
    }

    /// Connections of the shard.
    pub fn connections(&self) -> usize {
        self.0.net.conns.len()
    }

    /// The sockets of all connections, by their keys.
    pub fn sockets(&self) -> impl Iterator<Item = (ConnKey, &D::Socket)> {
        self.0.net.sockets()
    }

    /// The channels at a broker that the other process has to listen to: what has changed since the last call.
    pub fn channel_names(&mut self) -> ChannelNames {
        self.0.home.channel_names()
    }

    /// Has the broker divide what it delivers between this process and the other one.
    pub fn fence(&mut self, key: u64) {
        self.0.home.fence(&self.0.cx, key, &mut self.0.post);
        self.0.post.flush(&self.0.cx);
    }

    /// The listeners of this shard.
    pub fn listeners(&self) -> Vec<&D::Socket> {
        self.0.net.driver.listeners()
    }

    /// Takes the way to the shard of another process, if one was passed to this shard.
    pub fn take_link(&mut self) -> Option<D::Socket> {
        self.0.net.driver.take_link()
    }

    /// Mail that was opened so far.
    pub fn mail_opened(&self) -> u64 {
        self.0.cx.counters().mail.get()
    }

    /// Takes the next step of a handover that the control thread has ordered.
    pub fn take_step(&mut self) -> Option<HandoverStep> {
        self.0.life.steps.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use crate::base::id::ShardId;
    use crate::base::time::Millis;
    use crate::shard::fixture::{Plan, shard};
    use crate::shard::mail::{CONTROL, HandoverAction, HandoverStep, Mail};

    #[test]
    fn steps_come_in_their_order_and_a_shard_that_has_not_settled_is_not_written() {
        let (mut shard, mut lane, world) = shard(Plan::default());
        for attempt in [1, 2] {
            let step = HandoverStep { attempt, action: HandoverAction::Probe };
            lane.push(Mail::Handover(Box::new(step)));
        }
        lane.flush(CONTROL);
        let link = world.borrow_mut().connect_to(ShardId(0));
        world.borrow_mut().write(link, b"nonsense\r\n\r\n");
        assert!(shard.handing_over().image().is_err(), "mail is not opened");
        shard.turn_after(Some(Millis(0)));
        let mut steps = std::iter::from_fn(|| shard.handing_over().take_step());
        assert_eq!([1, 2].map(|_| steps.next().map(|step| step.attempt)), [Some(1), Some(2)]);
        assert!(steps.next().is_none());
        assert_eq!(shard.handing_over().mail_opened(), 2);
        assert!(shard.handing_over().take_link().is_none());
        assert!(shard.handing_over().listeners().is_empty());
    }
}
