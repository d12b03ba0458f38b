//! Tokens at their home: signatures that are known to be good, and checks that the pool carries out.
//!
//! The home of a token, by its hash, keeps the digests of good tokens until they expire: a client that
//! reconnects costs no second check. The pool has a bounded number of checks, since each holds a credit of
//! the shard that sent it.

use super::{Home, OpenCheck, Verify};
use crate::base::id::ShardId;
use crate::edge::address_limits::Counted;
use crate::edge::good_tokens::token_digest;
use crate::edge::jwt::Checked;
use crate::shard::clients::signatures::{SignatureJob, Signed};
use crate::shard::context::Cx;
use crate::shard::crypto::{Crypto, CryptoJob};
use crate::shard::mail::Mail;
use crate::shard::mail::post::Post;

impl Home {
    /// Answers at once where the token's signature is known to be good; else the check begins.
    pub(super) fn verify(&mut self, cx: &Cx, from: ShardId, verify: Verify, out: &mut Post) {
        let Verify { token, kind, asker, interest } = verify;
        let hash = cx.node.names.hash(&token);
        let keys = cx.node.keys(kind);
        let generation = keys.generation();
        let digest = token_digest(kind as u8, &token);
        if self.good_tokens.has(&digest, generation, cx.unix) {
            cx.counters().tokens_known.add(1);
            let signed = Signed::Good { until: None };
            return out.send(cx, from, Mail::Verified { asker, hash, signed });
        }
        let address = interest.address();
        let counted = match address.map(|address| cx.node.addresses.check_began(address)) {
            Some(Counted::TooMuch) => {
                cx.counters().tokens_refused_address.add(1);
                let signed = Signed::TooMany;
                return out.send(cx, from, Mail::Verified { asker, hash, signed });
            }
            Some(Counted::Yes) => address,
            Some(Counted::NoRoom) => {
                cx.counters().addresses_uncounted.inc();
                None
            }
            Some(Counted::Off) | None => None,
        };
        cx.counters().tokens_checked.add(1);
        let check = OpenCheck { from, asker, hash, digest, generation, counted };
        match &cx.node.crypto {
            Crypto::Inline => {
                let signed = match keys.check_signature(&token, cx.unix) {
                    Checked::Good { until } => Signed::Good { until },
                    Checked::Bad => Signed::Bad,
                    Checked::Unknown { .. } => Signed::Unavailable,
                };
                self.conclude(cx, check, signed, out);
            }
            Crypto::Pool(jobs) => {
                let ticket = self.checks.insert(check) as u64;
                let job = SignatureJob { token, kind, home: cx.id, ticket, interest };
                if jobs.send(CryptoJob::Signature(job)).is_err() {
                    // The pool has ended: the process is stopping.
                    self.signed(cx, ticket, Signed::Unavailable, out);
                }
            }
        }
    }

    /// The pool has carried out a check.
    pub(super) fn signed(&mut self, cx: &Cx, ticket: u64, signed: Signed, out: &mut Post) {
        if let Some(check) = self.checks.try_remove(ticket as usize) {
            self.conclude(cx, check, signed, out);
        }
    }

    fn conclude(&mut self, cx: &Cx, check: OpenCheck, signed: Signed, out: &mut Post) {
        let OpenCheck { from, asker, hash, digest, generation, counted } = check;
        if let Some(address) = counted {
            cx.node.addresses.check_ended(address);
        }
        if let Signed::Good { until } = signed {
            self.good_tokens.insert(digest, generation, until);
        }
        out.send(cx, from, Mail::Verified { asker, hash, signed });
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;

    use super::*;
    use crate::shard::clients::signatures::{Interest, TokenKind};
    use crate::shard::fixture::Plan;
    use crate::shard::home::driven::{Driven, conn};
    use crate::shard::mail::Asker;

    fn driven() -> (Driven, Receiver<CryptoJob>) {
        let (jobs, pool) = crossbeam_channel::unbounded();
        (Driven::of(Plan { crypto: Crypto::Pool(jobs), ..Plan::default() }), pool)
    }

    fn verifies(driven: &mut Driven, token: &str, index: u32) {
        let (kind, asker) = (TokenKind::Connection, Asker::of(conn(index)));
        let interest = Interest::default();
        driven.handle(1, Mail::Verify { token: token.into(), kind, asker, interest });
    }

    fn verdicts(driven: &mut Driven) -> Vec<(u32, Signed)> {
        let verdict = |mail: Mail| match mail {
            Mail::Verified { asker, signed, .. } => (asker.conn.index, signed),
            other => panic!("{other:?}"),
        };
        driven.sent_to(1).into_iter().map(verdict).collect()
    }

    #[test]
    fn the_pool_checks_a_token_once_while_it_is_good() {
        let (mut driven, pool) = driven();
        verifies(&mut driven, "a.good.token", 1);
        assert!(verdicts(&mut driven).is_empty());
        let CryptoJob::Signature(job) = pool.try_recv().unwrap();
        assert_eq!((&*job.token, job.home), ("a.good.token", ShardId(0)));
        let good = Signed::Good { until: Some(2_000_000) };
        driven.handle(0, Mail::Signed { ticket: job.ticket, signed: good });
        assert_eq!(verdicts(&mut driven), [(1, good)]);
        // From now on it is known: no job, and an answer at once.
        verifies(&mut driven, "a.good.token", 2);
        assert!(pool.is_empty());
        assert_eq!(verdicts(&mut driven), [(2, Signed::Good { until: None })]);
        let counters = driven.cx.counters();
        assert_eq!((counters.tokens_checked.get(), counters.tokens_known.get()), (1, 1));
    }

    #[test]
    fn a_bad_token_is_not_remembered_and_a_late_answer_is_ignored() {
        let (mut driven, pool) = driven();
        for index in 1..=2 {
            verifies(&mut driven, "a.bad.token", index);
            let CryptoJob::Signature(job) = pool.try_recv().unwrap();
            let ticket = job.ticket;
            driven.handle(0, Mail::Signed { ticket, signed: Signed::Bad });
            driven.handle(0, Mail::Signed { ticket, signed: Signed::Good { until: None } });
            assert_eq!(verdicts(&mut driven), [(index, Signed::Bad)]);
        }
        assert!(driven.home.left().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn without_a_pool_the_keys_are_unavailable() {
        let (mut driven, pool) = driven();
        drop(pool);
        verifies(&mut driven, "a.good.token", 1);
        assert_eq!(verdicts(&mut driven), [(1, Signed::Unavailable)]);
    }
}
