//! `roost-load agent`: waits for runs, and does a part of each.
//!
//! ```text
//!  accept --> Greeting, Claim, Welcome --> session
//!    reader:   Ping -> Pong at once; all else -> the session, in order
//!    session:  orders -> crew -> answers
//!    reporter: figures and latencies -> the controller, every 20 ms
//! ```
//! One run at a time. It ends when the controller goes, or is silent for a while.

use super::clock::Reading;
use super::crew::{Crew, Lives};
use super::figures::{self, Latency, Sum};
use super::flags::Flags;
use super::host::{Machine, Usage};
use super::output::plain;
use super::plan::Plan;
use super::publisher;
use super::series::Slice;
use super::wire::{
    self, Claim, FRAME_BYTES_MAX, FromAgent, Greeting, HELLO_BYTES_MAX, Offer, PROTOCOL, Side,
    Start, TOKEN_CHARS_MIN, ToAgent, Token, Welcome,
};
use super::worker::Order;
use super::{EXIT_GOOD, EXIT_LOST, EXIT_USAGE};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Connections that have not proved themselves, at most; more are closed.
const STRANGERS_MAX: usize = 16;

/// How long the other side may take to prove itself.
const HELLO_MAX: Duration = Duration::from_secs(5);

/// A controller that says nothing for so long is gone; it pings every second.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How often figures are sent.
const REPORT_EVERY: Duration = Duration::from_millis(20);

/// How often threads look whether the agent is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// State that all connections share.
struct Agent {
    token: Token,
    descriptors: u64,
    /// The clock that this agent tells.
    began: Instant,
    /// A run is under way.
    is_busy: AtomicBool,
    strangers: AtomicUsize,
    stop: Arc<AtomicBool>,
}

/// Serves runs until `stop`. Returns the exit code.
pub(super) fn serve(flags: &Flags, descriptors: u64, stop: &Arc<AtomicBool>) -> u8 {
    let (token, is_new) = match &flags.token {
        Some(token) => (token.clone(), false),
        None => match wire::nonce() {
            Ok(nonce) => {
                // Letters and digits alone: none of them is in the way of a shell.
                let digits = nonce.iter().take(16).map(|byte| format!("{byte:02x}"));
                (digits.collect(), true)
            }
            Err(error) => return failed(&plain(&error), EXIT_LOST),
        },
    };
    if let Err(fault) = check_token(&token) {
        return failed(&fault, EXIT_USAGE);
    }
    let bound = TcpListener::bind(flags.listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    let (listener, address) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            return failed(&format!("--listen {}: {}", flags.listen, plain(&error)), EXIT_LOST);
        }
    };
    let secret = if is_new { format!(" --token {token}") } else { String::new() };
    let shown = writeln!(io::stdout(), "waiting for runs with --agents {address}{secret}");
    if shown.is_err() {
        return EXIT_LOST;
    }
    let agent = Arc::new(Agent {
        token: Token::new(&token),
        descriptors,
        began: Instant::now(),
        is_busy: AtomicBool::new(false),
        strangers: AtomicUsize::new(0),
        stop: Arc::clone(stop),
    });
    agent.accept(&listener)
}

fn failed(text: &str, code: u8) -> u8 {
    eprintln!("roost-load: {text}");
    code
}

/// # Errors
/// The token is easily found: text for the user.
pub(super) fn check_token(token: &str) -> Result<(), String> {
    match token.chars().count() < TOKEN_CHARS_MIN {
        true => Err(format!("--token: at least {TOKEN_CHARS_MIN} characters")),
        false => Ok(()),
    }
}

