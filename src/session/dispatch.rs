//! Commands: which one may be handled now, and the rules that each is held to.

use crate::base::limits::COMMANDS_UNANSWERED_MAX;
use crate::proto::client::{Disconnect, Request};
use crate::session::app::AppAnswer;
use crate::session::effects::Effect;
use crate::session::facts::Facts;
use crate::session::stop::Stop;
use crate::session::{Session, WaitsFor};

impl Session {
    /// Whether a command may be handled now. `deferred`: commands of the connection that wait for the
    /// application while others go on; `frame_ping`: its pings are RFC 6455 frames.
    ///
    /// # Errors
    /// It waits, or breaks the protocol.
    pub fn admit(
        &self,
        request: &Request<'_>,
        deferred: u32,
        frame_ping: bool,
    ) -> Result<(), Stop> {
        if let Request::Pong = request {
            return match self.flags.pong_due() && !frame_ping {
                true => Ok(()),
                false => Err(Stop::Close(Disconnect::BadRequest, "a pong without a ping")),
            };
        }
        // `connect` is the one barrier.
        if self.is_connecting() {
            return Err(Stop::Wait(WaitsFor::Broker));
        }
        if self.unanswered >= COMMANDS_UNANSWERED_MAX {
            return Err(Stop::Wait(WaitsFor::EarlierCommands));
        }
        // The end or renewal of something waits for its beginning.
        let follows = matches!(
            request,
            Request::Unsubscribe(_) | Request::Refresh(_) | Request::SubRefresh(_)
        );
        match follows && deferred > 0 {
            true => Err(Stop::Wait(WaitsFor::EarlierCommands)),
            false => Ok(()),
        }
    }

    /// Decides about a command that is admitted. `answer` is that of the application, if the command
    /// has stopped for one. Nothing is changed, so a command that stops can be handled again.
    ///
    /// # Errors
    /// The command has no effect now, or at all.
    pub fn handle<'a>(
        &self,
        request: &'a Request<'_>,
        answer: Option<&'a AppAnswer>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        match request {
            Request::Pong => Ok(Effect::Pong),
            Request::Publish(request) => self.publish(request, answer, facts),
            Request::Subscribe(request) => self.subscribe(request, answer, facts),
            Request::Unsubscribe(request) => self.unsubscribe(&request.channel, facts),
            Request::Presence(request) => self.presence(&request.channel, false, facts),
            Request::PresenceStats(request) => self.presence(&request.channel, true, facts),
            Request::History(request) => self.history(request, facts),
            Request::Rpc(request) => self.rpc(request, answer, facts),
            Request::Refresh(request) => self.refresh(request, facts),
            Request::SubRefresh(request) => self.sub_refresh(request, facts),
            Request::Send(_) => {
                Err(Stop::Close(Disconnect::NotAvailable, "the command send is not available"))
            }
            Request::Connect(_) => {
                Err(Stop::Close(Disconnect::BadRequest, "connect on a connected session"))
            }
            Request::Ping | Request::Unknown => {
                Err(Stop::Close(Disconnect::BadRequest, "an unknown command, or none"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::{
        ChannelRequest, ConnectRequest, PublishRequest, RefreshRequest, SendRequest,
    };
    use crate::session::testing::{Scene, session};
    use crate::session::{Connecting, Extra};

    fn unsubscribe() -> Request<'static> {
        Request::Unsubscribe(ChannelRequest { channel: "news".into() })
    }

    #[test]
    fn a_command_waits_for_connect_for_answers_and_for_deferred_ones() {
        let mut session = session("alice");
        let publish = Request::Publish(PublishRequest::default());
        let (earlier, broker) = (WaitsFor::EarlierCommands, WaitsFor::Broker);
        assert_eq!(session.admit(&publish, 3, false), Ok(()));
        assert_eq!(session.admit(&unsubscribe(), 0, false), Ok(()));
        let refresh = Request::Refresh(RefreshRequest::default());
        for follows in [unsubscribe(), refresh] {
            assert_eq!(session.admit(&follows, 1, false), Err(Stop::Wait(earlier)));
        }
        session.unanswered = COMMANDS_UNANSWERED_MAX;
        assert_eq!(session.admit(&publish, 0, false), Err(Stop::Wait(earlier)));
        let connecting = Some(Box::<Connecting>::default());
        session.extra = Some(Box::new(Extra { connecting, ..Extra::default() }));
        assert_eq!(session.admit(&publish, 0, false), Err(Stop::Wait(broker)));
    }

    #[test]
    fn a_pong_answers_a_ping_and_waits_for_nothing() {
        let mut session = session("alice");
        session.unanswered = COMMANDS_UNANSWERED_MAX;
        let pong = |session: &Session, frame_ping| session.admit(&Request::Pong, 0, frame_ping);
        assert!(matches!(pong(&session, false), Err(Stop::Close(Disconnect::BadRequest, _))));
        session.flags.set_pong_due(true);
        assert_eq!(pong(&session, false), Ok(()));
        // Its pings are frames: a message can't be the answer to one.
        assert!(matches!(pong(&session, true), Err(Stop::Close(Disconnect::BadRequest, _))));
    }

    #[test]
    fn commands_out_of_place_close_the_connection() {
        let (scene, session) = (Scene::default(), session("alice"));
        for (request, expected) in [
            (Request::Connect(ConnectRequest::default()), Disconnect::BadRequest),
            (Request::Ping, Disconnect::BadRequest),
            (Request::Unknown, Disconnect::BadRequest),
            (Request::Send(SendRequest::default()), Disconnect::NotAvailable),
        ] {
            let stop = session.handle(&request, None, &scene.facts()).err();
            assert!(matches!(stop, Some(Stop::Close(of, _)) if of == expected), "{stop:?}");
        }
    }
}
