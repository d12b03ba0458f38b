//! How bytes for a connection are made: its frames, its encoding, and the needs of delta compression.

/// The framing of messages on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Framing {
    /// WebSocket frames, several messages in one.
    WebSocket = 0,
    /// WebSocket frames, one message in each.
    WebSocketSingle = 1,
    /// Chunks of an HTTP response; JSON with a line feed behind each message.
    Stream = 2,
    /// Chunks of an HTTP response with server-sent events.
    Events = 3,
    /// As `Stream`, without chunks: for HTTP/1.0.
    BareStream = 4,
    /// As `Events`, without chunks.
    BareEvents = 5,
    /// WebSocket frames, messages deflated with a window of 9 bits (RFC 7692).
    Deflate9 = 6,
    /// ... of 10 bits.
    Deflate10 = 7,
    /// ... of 11 bits.
    Deflate11 = 8,
    /// ... of 12 bits.
    Deflate12 = 9,
    /// ... of 13 bits.
    Deflate13 = 10,
    /// ... of 14 bits.
    Deflate14 = 11,
    /// ... of 15 bits.
    Deflate15 = 12,
    /// Publications as parts of one answer, with a comma between them; nothing else is framed so.
    Poll = 13,
}

impl Framing {
    /// All of them, by their number.
    pub const ALL: [Self; 14] = [
        Self::WebSocket,
        Self::WebSocketSingle,
        Self::Stream,
        Self::Events,
        Self::BareStream,
        Self::BareEvents,
        Self::Deflate9,
        Self::Deflate10,
        Self::Deflate11,
        Self::Deflate12,
        Self::Deflate13,
        Self::Deflate14,
        Self::Deflate15,
        Self::Poll,
    ];

    /// Deflated with a window of so many bits, 9 to 15.
    pub fn deflate(window_bits: u8) -> Self {
        debug_assert!((WINDOW_BITS_MIN..=WINDOW_BITS_MAX).contains(&window_bits));
        Self::ALL[usize::from(Self::Deflate9 as u8 + window_bits - WINDOW_BITS_MIN)]
    }

    /// Bits of the window that messages are deflated with; `None` when they go plain.
    pub fn window_bits(self) -> Option<u8> {
        let more = (self as u8).checked_sub(Self::Deflate9 as u8)?;
        (self != Self::Poll).then_some(WINDOW_BITS_MIN + more)
    }

    /// Frames of RFC 6455, deflated or not.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketSingle) || self.window_bits().is_some()
    }

    /// Server-sent events.
    pub fn is_events(self) -> bool {
        matches!(self, Self::Events | Self::BareEvents)
    }
}

/// Bits of the smallest window that messages are deflated with: zlib has none of 8.
pub const WINDOW_BITS_MIN: u8 = 9;

/// Bits of the largest window that there is.
pub const WINDOW_BITS_MAX: u8 = 15;

/// How the data of publications is written for a subscriber (client protocol, 21.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Data {
    /// As it is.
    Plain = 0,
    /// In JSON as a string: delta compression was requested, without the position that it needs.
    Text = 1,
    /// In full or as a patch; in JSON as a string.
    Delta = 2,
}

/// The form in which a connection, or a subscriber of it, gets its messages. What is in the same form is
/// the same bytes for all.
///
/// ```text
///  bit 0..4: framing   4: Protobuf   5: one-way (bare pushes, no replies)   6..8: data
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Form(u8);

impl Form {
    /// Bits of its number.
    pub const BITS: u32 = u8::BITS;

    const FRAMING: u8 = 15;
    const PROTOBUF: u8 = 1 << 4;
    const ONE_WAY: u8 = 1 << 5;
    const DATA_SHIFT: u32 = 6;

    /// JSON in WebSocket frames.
    pub const JSON: Self = Self(0);
    /// Protobuf in WebSocket frames.
    pub const BINARY: Self = Self(Self::PROTOBUF);

