//! What a channel's subscribers are told at one time, in every form that any of them takes.

use crate::base::frame::SharedFrame;
use crate::base::tags::Tags;
use crate::base::time::Millis;

/// How a subscriber takes publications: its encoding, and what delta compression asks for (client
/// protocol, 21.2). What is told beside publications needs the encoding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Form {
    /// JSON.
    Json = 0,
    /// Protobuf.
    Protobuf = 1,
    /// JSON with the data as a string: asked for delta, without a position that it needs.
    JsonText = 2,
    /// JSON with the data as a string, full or as a patch.
    JsonDelta = 3,
    /// Protobuf, full or as a patch.
    ProtobufDelta = 4,
}

/// Forms that there are.
pub const FORMS: usize = 5;

impl Form {
    /// All of them, by their number.
    pub const ALL: [Self; FORMS] =
        [Self::Json, Self::Protobuf, Self::JsonText, Self::JsonDelta, Self::ProtobufDelta];

    /// The form of a subscriber. Patches go only to who is told of gaps: everybody else might miss
    /// the publication that a patch builds on.
    pub fn of(protobuf: bool, delta: bool, positioned: bool) -> Self {
        match (protobuf, delta, positioned) {
            (false, false, _) => Self::Json,
            (false, true, false) => Self::JsonText,
            (false, true, true) => Self::JsonDelta,
            (true, true, true) => Self::ProtobufDelta,
            (true, _, _) => Self::Protobuf,
        }
    }

    /// Its encoding is Protobuf.
    pub fn is_protobuf(self) -> bool {
        matches!(self, Self::Protobuf | Self::ProtobufDelta)
    }

    /// Patches may be sent to it.
    pub fn takes_patches(self) -> bool {
        matches!(self, Self::JsonDelta | Self::ProtobufDelta)
    }
}

/// What a parcel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A publication: for all whose filter it passes.
    Publication,
    /// Who came and who left: for those who take such events.
    Presence,
}

/// One message of a channel, encoded once in each form that is in use.
#[derive(Debug)]
pub struct Parcel {
    /// What it tells.
    pub told: Told,
    /// A publication's place in the stream, 0 without history.
    pub offset: u64,
    /// Plain JSON.
    pub json: Option<SharedFrame>,
    /// Full Protobuf.
    pub protobuf: Option<SharedFrame>,
    /// JSON with the full data as a string.
    pub text: Option<SharedFrame>,
    /// The patch in JSON.
    pub json_patch: Option<SharedFrame>,
    /// The patch in Protobuf.
    pub protobuf_patch: Option<SharedFrame>,
    /// A publication's tags, packed.
    pub tags: Box<[u8]>,
    /// It can't be shown to JSON connections at all.
    pub unfit_for_json: bool,
    /// When its home took it, if that is to be measured.
    pub taken_at: Option<Millis>,
}

impl Parcel {
    /// A parcel in no form yet.
    pub fn new(told: Told, offset: u64, tags: Tags<'_>) -> Self {
        Self {
            told,
            offset,
            json: None,
            protobuf: None,
            text: None,
            json_patch: None,
            protobuf_patch: None,
            tags: tags.bytes().into(),
            unfit_for_json: false,
            taken_at: None,
        }
    }

    /// The bytes for a subscriber. `based`: it has the publication that a patch builds on. `None`
    /// where the parcel can't be shown to it.
    pub fn frame(&self, form: Form, based: bool) -> Option<&SharedFrame> {
        let patched = |patch: &'_ Option<SharedFrame>| patch.is_some() && based;
        match form {
            Form::Json => self.json.as_ref(),
            Form::Protobuf => self.protobuf.as_ref(),
            Form::JsonDelta if patched(&self.json_patch) => self.json_patch.as_ref(),
            Form::ProtobufDelta if patched(&self.protobuf_patch) => self.protobuf_patch.as_ref(),
            Form::JsonText | Form::JsonDelta => self.text.as_ref().or(self.json.as_ref()),
            Form::ProtobufDelta => self.protobuf.as_ref(),
        }
    }

    /// A publication in full, as such a subscriber reads it.
    pub fn full(&self, form: Form) -> Option<&SharedFrame> {
        match form {
            Form::Json => self.json.as_ref(),
            Form::JsonText | Form::JsonDelta => self.text.as_ref(),
            Form::Protobuf | Form::ProtobufDelta => self.protobuf.as_ref(),
        }
    }

    /// Bytes that it keeps alive.
    pub fn bytes(&self) -> usize {
        self.frames().map(SharedFrame::len).sum::<usize>() + self.tags.len()
    }

    /// Bytes of its longest form.
    pub fn longest(&self) -> usize {
        self.frames().map(SharedFrame::len).max().unwrap_or(0)
    }

    fn frames(&self) -> impl Iterator<Item = &SharedFrame> {
        let Self { json, protobuf, text, json_patch, protobuf_patch, .. } = self;
        [json, protobuf, text, json_patch, protobuf_patch].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_gets_what_it_can_read() {
        let frame = |text: &str| Some(SharedFrame::new(text.as_bytes()));
        let parcel = Parcel {
            json: frame("json"),
            protobuf: frame("protobuf"),
            text: frame("text"),
            json_patch: frame("json patch"),
            protobuf_patch: frame("protobuf patch"),
            ..Parcel::new(Told::Publication, 1, Tags::NONE)
        };
        let get = |parcel: &Parcel, based| {
            Form::ALL.map(|form| {
                let bytes = parcel.frame(form, based)?.bytes();
                Some(String::from_utf8_lossy(bytes).into_owned())
            })
        };
        let some = |texts: [&str; FORMS]| texts.map(|text| Some(text.to_owned()));
        let all = some(["json", "protobuf", "text", "json patch", "protobuf patch"]);
        assert_eq!(get(&parcel, true), all);
        assert_eq!(get(&parcel, false), some(["json", "protobuf", "text", "text", "protobuf"]));
        let event = Parcel { text: None, json_patch: None, protobuf_patch: None, ..parcel };
        assert_eq!(get(&event, true), some(["json", "protobuf", "json", "json", "protobuf"]));
    }
}
