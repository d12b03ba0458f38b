//! Figures that one thread writes and any thread reads: no lock, no read-modify-write.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A figure that only grows, written by one thread (its shard), read by any.
///
/// Shape: 8 bytes. A plain load and store instead of an atomic addition, which would lock the
/// cache line: exact as long as there is one writer. Readers see each value late by moments, never
/// torn.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more. Only the owner may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A figure that rises and falls, written by one thread (its shard), read by any.
///
/// Shape: 8 bytes.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// `n` more. Only the owner may call it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// `n` less. Only the owner may call it. Stops at 0: a figure that is off must not turn into
    /// a huge one.
    pub fn sub(&self, n: u64) {
        let value = self.0.load(Relaxed);
        debug_assert!(value >= n, "a gauge went below zero: {value} - {n}");
        self.0.store(value.saturating_sub(n), Relaxed);
    }

    /// Exactly `n` now. Only the owner may call it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The kind of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// The field's name.
    pub name: &'static str,
    /// The field's documentation.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
}

/// Whether a figure only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does: a [`Counter`].
    Counter,
    /// It doesn't: a [`Gauge`].
    Gauge,
}

/// Makes a struct of counters and gauges that knows its fields' names.
///
/// ```text
/// counters! {
///     /// What a shard did.
///     pub struct ShardCounters {
///         /// Connections accepted, since the start.
///         conns_opened: counter,
///         /// Connections open now.
///         conns_open: gauge,
///     }
/// }
/// ```
///
/// gives the struct with fields [`Counter`] and [`Gauge`], `Default`, `Debug`, `FIGURES` (what each is,
/// in order) and `each`, which calls with every name and value, in the same order; all as visible as
/// the struct.
#[allow(unused_macros, reason = "the shard's list is written above this layer")]
macro_rules! counters {
    (
        $(#[$attr:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $kind:ident,)*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $($(#[doc = $doc])+ $vis $field: $crate::base::counters::counters!(@ $kind),)*
        }

        impl $name {
            /// The descriptions of all figures, in order.
            $vis const FIGURES: &'static [$crate::base::counters::Figure] = &[$(
                $crate::base::counters::Figure {
                    name: stringify!($field),
                    help: concat!($($doc),+),
                    kind: $crate::base::counters::counters!(@ kind $kind),
                },
            )*];

            /// Calls `f` with the name and the value of each figure, in the order of `FIGURES`.
            $vis fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f(stringify!($field), self.$field.get());)*
            }
        }
    };
    (@ kind counter) => { $crate::base::counters::Kind::Counter };
    (@ kind gauge) => { $crate::base::counters::Kind::Gauge };
    (@ counter) => { $crate::base::counters::Counter };
    (@ gauge) => { $crate::base::counters::Gauge };
}

#[allow(unused_imports, reason = "the shard's list is written above this layer")]
pub(crate) use counters;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Kind;

    counters! {
        /// An example: alone on its cache lines, so that shards don't share one.
        #[repr(align(64))]
        struct Example {
            /// Connections accepted, since the start.
            conns_opened: counter,
            /// Connections open now.
            conns_open: gauge,
        }
    }

    #[test]
    fn figures_of_several_owners_sum_by_name() {
        let shards = [Example::default(), Example::default()];
        shards[0].conns_opened.add(5);
        shards[0].conns_opened.inc();
        shards[0].conns_open.add(6);
        shards[0].conns_open.sub(2);
        shards[1].conns_opened.add(10);
        shards[1].conns_open.set(7);

        let mut sums = BTreeMap::new();
        for shard in &shards {
            shard.each(|name, value| *sums.entry(name).or_insert(0) += value);
        }
        assert_eq!(sums, BTreeMap::from([("conns_open", 11), ("conns_opened", 16)]));
        let figures = Example::FIGURES.iter().map(|figure| (figure.name, figure.help, figure.kind));
        assert_eq!(
            figures.collect::<Vec<_>>(),
            [
                ("conns_opened", " Connections accepted, since the start.", Kind::Counter),
                ("conns_open", " Connections open now.", Kind::Gauge),
            ]
        );
        assert_eq!((align_of::<Example>(), size_of::<Example>()), (64, 64));
    }

    #[test]
    fn a_reader_on_another_thread_sees_the_value() {
        let figures = Example::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|_| figures.conns_opened.inc()));
        });
        assert_eq!(figures.conns_opened.get(), 1000);
    }
}
