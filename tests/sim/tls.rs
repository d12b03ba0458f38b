//! Clients over TLS: a simulated handshake, the real record layer at both ends. A client fails when a record isn't
//! authentic, when the stream ends without a close_notify that could have been sent, and, in builds with debug
//! assertions, when a nonce seals twice.

use roost::base::rng::Rng;
use roost::io::sim::{ClientEnd, MakeEnd};
use roost::proto::tls::simulated::Client;
use roost::proto::tls::{Fault, Suite};

/// The seeds whose clients come over TLS: drawn apart, so that others run as without.
pub(crate) fn is_for(seed: u64) -> bool {
    Rng::new(seed ^ 0x544c_5300).one_in(3)
}

/// Makes the ends of a run.
pub(crate) fn ends(seed: u64) -> MakeEnd {
    #[cfg(debug_assertions)]
    roost::proto::tls::nonces::watch();
    let mut seeds = Rng::new(seed);
    Box::new(move |at| {
        let mut rng = Rng::new(seeds.next_u64());
        let suite = Suite::ALL[rng.below(Suite::ALL.len() as u64) as usize];
        let long = rng.one_in(4);
        let padding = rng.below(if long { 3000 } else { 300 }) as usize;
        let client = Client::new(suite, seed ^ u64::from(at) << 40, padding);
        Box::new(End { client, rng, heard: false })
    })
}

#[derive(Debug)]
struct End {
    client: Client,
    rng: Rng,
    /// Data has come: so the server's handshake is done, too.
    heard: bool,
}

impl ClientEnd for End {
    fn is_open(&self) -> bool {
        self.client.is_open()
    }

    fn write(&mut self, plain: &[u8]) {
        if self.rng.one_in(64) {
            self.client.update_keys(self.rng.one_in(2));
        }
        self.client.write(plain);
    }

    fn out(&mut self) -> &mut Vec<u8> {
        self.client.out()
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.client.feed(bytes);
        self.heard |= self.client.plain_bytes() > 0;
        match self.client.fault {
            // It gets no alert, since nothing that it sends is wrong. Behind its own close nothing is opened.
            None | Some(Fault::Ended) => {}
            Some(fault) => panic!("a record of the server: {fault}"),
        }
    }

    fn plain(&mut self) -> &mut Vec<u8> {
        self.client.plain()
    }

    fn plain_bytes(&self) -> usize {
        self.client.plain_bytes()
    }

    fn shut(&mut self) {
        // Some send their FIN alone.
        if !self.rng.one_in(4) {
            self.client.close();
        }
    }

    fn ended(&self, was_cut: bool) {
        let is_whole = self.client.is_closed || !self.heard || was_cut;
        assert!(is_whole, "a FIN without close_notify: {:?}", self.client);
    }
}
