//! The traits of a subscription: the form and the flags by which the hub groups subscribers.

use crate::base::form::{Form, Framing};
use crate::hub::subscribers::Traits;
use crate::io::Driver;
use crate::proto::client::Unsubscribed;
use crate::session::SubFlags;
use crate::shard::clients::Clients;
use crate::shard::local::LocalSide;
use crate::shard::outlets::Outlets;

/// The traits of a subscription on a connection of this form. A namespace without compression has its
/// publications go plain, whatever the connection has agreed on.
pub(crate) fn traits_of(form: Form, flags: SubFlags) -> Traits {
    let form = match form.framing().window_bits() {
        Some(_) if flags.plain() && form.is_one_way() => {
            form.with_framing(Framing::WebSocketSingle)
        }
        Some(_) if flags.plain() => form.with_framing(Framing::WebSocket),
        _ => form,
    };
    let form = form.subscriber(flags.delta(), flags.positioned());
    Traits::new(form).with_positioned(flags.positioned()).with_joins(flags.joins())
}

impl Clients {
    /// Ends the subscriptions that would be out of position: their clients come back.
    pub(crate) fn end_positioned<D: Driver>(
        &mut self,
        out: &mut Outlets<'_, D>,
        side: &mut LocalSide,
        local: u32,
    ) {
        let positioned = side.with_position(local);
        out.cx.counters().gaps_told.add(positioned.len() as u64);
        for conn in positioned {
            self.end_sub(out, side, conn, local, Unsubscribed::InsufficientState);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_subscription_is_not_deflated() {
        let (deflated, one_way) =
            (Form::new(Framing::deflate(15), false), Form::one_way(Framing::deflate(15)));
        let mut flags = SubFlags::default();
        flags.set_positioned(true);
        let traits = traits_of(deflated, flags);
        assert!(traits.positioned() && !traits.takes_joins());
        assert!(traits.form().framing().window_bits().is_some());
        flags.set_plain(true);
        for (form, framing) in [(deflated, Framing::WebSocket), (one_way, Framing::WebSocketSingle)]
        {
            assert_eq!(traits_of(form, flags).form().framing(), framing);
        }
    }
}
