//! A network path between two namespaces: packets of one TUN device come out of the other one later, or
//! never. It does what `netem` does where the kernel has none: a constant delay, independent losses, and a
//! rate with a queue for each flow.

use std::collections::{BinaryHeap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;

/// Largest packet; devices have an MTU of 1,500 bytes or less.
const PACKET_BYTES_MAX: usize = 2048;

/// Packets that one turn reads before it writes those that are due.
const TURN_PACKETS_MAX: usize = 256;

/// Packets on their way; more are lost, as in a router without memory.
const PACKETS_MAX: usize = 1_000_000;

#[derive(Parser)]
struct Arguments {
    /// Network namespaces of the two ends (names of `ip netns`); each gets a device `path0`.
    #[arg(num_args = 2, required = true)]
    namespaces: Vec<String>,
    /// Milliseconds from one end to the other: half of the round trip.
    #[arg(long, default_value_t = 0.0)]
    delay: f64,
    /// Packets that are lost, in percent, independent of each other.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Mbit/s of each flow towards the second end; 0: no limit.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Milliseconds that a packet waits for its flow's rate at most; a longer queue loses it.
    #[arg(long, default_value_t = 200.0)]
    queue: f64,
    /// Seed of the losses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The path in one direction.
struct Direction {
    from: Arc<File>,
    to: Arc<File>,
    delay: Duration,
    /// Of 2^32.
    loss: u64,
    rate: Option<Rate>,
    random: u64,
}

struct Rate {
    bytes_per_second: f64,
    queue: Duration,
    /// When a flow's last packet has been sent, by its ports and addresses.
    free: HashMap<u64, Instant>,
}

/// A packet on its way; the earliest is the greatest.
struct Packet {
    due: Instant,
    number: u64,
    bytes: Box<[u8]>,
}

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Packet {}

/// The device of a namespace: this thread is in that namespace afterwards.
fn open(namespace: &str) -> io::Result<File> {
    let of = File::open(format!("/run/netns/{namespace}"))?;
    // SAFETY: the descriptor is open.
    if unsafe { libc::setns(of.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zero is a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"path0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is of the type that this call takes, and lives until it returns.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

impl Direction {
    /// Carries packets until the device is gone.
    fn run(mut self) -> io::Result<()> {
        let mut waiting: BinaryHeap<Packet> = BinaryHeap::new();
        let mut number = 0;
        let mut buffer = [0; PACKET_BYTES_MAX];
        loop {
            self.wait(waiting.peek().map(|packet| packet.due));
            for _ in 0..TURN_PACKETS_MAX {
                let length = match (&*self.from).read(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let packet = &buffer[..length];
                if self.next_random() >> 32 < self.loss {
                    continue;
                }
                let Some(due) = self.due(packet) else { continue };
                if waiting.len() == PACKETS_MAX {
                    continue;
                }
                number += 1;
                waiting.push(Packet { due, number, bytes: packet.into() });
            }
            let now = Instant::now();
            while waiting.peek().is_some_and(|packet| packet.due <= now) {
                let packet = waiting.pop().expect("it was seen");
                // A device that is down, or full, loses it.
                let _ = (&*self.to).write(&packet.bytes);
            }
        }
    }

    /// Waits for a packet, or until this time.
    fn wait(&self, until: Option<Instant>) {
        let mut poll = libc::pollfd { fd: self.from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        });
        let time = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one descriptor, and a time that lives until the call returns, or none.
        unsafe { libc::ppoll(&mut poll, 1, time, std::ptr::null()) };
    }

    /// When a packet comes out; `None`: the queue of its flow is full.
    fn due(&mut self, packet: &[u8]) -> Option<Instant> {
        let now = Instant::now();
        let Some(rate) = &mut self.rate else { return Some(now + self.delay) };
        let free = rate.free.entry(flow(packet)).or_insert(now);
        let begins = now.max(*free);
        if begins - now > rate.queue {
            return None;
        }
        *free = begins + Duration::from_secs_f64(packet.len() as f64 / rate.bytes_per_second);
        Some(*free + self.delay)
    }

    /// xorshift64*, Vigna 2016.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The flow of an IPv4 packet: its destination and both ports. The other packets are one flow.
fn flow(packet: &[u8]) -> u64 {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
    let of = |range: std::ops::Range<usize>| {
        let bytes = packet.get(range)?.try_into().ok()?;
        Some(u64::from(u32::from_be_bytes(bytes)))
    };
    match (of(16..20), of(header..header + 4)) {
        (Some(destination), Some(ports)) => destination << 32 | ports,
        _ => 0,
    }
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let ends = arguments.namespaces.iter().map(|name| Ok(Arc::new(open(name)?)));
    let ends: Vec<_> = ends.collect::<io::Result<_>>()?;
    let of = |from: usize, to: usize, rate: f64| Direction {
        from: Arc::clone(&ends[from]),
        to: Arc::clone(&ends[to]),
        delay: Duration::from_secs_f64(arguments.delay / 1000.0),
        loss: (arguments.loss / 100.0 * 2f64.powi(32)) as u64,
        rate: (rate > 0.0).then(|| Rate {
            bytes_per_second: rate * 1e6 / 8.0,
            queue: Duration::from_secs_f64(arguments.queue / 1000.0),
            free: HashMap::new(),
        }),
        random: (arguments.seed * 2 + from as u64) | 1 << 40,
    };
    let (there, back) = (of(0, 1, arguments.rate), of(1, 0, 0.0));
    println!("ready");
    let back = std::thread::spawn(move || back.run());
    there.run()?;
    back.join().expect("the other direction ended well")
}
