//! What a shard counts. It alone writes its counters; anyone may read them.

use crate::base::counters::{Gauge, counters};
use crate::base::form::Transport;
use crate::proto::client::{ErrorCode, Request};

counters! {
    /// The counters of one shard. A gauge is a present amount, a counter only grows.
    #[repr(align(128))]
    pub struct ShardCounters {
        /// Connections with an open socket.
        connections_open: gauge,
        /// Connections accepted, here or by a shard that passed them on.
        connections_accepted: counter,
        /// Connections whose socket was closed.
        connections_closed: counter,
        /// Connections passed to another shard because this one was full.
        connections_passed: counter,
        /// Connections and clients refused because no shard had room for them.
        connections_refused_full: counter,
        /// Idle connections closed to make place for new ones, by what they were: in their request head.
        replaced_head: counter,
        /// Kept for another request.
        replaced_kept: counter,
        /// Sending a body.
        replaced_body: counter,
        /// Opened, but not connected by the client protocol.
        replaced_stale: counter,
        /// Closing.
        replaced_closing: counter,
        /// Times that accepting had to wait a second because the host had no descriptor left.
        accepts_put_off: counter,
        /// Connections whose accept failed.
        accept_failed: counter,
        /// Slots of the connection table in use, the leaving ones included.
        slots_in_use: gauge,
        /// Closed connections whose homes are not all told yet.
        connections_leaving: gauge,
        /// Connections that speak the client protocol and are authenticated.
        sessions_open: gauge,
        /// Distinct users among them.
        users: gauge,
        /// Subscriptions of sessions here.
        subscriptions: gauge,
        /// Channels that connections here are subscribed to.
        channels_local: gauge,
        /// Channels whose home is here.
        channels_home: gauge,
        /// Of these, channels kept for their history alone.
        channels_idle: gauge,

        /// Requests refused before the upgrade, by reason: not HTTP, or contradictory.
        refused_malformed: counter,
        /// Not a proper WebSocket upgrade.
        refused_upgrade: counter,
        /// The page's origin is not allowed, or the request is another site's.
        refused_origin: counter,
        /// The host is not this node's, where only that is served.
        refused_host: counter,
        /// A header that decides on whose behalf a request comes stood twice.
        refused_repeated: counter,
        /// Nothing lives at that path.
        refused_not_found: counter,
        /// The head was too long.
        refused_too_long: counter,
        /// A limit was met, or the node drains: 503, or for an event source a stream that ends at once.
        refused_unavailable: counter,
        /// The head did not come in time.
        refused_timeout: counter,
        /// An address had as many connections as it may.
        refused_address_connections: counter,
        /// An address made new connections too fast.
        refused_address_rate: counter,
        /// An address had too many bytes of unfinished requests here.
        refused_address_bytes: counter,
        /// Times that there was no room to count what an address has.
        addresses_uncounted: counter,
        /// Connections that began with a PROXY header.
        proxy_headers: counter,
        /// Connections that had to begin with one and did not, or had one from a peer that isn't trusted.
        proxy_headers_refused: counter,
        /// The body came too slowly.
        refused_slow_body: counter,
        /// A request to the server API without its key, refused before its body was read.
        refused_api_key: counter,
        /// Requests refused as unavailable, by reason: the node drains.
        busy_draining: counter,
        /// The node is over its limit of memory.
        busy_memory: counter,
        /// Clients have all places of the shard.
        busy_places: counter,
        /// `client.connection_limit`.
        busy_connection_limit: counter,
        /// `client.connection_rate_limit`.
        busy_rate_limit: counter,
        /// Too many requests that aren't answered, or bytes of unfinished bodies.
        busy_requests: counter,
        /// Requests for the control thread.
        web_requests: counter,
        /// WebSockets opened.
        upgrades: counter,

        /// WebSocket messages received.
        messages_received: counter,
        /// Messages queued for clients: replies, pushes, deliveries, pings, echoes.
        messages_sent: counter,
        /// Bytes received.
        bytes_received: counter,
        /// Bytes sent.
        bytes_sent: counter,
        /// Writes to sockets.
        writes: counter,
        /// Writes that found the socket full.
        writes_blocked: counter,
        /// Commands of clients handled.
        commands: counter,
        /// Commands answered with an error.
        command_errors: counter,
        /// Commands `connect`.
        method_connect: counter,
        /// Commands `subscribe`.
        method_subscribe: counter,
        /// Commands `unsubscribe`.
        method_unsubscribe: counter,
        /// Commands `publish`.
        method_publish: counter,
        /// Commands `presence`.
        method_presence: counter,
        /// Commands `presence_stats`.
        method_presence_stats: counter,
        /// Commands `history`.
        method_history: counter,
        /// Commands `rpc`.
        method_rpc: counter,
        /// Commands `send`.
        method_send: counter,
        /// Commands `refresh`.
        method_refresh: counter,
        /// Commands `sub_refresh`.
        method_sub_refresh: counter,
        /// Commands answered with error 100, internal server error.
        error_100: counter,
        /// Commands answered with error 101, unauthorized.
        error_101: counter,
        /// Commands answered with error 102, unknown channel.
        error_102: counter,
        /// Commands answered with error 103, permission denied.
        error_103: counter,
        /// Commands answered with error 104, method not found.
        error_104: counter,
        /// Commands answered with error 105, already subscribed.
        error_105: counter,
        /// Commands answered with error 106, limit exceeded.
        error_106: counter,
        /// Commands answered with error 107, bad request.
        error_107: counter,
        /// Commands answered with error 108, not available.
        error_108: counter,
        /// Commands answered with error 109, token expired.
        error_109: counter,
        /// Commands answered with error 110, expired.
        error_110: counter,
        /// Commands answered with error 111, too many requests.
        error_111: counter,
        /// Commands answered with error 112, unrecoverable position.
        error_112: counter,
        /// Commands answered with error 113, concurrent pagination.
        error_113: counter,
        /// Commands answered with an error of the application's own.
        error_application: counter,
        /// Connections that had to wait before more of their commands were taken.
        commands_paused: counter,
        /// Closes because the peer broke RFC 6455 (1002).
        faults_protocol: counter,
        /// Closes because text was not UTF-8 (1007).
        faults_utf8: counter,
        /// Closes because a message was too long (1009).
        faults_too_long: counter,
        /// Closes because of a bad request of the client protocol (3501).
        faults_bad_request: counter,
        /// Closes because of an invalid token (3500).
        faults_token: counter,
        /// Closes because the client was not connected in time (3502).
        closed_stale: counter,
        /// Closes because no pong came (3012).
        closed_no_pong: counter,
        /// Closes of JSON connections that would have been shown what isn't JSON (3506).
        closed_inappropriate: counter,
        /// Closes because a user had too many connections, or a newer one (3504).
        closed_user_limit: counter,
        /// Closes because the client did not take what was queued for it (3008).
        closed_slow: counter,
        /// Closes because a write did not get through in time (3009).
        closed_write_timeout: counter,
        /// Closes because the connection's token expired (3005).
        closed_expired: counter,
        /// Closes of connections over which nothing came in time.
        closed_unused: counter,
        /// Closes of idle connections that did not answer.
        closed_idle: counter,
        /// Closes because the node drains (3001).
        closed_shutdown: counter,
        /// Closes that the application's answers asked for.
        closed_by_application: counter,
        /// Closes that the server API asked for.
        closed_by_api: counter,
        /// Closes to give memory back when the node was over its limit.
        closed_memory: counter,
        /// Connections whose peer did not answer our close frame in time.
        close_timeouts: counter,
        /// Pings sent.
        pings: counter,
        /// Pongs received.
        pongs: counter,
        /// Bytes that wait for sockets.
        queued_bytes: gauge,
        /// Connections that have something waiting.
        queues: gauge,

        /// Publications taken by homes here.
        publications: counter,
        /// Deliveries queued for subscribers here: publications times subscribers.
        deliveries: counter,
        /// Deliveries to a shard that were lost, because its mailbox was full: by the sender.
        gaps_mail: counter,
        /// Deliveries lost because a channel's fan-out was too far behind.
        gaps_fanout: counter,
        /// Subscriptions ended because of a gap (2500): their clients recover.
        gaps_told: counter,
        /// Subscribers that lost publications and can't be told.
        gaps_untold: counter,
        /// Join and leave events lost because a shard or a channel was too far behind.
        events_lost: counter,
        /// Presence and history read.
        reads: counter,
        /// Subscriptions that wanted what they had missed.
        recoveries: counter,
        /// Of them, those that got all of it.
        recovered: counter,
        /// Deadlines that the shard found too late to blame the peer: it was given more time.
        deadlines_put_off: counter,
        /// Publications sent in full because the turn had made patches enough.
        patches_over_budget: counter,
        /// Publications kept by homes here.
        history_publications: gauge,
        /// Bytes of them.
        history_bytes: gauge,
        /// Filters in use here, equal ones once.
        filters: gauge,
        /// Bytes that they hold.
        filters_bytes: gauge,
        /// Given up because memory was short: requests with unfinished bodies.
        shed_bodies: counter,
        /// Idle channels, with their history.
        shed_channels: counter,
        /// Publications, of idle channels and of others.
        shed_publications: counter,
        /// Times that all encoded answers were.
        shed_answers: counter,
        /// Remembered tokens.
        shed_tokens: counter,
        /// Remembered publishes with an idempotency key.
        shed_results: counter,
        /// Refused because memory was short: publications.
        short_publish: counter,
        /// Publications for which history had no room, though the node was below its limit.
        short_history: counter,
        /// Subscriptions.
        short_subscribe: counter,
        /// Sessions.
        short_connect: counter,
        /// Calls to the application.
        short_call: counter,
        /// Questions to the application.
        proxy_questions: counter,
        /// Clients that are connected over a WebSocket.
        clients_websocket: gauge,
        /// Clients over `http_stream`.
        clients_http_stream: gauge,
        /// Clients over `sse`.
        clients_sse: gauge,
        /// Clients over `uni_websocket`.
        clients_uni_websocket: gauge,
        /// Clients over `uni_http_stream`.
        clients_uni_http_stream: gauge,
        /// Clients over `uni_sse`.
        clients_uni_sse: gauge,
        /// Requests over `long_poll` that are not answered yet.
        clients_long_poll: gauge,
        /// Requests over `long_poll` that were taken.
        polls: counter,
        /// Of their answers, those without publications.
        polls_empty: counter,
        /// Responses begun that go on: HTTP streams and server-sent events.
        streams: counter,
        /// Requests to the up-link of such connections that found their shard.
        emulations: counter,
        /// Requests to the up-link that were refused.
        emulations_refused: counter,
        /// Bytes that came behind a request whose response goes on.
        bytes_ignored: counter,
        /// Positions that found no room in the id of an event.
        positions_left_out: counter,
        /// Messages of clients that came deflated.
        messages_inflated: counter,
        /// Signatures of tokens checked for their homes here.
        tokens_checked: counter,
        /// Checks of signatures that were withdrawn, since their connections had gone.
        tokens_withdrawn: counter,
        /// Checks of signatures refused because of `roost.signature_checks_per_address`.
        tokens_refused_address: counter,
        /// Tokens that were known to be good.
        tokens_known: counter,
        /// Publishes remembered by their idempotency keys.
        publishes_remembered: gauge,
        /// Tokens remembered as good.
        tokens_remembered: gauge,
        /// Batches of mail received.
        mail_batches: counter,
        /// Messages in them.
        mail: counter,
        /// Batches that found the receiver's mailbox full, and wait.
        mail_full: counter,
        /// Batches that wait in the mailbox.
        mailbox_batches: gauge,
        /// Bytes of them.
        mailbox_bytes: gauge,
        /// Connections that may lose their places to new ones: they do nothing for a client.
        connections_replaceable: gauge,
        /// Bytes of bodies of requests that are not all here.
        unfinished_bytes: gauge,
        /// Connections with a timer.
        timers: gauge,
        /// Events for a connection that was gone.
        stale_events: counter,
        /// Turns of the loop.
        turns: counter,
    }
}