    /// Two-way, with data as it is.
    pub fn new(framing: Framing, protobuf: bool) -> Self {
        Self(framing as u8 | if protobuf { Self::PROTOBUF } else { 0 })
    }

    /// One-way: JSON.
    pub fn one_way(framing: Framing) -> Self {
        Self(framing as u8 | Self::ONE_WAY)
    }

    /// By its number.
    pub const fn from_u8(number: u8) -> Self {
        Self(number)
    }

    /// By a number that may be any: `None` where it is no form's.
    pub fn by_number(number: u8) -> Option<Self> {
        let framing = usize::from(number & Self::FRAMING);
        (framing < Framing::ALL.len() && number >> Self::DATA_SHIFT <= 2).then_some(Self(number))
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The framing of messages.
    pub fn framing(self) -> Framing {
        // Only the numbers of framings are written.
        Framing::ALL[usize::from(self.0 & Self::FRAMING)]
    }

    /// The same in other frames.
    pub fn with_framing(self, framing: Framing) -> Self {
        Self(self.0 & !Self::FRAMING | framing as u8)
    }

    /// Its encoding is Protobuf.
    pub fn is_protobuf(self) -> bool {
        self.0 & Self::PROTOBUF != 0
    }

    /// Pushes go without a reply around them, and nothing else does.
    pub fn is_one_way(self) -> bool {
        self.0 & Self::ONE_WAY != 0
    }

    /// How data is written.
    pub fn data(self) -> Data {
        match self.0 >> Self::DATA_SHIFT {
            0 => Data::Plain,
            1 => Data::Text,
            _ => Data::Delta,
        }
    }

    /// The same with data written in another way.
    pub const fn with_data(self, data: Data) -> Self {
        Self(self.0 & ((1 << Self::DATA_SHIFT) - 1) | (data as u8) << Self::DATA_SHIFT)
    }

    /// The form of a subscriber whose connection has this one. Patches go only to subscribers with a
    /// position: others might miss the publication that a patch builds on without notice.
    pub fn subscriber(self, delta: bool, positioned: bool) -> Self {
        self.with_data(match (delta, positioned) {
            (true, true) => Data::Delta,
            (true, false) if !self.is_protobuf() => Data::Text,
            _ => Data::Plain,
        })
    }

    /// The form of the connection: for messages other than publications.
    pub fn of_connection(self) -> Self {
        self.with_data(Data::Plain)
    }

    /// The content, whatever its framing.
    pub fn content(self) -> Self {
        if self.is_poll() { self } else { self.with_framing(Framing::WebSocket) }
    }

    /// Publications are collected for an answer: no other message goes to such a connection.
    pub fn is_poll(self) -> bool {
        self.framing() == Framing::Poll
    }

    /// The transport, for a connection of clients.
    pub fn transport(self) -> Transport {
        match (self.framing(), self.is_one_way()) {
            (Framing::Stream | Framing::BareStream, false) => Transport::HttpStream,
            (Framing::Stream | Framing::BareStream, true) => Transport::UniHttpStream,
            (Framing::Events | Framing::BareEvents, false) => Transport::Sse,
            (Framing::Events | Framing::BareEvents, true) => Transport::UniSse,
            (Framing::Poll, _) => Transport::LongPoll,
            (_, false) => Transport::WebSocket,
            (_, true) => Transport::UniWebSocket,
        }
    }

    /// Patches may be sent to it.
    pub fn takes_patches(self) -> bool {
        self.data() == Data::Delta
    }
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encoding = if self.is_protobuf() { "protobuf" } else { "json" };
        let way = if self.is_one_way() { ", one-way" } else { "" };
        write!(f, "Form({:?}, {encoding}{way}, {:?})", self.framing(), self.data())
    }
}

/// The transports of clients (client protocol, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Transport {
    /// Two-way.
    WebSocket = 0,
    /// Two-way, with an up-link of its own.
    HttpStream = 1,
    /// Two-way, with an up-link of its own.
    Sse = 2,
    /// One-way.
    UniWebSocket = 3,
    /// One-way.
    UniHttpStream = 4,
    /// One-way.
    UniSse = 5,
    /// One-way, one answer for each request.
    LongPoll = 6,
}