impl Agent {
    fn accept(self: &Arc<Self>, listener: &TcpListener) -> u8 {
        while !self.stop.load(SeqCst) {
            let wait = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
            let _ = rustix::event::poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait));
            let Ok((stream, _)) = listener.accept() else { continue };
            if self.strangers.fetch_add(1, SeqCst) >= STRANGERS_MAX {
                self.strangers.fetch_sub(1, SeqCst);
                continue;
            }
            let agent = Arc::clone(self);
            let thread = std::thread::Builder::new().name("load-agent".to_owned());
            let begun = thread.spawn(move || {
                let proved = agent.prove(&stream);
                agent.strangers.fetch_sub(1, SeqCst);
                match proved {
                    Ok(true) => {
                        if let Err(fault) = agent.run(&stream) {
                            eprintln!("roost-load: {fault}");
                        }
                        agent.is_busy.store(false, SeqCst);
                    }
                    Ok(false) => {}
                    Err(error) => eprintln!("roost-load: a stranger: {}", plain(&error)),
                }
                // Workers that are still about to end have this descriptor in their tables too.
                let _ = stream.shutdown(Shutdown::Both);
            });
            if begun.is_err() {
                self.strangers.fetch_sub(1, SeqCst);
            }
        }
        // A run that is under way says to its controller that it ends.
        let until = Instant::now() + HELLO_MAX;
        while self.is_busy.load(SeqCst) && Instant::now() < until {
            std::thread::sleep(REPORT_EVERY);
        }
        EXIT_GOOD
    }

    /// Whether the other side has the token, and the agent is free: then it is busy from now on.
    fn prove(&self, stream: &TcpStream) -> io::Result<bool> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HELLO_MAX))?;
        stream.set_write_timeout(Some(HELLO_MAX))?;
        let (mut from, mut to) = (stream, stream);
        let nonce = wire::nonce()?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        wire::write(&mut to, &Greeting { protocol: PROTOCOL, version, nonce })?;
        let claim: Claim = wire::read(&mut from, HELLO_BYTES_MAX)?;
        let is_proved = self.token.is_proved(Side::Controller, &nonce, &claim.nonce, &claim.proof);
        let refusal = if !is_proved {
            Some("the token is another one".to_owned())
        } else if claim.protocol != PROTOCOL || claim.version != env!("CARGO_PKG_VERSION") {
            Some(format!("the agent is version {}", env!("CARGO_PKG_VERSION")))
        } else if self.is_busy.swap(true, SeqCst) {
            Some("busy with another run".to_owned())
        } else {
            None
        };
        let is_refused = refusal.is_some();
        let welcome = refusal.map_or_else(
            || {
                Welcome::Accepted(Box::new(Offer {
                    proof: self.token.prove(Side::Agent, &nonce, &claim.nonce),
                    machine: Machine::this(),
                    descriptors: self.descriptors,
                }))
            },
            Welcome::Refused,
        );
        let written = wire::write(&mut to, &welcome);
        if written.is_err() && !is_refused {
            self.is_busy.store(false, SeqCst);
        }
        written.map(|()| !is_refused)
    }

    fn reading(&self) -> Reading {
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Reading { ns: self.began.elapsed().as_nanos() as u64, day_ns: day.as_nanos() as u64 }
    }

    /// One run, from the first word of a controller that has proved itself to the last.
    fn run(self: &Arc<Self>, stream: &TcpStream) -> Result<(), String> {
        let fault = |error: io::Error| plain(&error);
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(fault)?;
        stream.set_write_timeout(Some(SILENCE_MAX)).map_err(fault)?;
        let to = Arc::new(Out(Mutex::new(stream.try_clone().map_err(fault)?)));
        let mut from = stream.try_clone().map_err(fault)?;
        let (sender, words) = crossbeam_channel::bounded(256);
        let (agent, out) = (Arc::clone(self), Arc::clone(&to));
        let reader = std::thread::Builder::new().name("load-agent-in".to_owned());
        let reader = reader.spawn(move || {
            // Ends with the connection; the session hears of it by the end of the channel.
            while let Ok(word) = wire::read(&mut from, FRAME_BYTES_MAX) {
                let passed = match word {
                    ToAgent::Ping { sent_ns } => {
                        out.put(&FromAgent::Pong { sent_ns, clock: agent.reading() })
                    }
                    word => sender.send(word).is_ok(),
                };
                if !passed {
                    break;
                }
            }
        });
        let reader = reader.map_err(fault)?;
        let result = self.session(&words, &to);
        if let Err(text) = &result {
            to.put(&FromAgent::Failed(text.clone()));
        }
        drop(words);
        // The controller closes when it has everything; then the reader ends.
        if result.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = reader.join();
        result
    }

    fn session(&self, words: &Receiver<ToAgent>, to: &Arc<Out>) -> Result<(), String> {
        let start = match words.recv_timeout(SILENCE_MAX) {
            Ok(ToAgent::Start(start)) => start,
            Ok(_) => return Err("the controller does not begin with a start".to_owned()),
            // It only asked, or went.
            Err(_) => return Ok(()),
        };
        let Start { flags, room, place, run, origin_ns } = *start;
        if flags.packed.is_none() {
            return Err("a scenario without its text".to_owned());
        }
        let mut plan = Plan::new(flags, room, run).map_err(|error| error.to_string())?;
        if place.machines != plan.place.machines || place.machine >= place.machines {
            return Err("a place that the plan does not have".to_owned());
        }
        plan.place = place;
        let plan = Arc::new(plan);
        let origin = self.began + Duration::from_nanos(origin_ns);
        let (sender, slices) = crossbeam_channel::unbounded();
        let crew = Crew::start(&plan, origin, &sender)?;
        let connections = plan.connections_of(place.machine);
        to.put(&FromAgent::Started { connections });
        let reporter = Reporter {
            lives: crew.lives.clone(),
            slices,
            to: Arc::clone(to),
            before: Usage::own(),
            shown: Sum::none(),
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().name("load-agent-out".to_owned());
        let thread = thread
            .spawn(move || reporter.run(&over))
            .map_err(|error| format!("starting threads: {error}"))?;
        let mut session = Session { agent: self, plan, origin, crew, to };
        let result = session.follow(words);
        // Without its crew's last word there is nobody to report to.
        drop(session);
        is_over.store(true, SeqCst);
        let _ = thread.join();
        if let Some(tally) = result? {
            self.is_busy.store(false, SeqCst);
            to.put(&FromAgent::Finished(tally));
        }
        Ok(())
    }
}

