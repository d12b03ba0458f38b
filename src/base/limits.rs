//! Every bound that is not an option, by name, with what happens when it is met.

/// Shards of one process at most: a shard's number is one byte, and the last three numbers are those of the
/// control thread and of the brokers.
pub const SHARDS_MAX: usize = 253;

/// Bytes that one shard reads from one connection in one turn; the rest waits for the next turn.
pub const TURN_READ_BYTES_MAX: usize = 64 * 1024;

/// Frames that one connection has handled in one turn; the rest waits for the next turn.
pub const TURN_FRAMES_MAX: usize = 128;

/// Request head at most, bytes: more is answered with 431.
pub const HEAD_BYTES_MAX: usize = 24 * 1024;

/// A PROXY header at most, bytes: connections that begin with a longer one are closed.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;

/// Headers in a request head at most: more is answered with 431.
pub const HEADERS_MAX: usize = 64;

/// Publications that wait for one channel's subscribers on one shard at most, bytes. Beyond it the
/// channel has a gap there: subscribers with a position recover, others lose it, and it is counted.
pub const FANOUT_BYTES_MAX: usize = 4 << 20;

/// Publications joined for one write at most, bytes.
pub const JOIN_BYTES_MAX: usize = 64 * 1024;

/// Parcels joined for one write at most: which of them a subscriber takes is one bit each.
pub const JOIN_PARCELS_MAX: usize = 64;

/// Messages in one frame to a client at most; the next begins another.
pub const FRAME_MESSAGES_MAX: u8 = 16;

/// Bytes of such a frame at most: messages that are longer together go in frames of their own.
/// The content of a frame is copied for each message that joins it.
pub const FRAME_JOIN_BYTES_MAX: usize = 4 * 1024;

/// Batches that wait in a shard's mailbox at most. A sender that finds it full keeps its mail and
/// is rung when there is room; what it may keep is [`OUTBOX_BYTES_MAX`].
pub const MAILBOX_BATCHES: usize = 256;

/// Bytes that wait in a shard's mailbox at most, the last batch beyond; the same for a shard's mail to
/// itself. As above.
pub const MAILBOX_BYTES_MAX: usize = 32 << 20;

/// Mail that a shard keeps for another one at most, bytes. Beyond it deliveries become gaps, and
/// clean-up and requests wait where they come from.
pub const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// Publications, joins and leaves from Redis that a broker thread keeps for a shard whose mailbox is full, bytes:
/// Redis keeps as much for a connection that isn't read. A shard that publications reach faster than their
/// subscribers is behind by a second or two of them then. Beyond it they are dropped, and the shard reads the
/// publications from the history once there is room.
pub const BROKER_WAITING_BYTES_MAX: usize = 32 << 20;

/// Events for the application that a shard keeps while the control thread has no room, bytes. An event beyond
/// it is lost, and counted.
pub const APP_EVENTS_WAITING_BYTES_MAX: usize = 1 << 20;

/// Requests of one shard to one home that may be unanswered; each has room for its answer
/// reserved. Beyond it the connections that ask are not read further.
pub const REQUESTS_UNANSWERED_MAX: u32 = 4096;

/// Subscriptions of a shard that are out of position for good and end at once; more end over some seconds, so
/// that their clients don't come back at the same time.
pub const LAPSED_BATCH: usize = 100;

/// Credits that a request spends whose answer may be large (presence, history, recovery), or that
/// keeps others busy (a signature): so that at most [`REQUESTS_UNANSWERED_MAX`] divided by this many
/// of them are on their way from one shard to another.
pub const LARGE_ANSWER_CREDITS: u8 = 32;

/// The same for questions of the control thread to a shard: applications publish in bursts, and what
/// the answers take is small. Beyond it the server API answers with an error.
pub const API_UNANSWERED_MAX: u32 = 16_384;

/// Credits that a question of the control thread spends whose answer may be large: at most 64 of them
/// are on their way from one shard.
pub const API_LARGE_ANSWER_CREDITS: u8 = 255;

/// Bytes of one such answer at most, whatever may wait for the client.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Bytes of answers that a shard keeps to give them again at most; beyond it all are forgotten.
pub const ANSWERS_BYTES_MAX: usize = 16 << 20;

