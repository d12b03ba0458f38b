//! The byte form of a home: its channels, users, results of publishes, and how far channels at a broker are. What it knows of tokens and
//! encoded answers begins anew.

use super::Home;
use super::answers::Answers;
use super::followed::Remote;
use crate::base::image::{Broken, ImageReader, ImageWriter, kind};
use crate::base::rng::Rng;
use crate::hub::home::image::HomesReader;
use crate::hub::results::Results;
use crate::hub::user_conns::UserConns;
use crate::shard::context::Cx;

impl Home {
    /// Writes what there is beside the channels, and which there are. The end of their table.
    pub(crate) fn write_head(&self, out: &mut ImageWriter) -> usize {
        out.record(kind::HOME, |out| self.channels.write_head(out));
        self.channels.slots_end()
    }

    /// Writes what is small, once all channels are written.
    pub(crate) fn write_rest(&self, out: &mut ImageWriter) {
        let Self { user_conns, results, remote, .. } = self;
        user_conns.write(out);
        results.write(out);
        if let Some(remote) = remote {
            remote.write_image(out);
        }
    }
}

/// A home that is read from an image.
pub(crate) struct HomeReader {
    channels: Option<HomesReader>,
    /// A home without channels, and with what is read.
    home: Home,
}

impl HomeReader {
    /// The home of one of `shards` shards.
    pub(crate) fn new(cx: &Cx, shards: usize, rng: &mut Rng) -> Self {
        Self { channels: None, home: Home::new(cx, shards, rng) }
    }

    /// Reads a record, if it is of this group.
    pub(crate) fn record(
        &mut self,
        cx: &Cx,
        found: u8,
        from: &mut ImageReader<'_>,
    ) -> Result<bool, Broken> {
        match (found, &mut self.channels) {
            (kind::HOME, None) => {
                let (names, max) = (cx.node.names.clone(), cx.node.options.channels_idle_max);
                self.channels = Some(HomesReader::new(from, names, max)?);
            }
            (kind::HOME, Some(channels)) => channels.head(from)?,
            (kind::CHANNEL, Some(channels)) => channels.channel(from)?,
            (kind::PUBLICATIONS, Some(channels)) => channels.publications(from)?,
            (kind::USER, Some(_)) => self.home.user_conns.read(from)?,
            (kind::RESULT, Some(_)) => self.home.results.read(from)?,
            (kind::REMOTE, Some(_)) => self.remote()?.inherit(from)?,
            (kind::LINE, Some(_)) => self.remote()?.read_line(cx, from)?,
            (
                kind::CHANNEL
                | kind::PUBLICATIONS
                | kind::USER
                | kind::RESULT
                | kind::REMOTE
                | kind::LINE,
                None,
            ) => return Err(from.misplaced()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The channels at a broker: another process has none without one.
    fn remote(&mut self) -> Result<&mut Remote, Broken> {
        let remote = self.home.remote.as_deref_mut();
        remote.ok_or(Broken::Value("channels at a broker, which this node has none of"))
    }

    /// The whole home.
    pub(crate) fn end(mut self) -> Result<Home, Broken> {
        let channels = self.channels.ok_or(Broken::Value("a shard without a home"))?;
        self.home.channels = channels.end()?;
        Ok(self.home)
    }
}

/// Named, so that a new field of a home doesn't compile before it is decided what becomes of it.
#[expect(dead_code, reason = "its type is what counts")]
fn every_field(home: Home) -> (UserConns, Results, Answers) {
    let Home {
        channels: _,
        patcher: _,
        user_conns,
        results,
        events: _,
        answers,
        good_tokens: _,
        checks: _,
        remote: _,
    } = home;
    (user_conns, results, answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Millis;
    use crate::hub::home::image::ChannelsWritten;
    use crate::shard::home::driven::{Driven, with_history};
    use crate::shard::mail::PublishOptions;

    fn image_of(home: &Home, now: Millis) -> Vec<u8> {
        let mut out = ImageWriter::new(now);
        let end = home.write_head(&mut out);
        let written = &mut ChannelsWritten::default();
        home.channels.write_channels(&mut out, 0..end, written, usize::MAX);
        home.write_rest(&mut out);
        out.finish()
    }

    #[test]
    fn a_home_goes_on_from_its_image() {
        let mut driven = Driven::with(with_history());
        driven.publishes("news", "1");
        driven.subscribes("news", 1);
        driven.joins("room", 2, "anna");
        let options = || PublishOptions { idempotency_key: "once".into(), ..Default::default() };
        driven.publishes_with("keyed", "1", options());
        driven.sent_to(1);
        let now = driven.cx.now;
        let image = image_of(&driven.home, now);
        let mut from = ImageReader::new(&image, now).unwrap();
        let mut reader = HomeReader::new(&driven.cx, 2, &mut Rng::new(9));
        while let Some(found) = from.next_record().unwrap() {
            assert!(reader.record(&driven.cx, found, &mut from).unwrap());
        }
        driven.home = reader.end().unwrap();
        assert_eq!(image_of(&driven.home, now), image);
        assert!(driven.home.unsettled().iter().all(|(_, count)| *count == 0));
        // The next offset; and a publish that is sent once more changes nothing.
        driven.publishes("news", "2");
        let deliveries = driven.sent_to(1).len();
        assert!(deliveries >= 1);
        let before = driven.home.channels.kept();
        driven.publishes_with("keyed", "1", options());
        assert_eq!(driven.home.channels.kept(), before);
    }

    #[test]
    fn records_of_other_groups_are_not_taken() {
        let driven = Driven::with(with_history());
        let mut out = ImageWriter::new(Millis(0));
        out.record(kind::CHANNEL, |out| out.field(&0u32));
        out.record(kind::CONN, |_| {});
        let image = out.finish();
        let mut from = ImageReader::new(&image, Millis(0)).unwrap();
        let mut reader = HomeReader::new(&driven.cx, 2, &mut Rng::new(9));
        // A channel without a home before it.
        let found = from.next_record().unwrap().unwrap();
        let broken = reader.record(&driven.cx, found, &mut from);
        assert_eq!(broken, Err(Broken::Misplaced(kind::CHANNEL)));
        let mut from = ImageReader::new(&image, Millis(0)).unwrap();
        assert_eq!(reader.record(&driven.cx, kind::CONN, &mut from), Ok(false));
        assert!(reader.end().is_err());
    }
}
