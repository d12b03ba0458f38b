//! `docs/limits.md`: every bound of the node, from `base/limits.rs`, the option table and, for those
//! that only one module knows, the module's own constant.

use std::fmt::Write;
use std::fs;

use super::{cell, grouped, hold, in_repository};
use crate::base::limits::*;
use crate::base::notices::Reason;
use crate::config::documented::{OPTIONS, places};

const INTRODUCTION: &str = "\
# Limits

Written by `tools/docs` from `src/base/limits.rs`, the option table and the table in
`src/node/documents/limits.rs`; a test fails when it is stale, when a constant of `base/limits.rs`
has no row, or when a row names an option, a metric or a log reason that doesn't exist.

Everything that can grow has a bound, an answer when the bound is met, and a counter (`SIGUSR1`
prints all of them):

```
   work arrives --> room? --yes--> taken
                      |
                      no: refuse (429, 503, error 100) | pause the connection | drop and count
                          | close with a code | release the oldest
```

A value is a constant of the program unless an option is named with it; then it is the option's
default. [metrics.md](metrics.md) explains the metrics and their labels, [logging.md](logging.md)
the reasons of log lines, and [tuning.md](tuning.md) which limits of the host to raise.
";

const END: &str = "
## What the answers mean
A *gap* is one flag for each channel and shard. Subscribers with a position there get `unsubscribe`
with code 2500 and recover; if the server made the subscription, its connection ends with 3010
instead. Others lose those publications, and that is counted (`roost_gaps_untold_total`). Join and
leave events that find no room are lost and counted (`roost_events_lost_total`): presence stays
exact. A publish is acknowledged when its deliveries are in the mailboxes of their receivers.

A *credit* is the right to one unanswered request between two shards, with room for its answer
reserved; a request whose answer may be large spends several.

*Paused*: the node reads no further bytes of that connection until the bound has room again, so that
TCP makes the peer wait. Nothing is lost.

[design/memory.md](design/memory.md) explains how memory is counted, and the order in which it is
released above the limit.
";

/// The unit of a value.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
    Ms,
    PerSecond,
    BytesPerSecond,
    /// A number of these.
    Of(&'static str),
}

