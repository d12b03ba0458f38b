//! The counters of a shard. Only the shard writes them; every thread may read them.
//! The comment of a counter is its help text in `/metrics` (docs/metrics.md).

use crate::base::counters::{Counter, Gauge, counters};
use crate::base::form::Transport;
use crate::proto::client::{Disconnect, ErrorCode, Request, Unsubscribed};

counters! {
    /// The counters of one shard. A gauge is a present amount, a counter only grows.
    #[repr(align(128))]
    pub struct ShardCounters {
        /// Connections with an open socket.
        connections_open: gauge,
        /// Connections accepted, including those that another shard accepted and passed on.
        connections_accepted: counter,
        /// Connections whose socket was closed.
        connections_closed: counter,
        /// Connections passed to another shard because this one was full.
        connections_passed: counter,
        /// Connections and clients refused because no shard had room for them.
        connections_refused_full: counter,
        /// Idle connections closed to make room for new ones, by state: in their request head.
        replaced_head: counter,
        /// Kept for another request.
        replaced_kept: counter,
        /// Sending a body.
        replaced_body: counter,
        /// Open, but not connected by the client protocol.
        replaced_stale: counter,
        /// Closing.
        replaced_closing: counter,
        /// Times that accepting paused for a second because the host had no descriptor left.
        accepts_put_off: counter,
        /// Failed accepts.
        accept_failed: counter,
        /// Slots of the connection table in use, including those of closed connections that wait for homes.
        slots_in_use: gauge,
        /// Closed connections that wait for homes to confirm the end of their subscriptions.
        connections_leaving: gauge,
        /// Connections with an authenticated session of the client protocol.
        sessions_open: gauge,
        /// Distinct users with open sessions.
        users: gauge,
        /// Subscriptions of sessions.
        subscriptions: gauge,
        /// Channels with subscribers, counted once on each shard that has some.
        channels_local: gauge,
        /// Channels that exist, counted at their homes.
        channels_home: gauge,
        /// Channels without subscribers, kept for their history alone.
        channels_idle: gauge,

        /// Requests refused before the upgrade, by reason: not HTTP, or contradictory.
        refused_malformed: counter,
        /// Not a valid WebSocket upgrade.
        refused_upgrade: counter,
        /// The origin of the page is not allowed, or the request comes from another site.
        refused_origin: counter,
        /// The host is not this node's, where only that is served.
        refused_host: counter,
        /// A header that identifies the sender of a request occurs twice.
        refused_repeated: counter,
        /// No endpoint at that path.
        refused_not_found: counter,
        /// The head was too long.
        refused_too_long: counter,
        /// A limit was reached, or the node drains: 503, or for an event source a stream that ends at once.
        refused_unavailable: counter,
        /// The head did not arrive in time.
        refused_timeout: counter,
        /// An address had its maximum of connections.
        refused_address_connections: counter,
        /// An address exceeded its rate of new connections.
        refused_address_rate: counter,
        /// An address had its maximum of bytes of incomplete requests.
        refused_address_bytes: counter,
        /// Times that an address was not counted because the table of addresses was full.
        addresses_uncounted: counter,
        /// Connections that began with a PROXY header.
        proxy_headers: counter,
        /// Connections without a required PROXY header, or with one from an untrusted peer.
        proxy_headers_refused: counter,
        /// The body arrived too slowly.
        refused_slow_body: counter,
        /// A request to the server API without its key, refused before its body was read.
        refused_api_key: counter,
        /// Requests refused as unavailable, by reason: the node drains.
        busy_draining: counter,
        /// The node is over its memory limit.
        busy_memory: counter,
        /// Clients occupy all places of the shard.
        busy_places: counter,
        /// `client.connection_limit`.
        busy_connection_limit: counter,
        /// `client.connection_rate_limit`.
        busy_rate_limit: counter,
        /// Too many unanswered requests, or too many bytes of incomplete bodies.
        busy_requests: counter,
        /// Requests passed to the control thread.
        web_requests: counter,
        /// WebSockets opened.
        upgrades: counter,

        /// WebSocket messages received.
        messages_received: counter,
        /// Messages queued for clients: replies, pushes, deliveries, pings, echoes.
        messages_sent: counter,
        /// Bytes received from sockets.
        bytes_received: counter,
        /// Bytes written to sockets.
        bytes_sent: counter,
        /// Writes to sockets.
        writes: counter,
        /// Writes that found the socket full (backpressure of the client).
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
        /// Commands answered with an error code of the application.
        error_application: counter,
        /// Times that a connection was paused before further commands of it were handled.
        commands_paused: counter,
        /// Closes because the peer violated RFC 6455 (1002).
        faults_protocol: counter,
        /// Closes because text was not UTF-8 (1007).
        faults_utf8: counter,
        /// Closes because a message was too long (1009).
        faults_too_long: counter,
        /// Closes because of a bad request of the client protocol (3501).
        faults_bad_request: counter,
        /// Closes because of an invalid token (3500).
        faults_token: counter,
        /// Closes because the client did not connect in time (3502).
        closed_stale: counter,
        /// Closes because no pong arrived (3012).
        closed_no_pong: counter,
        /// Closes of JSON connections for which a payload was not JSON (3506).
        closed_inappropriate: counter,
        /// Closes because a user had too many connections, or a newer one (3504).
        closed_user_limit: counter,
        /// Closes because too many bytes were queued for the client (3008).
        closed_slow: counter,
        /// Closes because a write did not finish in time (3009).
        closed_write_timeout: counter,
        /// Closes because the token of the connection expired (3005).
        closed_expired: counter,
        /// Closes of connections that sent nothing in time.
        closed_unused: counter,
        /// Closes of idle connections that did not answer a ping.
        closed_idle: counter,
        /// Closes because the node drains (3001).
        closed_shutdown: counter,
        /// Closes by a proxy result of the application.
        closed_by_application: counter,
        /// Closes by a call of the server API.
        closed_by_api: counter,
        /// Closes to release memory while the node was over its limit.
        closed_memory: counter,
        /// Sessions that the node ended, by code: protocol error of WebSocket.
        disconnect_1002: counter,
        /// Text that is not UTF-8.
        disconnect_1007: counter,
        /// A message that is too long.
        disconnect_1009: counter,
        /// Code 3000, connection closed.
        disconnect_3000: counter,
        /// Code 3001, shutdown.
        disconnect_3001: counter,
        /// Code 3004, internal server error.
        disconnect_3004: counter,
        /// Code 3005, connection expired.
        disconnect_3005: counter,
        /// Code 3006, subscription expired.
        disconnect_3006: counter,
        /// Code 3008, slow.
        disconnect_3008: counter,
        /// Code 3009, write error.
        disconnect_3009: counter,
        /// Code 3010, insufficient state.
        disconnect_3010: counter,
        /// Code 3011, force reconnect.
        disconnect_3011: counter,
        /// Code 3012, no pong.
        disconnect_3012: counter,
        /// Code 3013, too many requests.
        disconnect_3013: counter,
        /// Code 3014, state invalidated.
        disconnect_3014: counter,
        /// Code 3500, invalid token.
        disconnect_3500: counter,
        /// Code 3501, bad request.
        disconnect_3501: counter,
        /// Code 3502, stale.
        disconnect_3502: counter,
        /// Code 3503, force disconnect.
        disconnect_3503: counter,
        /// Code 3504, connection limit.
        disconnect_3504: counter,
        /// Code 3505, channel limit.
        disconnect_3505: counter,
        /// Code 3506, inappropriate protocol.
        disconnect_3506: counter,
        /// Code 3507, permission denied.
        disconnect_3507: counter,
        /// Code 3508, not available.
        disconnect_3508: counter,
        /// Code 3509, too many errors.
        disconnect_3509: counter,
        /// Codes of the application.
        disconnect_application: counter,
        /// Subscriptions that ended before their connections, by code: the client has unsubscribed.
        unsubscribe_client: counter,
        /// Code 2000, server unsubscribe.
        unsubscribe_2000: counter,
        /// Code 2500, insufficient state.
        unsubscribe_2500: counter,
        /// Code 2501, subscription expired.
        unsubscribe_2501: counter,
        /// Code 2502, state invalidated.
        unsubscribe_2502: counter,
        /// Codes of the application.
        unsubscribe_application: counter,
        /// Connections whose peer did not answer a close frame in time.
        close_timeouts: counter,
        /// Pings sent.
        pings: counter,
        /// Pongs received.
        pongs: counter,
        /// Bytes queued for sockets.
        queued_bytes: gauge,
        /// Connections with queued bytes.
        queues: gauge,

        /// Connections with TLS keys.
        tls_connections: gauge,
        /// TLS handshakes that are under way.
        tls_handshakes_open: gauge,
        /// Bytes of keys and counters of TLS connections, free places included.
        tls_state_bytes: gauge,
        /// Bytes of unfinished TLS records, and of sealed records that wait for their sockets.
        tls_unfinished_bytes: gauge,
        /// TLS connections that ended without a close_notify of the client.
        tls_truncated: counter,
        /// TLS connections closed because a key of TLS 1.2 can seal no more records (3011).
        tls_worn: counter,
        /// TLS handshakes, by version and kind: TLS 1.3 with a certificate.
        tls_handshakes_1_3_full: counter,
        /// TLS 1.3 with a ticket.
        tls_handshakes_1_3_resumed: counter,
        /// TLS 1.2 with a certificate.
        tls_handshakes_1_2_full: counter,
        /// TLS 1.2 with a ticket.
        tls_handshakes_1_2_resumed: counter,
        /// TLS handshakes that failed, by reason: a request in plain text.
        tls_failed_plain_text: counter,
        /// Bytes that are no TLS.
        tls_failed_malformed: counter,
        /// No common version, suite or group.
        tls_failed_incompatible: counter,
        /// A message that may not come now, or contradicts another.
        tls_failed_misbehaved: counter,
        /// The client has sent an alert, such as one that it doesn't trust the certificate.
        tls_failed_peer_alert: counter,
        /// The certificate of the client is missing or not accepted.
        tls_failed_certificate: counter,
        /// No common protocol of ALPN.
        tls_failed_protocol: counter,
        /// A record that is not authentic.
        tls_failed_decrypt: counter,
        /// A message that is too long.
        tls_failed_too_long: counter,
        /// The client has closed before the end.
        tls_failed_closed: counter,
        /// Keys that don't fit together.
        tls_failed_inconsistent: counter,
        /// Others that the TLS library refuses.
        tls_failed_refused: counter,
        /// Not done in time, or closed by the node for another reason.
        tls_failed_unfinished: counter,
        /// Ended because too many others were under way.
        tls_failed_crowded: counter,
        /// TLS connections closed because of an invalid record, by reason: not authentic.
        tls_record_faults_bad_record_mac: counter,
        /// Too long.
        tls_record_faults_record_overflow: counter,
        /// Of a kind that may not come now.
        tls_record_faults_unexpected_message: counter,
        /// A malformed KeyUpdate.
        tls_record_faults_key_update: counter,
        /// Too many without data.
        tls_record_faults_without_data: counter,
        /// Incomplete for longer than the time of a request head.
        tls_record_faults_late: counter,
        /// A renegotiation.
        tls_record_faults_renegotiation: counter,
        /// An alert of the client.
        tls_record_faults_peer_alert: counter,
        /// Others.
        tls_record_faults_other: counter,

        /// Publications accepted by homes.
        publications: counter,
        /// Deliveries queued for subscribers: publications times subscribers.
        deliveries: counter,
        /// Deliveries to a shard that were lost because its mailbox was full; counted by the sender.
        gaps_mail: counter,
        /// Deliveries lost because too much of a channel's fan-out was pending.
        gaps_fanout: counter,
        /// Subscriptions out of position because of a gap (2500): their clients recover.
        gaps_told: counter,
        /// Subscriptions that are out of position (2500, 3010) and get nothing more: they end within seconds,
        /// spread so that their clients don't come back all at once.
        subscriptions_lapsed: gauge,
        /// Subscribers without a position that lost publications.
        gaps_untold: counter,
        /// Join and leave events lost because a shard or a channel was too far behind.
        events_lost: counter,
        /// Reads of presence and history.
        reads: counter,
        /// Subscriptions that requested recovery.
        recoveries: counter,
        /// Recoveries in which every missed publication was delivered.
        recovered: counter,
        /// Deadlines that the shard checked too late to judge the peer, and extended.
        deadlines_put_off: counter,
        /// Publications sent in full because the turn's budget for patches was spent.
        patches_over_budget: counter,
        /// Publications in history.
        history_publications: gauge,
        /// Bytes of the publications in history.
        history_bytes: gauge,
        /// Tag filters in use; equal ones of a shard count once.
        filters: gauge,
        /// Bytes of tag filters.
        filters_bytes: gauge,
        /// Released because memory was short: requests with incomplete bodies.
        shed_bodies: counter,
        /// Idle channels, with their history.
        shed_channels: counter,
        /// Publications, of idle channels and of others.
        shed_publications: counter,
        /// Times that all encoded answers were released.
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
        /// Proxy calls.
        short_call: counter,
        /// Proxy calls requested by shards.
        proxy_questions: counter,
        /// Connected clients over WebSocket.
        clients_websocket: gauge,
        /// Connected clients over `http_stream`.
        clients_http_stream: gauge,
        /// Connected clients over `sse`.
        clients_sse: gauge,
        /// Connected clients over `uni_websocket`.
        clients_uni_websocket: gauge,
        /// Connected clients over `uni_http_stream`.
        clients_uni_http_stream: gauge,
        /// Connected clients over `uni_sse`.
        clients_uni_sse: gauge,
        /// Unanswered requests over `long_poll`.
        clients_long_poll: gauge,
        /// Accepted requests over `long_poll`.
        polls: counter,
        /// Answers to `long_poll` without publications.
        polls_empty: counter,
        /// Streaming responses begun: HTTP streams and server-sent events.
        streams: counter,
        /// Requests to the up-link (`/emulation`) that reached their shard.
        emulations: counter,
        /// Requests to the up-link (`/emulation`) that were refused.
        emulations_refused: counter,
        /// Bytes received behind a request with a streaming response, and dropped.
        bytes_ignored: counter,
        /// Positions that did not fit into the id of an event.
        positions_left_out: counter,
        /// Compressed messages received from clients.
        messages_inflated: counter,
        /// Token signatures verified.
        tokens_checked: counter,
        /// Signature checks withdrawn because their connections had closed.
        tokens_withdrawn: counter,
        /// Checks of signatures refused because of `roost.signature_checks_per_address`.
        tokens_refused_address: counter,
        /// Tokens accepted because their digest was remembered.
        tokens_known: counter,
        /// Publishes remembered by their idempotency keys.
        publishes_remembered: gauge,
        /// Remembered good tokens.
        tokens_remembered: gauge,
        /// Batches of mail received by shards.
        mail_batches: counter,
        /// Messages in the batches of mail received by shards.
        mail: counter,
        /// Batches of mail that found the mailbox of their receiver full and wait.
        mail_full: counter,
        /// Batches of mail in mailboxes.
        mailbox_batches: gauge,
        /// Bytes of mail in mailboxes.
        mailbox_bytes: gauge,
        /// Connections that do nothing for a client and may give way to new ones.
        connections_replaceable: gauge,
        /// Bytes of the remembered closes of connections.
        closes_bytes: gauge,
        /// Bytes of incomplete request bodies.
        unfinished_bytes: gauge,
        /// Connections with a timer.
        timers: gauge,
        /// Readiness events for connections that no longer exist.
        stale_events: counter,
        /// Turns of the loop.
        turns: counter,
        /// Channels that a broker keeps and this node follows.
        broker_channels: gauge,
        /// Operations that wait for the broker.
        broker_waiting: gauge,
        /// Bytes of the newest publications of channels that a broker keeps, for recoveries.
        broker_window_bytes: gauge,
        /// Histories read at the broker: for clients, and to check and repair positions.
        broker_reads: counter,
        /// Publications that were lost on the way from the broker and delivered from its history.
        broker_repaired: counter,
        /// Publications dropped, since the broker had delivered them before.
        broker_duplicates: counter,
        /// Gaps, since the broker began a channel anew.
        broker_gaps_epoch: counter,
        /// Gaps, since the broker had removed the publications from its history.
        broker_gaps_trimmed: counter,
        /// Gaps, since the broker lost its latest publications, as after a failover.
        broker_gaps_rewind: counter,
        /// Gaps, since more was delivered out of order than a channel may hold back.
        broker_gaps_lag: counter,
        /// Operations that the broker did not answer in time.
        broker_timeouts: counter,
        /// Operations refused, since too many wait for the broker.
        broker_refused: counter,
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

    /// The node ends a session with a code.
    pub(super) fn count_disconnect(&self, code: u16) {
        let known = Disconnect::ALL.iter().find(|disconnect| disconnect.code() == code);
        let of_code = match known {
            Some(disconnect) => match disconnect {
                Disconnect::ConnectionClosed => &self.disconnect_3000,
                Disconnect::Shutdown => &self.disconnect_3001,
                Disconnect::InternalError => &self.disconnect_3004,
                Disconnect::ConnectionExpired => &self.disconnect_3005,
                Disconnect::SubscriptionExpired => &self.disconnect_3006,
                Disconnect::Slow => &self.disconnect_3008,
                Disconnect::WriteError => &self.disconnect_3009,
                Disconnect::InsufficientState => &self.disconnect_3010,
                Disconnect::ForceReconnect => &self.disconnect_3011,
                Disconnect::NoPong => &self.disconnect_3012,
                Disconnect::TooManyRequests => &self.disconnect_3013,
                Disconnect::StateInvalidated => &self.disconnect_3014,
                Disconnect::InvalidToken => &self.disconnect_3500,
                Disconnect::BadRequest => &self.disconnect_3501,
                Disconnect::Stale => &self.disconnect_3502,
                Disconnect::ForceDisconnect => &self.disconnect_3503,
                Disconnect::ConnectionLimit => &self.disconnect_3504,
                Disconnect::ChannelLimit => &self.disconnect_3505,
                Disconnect::InappropriateProtocol => &self.disconnect_3506,
                Disconnect::PermissionDenied => &self.disconnect_3507,
                Disconnect::NotAvailable => &self.disconnect_3508,
                Disconnect::TooManyErrors => &self.disconnect_3509,
            },
            None => match code {
                1007 => &self.disconnect_1007,
                1009 => &self.disconnect_1009,
                ..3000 => &self.disconnect_1002,
                _ => &self.disconnect_application,
            },
        };
        of_code.inc();
    }

    /// The node ends a subscription of a connection that goes on.
    pub(super) fn count_unsubscribe(&self, code: u16) {
        let known = Unsubscribed::ALL.iter().find(|unsubscribed| unsubscribed.code() == code);
        let of_code = match known {
            Some(Unsubscribed::Server) => &self.unsubscribe_2000,
            Some(Unsubscribed::InsufficientState) => &self.unsubscribe_2500,
            Some(Unsubscribed::Expired) => &self.unsubscribe_2501,
            Some(Unsubscribed::StateInvalidated) => &self.unsubscribe_2502,
            None => &self.unsubscribe_application,
        };
        of_code.inc();
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

/// Counters of one namespace on one shard.
#[derive(Debug, Default)]
pub struct NamespaceCounters {
    /// Clients closed because its publications were too much for them.
    pub closed: Counter,
    /// Publications dropped to make room (`drop_oldest`).
    pub dropped: Counter,
    /// Publications replaced by a newer one (`latest`).
    pub conflated: Counter,
    /// Publications accepted by homes.
    pub publications: Counter,
    /// Deliveries queued for subscribers.
    pub deliveries: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_an_ending_has_a_counter_of_its_own() {
        let counters = ShardCounters::default();
        Disconnect::ALL.iter().for_each(|why| counters.count_disconnect(why.code()));
        Unsubscribed::ALL.iter().for_each(|why| counters.count_unsubscribe(why.code()));
        [1002, 1007, 1009, 4000].into_iter().for_each(|code| counters.count_disconnect(code));
        counters.count_unsubscribe(2001);
        let mut counted = (0, 0);
        counters.each(|name, value| {
            let of = name.strip_prefix("disconnect_").map(|code| (&mut counted.0, code));
            let of = of.or_else(|| Some((&mut counted.1, name.strip_prefix("unsubscribe_")?)));
            if let Some((count, code)) = of.filter(|(_, code)| *code != "client") {
                assert_eq!(value, 1, "{name}: {code}");
                *count += 1;
            }
        });
        assert_eq!(counted, (Disconnect::ALL.len() + 4, Unsubscribed::ALL.len() + 1));
    }

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