/// The way to the controller.
struct Out(Mutex<TcpStream>);

impl Out {
    /// Whether it could be sent. A controller that is gone is noticed by the reader.
    fn put(&self, word: &FromAgent) -> bool {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write(&mut *stream, word).is_ok()
    }
}

/// A run that goes on.
struct Session<'a> {
    agent: &'a Agent,
    plan: Arc<Plan>,
    origin: Instant,
    crew: Crew,
    to: &'a Arc<Out>,
}

impl Session<'_> {
    /// Does what the controller says, to the end. Returns the result; nothing when the controller is gone.
    fn follow(&mut self, words: &Receiver<ToAgent>) -> Result<Option<Box<figures::Tally>>, String> {
        loop {
            let word = match words.recv_timeout(LOOK_EVERY) {
                Ok(word) => word,
                Err(RecvTimeoutError::Timeout) if self.agent.stop.load(SeqCst) => {
                    return Err("the agent was ended".to_owned());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.crew.check()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            };
            match word {
                ToAgent::Order { at_ns, orders } => self.order(at_ns, &orders),
                ToAgent::OpenPublishers => {
                    let fault = self.crew.open_publishers()?;
                    self.to.put(&FromAgent::PublishersOpen { fault });
                }
                ToAgent::Publish { segment, first } => self.crew.start_publishing(segment, first),
                ToAgent::StopPublishing => self.crew.publish(publisher::Order::Stop),
                ToAgent::Count => {
                    let at_ns = self.origin.elapsed().as_nanos() as u64;
                    let channels = 0..self.plan.channels.len().max(1) as u32;
                    let counts = channels.map(|of| self.plan.published.of(of)).collect();
                    self.to.put(&FromAgent::Count { at_ns, counts });
                }
                ToAgent::Counted { at_ns, counts } => {
                    let counts: Arc<[u32]> = counts.into();
                    let order = |_| Order::Published { at_ns, counts: Arc::clone(&counts) };
                    self.crew.order(order);
                }
                ToAgent::EndPublishers => {
                    let sent = self.crew.end_publishers()?;
                    self.to.put(&FromAgent::PublishersEnded { sent });
                }
                ToAgent::Finish { sent } => return self.crew.finish(sent).map(Box::new).map(Some),
                ToAgent::Start(_) | ToAgent::Ping { .. } => {}
            }
        }
    }

    /// Gives the workers their orders, at that moment of the run.
    fn order(&self, at_ns: u64, orders: &[Order]) {
        std::thread::sleep(Duration::from_nanos(at_ns).saturating_sub(self.origin.elapsed()));
        let first = self.plan.own_threads().start;
        self.crew.order(|index| match orders.get(index - first) {
            Some(order) => order.clone(),
            // A controller that gives too few: they are counted, and do nothing.
            None => Order::OpenTo { target: 0, over: Duration::ZERO },
        });
    }
}

/// The thread that sends figures.
struct Reporter {
    lives: Lives,
    slices: Receiver<Slice>,
    to: Arc<Out>,
    /// Of this process, before the run.
    before: Usage,
    shown: Sum,
}

impl Reporter {
    fn run(mut self, is_over: &AtomicBool) {
        let mut told = Instant::now();
        loop {
            // Before the last look, not behind it.
            let is_last = is_over.load(SeqCst);
            let mut seconds: BTreeMap<u32, Latency> = BTreeMap::new();
            for (second, latency) in self.slices.try_iter() {
                figures::merge(seconds.entry(second).or_insert_with(figures::latency), &latency);
            }
            let mut goes_on = true;
            for (second, latency) in seconds {
                goes_on &= self.to.put(&FromAgent::Slice { second, latency });
            }
            let sum = self.lives.sum();
            if sum != self.shown || is_last || told.elapsed() >= Duration::from_secs(1) {
                let now = Usage::own();
                let cpu_s = now.cpu_s - self.before.cpu_s;
                goes_on &= self.to.put(&FromAgent::Status { sum, usage: Usage { cpu_s, ..now } });
                (self.shown, told) = (sum, Instant::now());
            }
            if is_last || !goes_on {
                return;
            }
            std::thread::sleep(REPORT_EVERY);
        }
    }
}
