//! `presence`, `presence_stats` and `history`: permissions and the bounds of an answer.

use compact_str::CompactString;

use crate::hub::history::{Page, Since};
use crate::proto::client::{ErrorCode, HistoryRequest};
use crate::session::Session;
use crate::session::effects::{Effect, Reading};
use crate::session::facts::Facts;
use crate::session::stop::Stop;

impl Session {
    pub(super) fn presence<'a>(
        &self,
        channel: &'a str,
        stats: bool,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        let namespace = facts.namespace(channel)?;
        if !namespace.presence {
            return Err(Stop::Error(ErrorCode::NotAvailable, "presence is off in the namespace"));
        }
        let subscribed = self.is_subscribed(facts.locals.find(channel));
        if !namespace.may_read_presence(&self.user, subscribed, facts.client.insecure) {
            let why = "no allow_presence_for_... option of the namespace allows it";
            return Err(Stop::Error(ErrorCode::PermissionDenied, why));
        }
        let reading = if stats { Reading::PresenceStats } else { Reading::Presence };
        Ok(Effect::Read { channel, namespace: namespace.index, reading })
    }

    pub(super) fn history<'a>(
        &self,
        request: &'a HistoryRequest<'_>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        let channel: &'a str = &request.channel;
        let namespace = facts.namespace(channel)?;
        if !namespace.has_history() {
            let why = "history_size or history_ttl of the namespace is 0";
            return Err(Stop::Error(ErrorCode::NotAvailable, why));
        }
        let subscribed = self.is_subscribed(facts.locals.find(channel));
        if !namespace.may_read_history(&self.user, subscribed, facts.client.insecure) {
            let why = "no allow_history_for_... option of the namespace allows it";
            return Err(Stop::Error(ErrorCode::PermissionDenied, why));
        }
        let since = request.since.as_ref();
        if request.reverse && since.is_some_and(|since| since.offset == 0) {
            return Err(Stop::Error(ErrorCode::BadRequest, "reverse since offset 0"));
        }
        // A negative limit is as many as allowed.
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let page = Page {
            since: since.map(|since| Since {
                offset: since.offset,
                epoch: CompactString::new(&since.epoch),
            }),
            limit: limit.min(facts.client.history_publications_max),
            reverse: request.reverse,
        };
        let reading = Reading::History(page);
        Ok(Effect::Read { channel, namespace: namespace.index, reading })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::{ChannelRequest, Request, StreamPosition};
    use crate::session::testing::{Scene, session};

    fn read(scene: &Scene, request: &Request<'_>) -> Result<Reading, ErrorCode> {
        match session("alice").handle(request, None, &scene.facts()) {
            Ok(Effect::Read { reading, .. }) => Ok(reading),
            Err(Stop::Error(code, _)) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn history(limit: i32, since: Option<u64>, reverse: bool) -> Request<'static> {
        let since = since.map(|offset| StreamPosition { offset, ..StreamPosition::default() });
        Request::History(HistoryRequest { channel: "news".into(), limit, since, reverse })
    }

    #[test]
    fn presence_has_to_be_kept_and_permitted() {
        let mut scene = Scene::default();
        let channel = || ChannelRequest { channel: "news".into() };
        let presence = Request::Presence(channel());
        assert_eq!(read(&scene, &presence), Err(ErrorCode::NotAvailable));
        scene.namespace(|of| of.presence = true);
        assert_eq!(read(&scene, &presence), Err(ErrorCode::PermissionDenied));
        scene.namespace(|of| {
            of.presence = true;
            of.allow_presence_for_client = true;
        });
        assert_eq!(read(&scene, &presence), Ok(Reading::Presence));
        let stats = Request::PresenceStats(channel());
        assert_eq!(read(&scene, &stats), Ok(Reading::PresenceStats));
    }

    #[test]
    fn history_has_to_be_kept_and_permitted_and_is_bounded() {
        let mut scene = Scene::default();
        scene.client.history_publications_max = 10;
        assert_eq!(read(&scene, &history(1, None, false)), Err(ErrorCode::NotAvailable));
        scene.namespace(|of| (of.history_size, of.history_ttl_ms) = (5, 1000));
        assert_eq!(read(&scene, &history(1, None, false)), Err(ErrorCode::PermissionDenied));
        scene.namespace(|of| {
            (of.history_size, of.history_ttl_ms) = (5, 1000);
            of.allow_history_for_client = true;
        });
        for (limit, expected) in [(0, 0), (7, 7), (11, 10), (-1, 10)] {
            let page = Page { limit: expected, ..Page::default() };
            assert_eq!(read(&scene, &history(limit, None, false)), Ok(Reading::History(page)));
        }
        assert_eq!(read(&scene, &history(1, Some(0), true)), Err(ErrorCode::BadRequest));
        assert!(read(&scene, &history(1, Some(0), false)).is_ok());
    }
}
