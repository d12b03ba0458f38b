//! Disconnects that the control side orders: each has a code of its own, so that a client that is closed
//! with it knows whether it was meant, and what it must have got before.

/// Users that clients are of, unless connections of a user are counted: `user0` to `user3`.
pub(crate) const USERS: u64 = 4;

/// Behind these codes SDKs don't come back, so that a poll is answered with them.
const CODES_BEGIN: u16 = 4600;
const CODES_END: u16 = 5000;

/// The sessions that an order closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    User(String),
    /// By its client id.
    Session(String),
}

struct Order {
    target: Target,
    /// The step in which it was given.
    step: u64,
}

/// All orders of a run.
#[derive(Default)]
pub(crate) struct Orders {
    given: Vec<Order>,
    /// Orders are noted for a user that nobody is: each session that one closes is a wrong one.
    pub(crate) misdirected: bool,
}

impl Orders {
    /// The code for a new order; none when all are used.
    pub(crate) fn code_for(&mut self, target: Target, step: u64) -> Option<u16> {
        let code = CODES_BEGIN + u16::try_from(self.given.len()).ok()?;
        let target = if self.misdirected { Target::User("nobody".to_owned()) } else { target };
        (code < CODES_END).then(|| {
            self.given.push(Order { target, step });
            code
        })
    }

    fn get(&self, code: u16) -> Option<&Order> {
        self.given.get(usize::from(code.checked_sub(CODES_BEGIN)?))
    }

    /// Whether a disconnect was ordered for the session with this client id, of this user. `None`: it
    /// was not ordered.
    pub(crate) fn meant(&self, code: u16, user: Option<&str>, client_id: &str) -> Option<bool> {
        if !(CODES_BEGIN..CODES_END).contains(&code) {
            return None;
        }
        Some(self.get(code).is_some_and(|order| match &order.target {
            Target::User(of) => user == Some(of),
            Target::Session(id) => id == client_id,
        }))
    }

    /// The step in which an order was given: publishes that were acknowledged before it reach their
    /// subscribers before it does.
    pub(crate) fn given(&self, code: u16) -> Option<u64> {
        Some(self.get(code)?.step)
    }
}

#[test]
fn a_code_names_the_session_of_its_order() {
    let mut orders = Orders::default();
    let session = |id: &str| Target::Session(id.to_owned());
    let one = orders.code_for(session("a"), 7).unwrap();
    let two = orders.code_for(session("b"), 8).unwrap();
    let of_user = orders.code_for(Target::User("user3".to_owned()), 9).unwrap();
    assert_eq!(orders.meant(one, Some("user3"), "a"), Some(true));
    assert_eq!(orders.meant(two, Some("user3"), "a"), Some(false));
    assert_eq!(orders.meant(one, None, ""), Some(false));
    assert_eq!(orders.meant(of_user, Some("user3"), ""), Some(true));
    assert_eq!(orders.meant(of_user, Some("user2"), ""), Some(false));
    assert_eq!(orders.meant(of_user, None, ""), Some(false));
    assert_eq!(orders.meant(of_user + 1, Some("user3"), ""), Some(false));
    assert_eq!(orders.meant(3000, Some("user3"), ""), None);
    assert_eq!((orders.given(two), orders.given(3000)), (Some(8), None));
    while orders.code_for(session("c"), 10).is_some() {}
    assert_eq!(orders.meant(4999, None, "c"), Some(true));
}
