//! The shards that have subscribers of a channel.

use crate::base::flags::flags;
use crate::base::form::Form;
use crate::base::id::ShardId;
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter};
use crate::hub::subscribers::Traits;

/// A shard that publications of a channel go to, and all that is kept of it where it has one subscriber: 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The subscribers' shard.
    pub shard: ShardId,
    /// That shard lost a delivery of this channel and is not notified yet.
    pub gap: bool,
    /// The form that some of them, or all, take.
    form: Form,
    needs: Needs,
    /// Where that shard keeps the channel, so that a delivery needs no name.
    pub local: u32,
}

const _: () = assert!(size_of::<Option<Target>>() == 8);

flags! {
    /// Needs of a shard's subscribers.
    struct Needs(u8) {
        /// Somebody there takes patches and has nothing yet that they build on.
        fresh, set_fresh = 0;
        /// Somebody there gets join and leave events.
        joins, set_joins = 1;
    }
}

impl Target {
    /// The target of one subscriber.
    pub(super) fn of(shard: ShardId, local: u32, traits: Traits) -> Self {
        let mut needs = Needs::default();
        needs.set_joins(traits.takes_joins());
        Self { shard, gap: false, form: traits.form(), needs, local }
    }

    /// A form that somebody there takes.
    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Somebody there takes patches and has nothing yet that they build on.
    pub fn fresh(&self) -> bool {
        self.needs.fresh()
    }

    /// See [`Self::fresh`].
    pub fn set_fresh(&mut self, fresh: bool) {
        self.needs.set_fresh(fresh);
    }

    /// Whether anyone there gets join and leave events.
    pub fn takes_joins(&self) -> bool {
        self.needs.joins()
    }
}

/// An interested shard, with the counts of its subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) target: Target,
    /// How many take the target's form.
    count: u32,
    /// Subscribers there that get join and leave events.
    joiners: u32,
    /// Other forms, and how many take each.
    #[expect(clippy::box_collection, reason = "most have none: 8 bytes instead of 24")]
    others: Option<Box<Vec<(Form, u32)>>>,
}

const _: () = assert!(size_of::<Interest>() == 24);

impl Interest {
    /// The interest of a shard with one subscriber.
    pub(super) fn of_one(target: Target) -> Self {
        let joiners = u32::from(target.takes_joins());
        Self { target, count: 1, joiners, others: None }
    }

    /// The target alone says everything: there is one subscriber.
    pub(super) fn sole(&self) -> Option<&Target> {
        (self.count == 1 && self.others.is_none()).then_some(&self.target)
    }

    pub(super) fn add(&mut self, traits: Traits) {
        let form = traits.form();
        self.joiners += u32::from(traits.takes_joins());
        self.target.needs.set_joins(self.joiners > 0);
        if self.target.form == form {
            self.count += 1;
            return;
        }
        let others = self.others.get_or_insert_default();
        match others.iter_mut().find(|(of, _)| *of == form) {
            Some((_, count)) => *count += 1,
            None => others.push((form, 1)),
        }
    }

    pub(super) fn sub(&mut self, traits: Traits) {
        let form = traits.form();
        self.joiners -= u32::from(traits.takes_joins());
        self.target.needs.set_joins(self.joiners > 0);
        if self.target.form == form {
            self.count -= 1;
        } else if let Some(others) = &mut self.others
            && let Some(at) = others.iter().position(|(of, _)| *of == form)
        {
            others[at].1 -= 1;
            if others[at].1 == 0 {
                others.swap_remove(at);
            }
        } else {
            debug_assert!(false, "nobody took {form:?}");
        }
        if self.count == 0
            && let Some((form, count)) = self.others.as_mut().and_then(|others| others.pop())
        {
            (self.target.form, self.count) = (form, count);
        }
        if self.others.as_ref().is_some_and(|others| others.is_empty()) {
            self.others = None;
        }
    }

    /// The forms beside the target's, and how many take each.
    pub(super) fn others(&self) -> impl Iterator<Item = (Form, u32)> + '_ {
        self.others.iter().flat_map(|others| others.iter().copied())
    }

    /// Subscribers there.
    pub(super) fn count(&self) -> u32 {
        self.count + self.others().map(|(_, count)| count).sum::<u32>()
    }
}

impl Durable for Interest {
    // A gap is mail that waits: there is none when an image is written. Whether anyone gets join and leave
    // events follows from how many do.
    fn write(&self, out: &mut ImageWriter) {
        let Self { target, count, joiners, others } = self;
        let Target { shard, gap: _, form, needs, local } = target;
        out.field(shard);
        out.field(&needs.fresh());
        out.field(form);
        out.field(local);
        out.field(count);
        out.field(joiners);
        out.field(others);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let shard = from.field("Interest.shard")?;
        let mut needs = Needs::default();
        needs.set_fresh(from.field("Interest.fresh")?);
        let (form, local) = (from.field("Interest.form")?, from.field("Interest.local")?);
        let count = from.field("Interest.count")?;
        let joiners = from.field("Interest.joiners")?;
        needs.set_joins(joiners > 0);
        let others = from.field("Interest.others")?;
        let target = Target { shard, gap: false, form, needs, local };
        Ok(Self { target, count, joiners, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscriber_is_a_target_and_several_are_counted() {
        let shard = ShardId(3);
        let joins = Traits::JSON.with_joins(true);
        let target = Target::of(shard, 7, Traits::new(Form::BINARY));
        let mut interest = Interest::of_one(target.clone());
        assert_eq!((interest.sole(), interest.count()), (Some(&target), 1));
        interest.add(joins);
        assert_eq!((interest.sole(), interest.count()), (None, 2));
        assert!(interest.target.takes_joins() && interest.others().eq([(Form::JSON, 1)]));
        // The one that goes took the target's form: that of the other takes its place.
        interest.sub(Traits::new(Form::BINARY));
        assert_eq!(interest.sole(), Some(&Target::of(shard, 7, joins)));
        interest.sub(joins);
        assert!(interest.count() == 0 && !interest.target.takes_joins());
    }
}
