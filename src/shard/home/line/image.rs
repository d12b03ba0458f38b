//! The byte form of a line. A read that is open, and what is held back meanwhile, are not in it: the line that is read
//! from it checks its position again, which finds both.

use std::collections::VecDeque;

use super::{Line, Link, bytes_of};
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, durable};
use crate::hub::broker::Entry;

durable!(Entry { after, time_ms, delta, record } anew { source: None });

impl Durable for Line {
    fn write(&self, out: &mut ImageWriter) {
        let Self {
            namespace,
            link,
            at,
            mark,
            window,
            window_bytes: _,
            unfiled: _,
            is_whole,
            is_base,
            bare,
            touched,
            confirmed,
            ahead,
            held: _,
            read,
            sent: _,
            shown: _,
            begins,
            checks,
            looks,
            is_unsure,
            is_stale,
            is_plain,
            renews,
        } = self;
        let begins_to_be_delivered = *link != Link::On && at.is_some();
        let is_open = read.is_some() || !ahead.is_empty() || *is_stale || *looks;
        out.field(namespace);
        out.field(at);
        out.field(mark);
        out.field(window);
        out.field(is_whole);
        out.field(is_base);
        out.field(bare);
        out.field(touched);
        out.field(confirmed);
        out.field(begins);
        out.field(&(*checks || begins_to_be_delivered || is_open && at.is_some()));
        out.field(&(*is_unsure || begins_to_be_delivered));
        out.field(is_plain);
        out.field(renews);
    }

    /// A line whose channel is delivered: the process listened before it got this.
    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let mut line = Self::new(from.field("Line.namespace")?);
        line.link = Link::On;
        line.at = from.field("Line.at")?;
        line.mark = from.field("Line.mark")?;
        line.window = from.field("Line.window")?;
        line.is_whole = from.field("Line.is_whole")?;
        line.is_base = from.field("Line.is_base")?;
        line.bare = from.field("Line.bare")?;
        line.touched = from.field("Line.touched")?;
        line.confirmed = from.field("Line.confirmed")?;
        line.begins = from.field("Line.begins")?;
        line.checks = from.field("Line.checks")?;
        line.is_unsure = from.field("Line.is_unsure")?;
        line.is_plain = from.field("Line.is_plain")?;
        line.renews = from.field("Line.renews")?;
        if !is_chain(&line.window, line.at.as_ref().map(|at| at.offset)) {
            return Err(Broken::Value("the window of a line"));
        }
        line.window_bytes = line.window.iter().map(bytes_of).sum();
        line.unfiled = line.window.len();
        Ok(line)
    }
}

/// Each publication follows the one before it, and the last is that at the position.
fn is_chain(window: &VecDeque<Entry>, at: Option<u64>) -> bool {
    let follows = |(one, next): (&Entry, &Entry)| next.after == one.record.offset();
    let grows = |entry: &Entry| entry.after < entry.record.offset();
    window.iter().zip(window.iter().skip(1)).all(follows)
        && window.iter().all(grows)
        && window.back().is_none_or(|last| Some(last.record.offset()) == at)
}

impl Line {
    /// It needs an answer of the broker though nothing has come.
    pub(in crate::shard::home) fn is_in_doubt(&self) -> bool {
        self.checks || self.begins || self.renews.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::image::kind;
    use crate::base::time::Millis;
    use crate::hub::broker::Ticket;
    use crate::hub::history::{Position, Published, Record};
    use crate::shard::home::line::{Need, Query, fingerprint};
    use crate::shard::samples::{decoded, encoded, sample};

    fn entry(offset: u64) -> Entry {
        let text = offset.to_string();
        let published = Published { data: text.as_bytes(), is_json: true, ..<_>::default() };
        Entry {
            after: offset - 1,
            time_ms: 7,
            source: None,
            delta: false,
            record: Record::new(offset, &published),
        }
    }

    fn top(offset: u64) -> Position {
        Position { offset, epoch: Some("a life".into()) }
    }

    fn frozen(line: &Line, now: Millis) -> Vec<u8> {
        let mut out = ImageWriter::new(now);
        out.record(kind::LINE, |out| out.field(line));
        out.finish()
    }

    fn read(image: &[u8]) -> Result<Line, Broken> {
        let mut from = ImageReader::new(image, Millis(2_000_000))?;
        from.next_record()?;
        from.field("line")
    }

    fn thawed(line: &Line, now: Millis) -> Result<Line, Broken> {
        read(&frozen(line, now))
    }

    /// A line that stands at offset 3, with a whole window.
    fn at_three() -> Line {
        let mut line = Line::new(0);
        line.listen();
        let now = Millis(1_000);
        let query = line.query(Ticket(1), Need::Missed, false, 10);
        assert!(matches!(query, Some(Query::Read(_))));
        line.answered(now, top(3), vec![entry(3), entry(2), entry(1)], 10, 10);
        line
    }

    #[test]
    fn a_line_goes_on_where_it_stood() {
        let line = at_three();
        let mut again = thawed(&line, Millis(1_000)).unwrap();
        assert_eq!((again.at().cloned(), again.window_len()), (Some(top(3)), 3));
        assert_eq!(again.window_bytes(), line.window_bytes());
        assert!(!again.is_in_doubt() && again.is_settled());
        let now = Millis(2_000_000);
        // A copy of what the subscribers have, and the next one.
        let effects = again.arrive(now, top(3).epoch, entry(3), 10);
        assert_eq!((effects.deliver.len(), effects.duplicates), (0, 1));
        let effects = again.arrive(now, top(4).epoch, entry(4), 10);
        assert_eq!(effects.deliver.len(), 1);
        assert_eq!(effects.deliver[0].after, 3);
    }

    #[test]
    fn what_was_held_back_is_read_again() {
        let mut line = at_three();
        let effects = line.arrive(Millis(2_000), top(5).epoch, entry(5), 10);
        assert!(effects.deliver.is_empty());
        let mut again = thawed(&line, Millis(2_000)).unwrap();
        assert!(again.is_in_doubt());
        assert!(again.query(Ticket(2), Need::Nothing, false, 10).is_some());
        let effects = again.answered(Millis(9), top(5), vec![entry(3), entry(4), entry(5)], 10, 10);
        assert_eq!(effects.deliver.len(), 2);
    }

    #[test]
    fn a_window_that_is_no_chain_is_refused() {
        let mut line = at_three();
        line.window.pop_back();
        assert!(thawed(&line, Millis(0)).is_err(), "it doesn't end at the position");
        let mut line = at_three();
        line.window.remove(1);
        assert!(thawed(&line, Millis(0)).is_err(), "it has a hole");
    }

    #[test]
    fn a_line_of_a_released_version_goes_on() {
        let text = sample("line-0.2.0.txt", || encoded(&frozen(&at_three(), Millis(1_000))));
        let mut line = read(&decoded(&text)).unwrap();
        assert_eq!((line.at().cloned(), line.window_len()), (Some(top(3)), 3));
        let effects = line.arrive(Millis(2_000_001), top(4).epoch, entry(4), 10);
        assert_eq!((effects.deliver.len(), effects.deliver[0].after), (1, 3));
    }

    /// Fingerprints go to the next version: another way to make them would be another format.
    #[test]
    fn a_fingerprint_is_the_same_in_each_version() {
        assert_eq!(fingerprint(&entry(3)), FINGERPRINT);
    }

    const FINGERPRINT: u64 = 16_757_412_874_043_200_461;
}