/// Good tokens that a node remembers at most, about 100 bytes each; beyond it the oldest is
/// forgotten and costs a signature when it comes again.
pub const GOOD_TOKENS_MAX: usize = 1 << 20;

/// Publishes with an idempotency key that a node remembers at most, about 150 bytes each; beyond it the
/// oldest is forgotten, and one sent again would be a new one.
pub const RESULTS_MAX: usize = 1 << 20;

/// Bytes of them at most, for a node: keys may be long.
pub const RESULTS_BYTES_MAX: usize = 256 << 20;

/// Commands of one connection that may be unanswered; beyond it the connection isn't read further.
pub const COMMANDS_UNANSWERED_MAX: u8 = 64;

/// Connections accepted in one turn.
pub const TURN_ACCEPTS_MAX: usize = 64;

/// Connections read in one turn.
pub const TURN_READS_MAX: usize = 256;

/// Bytes read from all connections in one turn, the share of the last one beyond: what is in them costs more than
/// reading it.
pub const TURN_INPUT_BYTES_MAX: u64 = 2 << 20;

/// Bytes of mail opened in one turn, the last batch beyond; the rest waits in the mailbox for the
/// next turn. With a batch less than [`FANOUT_BYTES_MAX`], so that a burst into one
/// channel goes on to its subscribers before more of it comes.
pub const TURN_MAIL_BYTES_MAX: usize = 2 << 20;

/// Batches of mail opened in one turn.
pub const TURN_BATCHES_MAX: usize = 64;

/// Connections that orders of the control thread are carried out on in one turn.
pub const TURN_ORDERED_MAX: usize = 256;

/// Timers that fire in one turn.
pub const TURN_TIMERS_MAX: usize = 1024;

/// Dead connections cleaned up in one turn.
pub const TURN_LEAVERS_MAX: usize = 512;

/// Steps of TLS handshakes in one turn at most, half of them of new handshakes. A step takes about 0.1 ms, which
/// is much beside what a turn costs by itself, so more of them would make deliveries wait and save nothing.
/// Others wait for the next turn.
pub const TURN_HANDSHAKES_MAX: usize = 2;

/// Plaintext of one connection that is sealed at once at most, bytes. What a full socket doesn't take of it is
/// kept sealed, once for each connection.
pub const TLS_SEALED_BYTES_MAX: usize = 64 * 1024;

/// Connections written to with one call of the driver.
pub const SENDS_MAX: usize = 256;

/// Bytes that wait for an `/echo` peer before it isn't read further.
pub const ECHO_BACKLOG_BYTES: u32 = 256 * 1024;

/// Body of a request to the control thread at most, bytes: more is answered with 413.
pub const WEB_BODY_BYTES_MAX: usize = 16 << 20;

/// Body of a request to the control thread that isn't a call of the server API at most, bytes: forms and
/// calls of the admin page. More is answered with 413.
pub const PAGE_BODY_BYTES_MAX: usize = 1 << 20;

/// Bytes of unfinished bodies of calls of the server API on a shard at most, whose senders have shown the key:
/// beyond it a request whose body is not whole is answered with 503.
pub const API_BODIES_BYTES_MAX: usize = 64 << 20;

/// The same for the transports of clients and their up-link.
pub const CLIENT_BODIES_BYTES_MAX: usize = 32 << 20;

/// The same for what else the control thread serves.
pub const PAGE_BODIES_BYTES_MAX: usize = 4 << 20;

/// The body of a request has so long to come at whatever rate, milliseconds behind its head.
pub const BODY_GRACE_MS: u64 = 5_000;

/// Then it has to come at so many bytes a second, counted from the end of that: else 408.
pub const BODY_BYTES_PER_SECOND_MIN: u64 = 1024;

/// Entries of all lists in one request to the server API at most, the channels of a broadcast among them:
/// more is answered with 400 before anything is carried out.
pub const API_ENTRIES_MAX: usize = 100_000;

/// Commands of one request to the server API at most: more is answered with 400, as above.
pub const API_COMMANDS_MAX: usize = 10_000;

/// Bytes of payloads in one request to the server API at most, counted once for each channel that they go
/// to: more is answered with error 107, as above.
pub const API_BROADCAST_BYTES_MAX: usize = 256 << 20;

/// Tags of a publication that comes from an application at most: more is answered with 400.
pub const API_TAGS_MAX: usize = 256;