impl ShardCounters {
    /// A command of a client is to be handled.
    pub(super) fn count_command(&self, request: &Request<'_>) {
        self.commands.inc();
        let method = match request {
            Request::Connect(_) => &self.method_connect,
            Request::Subscribe(_) => &self.method_subscribe,
            Request::Unsubscribe(_) => &self.method_unsubscribe,
            Request::Publish(_) => &self.method_publish,
            Request::Presence(_) => &self.method_presence,
            Request::PresenceStats(_) => &self.method_presence_stats,
            Request::History(_) => &self.method_history,
            Request::Rpc(_) => &self.method_rpc,
            Request::Send(_) => &self.method_send,
            Request::Refresh(_) => &self.method_refresh,
            Request::SubRefresh(_) => &self.method_sub_refresh,
            // Faults, which are counted as such.
            Request::Pong | Request::Ping | Request::Unknown => return,
        };
        method.inc();
    }

    /// Clients over a transport.
    pub fn clients(&self, transport: Transport) -> &Gauge {
        match transport {
            Transport::WebSocket => &self.clients_websocket,
            Transport::HttpStream => &self.clients_http_stream,
            Transport::Sse => &self.clients_sse,
            Transport::UniWebSocket => &self.clients_uni_websocket,
            Transport::UniHttpStream => &self.clients_uni_http_stream,
            Transport::UniSse => &self.clients_uni_sse,
            Transport::LongPoll => &self.clients_long_poll,
        }
    }

