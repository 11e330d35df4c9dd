//! Ranks that are threads of one process: for tests, and to try a layout without a launcher.
//!
//! Every rank has an inbox. A message is a copy of the sender's bytes; it counts as sent once the
//! receiver has taken it, so a sender is never further ahead than the pieces it may have in flight.
//! A rank takes its messages in the order of their arrival and gives each to the receive that was
//! started first for its source, channel and tag.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bell::{Bell, lock};
use crate::transport::{Address, Channel, Failure, Outcome, Request, Transport};

/// Source rank, channel and tag.
type Key = (usize, Channel, u32);

struct Message {
    key: Key,
    bytes: Vec<u8>,
    /// When it has arrived, on a link that is slowed down.
    arrives: Option<Instant>,
    taken: Arc<AtomicBool>,
}

/// What the other ranks see of a rank.
struct Door {
    inbox: Mutex<Vec<Message>>,
    bell: Arc<Bell>,
    gone: AtomicBool,
}

enum State {
    Free,
    Sent { to: usize, taken: Arc<AtomicBool> },
    Awaited { key: Key, bytes: *mut [u8] },
    Arrived,
}

/// A rank's side of the exchange.
pub(crate) struct Local {
    rank: usize,
    doors: Arc<Vec<Door>>,
    bytes_per_second: Option<f64>,
    /// When the last message on the slowed link has left.
    link_free: Instant,
    requests: Vec<State>,
    free: Vec<usize>,
    awaited: HashMap<Key, VecDeque<usize>>,
    unexpected: HashMap<Key, VecDeque<Message>>,
    delayed: Vec<Message>,
}

/// Where the thread of one rank takes its part from; a [`Local`] itself stays on its thread.
pub(crate) struct Seat {
    rank: usize,
    doors: Arc<Vec<Door>>,
    bytes_per_second: Option<f64>,
}

impl Seat {
    /// One for each rank, with the bell that wakes it. Messages of a rank leave one after the other
    /// at `bytes_per_second`, or at once.
    pub fn all(bells: &[Arc<Bell>], bytes_per_second: Option<f64>) -> Vec<Self> {
        let door = |bell: &Arc<Bell>| Door {
            inbox: Mutex::default(),
            bell: Arc::clone(bell),
            gone: AtomicBool::new(false),
        };
        let doors: Arc<Vec<Door>> = Arc::new(bells.iter().map(door).collect());
        let seat = |rank| Self { rank, doors: Arc::clone(&doors), bytes_per_second };
        (0..bells.len()).map(seat).collect()
    }

    /// Takes the part.
    pub fn take(self) -> Local {
        Local {
            rank: self.rank,
            doors: self.doors,
            bytes_per_second: self.bytes_per_second,
            link_free: Instant::now(),
            requests: Vec::new(),
            free: Vec::new(),
            awaited: HashMap::new(),
            unexpected: HashMap::new(),
            delayed: Vec::new(),
        }
    }
}

impl Local {
    fn request(&mut self, state: State) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.requests[index] = state;
                index
            }
            None => {
                self.requests.push(state);
                self.requests.len() - 1
            }
        }
    }

    /// Gives what has arrived to the receives that wait for it.
    fn take_arrived(&mut self) -> Outcome<()> {
        let mut arrived = std::mem::take(&mut self.delayed);
        arrived.append(&mut lock(&self.doors[self.rank].inbox));
        for message in arrived {
            if message.arrives.is_some_and(|arrives| arrives > Instant::now()) {
                self.delayed.push(message);
                continue;
            }
            let first = self.awaited.get_mut(&message.key).and_then(VecDeque::pop_front);
            match first {
                Some(request) => self.deliver(request, message)?,
                None => self.unexpected.entry(message.key).or_default().push_back(message),
            }
        }
        Ok(())
    }

    fn deliver(&mut self, request: usize, message: Message) -> Outcome<()> {
        let State::Awaited { bytes, .. } = self.requests[request] else {
            return Err(Failure::Library("a message for a receive that has ended".into()));
        };
        if bytes.len() != message.bytes.len() {
            return Err(Failure::Library(format!(
                "rank {} sent {} bytes, {} were expected",
                message.key.0,
                message.bytes.len(),
                bytes.len()
            )));
        }
        // SAFETY: whoever started the receive keeps these bytes, and nobody else uses them, until
        // the request has ended; the lengths are equal.
        unsafe {
            std::ptr::copy_nonoverlapping(message.bytes.as_ptr(), bytes.cast(), bytes.len());
        }
        self.requests[request] = State::Arrived;
        message.taken.store(true, Ordering::Release);
        self.doors[message.key.0].bell.ring();
        if self.awaited.get(&message.key).is_some_and(VecDeque::is_empty) {
            self.awaited.remove(&message.key);
        }
        Ok(())
    }

    fn leave(&mut self) {
        if !self.doors[self.rank].gone.swap(true, Ordering::AcqRel) {
            self.doors.iter().for_each(|door| door.bell.ring());
        }
    }

    fn is_gone(&self, rank: usize) -> bool {
        self.doors[rank].gone.load(Ordering::Acquire)
    }
}

