//! Encoders and buffers that all groups of a shard share.
//!
//! Nothing in here belongs to a connection or a channel: what it keeps between turns is capacity,
//! and answers that are cheaper to keep for a second than to encode again.

use super::context::Cx;
use super::home::answers::Pieces;
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::proto::client::Encoding;
use crate::proto::framing;
use crate::proto::ws::{self, Deflaters, Inflater};

/// Compressors, constant frames and scratch buffers of one shard.
pub(crate) struct Codec {
    pub(crate) deflaters: Deflaters,
    pub(crate) inflater: Inflater,
    /// The message that was inflated last.
    pub(crate) inflated: Vec<u8>,
    /// Parts of answers that went deflated to connections here.
    pub(crate) pieces: Pieces,
    pub(crate) constants: Constants,
    /// A message without its framing.
    pub(crate) scratch: Vec<u8>,
    /// A message with its framing.
    pub(crate) replies: Vec<u8>,
}

impl Codec {
    /// Compressors as the options say, without a dictionary in use.
    pub(crate) fn new(cx: &Cx) -> Self {
        let options = &cx.node.options;
        Self {
            deflaters: Deflaters::new(
                options.deflate.unwrap_or_default(),
                options.uni_websocket.deflate.unwrap_or_default(),
            ),
            inflater: Inflater::default(),
            inflated: Vec::new(),
            pieces: Pieces::default(),
            constants: Constants { pings: Vec::new(), ws_ping: ws::frame(ws::PING, b"") },
            scratch: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Once a second: forgets answers that nobody may want any more, and idle compressors.
    pub(crate) fn housekeeping(&mut self) {
        self.pieces.clear();
        self.deflaters.sweep();
    }
}

/// Frames that are the same for all connections of a form.
pub(crate) struct Constants {
    /// Pings as messages, for each form of connection that was pinged.
    pings: Vec<(Form, SharedFrame)>,
    pub(crate) ws_ping: SharedFrame,
}

impl Constants {
    /// The ping for a form of connection.
    pub(crate) fn ping(&mut self, form: Form) -> SharedFrame {
        if let Some((_, ping)) = self.pings.iter().find(|(of, _)| *of == form) {
            return ping.clone();
        }
        let mut out = Vec::new();
        framing::put(&mut out, form, Encoding::from(form).ping());
        if form.is_one_way() && form.framing().is_websocket() {
            //= client protocol, 8: one-way WebSockets are pinged by frames, too
            ws::put_frame(&mut out, ws::PING, b"");
        }
        let ping = SharedFrame::new(&out);
        self.pings.push((form, ping.clone()));
        ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Framing;
    use crate::shard::fixture::Plan;

    #[test]
    fn a_ping_is_encoded_once_for_each_form() {
        let mut codec = Codec::new(&Plan::default().cx());
        let json = codec.constants.ping(Form::JSON);
        let binary = codec.constants.ping(Form::BINARY);
        assert_ne!(json.bytes(), binary.bytes());
        assert_eq!(codec.constants.ping(Form::JSON).bytes().as_ptr(), json.bytes().as_ptr());
        assert_eq!(codec.constants.pings.len(), 2);
    }

    #[test]
    fn a_one_way_websocket_is_pinged_by_a_frame_too() {
        let mut codec = Codec::new(&Plan::default().cx());
        let ws_ping = codec.constants.ws_ping.clone();
        let one_way = Form::one_way(Framing::WebSocketSingle);
        assert!(codec.constants.ping(one_way).bytes().ends_with(ws_ping.bytes()));
        assert!(!codec.constants.ping(Form::JSON).bytes().ends_with(ws_ping.bytes()));
    }
}