    /// A command is answered with an error.
    pub(super) fn count_error(&self, code: ErrorCode) {
        self.command_errors.inc();
        let of_code = match code {
            ErrorCode::Internal => &self.error_100,
            ErrorCode::Unauthorized => &self.error_101,
            ErrorCode::UnknownChannel => &self.error_102,
            ErrorCode::PermissionDenied => &self.error_103,
            ErrorCode::MethodNotFound => &self.error_104,
            ErrorCode::AlreadySubscribed => &self.error_105,
            ErrorCode::LimitExceeded => &self.error_106,
            ErrorCode::BadRequest => &self.error_107,
            ErrorCode::NotAvailable => &self.error_108,
            ErrorCode::TokenExpired => &self.error_109,
            ErrorCode::Expired => &self.error_110,
            ErrorCode::TooManyRequests => &self.error_111,
            ErrorCode::UnrecoverablePosition => &self.error_112,
            ErrorCode::ConcurrentPagination => &self.error_113,
        };
        of_code.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_a_counter_of_its_own() {
        let counters = ShardCounters::default();
        ErrorCode::ALL.iter().for_each(|code| counters.count_error(*code));
        let mut counted: Vec<u16> = Vec::new();
        counters.each(|name, value| {
            if let Some(code) = name.strip_prefix("error_").filter(|of| *of != "application") {
                assert_eq!(value, 1, "{name}");
                counted.push(code.parse().unwrap());
            }
        });
        assert_eq!(counted, ErrorCode::ALL.iter().map(|code| code.code()).collect::<Vec<_>>());
    }
}
