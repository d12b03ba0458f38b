//! One message for a channel's subscribers, in every form that any of them takes.

use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::heap::HeapBytes;
use crate::base::tags::Tags;
use crate::base::time::Millis;

/// The kind of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParcelKind {
    /// A publication: for all whose filter it passes.
    Publication,
    /// Join and leave events, for subscribers that take them.
    Presence,
}

/// One message of a channel, encoded once in each form that is in use.
#[derive(Debug)]
pub struct Parcel {
    /// Its kind.
    pub kind: ParcelKind,
    /// A publication's place in the stream, 0 without history.
    pub offset: u64,
    /// The offset of the publication before it in the stream, 0 for the first. Offsets of a broker may have
    /// holes, so that the next one is not known from this one.
    pub after: u64,
    /// Its frames by form; what isn't a publication has those of connections only.
    pub frames: Vec<(Form, Frames)>,
    /// A publication's tags, packed.
    pub tags: Box<[u8]>,
    /// It can't be shown to JSON connections at all.
    pub unfit_for_json: bool,
    /// When its home took it, if that is to be measured.
    pub taken_at: Option<Millis>,
}

/// One message in one form.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// In full; left out where everybody gets the patch.
    pub full: Option<SharedFrame>,
    /// As a patch, where there is one.
    pub patch: Option<SharedFrame>,
}

impl Parcel {
    /// A parcel in no form yet, behind the offset before its own.
    pub fn new(kind: ParcelKind, offset: u64, tags: Tags<'_>) -> Self {
        Self {
            kind,
            offset,
            after: offset.saturating_sub(1),
            frames: Vec::new(),
            tags: tags.bytes().into(),
            unfit_for_json: false,
            taken_at: None,
        }
    }

    fn frames_of(&self, form: Form) -> Option<&Frames> {
        let find = |form| self.frames.iter().find(|(of, _)| *of == form);
        let found = find(form).or_else(|| match self.kind {
            ParcelKind::Publication => None,
            ParcelKind::Presence => find(form.of_connection()),
        });
        found.map(|(_, frames)| frames)
    }

    /// The bytes for a subscriber. `based`: it has the publication that a patch builds on. `None`
    /// where the parcel can't be shown to it.
    pub fn frame(&self, form: Form, based: bool) -> Option<&SharedFrame> {
        let frames = self.frames_of(form)?;
        frames.patch.as_ref().filter(|_| based).or(frames.full.as_ref())
    }

    /// A publication in full, as such a subscriber reads it.
    pub fn full(&self, form: Form) -> Option<&SharedFrame> {
        self.frames_of(form)?.full.as_ref()
    }

    /// Bytes that it keeps alive, its own among them.
    pub fn bytes(&self) -> usize {
        let mut bytes = size_of::<Self>() + 2 * size_of::<usize>() + self.tags.len();
        bytes += self.frames.capacity() * size_of::<(Form, Frames)>();
        // A loop and no chain of iterators: each delivery is counted twice on its way.
        for (_, Frames { full, patch }) in &self.frames {
            bytes += full.as_ref().map_or(0, SharedFrame::heap_bytes);
            bytes += patch.as_ref().map_or(0, SharedFrame::heap_bytes);
        }
        bytes
    }

    /// Bytes of its longest form.
    pub fn longest(&self) -> usize {
        self.each_frame().map(SharedFrame::len).max().unwrap_or(0)
    }

    fn each_frame(&self) -> impl Iterator<Item = &SharedFrame> {
        self.frames.iter().flat_map(|(_, Frames { full, patch })| [full, patch]).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::{Data, Framing};

    #[test]
    fn each_form_gets_frames_that_it_can_read() {
        let frame = |text: &str| Some(SharedFrame::new(text.as_bytes()));
        let frames = |full: &str, patch: &str| Frames {
            full: frame(full),
            patch: frame(patch).filter(|_| !patch.is_empty()),
        };
        let events = Form::new(Framing::Events, false);
        let delta = Form::JSON.with_data(Data::Delta);
        let kind = |kind, frames| Parcel { frames, ..Parcel::new(kind, 1, Tags::NONE) };
        let publication = kind(
            ParcelKind::Publication,
            vec![
                (Form::JSON, frames("json", "")),
                (delta, frames("text", "patch")),
                (events, frames("event", "")),
            ],
        );
        let get = |parcel: &Parcel, form, based| {
            let bytes = parcel.frame(form, based)?.bytes();
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let text = |text: &str| Some(text.to_owned());
        for (form, based, expected) in [
            (Form::JSON, true, text("json")),
            (delta, true, text("patch")),
            (delta, false, text("text")),
            (events, false, text("event")),
            (Form::BINARY, true, None),
            (events.with_data(Data::Delta), true, None),
        ] {
            assert_eq!(get(&publication, form, based), expected, "{form:?}");
        }
        assert!(publication.bytes() > 18, "their frames, and what holds them");
        assert_eq!(publication.longest(), 5);
        let event = kind(ParcelKind::Presence, vec![(Form::JSON, frames("json", ""))]);
        assert_eq!(get(&event, delta, true), text("json"));
        assert_eq!(get(&event, events, true), None);
    }
}
