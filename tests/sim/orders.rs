//! Disconnects that the control side orders: each has a code that says whom it is meant for, so that a
//! client that is closed with it knows whether it was.

/// Users that clients are of, unless connections of a user are counted: `user0` to `user3`.
pub(crate) const USERS: u64 = 4;

/// Behind these codes SDKs don't come back, so that a poll is answered with them.
const OF_USERS: u16 = 4600;
const OF_SESSIONS: u16 = 4700;
const CODES_END: u16 = 5000;

/// Sessions that were to be closed.
#[derive(Default)]
pub(crate) struct Orders(Vec<String>);

impl Orders {
    /// The code for all sessions of `user0`, `user1`, ...
    pub(crate) fn code_of_user(number: u64) -> u16 {
        OF_USERS + number as u16
    }

    /// The code for the session with a client id; none when all are used.
    pub(crate) fn code_of_session(&mut self, client_id: &str) -> Option<u16> {
        let code = OF_SESSIONS + u16::try_from(self.0.len()).ok()?;
        (code < CODES_END).then(|| {
            self.0.push(client_id.to_owned());
            code
        })
    }

    /// Whether a disconnect was ordered for the session with this client id, of this user. `None`: it
    /// was not ordered.
    pub(crate) fn meant(&self, code: u16, user: Option<&str>, client_id: &str) -> Option<bool> {
        match code {
            OF_SESSIONS..CODES_END => {
                let session = self.0.get(usize::from(code - OF_SESSIONS));
                Some(session.is_some_and(|id| id == client_id))
            }
            OF_USERS..OF_SESSIONS => Some(user == Some(&format!("user{}", code - OF_USERS))),
            _ => None,
        }
    }
}

#[test]
fn a_code_says_whom_it_is_meant_for() {
    let mut orders = Orders::default();
    let (one, two) = (orders.code_of_session("a").unwrap(), orders.code_of_session("b").unwrap());
    let of_user = Orders::code_of_user(3);
    assert_eq!(orders.meant(one, Some("user3"), "a"), Some(true));
    assert_eq!(orders.meant(two, Some("user3"), "a"), Some(false));
    assert_eq!(orders.meant(one, None, ""), Some(false));
    assert_eq!(orders.meant(of_user, Some("user3"), ""), Some(true));
    assert_eq!(orders.meant(of_user, Some("user2"), ""), Some(false));
    assert_eq!(orders.meant(of_user, None, ""), Some(false));
    assert_eq!(orders.meant(3000, Some("user3"), ""), None);
    while orders.code_of_session("c").is_some() {}
    assert_eq!(orders.meant(4999, None, "c"), Some(true));
}
