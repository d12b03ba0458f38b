//! Opening sockets: when, how many at once, and from which address.

use super::file::Role;
use super::plan::{Plan, Share};
use crate::sys::source_port::bind_address_no_port;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// First pause before another try; it doubles with each.
const PAUSE_NS: u64 = 50_000_000;

/// Which connections of a share are to be dialled when. Knows no sockets and no clock.
#[derive(Debug)]
pub(crate) struct Dialer {
    /// Connections below this were begun, in their turn.
    next: u32,
    /// Connections below this are to be open.
    target: u32,
    /// Connections to open again, at once.
    again: VecDeque<u32>,
    /// Failed connections, by when to retry.
    later: BinaryHeap<Reverse<(u64, u32)>>,
    /// Handshakes, oldest first: when they are too late, connection, generation.
    deadlines: VecDeque<(u64, u32, u32)>,
    in_flight: u32,
    in_flight_max: u32,
    timeout_ns: u64,
    /// Nanoseconds between two dials, and when the next is due; 0 for no limit.
    interval_ns: u64,
    /// The same of connections that are dialled for the first time, on a ramp.
    ramp_interval_ns: u64,
    ramp_due_ns: u64,
    due_ns: u64,
}

impl Dialer {
    /// For one thread's share.
    pub(crate) fn new(plan: &Plan, share: Share) -> Self {
        let part = f64::from(share.count) / f64::from(plan.connections);
        let interval_ns = plan.connect_rate.map_or(0, |rate| (1e9 / (rate * part)) as u64);
        Self {
            next: 0,
            target: 0,
            again: VecDeque::new(),
            later: BinaryHeap::new(),
            deadlines: VecDeque::new(),
            in_flight: 0,
            in_flight_max: plan.in_flight,
            timeout_ns: plan.connect_timeout.as_nanos() as u64,
            interval_ns,
            ramp_interval_ns: 0,
            ramp_due_ns: 0,
            due_ns: 0,
        }
    }

    /// Wants connections up to `target` open. Returns how many more that are than before.
    pub(crate) fn open_to(&mut self, target: u32) -> u32 {
        let more = target.saturating_sub(self.target);
        self.target = self.target.max(target);
        self.ramp_interval_ns = 0;
        self.ramp_due_ns = 0;
        more
    }

    /// Spreads the next `count` dials evenly over a time from now on.
    pub(crate) fn spread(&mut self, count: u32, over_ns: u64, now_ns: u64) {
        self.ramp_interval_ns = over_ns / u64::from(count.max(1));
        self.ramp_due_ns = now_ns;
    }

    /// Wants only the first `target` connections open; the others have been closed, or will be.
    pub(crate) fn lower(&mut self, target: u32) {
        self.target = self.target.min(target);
        self.next = self.next.min(target);
    }

    /// Whether connection `index` is to be open.
    pub(crate) fn wants(&self, index: u32) -> bool {
        index < self.target
    }

    /// Wants none open any more.
    pub(crate) fn forget_all(&mut self) {
        self.next = 0;
        self.target = 0;
        self.in_flight = 0;
        self.again.clear();
        self.later.clear();
        self.deadlines.clear();
    }

    /// Wants a connection that was open dialled again.
    pub(crate) fn open_again(&mut self, index: u32) {
        self.again.push_back(index);
    }

    /// Wants a connection tried again after a pause; `tries` were in vain so far.
    pub(crate) fn retry(&mut self, index: u32, tries: u8, now_ns: u64) {
        let pause = PAUSE_NS << tries.saturating_sub(1).min(6);
        self.later.push(Reverse((now_ns + pause, index)));
    }

    /// The connection to dial now, if there is one and a handshake more may be under way.
    pub(crate) fn poll_dial(&mut self, now_ns: u64) -> Option<u32> {
        if self.in_flight >= self.in_flight_max || now_ns < self.due_ns {
            return None;
        }
        let index = self.take_next(now_ns)?;
        if self.interval_ns > 0 {
            // A thread that was kept busy catches up, by a tenth of a second at most.
            let earliest = now_ns.saturating_sub(100_000_000);
            self.due_ns = self.due_ns.max(earliest) + self.interval_ns;
        }
        Some(index)
    }

    fn take_next(&mut self, now_ns: u64) -> Option<u32> {
        if let Some(index) = self.again.pop_front() {
            return Some(index);
        }
        if let Some(&Reverse((due_ns, index))) = self.later.peek()
            && due_ns <= now_ns
        {
            self.later.pop();
            return Some(index);
        }
        (self.next < self.target && now_ns >= self.ramp_due_ns).then(|| {
            self.ramp_due_ns += self.ramp_interval_ns;
            self.next += 1;
            self.next - 1
        })
    }

    /// A handshake began.
    pub(crate) fn began(&mut self, index: u32, generation: u32, now_ns: u64) {
        self.in_flight += 1;
        self.deadlines.push_back((now_ns + self.timeout_ns, index, generation));
    }

