//! `publish`: the rules of client protocol, 18.

use std::sync::Arc;

use crate::proto::client::{Encoding, ErrorCode, Payload, PublishRequest, is_json};
use crate::session::Session;
use crate::session::app::AppAnswer;
use crate::session::effects::{Effect, Publication};
use crate::session::facts::Facts;
use crate::session::stop::Stop;

impl Session {
    pub(super) fn publish<'a>(
        &self,
        request: &'a PublishRequest<'_>,
        answer: Option<&'a AppAnswer>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        let channel: &'a str = &request.channel;
        let namespace = facts.namespace(channel)?;
        facts.channels.check_publishable(channel)?;
        if request.kind != 0 {
            return Err(Stop::Error(ErrorCode::NotAvailable, "publications of that type"));
        }
        if facts.is_short {
            return Err(Stop::NoMemory);
        }
        let local = facts.locals.find(channel);
        let data = request.data.as_ref().map_or(&b""[..], Payload::bytes);
        // A JSON client's payload was read as JSON.
        let speaks_json = facts.encoding == Encoding::Json;
        let data_is_json = !data.is_empty() && (speaks_json || is_json(data));
        let result = match &namespace.publish_proxy {
            None => {
                let subscribed = self.is_subscribed(local);
                let insecure = facts.client.insecure;
                namespace.may_publish(&self.user, subscribed, insecure, data, data_is_json)?;
                None
            }
            Some(proxy) => {
                namespace.check_data(data, data_is_json)?;
                let answer = answer.ok_or_else(|| Stop::Call(Arc::clone(proxy)))?;
                Some(answer.permission()?)
            }
        };
        // Data of the application's in place of the client's is held to the same format.
        let (data, data_is_json) = match result.and_then(|result| result.data.as_deref()) {
            Some(data) => {
                let data_is_json = is_json(data);
                namespace.check_data(data, data_is_json)?;
                (data, data_is_json)
            }
            None => (data, data_is_json),
        };
        let namespace = namespace.index;
        let publication =
            Publication { channel, namespace, local, data, is_json: data_is_json, result };
        Ok(Effect::Publish(publication))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::channels::DataFormat;
    use crate::proto::client::{Request, commands};
    use crate::session::app::AppResult;
    use crate::session::testing::{Scene, proxy, session};

    /// The effect of a `publish` of `{}` to `channel`.
    fn publish(
        scene: &Scene,
        session: &Session,
        answer: Option<&AppAnswer>,
    ) -> Result<String, Stop> {
        let text = r#"{"id":1,"publish":{"channel":"news","data":{}}}"#;
        let command = commands(text).next().unwrap().unwrap();
        match session.handle(&command.request, answer, &scene.facts())? {
            Effect::Publish(of) => Ok(String::from_utf8(of.data.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn code(stop: Option<Stop>) -> ErrorCode {
        match stop {
            Some(Stop::Error(code, _)) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_namespace_permits_clients_or_subscribers() {
        let mut scene = Scene::default();
        let mut session = session("alice");
        assert_eq!(code(publish(&scene, &session, None).err()), ErrorCode::PermissionDenied);
        scene.namespace(|of| of.allow_publish_for_subscriber = true);
        assert_eq!(code(publish(&scene, &session, None).err()), ErrorCode::PermissionDenied);
        scene.subscribe(&mut session, "news");
        assert_eq!(publish(&scene, &session, None).unwrap(), "{}");
    }

    #[test]
    fn without_memory_nothing_is_published() {
        let mut scene = Scene::default();
        scene.namespace(|of| of.allow_publish_for_client = true);
        scene.is_short = true;
        assert_eq!(publish(&scene, &session("alice"), None), Err(Stop::NoMemory));
    }

    #[test]
    fn other_types_are_not_available() {
        let scene = Scene::default();
        let request = PublishRequest { channel: "news".into(), kind: 1, ..<_>::default() };
        let request = Request::Publish(request);
        let stop = session("alice").handle(&request, None, &scene.facts()).err();
        assert_eq!(code(stop), ErrorCode::NotAvailable);
    }

    #[test]
    fn the_application_is_called_first_and_may_replace_the_data() {
        let mut scene = Scene::default();
        scene.namespace(|of| of.publish_proxy = Some(proxy()));
        let session = session("");
        assert_eq!(publish(&scene, &session, None), Err(Stop::Call(proxy())));
        let answer = |data: &str| {
            let data = Some(data.as_bytes().into());
            AppAnswer::Result(Box::new(AppResult { data, ..AppResult::default() }))
        };
        assert_eq!(publish(&scene, &session, Some(&answer("[1]"))).unwrap(), "[1]");
        let stop = publish(&scene, &session, Some(&AppAnswer::Nothing)).err();
        assert_eq!(code(stop), ErrorCode::PermissionDenied);
        scene.namespace(|of| {
            of.publish_proxy = Some(proxy());
            of.data_format = DataFormat::NotEmpty;
        });
        let stop = publish(&scene, &session, Some(&answer("no json"))).err();
        assert_eq!(code(stop), ErrorCode::BadRequest);
    }
}
