//! The admin API of a running node, for commands: a token by the password of its configuration, calls, and
//! the figures of each second.

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use super::http::{Connection, Endpoint, Request};
use super::target::{Port, Target};

/// Access to the admin API.
pub(super) struct Admin {
    pub(super) endpoint: Endpoint,
    prefix: String,
    token: String,
}

/// Arguments that let a command in.
#[derive(Debug, Default, clap::Args)]
pub(super) struct AccessArgs {
    /// Password of the admin page; by default admin.password of the configuration (ROOST_ADMIN_PASSWORD).
    #[arg(long, value_name = "TEXT")]
    pub password: Option<String>,
    /// Token of the admin page, instead of a password.
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

impl Admin {
    /// Signs in.
    ///
    /// # Errors
    /// Text for the user: there is no admin page, nobody is let in, or the node does not answer.
    pub(super) fn enter(target: &Target, access: &AccessArgs) -> Result<Self, String> {
        let configured = target.config.web.admin.as_ref();
        let is_public = configured
            .is_some_and(|admin| admin.is_public(target.config.http_server.internal.is_some()));
        let port = if is_public { Port::Public } else { Port::Internal };
        if configured.is_none() && !target.has_url() {
            return Err(
                "admin.enabled is false in the configuration: the admin API is off".to_owned()
            );
        }
        let prefix = configured.map_or_else(String::new, |admin| admin.prefix.clone());
        let link = target.link();
        let password = access.password.clone().or_else(|| configured?.password.clone());
        let is_open = configured.is_some_and(|admin| admin.insecure);
        target.try_each(port, |endpoint| {
            let mut admin =
                Self { endpoint: endpoint.clone(), prefix: prefix.clone(), token: String::new() };
            match (&access.token, &link, &password) {
                (Some(token), ..) => admin.token.clone_from(token),
                (None, Some(link), _) => admin.token = admin.sign_in("link", link)?,
                (None, None, Some(password)) => admin.token = admin.sign_in("password", password)?,
                (None, None, None) if is_open || admin.is_open()? => {}
                (None, None, None) => {
                    return Err(format!(
                        "{endpoint}: a password is needed: --password, or the node's configuration by -c; \
                         of a development node, --url with the link that it printed"
                    ));
                }
            }
            Ok(admin)
        })
    }

    fn is_open(&self) -> Result<bool, String> {
        let path = format!("{}/admin/init", self.prefix);
        let answer = self.endpoint.request(Request { path: &path, ..Request::default() })?;
        let init: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(init["insecure"] == true)
    }

    fn sign_in(&self, field: &str, secret: &str) -> Result<String, String> {
        let path = format!("{}/admin/auth", self.prefix);
        let body =
            form_urlencoded::Serializer::new(String::new()).append_pair(field, secret).finish();
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let request = Request { path: &path, headers: &headers, body: Some(body.as_bytes()) };
        let answer = self.endpoint.request(request)?;
        let token: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match (answer.status, token["token"].as_str()) {
            (200, Some(token)) => Ok(token.to_owned()),
            (400 | 401, _) => Err(format!("{}: the {field} is wrong", self.endpoint)),
            (404, _) => Err(format!("{}: no admin page there", self.endpoint)),
            (status, _) => Err(format!("{}: sign-in is answered with {status}", self.endpoint)),
        }
    }

    /// The result of a method.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn call(&self, method: &str) -> Result<Value, String> {
        let path = format!("{}/admin/api", self.prefix);
        let body = json!({"method": method, "params": {}}).to_string();
        let token = format!("token {}", self.token);
        let headers = [("Content-Type", "application/json"), ("Authorization", token.as_str())];
        let request = Request { path: &path, headers: &headers, body: Some(body.as_bytes()) };
        let answer = self.endpoint.request(request)?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match answer.status {
            200 if value["error"].is_null() => Ok(value["result"].clone()),
            200 => Err(format!("{}: {method}: {}", self.endpoint, value["error"]["message"])),
            401 => Err(format!("{}: the token is wrong or has expired", self.endpoint)),
            404 => Err(format!("{}: no admin page there", self.endpoint)),
            status => Err(format!("{}: {method} is answered with {status}", self.endpoint)),
        }
    }

    /// Subscribes to the figures of each second.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn figures(&self) -> Result<Figures, String> {
        let said = |fault: &dyn std::fmt::Display| format!("{}: {fault}", self.endpoint);
        let url = format!("ws://{}{}/admin/websocket", self.endpoint.host(), self.prefix);
        let request = url.into_client_request().map_err(|fault| said(&fault))?;
        let stream = self.endpoint.connect().map_err(|fault| said(&fault))?;
        let (mut socket, _) = tungstenite::client(request, stream).map_err(|fault| said(&fault))?;
        let connect = json!({"id": 1, "connect": {"token": self.token}});
        socket.send(Message::text(connect.to_string())).map_err(|fault| said(&fault))?;
        Ok(Figures { socket, address: self.endpoint.to_string() })
    }
}

/// The figures of a node, once a second, as its admin page gets them.
pub(super) struct Figures {
    socket: WebSocket<Connection>,
    address: String,
}

impl Figures {
    /// Bounds each [`Self::next`].
    pub(super) fn wait_at_most(&self, time: std::time::Duration) -> Result<(), String> {
        self.socket.get_ref().set_read_timeout(time).map_err(|fault| fault.to_string())
    }

    /// The next figures; `None` when none came in time.
    ///
    /// # Errors
    /// Text for the user: the connection ended.
    pub(super) fn next(&mut self) -> Result<Option<Value>, String> {
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(tungstenite::Error::Io(fault)) if is_pause(&fault) => return Ok(None),
                Err(fault) => return Err(format!("{}: {fault}", self.address)),
            };
            let text = match message {
                Message::Text(text) => text,
                Message::Close(close) => {
                    let why = close.map_or_else(String::new, |close| format!(": {close}"));
                    return Err(format!("{}: the node closed the connection{why}", self.address));
                }
                _ => continue,
            };
            for line in text.lines() {
                if line == "{}" {
                    let pong = self.socket.send(Message::text("{}"));
                    pong.map_err(|fault| format!("{}: {fault}", self.address))?;
                    continue;
                }
                let reply: Value = serde_json::from_str(line).unwrap_or_default();
                if !reply["error"].is_null() {
                    return Err(format!("{}: {}", self.address, reply["error"]["message"]));
                }
                if let Some(data) = reply["push"]["pub"].get("data") {
                    return Ok(Some(data.clone()));
                }
            }
        }
    }
}

/// Nothing came yet.
fn is_pause(fault: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(fault.kind(), Interrupted | TimedOut | WouldBlock)
}