    /// A handshake ended, well or not.
    pub(crate) fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The next handshake that takes too long, of those for which `is_opening` says yes.
    pub(crate) fn poll_late(
        &mut self,
        now_ns: u64,
        is_opening: impl Fn(u32, u32) -> bool,
    ) -> Option<u32> {
        while let Some(&(due_ns, index, generation)) = self.deadlines.front() {
            let opening = is_opening(index, generation);
            if opening && due_ns > now_ns {
                return None;
            }
            self.deadlines.pop_front();
            if opening {
                return Some(index);
            }
        }
        None
    }

    /// When something is to be done next, if no event comes before.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let late = self.deadlines.front().map(|&(due_ns, ..)| due_ns);
        let free = self.in_flight < self.in_flight_max;
        let later = self.later.peek().filter(|_| free).map(|Reverse((due_ns, _))| *due_ns);
        let again = (free && !self.again.is_empty()).then_some(self.due_ns);
        let first = free && self.next < self.target;
        let first = first.then_some(self.due_ns.max(self.ramp_due_ns));
        [late, later, again, first].into_iter().flatten().min()
    }
}

/// A non-blocking socket on its way to the target: connected already, or not yet.
pub(crate) fn dial(plan: &Plan, global: u32) -> io::Result<(Socket, bool)> {
    let population = plan.population(global);
    let address = population.target.address;
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A server that is started on a port which one of ours has, or had in the last minute, may bind
    // it then: the ports that we are given can be anybody's.
    socket.set_reuse_address(true)?;
    if let Some(source) = plan.source(global) {
        bind_address_no_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::new(IpAddr::V4(source), 0)))?;
    }
    if population.role == Role::Echoes {
        // Small messages may follow each other: don't hold one back until another is acknowledged.
        socket.set_tcp_nodelay(true)?;
    }
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
            Ok((socket, false))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::flags::Flags;
    use clap::Parser;

    fn dialer(extra: &str) -> Dialer {
        let line = format!("roost-load idle --url ws://127.0.0.1:1/ {extra} --threads 1");
        let flags = Flags::try_parse_from(line.split_whitespace()).unwrap();
        let plan = Plan::new(flags, 20_000, 1).unwrap();
        let share = plan.share(0);
        Dialer::new(&plan, share)
    }

    #[test]
    fn handshakes_under_way_are_bounded() {
        let mut dialer = dialer("--connections 100 --in-flight 4");
        assert_eq!(dialer.open_to(100), 100);
        for index in 0..4 {
            assert_eq!(dialer.poll_dial(0), Some(index));
            dialer.began(index, 1, 0);
        }
        assert_eq!(dialer.poll_dial(0), None);
        dialer.ended();
        assert_eq!(dialer.poll_dial(0), Some(4));
        assert_eq!(dialer.open_to(100), 0);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut dialer = dialer("--connections 100 --connect-rate 10");
        dialer.open_to(100);
        let mut begun = 0;
        for now_ms in 0..1000 {
            while dialer.poll_dial(1_000_000_000 + now_ms * 1_000_000).is_some() {
                begun += 1;
            }
        }
        assert!((10..=11).contains(&begun), "{begun}");
    }

    #[test]
    fn a_ramp_spreads_dials_and_goes_down_again() {
        let mut dialer = dialer("--connections 100");
        let more = dialer.open_to(100);
        dialer.spread(more, 1_000_000_000, 0);
        let mut begun = 0;
        for now_ms in 0..500 {
            begun += std::iter::from_fn(|| dialer.poll_dial(now_ms * 1_000_000)).count();
        }
        assert_eq!(begun, 50);
        dialer.lower(20);
        assert!(dialer.wants(19) && !dialer.wants(20));
        assert_eq!(dialer.poll_dial(u64::MAX / 2), None);
        assert_eq!((dialer.open_to(30), dialer.poll_dial(u64::MAX / 2)), (10, Some(20)));
    }

    #[test]
    fn failed_dials_are_retried_and_late_ones_reported() {
        let mut dialer = dialer("--connections 2 --connect-timeout 1s");
        dialer.open_to(2);
        assert_eq!(dialer.poll_dial(0), Some(0));
        dialer.began(0, 1, 0);
        assert_eq!(dialer.poll_dial(0), Some(1));
        dialer.began(1, 1, 5);
        assert_eq!(dialer.next_deadline(), Some(1_000_000_000));
        dialer.ended();
        dialer.retry(0, 1, 0);
        assert_eq!(dialer.poll_dial(PAUSE_NS - 1), None);
        assert_eq!(dialer.poll_dial(PAUSE_NS), Some(0));
        let late = dialer.poll_late(2_000_000_000, |index, _| index == 1);
        assert_eq!(late, Some(1));
        assert_eq!(dialer.poll_late(2_000_000_000, |_, _| true), None);
    }
}