impl Transport {
    /// All of them, by their number.
    pub const ALL: [Self; 7] = [
        Self::WebSocket,
        Self::HttpStream,
        Self::Sse,
        Self::UniWebSocket,
        Self::UniHttpStream,
        Self::UniSse,
        Self::LongPoll,
    ];

    /// As proxies and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::HttpStream => "http_stream",
            Self::Sse => "sse",
            Self::UniWebSocket => "uni_websocket",
            Self::UniHttpStream => "uni_http_stream",
            Self::UniSse => "uni_sse",
            Self::LongPoll => "long_poll",
        }
    }

    /// Commands of clients come in separate requests.
    pub fn has_up_link(self) -> bool {
        matches!(self, Self::HttpStream | Self::Sse)
    }

    /// Its sessions have ids: those with an up-link, and one-way ones that last.
    pub fn has_session_ids(self) -> bool {
        !matches!(self, Self::WebSocket | Self::LongPoll)
    }
}

/// A set of forms: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms([u64; 4]);

impl Forms {
    /// Adds one.
    pub fn insert(&mut self, form: Form) {
        self.0[usize::from(form.0) / 64] |= 1 << (form.0 % 64);
    }

    /// Whether it is there.
    pub fn contains(&self, form: Form) -> bool {
        self.0[usize::from(form.0) / 64] & 1 << (form.0 % 64) != 0
    }

    /// All that are there, those with the same content one after another.
    pub fn iter(&self) -> impl Iterator<Item = Form> + use<> {
        let mut words = self.0;
        std::iter::from_fn(move || {
            let at = words.iter().position(|word| *word != 0)?;
            let bit = words[at].trailing_zeros();
            words[at] &= words[at] - 1;
            Some(Form((at as u32 * 64 + bit) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_keep_apart() {
        let mut forms = Forms::default();
        let mut all = Vec::new();
        for framing in Framing::ALL {
            for (protobuf, one_way) in [(false, false), (true, false), (false, true)] {
                for data in [Data::Plain, Data::Text, Data::Delta] {
                    let of =
                        if one_way { Form::one_way(framing) } else { Form::new(framing, protobuf) };
                    let form = of.with_data(data);
                    let read = (form.framing(), form.is_protobuf(), form.is_one_way(), form.data());
                    assert_eq!(read, (framing, protobuf, one_way, data));
                    assert_eq!(form.of_connection(), of);
                    assert_eq!(form.content().with_framing(framing), form);
                    assert!(!forms.contains(form), "{form:?}");
                    forms.insert(form);
                    all.push(form);
                }
            }
        }
        all.sort_unstable();
        assert!(forms.iter().eq(all.iter().copied()));
        // Forms with one content stand together.
        let contents: Vec<_> = all.iter().map(|form| form.content()).collect();
        // Forms of polls stand apart.
        assert_eq!(contents.chunk_by(|a, b| a == b).count(), 2 * 9);
    }

    #[test]
    fn windows() {
        for bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX {
            let framing = Framing::deflate(bits);
            assert!(framing.is_websocket());
            assert_eq!(framing.window_bits(), Some(bits));
        }
        assert_eq!(Framing::BareEvents.window_bits(), None);
        assert!(!Framing::Events.is_websocket() && Framing::WebSocketSingle.is_websocket());
    }

    #[test]
    fn patches_need_a_position() {
        for (form, delta, positioned, data) in [
            (Form::JSON, false, true, Data::Plain),
            (Form::JSON, true, false, Data::Text),
            (Form::JSON, true, true, Data::Delta),
            (Form::BINARY, true, false, Data::Plain),
            (Form::BINARY, true, true, Data::Delta),
        ] {
            assert_eq!(form.subscriber(delta, positioned).data(), data);
        }
    }
}