/// A bound: where its value stands.
enum Bound {
    /// A constant of `base/limits.rs`.
    Constant(&'static str, u64, Unit),
    /// A constant that only its module knows: its name is unique in `src`.
    Own(&'static str, Unit),
    /// An option.
    Option(&'static str, Unit),
    /// A value that isn't one number.
    Text(&'static str),
}

/// A row of the table.
struct Row {
    what: &'static str,
    bounds: Vec<Bound>,
    answer: &'static str,
    /// Names of `/metrics`, without labels.
    metrics: &'static [&'static str],
    reasons: &'static [Reason],
}

macro_rules! constant {
    ($name:ident, $noun:literal) => {
        Bound::Constant(stringify!($name), $name as u64, Unit::Of($noun))
    };
    ($name:ident, $unit:ident) => {
        Bound::Constant(stringify!($name), $name as u64, Unit::$unit)
    };
}

fn option(path: &'static str, unit: Unit) -> Bound {
    Bound::Option(path, unit)
}

fn row(
    what: &'static str,
    bounds: impl Into<Vec<Bound>>,
    answer: &'static str,
    metrics: &'static [&'static str],
    reasons: &'static [Reason],
) -> Row {
    Row { what, bounds: bounds.into(), answer, metrics, reasons }
}

const REFUSED: &[&str] = &["roost_requests_refused_total"];
const UNAVAILABLE: &[&str] = &["roost_requests_unavailable_total"];
const CLOSED: &[&str] = &["roost_connections_closed_by_node_total"];
const FAULTS: &[&str] = &["roost_client_faults_total"];
const ERRORS: &[&str] = &["roost_client_errors_total"];
const PAUSED: &[&str] = &["roost_commands_paused_total"];

use Bound::{Own, Text};
use Unit::{Bytes, BytesPerSecond, Count, Ms, PerSecond};

fn connections() -> Vec<Row> {
    vec![
        row(
            "Shards of a process",
            [constant!(SHARDS_MAX, Count), Text("`roost.shards`")],
            "The option is refused at the start.",
            &["roost_shards"],
            &[],
        ),
        row(
            "Connections of a shard",
            [
                Text("descriptors and memory of the host, and places beside those of clients:"),
                Own("CONNS_SPARE", Count),
            ],
            "A new connection is passed to the emptiest shard. Where all are full, the longest idle \
             connection that is no connected client gives way; without such a connection a client gets \
             503, an event source a stream that ends.",
            &[
                "roost_connections_passed_total",
                "roost_connections_replaced_total",
                "roost_connections_refused_full_total",
            ],
            &[Reason::HttpFull],
        ),
        row(
            "Connected clients of the node",
            [option("client.connection_limit", Count)],
            "503 at the request; error 111 at `connect`, where the limit is checked again.",
            UNAVAILABLE,
            &[Reason::HttpConnectionLimit, Reason::ErrorTooManyRequests],
        ),
        row(
            "New connections of the node",
            [option("client.connection_rate_limit", PerSecond)],
            "503",
            UNAVAILABLE,
            &[Reason::HttpConnectionRate],
        ),
        row(
            "Connections of a user",
            [option("client.user_connection_limit", Count), Text("one with `single_connection`")],
            "Close 3504: of the new connection, or with `single_connection` of the older one.",
            CLOSED,
            &[Reason::CloseConnectionLimit],
        ),
        row(
            "Connections of an address",
            [option("roost.connections_per_address", Count)],
            "429, or a close as the connection is accepted.",
            REFUSED,
            &[Reason::HttpAddressConnections],
        ),
        row(
            "New connections of an address",
            [option("roost.connection_rate_per_address", PerSecond)],
            "429, or a close as the connection is accepted.",
            REFUSED,
            &[Reason::HttpAddressRate],
        ),
        row(
            "Bytes of incomplete requests of an address",
            [option("roost.unfinished_bytes_per_address", Bytes)],
            "429",
            REFUSED,
            &[Reason::HttpAddressBytes],
        ),
        row(
            "Unanswered signature checks of an address",
            [option("roost.signature_checks_per_address", Count)],
            "Error 111, which is temporary.",
            &["roost_tokens_refused_address_total"],
            &[Reason::ErrorTooManyRequests],
        ),
        row(
            "Addresses that are counted",
            [Text("tables of a fixed size (`src/edge/address_limits.rs`)")],
            "One more address is not counted.",
            &["roost_addresses_uncounted_total"],
            &[],
        ),
        row(
            "TLS handshakes under way",
            [
                option("roost.tls_handshakes_max", Count),
                constant!(TURN_HANDSHAKES_MAX, "steps in a turn of a shard"),
                option("roost.handshake_timeout", Ms),
            ],
            "One more ends the one that has been under way for longest; further steps wait for the next \
             turn; one that isn't done in time is closed.",
            &["roost_tls_handshakes_failed_total", "roost_tls_handshakes_open"],
            &[],
        ),
        row(
            "Bytes of a TLS connection that are sealed and not sent",
            [constant!(TLS_SEALED_BYTES_MAX, Bytes)],
            "More is sealed when these are sent; they are sent first, and no slow policy drops them.",
            &["roost_tls_unfinished_bytes"],
            &[],
        ),
        row(
            "An incomplete TLS record",
            [Text("16 KiB and 261 bytes"), option("roost.handshake_timeout", Ms)],
            "A fatal alert as soon as a header announces more; the end when the rest comes too late.",
            &["roost_tls_record_faults_total", "roost_tls_unfinished_bytes"],
            &[],
        ),
        row(
            "Connections to the internal port",
            [Own("INTERNAL_CONNECTIONS_MAX", Count)],
            "They wait in the kernel.",
            &[],
            &[],
        ),
    ]
}

fn requests() -> Vec<Row> {
    vec![
        row(
            "PROXY header",
            [Text("107 bytes (version 1)"), constant!(PROXY_HEADER_BYTES_MAX, Bytes)],
            "The connection is closed.",
            &["roost_proxy_headers_refused_total"],
            &[Reason::HttpProxyHeader],
        ),
        row(
            "Request head",
            [
                constant!(HEAD_BYTES_MAX, Bytes),
                constant!(HEADERS_MAX, "headers"),
                option("roost.handshake_timeout", Ms),
            ],
            "431, 414; 408 when it comes too late.",
            REFUSED,
            &[Reason::HttpTooLong, Reason::HttpTimeout],
        ),
        row(
            "Time that a request body has",
            [
                constant!(BODY_GRACE_MS, Ms),
                constant!(BODY_BYTES_PER_SECOND_MIN, BytesPerSecond),
                constant!(WEB_BODY_TIMEOUT_MS, Ms),
            ],
            "Behind the grace period the body has to keep this rate, and to be complete within the last: 408.",
            REFUSED,
            &[Reason::HttpTimeout],
        ),
        row(
            "Body of a request of a client transport",
            [
                option("http_stream.max_request_body_size", Bytes),
                option("sse.max_request_body_size", Bytes),
                option("emulation.max_request_body_size", Bytes),
                option("uni_http_stream.max_request_body_size", Bytes),
                option("uni_sse.max_request_body_size", Bytes),
                option("long_poll.max_request_body_size", Bytes),
            ],
            "413",
            REFUSED,
            &[Reason::HttpTooLong],
        ),
        row(
            "Unfinished bodies of client transports on a shard",
            [constant!(CLIENT_BODIES_BYTES_MAX, Bytes)],
            "503",
            UNAVAILABLE,
            &[Reason::HttpBusy],
        ),
        row(
            "Body of a call of the server API",
            [constant!(WEB_BODY_BYTES_MAX, Bytes)],
            "401 from the head without the key, before the body is read; 413.",
            REFUSED,
            &[Reason::ApiUnauthorized, Reason::HttpTooLong],
        ),
        row(
            "Unfinished bodies of calls of the server API on a shard",
            [constant!(API_BODIES_BYTES_MAX, Bytes)],
            "503 for a request whose body is not complete.",
            UNAVAILABLE,
            &[Reason::HttpBusy],
        ),
        row(
            "Body of another request to the control thread (forms, admin page)",
            [constant!(PAGE_BODY_BYTES_MAX, Bytes)],
            "413",
            REFUSED,
            &[Reason::HttpTooLong],
        ),
        row(
            "Unfinished bodies of such requests on a shard",
            [constant!(PAGE_BODIES_BYTES_MAX, Bytes)],
            "503",
            UNAVAILABLE,
            &[Reason::HttpBusy],
        ),
        row(
            "Requests of a shard to the control thread",
            [constant!(REQUESTS_UNANSWERED_MAX, Count), constant!(OUTBOX_BYTES_MAX, Bytes)],
            "503 with so many unanswered, or so many bytes that wait to be sent.",
            UNAVAILABLE,
            &[Reason::HttpBusy],
        ),
        row(
            "Bytes behind a request whose response streams",
            [Text("none")],
            "They are dropped.",
            &["roost_bytes_ignored_total"],
            &[],
        ),
        row(
            "Idle time of a kept HTTP connection",
            [option("roost.idle_timeout", Ms)],
            "It is closed.",
            CLOSED,
            &[Reason::CloseIdle],
        ),
    ]
}

fn input() -> Vec<Row> {
    vec![
        row(
            "A message of a client",
            [option("websocket.message_size_limit", Bytes)],
            "Close 1009 as soon as a frame header announces more.",
            FAULTS,
            &[Reason::CloseTooBig],
        ),
        row(
            "A compressed message of a client, after decompression",
            [option("websocket.decompressed_message_size_limit", Bytes)],
            "Close 1009.",
            FAULTS,
            &[Reason::CloseTooBig],
        ),
        row(
            "Input of a connection in one turn",
            [constant!(TURN_READ_BYTES_MAX, Bytes), constant!(TURN_FRAMES_MAX, "frames")],
            "The rest is read in the next turn.",
            &[],
            &[],
        ),
        row(
            "Unanswered commands of a connection",
            [constant!(COMMANDS_UNANSWERED_MAX, Count)],
            "The connection is paused.",
            PAUSED,
            &[],
        ),
        row(
            "Proxy calls of a client in flight",
            [option("client.concurrency", Count)],
            "Its further commands wait.",
            PAUSED,
            &[],
        ),
        row(
            "Commands of the up-link that wait for others of their connection",
            [constant!(EMULATED_BYTES_MAX, Bytes)],
            "503",
            &["roost_emulations_refused_total"],
            &[Reason::HttpBusy],
        ),
        row(
            "Unanswered requests of up-links to a shard",
            [constant!(REQUESTS_UNANSWERED_MAX, Count)],
            "503. They are counted apart from requests for commands.",
            &["roost_emulations_refused_total"],
            &[Reason::HttpBusy],
        ),
        row(
            "Input behind a `long_poll` request that waits",
            [Text("one read")],
            "The connection is paused.",
            &[],
            &[],
        ),
        row(
            "Time to send `connect`",
            [option("client.stale_close_delay", Ms)],
            "Close 3502.",
            CLOSED,
            &[Reason::CloseStale],
        ),
        row(
            "Time to answer a ping",
            [option("client.pong_timeout", Ms)],
            "Close 3012.",
            CLOSED,
            &[Reason::CloseNoPong],
        ),
        row(
            "Time to answer a close frame",
            [option("roost.close_timeout", Ms)],
            "The socket is closed.",
            &["roost_close_timeouts_total"],
            &[],
        ),
    ]
}

fn channels() -> Vec<Row> {
    vec![
        row(
            "Channel name",
            [option("channel.max_length", Bytes)],
            "Error 107.",
            ERRORS,
            &[Reason::ErrorBadRequest],
        ),
        row(
            "Subscriptions of a client",
            [option("client.channel_limit", Count)],
            "Error 106; close 3505 for a `connect` or a token that names more, before anything is done \
             for one of them.",
            CLOSED,
            &[Reason::ErrorLimitExceeded, Reason::CloseChannelLimit],
        ),
        row(
            "Channels of the node",
            [option("roost.channels_max", Count)],
            "A channel without subscribers is released: one without publications, or the one unused for \
             longest. Its name gets a new epoch.",
            &["roost_channels_home", "roost_channels_idle"],
            &[],
        ),
        row(
            "History",
            [
                Text("a sixteenth below `roost.memory_limit`, and at most:"),
                Own("RESERVE_BYTES_MAX", Bytes),
            ],
            "Idle channels are released, or the publish gets error 100.",
            &["roost_memory_given_up_total", "roost_memory_refused_total"],
            &[Reason::ErrorInternal],
        ),
        row(
            "Memory of the node",
            [option("roost.memory_limit", Bytes)],
            "New connections get 503, what grows gets error 100, and memory is released in a fixed order ([memory](design/memory.md)).",
            &["roost_memory_bytes", "roost_memory_given_up_total", "roost_memory_refused_total"],
            &[Reason::HttpMemory, Reason::CloseMemory],
        ),
        row(
            "Publications of one recovery, or of one answer to a poll",
            [option("client.recovery_max_publication_limit", Count)],
            "Recovery fails. The rest of a poll comes with the next one.",
            &["roost_recoveries_total", "roost_recovered_total"],
            &[],
        ),
        row(
            "Publications of one history call",
            [option("client.history_max_publication_limit", Count)],
            "The answer is cut.",
            &[],
            &[],
        ),
        row(
            "An answer to a client (history, presence, recovery)",
            [constant!(ANSWER_BYTES_MAX, Bytes), Text("7/8 of `client.queue_max_size`")],
            "History is cut, recovery fails, presence gets error 106.",
            ERRORS,
            &[Reason::ErrorLimitExceeded],
        ),
        row(
            "Encoded answers that a shard keeps for others",
            [constant!(ANSWERS_BYTES_MAX, Bytes), Text("about a second")],
            "All of them are released.",
            &["roost_memory_given_up_total"],
            &[],
        ),
        row(
            "Tag filter of a subscription",
            [
                constant!(FILTER_NODES_MAX, "nodes"),
                constant!(FILTER_DEPTH_MAX, "levels"),
                constant!(FILTER_VALUES_MAX, "values"),
                constant!(FILTER_BYTES_MAX, Bytes),
            ],
            "Error 107, before the filter is built.",
            ERRORS,
            &[Reason::ErrorBadRequest],
        ),
        row(
            "Tag filters in use",
            [constant!(CONNECTION_FILTERS_BYTES_MAX, Bytes), constant!(FILTERS_MAX, "filters")],
            "Error 106. The first is for a connection and counts equal filters each time, the second for \
             different filters on a shard.",
            &["roost_filters", "roost_filters_bytes"],
            &[Reason::ErrorLimitExceeded],
        ),
        row(
            "Payloads that are patched (delta)",
            [constant!(DELTA_BYTES_MAX, Bytes), constant!(TURN_PATCH_BYTES_MAX, Bytes)],
            "Sent in full. The second counts old and new payloads of a shard in one turn.",
            &["roost_patches_over_budget_total"],
            &[],
        ),
        row(
            "Good tokens that are remembered",
            [constant!(GOOD_TOKENS_MAX, Count)],
            "The oldest is released and costs a signature again.",
            &["roost_tokens_remembered"],
            &[],
        ),
        row(
            "Publishes that are remembered by their idempotency keys",
            [
                Own("KEPT_MS", Ms),
                constant!(RESULTS_MAX, "publishes"),
                constant!(RESULTS_BYTES_MAX, Bytes),
            ],
            "The oldest is released; the same publish sent again is a new one.",
            &["roost_publishes_remembered"],
            &[],
        ),
    ]
}

fn output() -> Vec<Row> {
    vec![
        row(
            "Bytes queued for a client",
            [option("client.queue_max_size", Bytes)],
            "Close 3008, or publications are dropped (`slow_policy`). Also for what a connection has to \
             send before the reply to `connect`.",
            &[
                "roost_slow_clients_closed_total",
                "roost_publications_dropped_total",
                "roost_publications_conflated_total",
            ],
            &[Reason::CloseSlow],
        ),
        row(
            "Time in which a socket accepts nothing",
            [option("websocket.write_timeout", Ms)],
            "The connection is reset (3009).",
            CLOSED,
            &[Reason::CloseWriteTimeout],
        ),
        row(
            "Messages in one frame to a client",
            [constant!(FRAME_MESSAGES_MAX, "messages"), constant!(FRAME_JOIN_BYTES_MAX, Bytes)],
            "The next message begins another frame.",
            &[],
            &[],
        ),
        row(
            "Publications that wait for others (`write_delay`)",
            [constant!(JOIN_PARCELS_MAX, "publications"), constant!(JOIN_BYTES_MAX, Bytes)],
            "They are sent, as soon as half of the bytes wait.",
            &[],
            &[],
        ),
        row(
            "Echoes queued for an `/echo` peer",
            [constant!(ECHO_BACKLOG_BYTES, Bytes)],
            "The connection is paused, never closed for it.",
            &[],
            &[],
        ),
        row(
            "Wait of a poll",
            [option("long_poll.timeout", Ms)],
            "An answer without publications.",
            &["roost_polls_empty_total"],
            &[],
        ),
        row(
            "Id of an event (positions in `Last-Event-ID`)",
            [constant!(LAST_EVENT_ID_BYTES_MAX, Bytes)],
            "The channels that find no room begin anew.",
            &["roost_positions_left_out_total"],
            &[],
        ),
        row(
            "Compressors of a shard",
            [Text("14 windows and ways, 0.14 to 0.38 MB each, a second or two")],
            "Released when unused.",
            &[],
            &[],
        ),
    ]
}

fn shards() -> Vec<Row> {
    vec![
        row(
            "Credits of a shard at one home",
            [constant!(REQUESTS_UNANSWERED_MAX, Count), constant!(LARGE_ANSWER_CREDITS, "credits")],
            "The connections that wait for a credit are paused. The second is spent by a request with a \
             large answer, or a signature.",
            PAUSED,
            &[],
        ),
        row(
            "Mail kept for one shard",
            [constant!(OUTBOX_BYTES_MAX, Bytes)],
            "Requests and clean-up wait, deliveries become a gap.",
            &["roost_gaps_mail_total"],
            &[Reason::EndInsufficientState, Reason::CloseInsufficientState],
        ),
        row(
            "Events for the application that wait on a shard, and in the node",
            [
                constant!(APP_EVENTS_WAITING_BYTES_MAX, Bytes),
                option("client.hooks.queue_max_size", Bytes),
            ],
            "New events are lost; the next batch reports how many.",
            &["roost_hook_events_lost_total", "roost_hook_bytes_waiting"],
            &[],
        ),
        row(
            "Mailbox, and a shard's mail to itself",
            [constant!(MAILBOX_BATCHES, "batches"), constant!(MAILBOX_BYTES_MAX, Bytes)],
            "The sender keeps its mail and is woken when there is room. The last batch may exceed it.",
            &["roost_mail_full_total", "roost_mailbox_batches", "roost_mailbox_bytes"],
            &[],
        ),
        row(
            "A channel's publications on their way on a shard",
            [constant!(FANOUT_BYTES_MAX, Bytes)],
            "A gap.",
            &["roost_gaps_fanout_total", "roost_gaps_told_total", "roost_gaps_untold_total"],
            &[Reason::EndInsufficientState, Reason::CloseInsufficientState],
        ),
        row(
            "Subscriptions of a shard that end at once when publications of their channels can't be had",
            [constant!(LAPSED_BATCH, "subscriptions")],
            "More end over five seconds, and get nothing meanwhile.",
            &["roost_subscriptions_lapsed"],
            &[Reason::EndInsufficientState, Reason::CloseInsufficientState],
        ),
        row(
            "Accepts, reads, bytes read, timers and closed connections in a turn",
            [
                constant!(TURN_ACCEPTS_MAX, "accepts"),
                constant!(TURN_READS_MAX, "connections"),
                constant!(TURN_INPUT_BYTES_MAX, Bytes),
                constant!(TURN_TIMERS_MAX, "timers"),
                constant!(TURN_LEAVERS_MAX, "closed connections"),
            ],
            "The next turn.",
            &["roost_loop_lag_seconds"],
            &[],
        ),
        row(
            "Mail and orders in a turn",
            [
                constant!(TURN_MAIL_BYTES_MAX, Bytes),
                constant!(TURN_BATCHES_MAX, "batches"),
                constant!(TURN_ORDERED_MAX, "connections"),
            ],
            "The next turn.",
            &["roost_loop_lag_seconds"],
            &[],
        ),
        row(
            "Deliveries in a turn",
            [option("roost.turn_deliveries", Count)],
            "The next turn.",
            &["roost_loop_lag_seconds"],
            &[],
        ),
        row(
            "Connections written to with one call of the driver",
            [constant!(SENDS_MAX, Count)],
            "One more call.",
            &[],
            &[],
        ),
    ]
}

fn control() -> Vec<Row> {
    vec![
        row(
            "Credits of the control thread at a shard",
            [constant!(API_UNANSWERED_MAX, Count), constant!(API_LARGE_ANSWER_CREDITS, "credits")],
            "The API answers error 100 at once. The second is spent by a request with a large answer.",
            &["roost_api_questions"],
            &[Reason::ApiError],
        ),
        row(
            "Lists of one request to the server API",
            [
                constant!(API_ENTRIES_MAX, "entries"),
                constant!(API_COMMANDS_MAX, "commands"),
                constant!(API_TAGS_MAX, "tags"),
                constant!(API_SPARED_MAX, "spared clients"),
            ],
            "400 before anything is carried out: entries of all lists, commands, tags of a publication, \
             client ids that a `disconnect` spares.",
            &[],
            &[Reason::ApiBadRequest],
        ),
        row(
            "Payloads of one request to the server API",
            [constant!(API_BROADCAST_BYTES_MAX, Bytes), constant!(API_NESTING_MAX, "levels")],
            "Error 107, in a batch 400; nothing is carried out. Bytes count once for each channel; the \
             second is the depth of arrays and objects.",
            &[],
            &[Reason::ApiError, Reason::ApiBadRequest],
        ),
        row(
            "Pattern of `channels`",
            [constant!(API_PATTERN_BYTES_MAX, Bytes), Text("compiled:"), Own("SIZE_MAX", Bytes)],
            "Error 107.",
            &[],
            &[Reason::ApiError],
        ),
        row(
            "Answers about channels that the server API waits for",
            [constant!(API_READS_MAX, Count)],
            "Further calls wait.",
            &[],
            &[],
        ),
        row(
            "An answer of the control thread",
            [constant!(WEB_ANSWER_BYTES_MAX, Bytes), Own("ANSWER_TIMEOUT", Ms)],
            "History is cut, presence and `channels` get error 106; 504 after the time.",
            &[],
            &[Reason::ApiError],
        ),
        row(
            "Work of the control thread at a time",
            [constant!(CONTROL_SLICE_BYTES, Bytes)],
            "Others have their turn: bodies read, names compared, answers encoded.",
            &[],
            &[],
        ),
        row(
            "Wrong passwords for the admin page",
            [Own("TRIES_MAX", PerSecond), Own("TRIES_IN_ALL_MAX", PerSecond)],
            "429: of one address, and of all.",
            &["roost_admin_refused_total"],
            &[Reason::AdminUnauthorized],
        ),
        row("WebSockets of the admin page", [Own("VIEWERS_MAX", Count)], "503", &[], &[]),
        row(
            "Search for connections on the admin page",
            [Own("SEARCH_TIME_MAX", Ms)],
            "The answer has what was found by then, and says so.",
            &[],
            &[],
        ),
        row(
            "Closes of connections that a node remembers for the admin page",
            [Own("CLOSES_MAX", Count)],
            "The oldest one is forgotten.",
            &["roost_closes_bytes"],
            &[],
        ),
        row(
            "Names and versions of clients that are told apart",
            [Own("SOFTWARE_PAIRS_MAX", Count)],
            "Further ones count as other.",
            &["roost_clients_by_software"],
            &[],
        ),
        row(
            "Unanswered proxy calls of a shard",
            [constant!(PROXY_QUESTIONS_MAX, Count)],
            "The connections that wait for a call are paused.",
            &["roost_proxy_questions_total", "roost_commands_paused_total"],
            &[],
        ),
        row(
            "Calls to an endpoint of the application in flight",
            [
                option("client.proxy.connect.roost.concurrency", Count),
                option("client.proxy.connect.timeout", Ms),
            ],
            "They wait for their turn; error 100 after the time.",
            &["roost_proxy_in_flight", "roost_proxy_calls_total"],
            &[Reason::ProxyFailed],
        ),
        row(
            "An answer of the application",
            [constant!(PROXY_ANSWER_BYTES_MAX, Bytes)],
            "A failed call: error 100.",
            &["roost_proxy_calls_total"],
            &[Reason::ProxyFailed],
        ),
        row(
            "Failures of an endpoint within ten seconds, if they are half of its calls",
            [
                option("client.proxy.connect.roost.breaker_failures", Count),
                option("client.proxy.connect.roost.breaker_pause", Ms),
            ],
            "The circuit opens for that time: error 100 at once.",
            &["roost_proxy_circuit", "roost_proxy_calls_total"],
            &[Reason::ProxyBreaker],
        ),
        row(
            "Redirects of a call, or of a fetch of keys",
            [Own("REDIRECTS_MAX", Count)],
            "Error 100. Only to the same origin.",
            &["roost_proxy_calls_total"],
            &[Reason::ProxyFailed],
        ),
        row(
            "Key sets of JWKS endpoints",
            [Own("ENDPOINTS_MAX", Count), Text("one fetch at a time, one in 10 s for each")],
            "Error 100: the client tries again.",
            ERRORS,
            &[Reason::ErrorInternal],
        ),
    ]
}

fn logs() -> Vec<Row> {
    vec![
        row(
            "Log lines of one reason",
            [constant!(NOTICES_PER_SECOND, PerSecond)],
            "Left out for the whole node; one line reports their number.",
            &[],
            &[],
        ),
        row(
            "Text of a client in a log line",
            [constant!(NOTICE_TEXT_CHARS_MAX, "characters")],
            "It is cut.",
            &[],
            &[],
        ),
        row(
            "Log lines that wait to be written",
            [constant!(LOG_LINES_WAITING_MAX, Count)],
            "Dropped.",
            &["roost_lines_dropped_total"],
            &[],
        ),
        row(
            "Lines of figures (SIGUSR1) that wait to be written",
            [constant!(FIGURES_WAITING_MAX, Count)],
            "Dropped.",
            &["roost_lines_dropped_total"],
            &[],
        ),
        row(
            "Time to close all connections at shutdown",
            [option("shutdown.timeout", Ms), option("roost.drain_rate", PerSecond)],
            "The rest is closed without a close frame.",
            CLOSED,
            &[Reason::CloseShutdown],
        ),
    ]
}

/// Between this node and others.
fn nodes() -> Vec<Row> {
    vec![
        row(
            "Nodes that one knows; texts, data and metrics of each",
            [
                Own("PEERS_MAX", Count),
                Own("PEER_NAMES_BYTES_MAX", Bytes),
                Own("PEER_DATA_BYTES_MAX", Bytes),
                Own("PEER_METRICS_BYTES_MAX", Bytes),
            ],
            "Further nodes, and those with longer names, are ignored; longer data or metrics are left out.",
            &["roost_cluster_nodes"],
            &[],
        ),
        row(
            "Messages to other nodes that are not sent yet",
            [Own("MESSAGES_UNSENT_MAX", Count), Own("MESSAGES_UNSENT_BYTES_MAX", Bytes)],
            "They fail at once: error 100 for calls of the server API, whose part on this node is done.",
            &["roost_cluster_messages_failed_total"],
            &[Reason::ApiError],
        ),
        row(
            "Commands of other nodes that wait for shards",
            [Own("ORDERS_BYTES_MAX", Bytes)],
            "They are dropped.",
            &["roost_cluster_commands_refused_total"],
            &[],
        ),
        row(
            "Questions of this node to others, and all answers to one of them",
            [Own("SURVEYS_MAX", Count), Own("SURVEY_ANSWERS_BYTES_MAX", Bytes)],
            "Error 100; 106 for answers that are too long. Requests to the up-link: 500.",
            &["roost_cluster_surveys_total"],
            &[Reason::ApiError],
        ),
        row(
            "Questions of other nodes for channels that wait, and bytes of an answer",
            [
                Own("SURVEYS_WAITING_MAX", Count),
                Own("SURVEY_ANSWER_BYTES_MAX", Bytes),
                Own("SURVEY_ANSWER_TIMEOUT", Ms),
            ],
            "Answered with code 4, or 1 for a list that is too long or late: their call fails.",
            &["roost_cluster_survey_answers_total"],
            &[],
        ),
        row(
            "Requests to the up-link that wait for earlier ones of a session on another node: of one, of all",
            [constant!(EMULATED_BYTES_MAX, Bytes), Own("EMULATIONS_BYTES_MAX", Bytes)],
            "503",
            &[],
            &[],
        ),
    ]
}

/// Between homes and Redis.
fn redis() -> Vec<Row> {
    vec![
        row(
            "Operations of a shard's channels that wait for Redis; time for its answer",
            [
                Own("OPERATIONS_MAX", Count),
                Own("SERVER_OPERATIONS_MAX", Count),
                Own("ANSWER_MS", Ms),
            ],
            "Error 100, which is temporary. Beyond the second bound subscriptions that the server makes end their \
             connections: 3004.",
            &["roost_broker_refused_total", "roost_broker_timeouts_total", "roost_broker_waiting"],
            &[Reason::ErrorInternal],
        ),
        row(
            "Commands of a thread for Redis that wait or are under way",
            [Own("QUEUE_BYTES_MAX", Bytes)],
            "They fail at once: error 100, which is temporary. Wishes to listen to a channel have room always.",
            &["roost_broker_waiting"],
            &[Reason::ErrorInternal],
        ),
        row(
            "Publications, joins and leaves from Redis for a shard whose mailbox is full",
            [constant!(BROKER_WAITING_BYTES_MAX, Bytes)],
            "They wait in the thread, and beyond the bound they are dropped: a warning once a second, and the shard \
             reads them from the history once there is room. Joins and leaves are lost.",
            &["roost_broker_lost_total", "roost_broker_repaired_total", "roost_mailbox_bytes"],
            &[],
        ),
        row(
            "Publications of a channel that wait for a gap before them to be read",
            [Own("HELD_BYTES_MAX", Bytes)],
            "A gap, of cause `lag`.",
            &["roost_broker_gaps_total"],
            &[],
        ),
        row(
            "Newest publications of channels in Redis that the node keeps",
            [option("roost.broker_window", Bytes)],
            "The oldest ones are dropped: recoveries that need them cost a read.",
            &["roost_broker_window_bytes", "roost_broker_reads_total"],
            &[],
        ),
        row(
            "Events of the control channel that wait for the control thread, and messages to other nodes \
             that wait for the thread",
            [Own("CONTROL_EVENTS_MAX", Count), Own("CONTROL_MESSAGES_MAX", Count)],
            "Events are dropped, and the node behaves as if that channel had been interrupted; messages \
             fail at once.",
            &[],
            &[],
        ),
    ]
}

fn groups() -> [(&'static str, Vec<Row>); 10] {
    [
        ("Connections", connections()),
        ("HTTP requests", requests()),
        ("Input of clients", input()),
        ("Channels and their records", channels()),
        ("Output to clients", output()),
        ("Between shards", shards()),
        ("Server API, admin page and proxies", control()),
        ("Between homes and Redis", redis()),
        ("Between nodes", nodes()),
        ("Log and shutdown", logs()),
    ]
}

fn shown(value: u64, unit: Unit) -> String {
    match unit {
        Count => grouped(value),
        Unit::Of(noun) => format!("{} {noun}", grouped(value)),
        PerSecond => format!("{} per second", grouped(value)),
        BytesPerSecond => format!("{} per second", shown(value, Bytes)),
        Bytes => [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(size, _)| value >= *size && value.is_multiple_of(*size))
            .map_or_else(
                || format!("{} bytes", grouped(value)),
                |(size, name)| format!("{} {name}", grouped(value / size)),
            ),
        Ms if value >= 60_000 && value.is_multiple_of(60_000) => {
            format!("{} min", value / 60_000)
        }
        Ms if value.is_multiple_of(1000) => format!("{} s", value / 1000),
        Ms => format!("{value} ms"),
    }
}

/// Default and text of an option.
fn of_option(path: &str) -> Option<(&'static str, &'static str)> {
    let root = OPTIONS.iter().find(|row| row.path == path);
    let row = root.or_else(|| {
        places().iter().find_map(|place| {
            let inner = path.strip_prefix(place.path)?.strip_prefix('.')?;
            place.rows.iter().find(|row| row.path == inner)
        })
    });
    row.filter(|row| row.is_built()).map(|row| (row.default, row.doc))
}

/// The value of a constant that one module has for itself: a product or shift of numbers, or seconds.
fn of_source(name: &str) -> u64 {
    let mut found = Vec::new();
    for text in sources(&in_repository("src")) {
        let begins = format!("const {name}: ");
        for (at, _) in text.match_indices(&begins) {
            let declared = text[at..].split(';').next().unwrap();
            found.push(declared.split_once(" = ").unwrap().1.to_owned());
        }
    }
    assert_eq!(found.len(), 1, "constants named {name}: {found:?}");
    let value = found[0].trim();
    if let Some(seconds) = value.strip_prefix("Duration::from_secs(") {
        return 1000 * seconds.trim_end_matches(')').parse::<u64>().unwrap();
    }
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().unwrap();
    match value.split_once("<<") {
        Some((number_, shift)) => number(number_) << number(shift),
        None => value.split('*').map(number).product(),
    }
}

fn sources(folder: &std::path::Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else {
            texts.extend(fs::read_to_string(&path));
        }
    }
    texts
}

impl Bound {
    fn shown(&self) -> String {
        match self {
            Self::Constant(name, value, unit) => format!("{} (`{name}`)", shown(*value, *unit)),
            Self::Own(name, unit) => format!("{} (`{name}`)", shown(of_source(name), *unit)),
            Self::Text(text) => (*text).to_owned(),
            Self::Option(path, unit) => {
                let (default, doc) = of_option(path).unwrap_or_else(|| panic!("no option {path}"));
                let default = default.trim_matches('"');
                let zero = || {
                    let meaning = doc.split_once("0: ").or_else(|| doc.split_once("0 or 1: "))?.1;
                    meaning.split(['.', ';', ',']).next().map(str::to_owned)
                };
                let value = match default.parse() {
                    Ok(0) => zero().unwrap_or_else(|| shown(0, *unit)),
                    Ok(value) => shown(value, *unit),
                    Err(_) => default.to_owned(),
                };
                // Options of proxies are the same in all their sections.
                let name = path.strip_prefix("client.proxy.connect.").unwrap_or(path);
                format!("{value} (`{name}`)")
            }
        }
    }
}

fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    for (heading, rows) in groups() {
        let _ = write!(text, "\n## {heading}\n");
        text +=
            "| bound | value | when it is met | metrics | log |\n| --- | --- | --- | --- | --- |\n";
        for Row { what, bounds, answer, metrics, reasons } in rows {
            let bounds: Vec<String> = bounds.iter().map(Bound::shown).collect();
            let metrics: Vec<String> = metrics.iter().map(|name| format!("`{name}`")).collect();
            let reasons: Vec<String> =
                reasons.iter().map(|reason| format!("`{}`", reason.name())).collect();
            let cells = [
                what,
                &bounds.join("; ").replace(":; ", ": "),
                answer,
                &metrics.join(", "),
                &reasons.join(", "),
            ];
            let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }
    text + END
}

#[test]
fn the_limits_are_documented() {
    hold("docs/limits.md", &document());
}

#[test]
fn every_bound_of_the_table_of_constants_has_a_row() {
    let source = fs::read_to_string(in_repository("src/base/limits.rs")).unwrap();
    let constants = source.lines().filter_map(|line| line.strip_prefix("pub const "));
    let named: Vec<&str> = constants.map(|line| line.split(':').next().unwrap()).collect();
    assert!(named.len() > 60, "{named:?}");
    let rows = groups().into_iter().flat_map(|(_, rows)| rows);
    let bounds: Vec<Bound> = rows.flat_map(|row| row.bounds).collect();
    let mentions = |name: &str| {
        bounds.iter().any(|bound| matches!(bound, Bound::Constant(other, ..) if *other == name))
    };
    let missing: Vec<&str> = named.into_iter().filter(|name| !mentions(name)).collect();
    assert!(missing.is_empty(), "add rows to src/node/documents/limits.rs for {missing:?}");
}

#[test]
fn metrics_of_the_table_exist() {
    let metrics = fs::read_to_string(in_repository("docs/metrics.md")).unwrap();
    for (_, rows) in groups() {
        for name in rows.iter().flat_map(|row| row.metrics) {
            assert!(metrics.contains(&format!("| `{name}` |")), "{name} isn't in docs/metrics.md");
        }
    }
}

#[test]
fn values_are_shown_with_their_units() {
    assert_eq!(shown(24 << 10, Bytes), "24 KiB");
    assert_eq!(shown(4095, Bytes), "4,095 bytes");
    assert_eq!(shown(30_000, Ms), "30 s");
    assert_eq!(shown(300_000, Ms), "5 min");
    assert_eq!(of_source("REDIRECTS_MAX"), 5);
}