impl Transport for Local {
    unsafe fn send(&mut self, to: Address, bytes: *const [u8]) -> Outcome<Request> {
        // SAFETY: the caller's promise; they are copied before this returns.
        let bytes = unsafe { (*bytes).to_vec() };
        let arrives = self.bytes_per_second.map(|rate| {
            let start = self.link_free.max(Instant::now());
            self.link_free = start + Duration::from_secs_f64(bytes.len() as f64 / rate);
            self.link_free
        });
        let taken = Arc::new(AtomicBool::new(false));
        let key = (self.rank, to.channel, to.tag);
        let message = Message { key, bytes, arrives, taken: Arc::clone(&taken) };
        let door = &self.doors[to.rank];
        lock(&door.inbox).push(message);
        door.bell.ring();
        Ok(Request(self.request(State::Sent { to: to.rank, taken })))
    }

    unsafe fn receive(&mut self, from: Address, bytes: *mut [u8]) -> Outcome<Request> {
        let key = (from.rank, from.channel, from.tag);
        let request = self.request(State::Awaited { key, bytes });
        // Only when nothing else waits for the key can a message lie here unexpected.
        let message = self.unexpected.get_mut(&key).and_then(VecDeque::pop_front);
        match message {
            Some(message) => {
                if self.unexpected.get(&key).is_some_and(VecDeque::is_empty) {
                    self.unexpected.remove(&key);
                }
                self.deliver(request, message)?;
            }
            None => self.awaited.entry(key).or_default().push_back(request),
        }
        Ok(Request(request))
    }

    fn test(&mut self, Request(request): Request) -> Outcome<bool> {
        let done = match &self.requests[request] {
            State::Sent { to, taken } => {
                // First whether it is gone: it may have taken the message and left since.
                let gone = self.is_gone(*to);
                match taken.load(Ordering::Acquire) {
                    false if gone => return Err(Failure::Gone(*to)),
                    taken => taken,
                }
            }
            State::Awaited { key, .. } => {
                let source = key.0;
                let gone = self.is_gone(source);
                self.take_arrived()?;
                let arrived = matches!(self.requests[request], State::Arrived);
                let under_way = self.delayed.iter().any(|message| message.key.0 == source);
                if !arrived && gone && !under_way {
                    return Err(Failure::Gone(source));
                }
                arrived
            }
            State::Arrived => true,
            State::Free => return Err(Failure::Library("a request that has ended".into())),
        };
        if done {
            self.requests[request] = State::Free;
            self.free.push(request);
        }
        Ok(done)
    }

    fn split(&mut self, _channel: Channel, _color: usize) -> Outcome<()> {
        Ok(())
    }

    fn idle(&mut self, bell: &Bell, seen: u64, _idle_for: Duration, limit: Duration) {
        let next = self.delayed.iter().filter_map(|message| message.arrives).min();
        let until_next = next.map(|next| next.saturating_duration_since(Instant::now()));
        bell.wait(seen, until_next.map_or(limit, |wait| wait.min(limit)));
    }

    fn forget_requests(&mut self) -> bool {
        self.requests.clear();
        self.free.clear();
        self.awaited.clear();
        true
    }

    fn always_compares(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Outcome<()> {
        self.leave();
        Ok(())
    }

    fn abort(&mut self, _status: i32) {
        self.leave();
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.leave();
    }
}
