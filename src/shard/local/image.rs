//! The byte form of the subscribers' side: channels with their subscribers in order, and filters.

use super::{FanOuts, LocalSide};
use crate::base::image::{Broken, ImageReader, ImageWriter, Slots, kind};
use crate::hub::filter::FiltersReader;
use crate::hub::local::image::LocalsReader;
use crate::shard::context::Cx;

impl LocalSide {
    /// Writes what there is beside the channels, and which there are. The end of their table.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) -> usize {
        // The buffers of a fan-out live for a turn.
        let Self { locals, next_serial, filters, fan_outs: _ } = self;
        out.record(kind::LOCAL_SIDE, |out| {
            out.field(next_serial);
            out.field(&locals.slots());
            out.field(&filters.slots());
        });
        locals.slots_end()
    }

    /// Writes what is small, once all channels are written.
    pub(crate) fn write_rest(&self, out: &mut ImageWriter) {
        self.filters.write(out);
    }

    /// What keeps this group from being written.
    pub(crate) fn unsettled(&self) -> [(&'static str, usize); 2] {
        [
            ("fan-outs", self.locals.fan_outs()),
            ("channels whose homes have not answered", self.locals.awaited()),
        ]
    }
}

/// A subscribers' side that is read from an image.
#[derive(Default)]
pub(crate) struct LocalReader(Option<(u32, LocalsReader, FiltersReader)>);

impl LocalReader {
    /// Reads a record, if it is of this group.
    pub(crate) fn record(
        &mut self,
        cx: &Cx,
        found: u8,
        from: &mut ImageReader<'_>,
    ) -> Result<bool, Broken> {
        match (found, &mut self.0) {
            (kind::LOCAL_SIDE, None) => {
                let next_serial = from.field("LocalSide.next_serial")?;
                let locals = LocalsReader::new(
                    from.field::<Slots>("LocalSide.locals")?,
                    cx.node.names.clone(),
                );
                let filters = FiltersReader::new(from.field("LocalSide.filters")?);
                self.0 = Some((next_serial, locals, filters));
            }
            (kind::LOCAL_SIDE, Some((next_serial, locals, filters))) => {
                *next_serial = from.field("LocalSide.next_serial")?;
                locals.set_slots(from.field::<Slots>("LocalSide.locals")?);
                *filters = FiltersReader::new(from.field("LocalSide.filters")?);
            }
            (kind::FILTER, Some((_, _, filters))) => filters.filter(from)?,
            (kind::LOCAL, Some((_, locals, _))) => locals.channel(from)?,
            (kind::FILTER | kind::LOCAL, None) => return Err(from.misplaced()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// All of it.
    pub(crate) fn end(self) -> Result<LocalSide, Broken> {
        let none = Broken::Value("a shard without a subscribers' side");
        let (next_serial, locals, filters) = self.0.ok_or(none)?;
        let filters = filters.end()?;
        Ok(LocalSide {
            locals: locals.end(&filters)?,
            next_serial,
            filters,
            fan_outs: FanOuts::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::filter::FilterNode;
    use crate::base::image::Written;
    use crate::base::time::Millis;
    use crate::hub::filter::Filter;
    use crate::hub::subscribers::{Subscriber, Traits};
    use crate::shard::fixture::Plan;

    #[test]
    fn subscribers_and_filters_come_back() {
        let cx = Plan::default().cx();
        let mut side = LocalSide::new(&cx);
        side.next_serial = 5;
        let node = FilterNode {
            cmp: "in".into(),
            key: "t".into(),
            vals: vec!["b".into(), "a".into()],
            ..FilterNode::default()
        };
        let node = FilterNode { op: "not".into(), nodes: vec![node], ..FilterNode::default() };
        let filter = side.filters.intern(Filter::new(&node).unwrap()).unwrap();
        let at = side.locals.find_or_insert("news", 0);
        let local = side.locals.get(at).unwrap();
        local.claims = 1;
        let traits = Traits::JSON.with_filter(filter.get());
        local.subscribers.add(Subscriber { conn: 3, traits });
        assert_eq!(side.unsettled().iter().map(|(_, count)| count).sum::<usize>(), 0);
        let write = |side: &LocalSide| {
            let mut out = ImageWriter::new(Millis(0));
            let end = side.write_head(&mut out);
            side.locals.write(&mut out, 0..end, &mut Written::default(), usize::MAX);
            side.write_rest(&mut out);
            out.finish()
        };
        let image = write(&side);
        let mut from = ImageReader::new(&image, Millis(0)).unwrap();
        let mut reader = LocalReader::default();
        while let Some(found) = from.next_record().unwrap() {
            assert!(reader.record(&cx, found, &mut from).unwrap());
        }
        let again = reader.end().unwrap();
        assert_eq!(write(&again), image);
        assert_eq!((again.filters.bytes(), again.next_serial), (side.filters.bytes(), 5));
        // Its holder gives the filter back.
        let mut again = again;
        again.filters.release(filter);
        assert!(again.filters.is_empty());
    }
}
