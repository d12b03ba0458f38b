//! `rpc`: a call that the application answers.

use std::sync::Arc;

use crate::edge::proxy::RpcTarget;
use crate::proto::client::{ErrorCode, Reply, RpcRequest};
use crate::session::Session;
use crate::session::app::AppAnswer;
use crate::session::effects::Effect;
use crate::session::facts::Facts;
use crate::session::stop::Stop;

impl Session {
    pub(super) fn rpc<'a>(
        &self,
        request: &'a RpcRequest<'_>,
        answer: Option<&'a AppAnswer>,
        facts: &Facts<'_>,
    ) -> Result<Effect<'a>, Stop> {
        let rules = facts.rpc.load();
        let answer = match rules.target(&request.method) {
            RpcTarget::Ping => return Ok(Effect::Reply(Reply::Rpc { data: b"" })),
            RpcTarget::NotFound => {
                return Err(Stop::Error(ErrorCode::MethodNotFound, "no such rpc method"));
            }
            RpcTarget::NotAvailable => {
                return Err(Stop::Error(ErrorCode::NotAvailable, "no rpc proxy is configured"));
            }
            RpcTarget::Proxy(proxy) => answer.ok_or_else(|| Stop::Call(Arc::clone(proxy)))?,
        };
        let data = answer.result()?.and_then(|result| result.data.as_deref()).unwrap_or_default();
        if data.len() > facts.client.answer_bytes_max() {
            let why = "the result of the rpc is longer than what may wait for a client";
            return Err(Stop::Error(ErrorCode::LimitExceeded, why));
        }
        Ok(match facts.may_show(data) {
            true => Effect::Reply(Reply::Rpc { data }),
            false => Effect::Unfit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::proxy::RpcRules;
    use crate::proto::client::Request;
    use crate::session::app::AppResult;
    use crate::session::testing::{Scene, proxy, session};

    fn call<'a>(
        scene: &Scene,
        request: &'a Request<'_>,
        answer: Option<&'a AppAnswer>,
    ) -> Result<Effect<'a>, Stop> {
        session("alice").handle(request, answer, &scene.facts())
    }

    fn request(method: &str) -> Request<'_> {
        Request::Rpc(RpcRequest { method: method.into(), data: None })
    }

    fn answer(data: &[u8]) -> AppAnswer {
        AppAnswer::Result(Box::new(AppResult { data: Some(data.into()), ..AppResult::default() }))
    }

    #[test]
    fn a_call_goes_to_the_proxy_of_its_method() {
        let scene = Scene::default();
        let stop = call(&scene, &request("sum"), None).err();
        assert!(matches!(stop, Some(Stop::Error(ErrorCode::NotAvailable, _))), "{stop:?}");
        let rules = RpcRules {
            ping: Some("ping".into()),
            boundary: ":".into(),
            without_namespace: Some(proxy()),
            ..RpcRules::default()
        };
        scene.rpc.store(Arc::new(rules));
        let ping = request("ping");
        let effect = call(&scene, &ping, None);
        assert!(matches!(effect, Ok(Effect::Reply(Reply::Rpc { data: b"" }))), "{effect:?}");
        let stop = call(&scene, &request("none:sum"), None).err();
        assert!(matches!(stop, Some(Stop::Error(ErrorCode::MethodNotFound, _))), "{stop:?}");
        assert_eq!(call(&scene, &request("sum"), None).err(), Some(Stop::Call(proxy())));
        let answer = answer(b"3");
        let request = request("sum");
        let effect = call(&scene, &request, Some(&answer));
        assert!(matches!(effect, Ok(Effect::Reply(Reply::Rpc { data: b"3" }))), "{effect:?}");
    }

    #[test]
    fn a_result_has_to_fit_the_queue_and_the_encoding() {
        let mut scene = Scene::default();
        let rules = RpcRules { without_namespace: Some(proxy()), ..RpcRules::default() };
        scene.rpc.store(Arc::new(rules));
        scene.client.queue_bytes_max = 80;
        let request = request("sum");
        let long = answer(&[b'1'; 71]);
        let stop = call(&scene, &request, Some(&long)).err();
        assert!(matches!(stop, Some(Stop::Error(ErrorCode::LimitExceeded, _))), "{stop:?}");
        let bytes = answer(b"\xff");
        let effect = call(&scene, &request, Some(&bytes));
        assert!(matches!(effect, Ok(Effect::Unfit)), "{effect:?}");
        let nothing = call(&scene, &request, Some(&AppAnswer::Nothing));
        assert!(matches!(nothing, Ok(Effect::Reply(Reply::Rpc { data: b"" }))), "{nothing:?}");
    }
}
