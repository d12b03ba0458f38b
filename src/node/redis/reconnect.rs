//! A PUB/SUB connection that is made again whenever it ends.

use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::commands::seed;
use super::wire::{Messages, Subscriptions, Unreachable};
use super::{Connected, Shared};

/// Keeps a connection to a server until the process ends: `serve` has it as long as it works, and returns why
/// it doesn't any more. It goes to the owner of the slot of `owned`, if there is such a name. `name` is the
/// connection's in the log. After a connection that has worked, the first attempt follows at once: all that is
/// published meanwhile is late. Pauses between later ones end when the server has taken a command connection: what is
/// published from then on is to be received.
pub(super) async fn stay_connected(
    shared: &Shared,
    (at, server): (usize, &Connected),
    owned: Option<&str>,
    name: &str,
    mut serve: impl AsyncFnMut(Subscriptions, Messages) -> Unreachable,
) {
    let settings = &shared.settings;
    let mut backoff = Backoff::new(seed());
    for attempt in 0.. {
        let made_before = server.made.get();
        let made = async {
            let to = &settings.servers[at];
            match owned {
                Some(name) => {
                    let (known, io_timeout) = (&server.known, settings.io_timeout);
                    Subscriptions::connect_to_owner((to, known), name, attempt, io_timeout).await
                }
                None => Subscriptions::connect(to, attempt).await,
            }
        };
        let (error, has_worked) = match timeout(settings.connect_timeout, made).await {
            Ok(Ok((subscriptions, messages))) => {
                let began = Instant::now();
                let error = serve(subscriptions, messages).await;
                (error, began.elapsed() > settings.connect_timeout)
            }
            Ok(Err(error)) => (error, false),
            Err(_) => (Unreachable::Timeout, false),
        };
        tracing::warn!("redis: server {at}: {name}: {error}");
        if has_worked {
            backoff.begin_at_once();
        } else if server.made.get() != made_before {
            // The server is there again, and has been since that attempt began.
            backoff.reset();
        }
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            () = server.is_back.notified() => backoff.reset(),
        }
    }
}