/// Client ids that a `disconnect` of the server API spares at most: more is answered with 400.
pub const API_SPARED_MAX: usize = 1024;

/// Levels of arrays and objects in a payload that comes from an application at most: more is answered with
/// error 107, since some clients can't read it.
pub const API_NESTING_MAX: usize = 512;

/// Bytes of the pattern of `channels` at most: more is answered with error 107 before it is compiled.
pub const API_PATTERN_BYTES_MAX: usize = 4 * 1024;

/// Answers about channels (history, presence) that the control thread has requested at a time at most:
/// others wait, since each may take [`WEB_ANSWER_BYTES_MAX`].
pub const API_READS_MAX: usize = 16;

/// Bytes that the control thread reads, compares or encodes before others of the thread have their turn.
pub const CONTROL_SLICE_BYTES: usize = 64 * 1024;

/// Bytes of an answer of the control thread at most.
pub const WEB_ANSWER_BYTES_MAX: usize = 16 << 20;

/// The body of a request has to be there so soon behind its head, milliseconds, at whatever rate it comes.
pub const WEB_BODY_TIMEOUT_MS: u64 = 30_000;

/// Questions of one shard to the application that may be unanswered. Beyond it the connections that ask
/// are not read further.
pub const PROXY_QUESTIONS_MAX: usize = 1024;

/// Bytes of the application's answer at most: more is a failure.
pub const PROXY_ANSWER_BYTES_MAX: usize = 4 << 20;

/// Nodes of a tag filter at most, whatever they are: more is answered with error 107.
pub const FILTER_NODES_MAX: usize = 256;

/// Levels of a tag filter at most, 1 for a lone comparison: more is answered with error 107.
pub const FILTER_DEPTH_MAX: usize = 32;

/// Values of a tag filter at most, all lists of `in` and `nin` together: more is answered with error 107.
pub const FILTER_VALUES_MAX: usize = 256;

/// Bytes of text in a tag filter at most (keys, values): more is answered with error 107.
pub const FILTER_BYTES_MAX: usize = 4 * 1024;

/// Bytes that the tag filters of one connection hold at most, equal ones each time: a subscription with
/// one more is answered with error 106.
pub const CONNECTION_FILTERS_BYTES_MAX: usize = 128 * 1024;

/// Different tag filters in use on one shard at most: their numbers have 21 bits, and 0 means none.
/// Beyond it a subscription with another filter is refused.
pub const FILTERS_MAX: u32 = (1 << 21) - 2;

/// Payloads longer than this are never patched, and never patched from: they are sent full.
pub const DELTA_BYTES_MAX: usize = 256 * 1024;

/// Bytes of payloads, old and new, that a shard looks at for patches in one turn. Beyond it publications are sent
/// full. What a byte costs: `benches/delta.rs`.
pub const TURN_PATCH_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(2 * DELTA_BYTES_MAX <= TURN_PATCH_BYTES_MAX);

const _: () = assert!(TURN_MAIL_BYTES_MAX + OUTBOX_BYTES_MAX < FANOUT_BYTES_MAX);
const _: () = assert!(SHARDS_MAX + 3 == 1 << u8::BITS);
const _: () = assert!(JOIN_BYTES_MAX <= FANOUT_BYTES_MAX);

/// Bytes of commands that wait for others of their connection at most, where they come in requests of their
/// own: more is answered with 503.
pub const EMULATED_BYTES_MAX: usize = 256 * 1024;

/// The id of an event comes back in a header of the next request: so long at most. Channels that find no
/// room in it begin anew then.
pub const LAST_EVENT_ID_BYTES_MAX: usize = 8 * 1024;

/// Log lines of one reason ([`super::notices::Reason`]) in one second, for the whole node. Beyond it they are
/// left out, and one line says how many.
pub const NOTICES_PER_SECOND: u64 = 10;

/// Characters of a text of a stranger's (a user, a channel, a header) in a log line at most; the rest is cut.
pub const NOTICE_TEXT_CHARS_MAX: usize = 128;

/// Lines of the log that wait to be written at most, some hundred bytes each; beyond it they are dropped and
/// counted.
pub const LOG_LINES_WAITING_MAX: usize = 8192;

/// Lines of figures (SIGUSR1) that wait for standard output at most; beyond it they are dropped and counted.
pub const FIGURES_WAITING_MAX: usize = 64;
