//! The threads that read the watch link and carry out pins.
//!
//! ```text
//! S: 2 pin <file> #7 @<rev>     map block 7 of all mappings of the file from @<rev>/by-id/<file>
//! C: 2 ack
//! ```
//!
//! Invariant: a reply is handled only after all pins that came before it are carried out; of pins that share a block
//! at most one is being carried out. Threads here keep the rule of the pinner that stands at the head of the crate:
//! they touch no mapping, take only locks whose holders touch none, and do not log while the link is up.

use crate::error::{ClientError, DownCause};
use crate::open_file::PinOutcome;
use crate::shared::{Shared, lock};
use revfs_protocol::{
    BlockSpan, Closing, FRAME_BYTES_MAX, FileId, Frame, LineBuffer, PinTo, ServerMessage, ack_frame,
    nak_frame,
};
use rustix::io::{Errno, read, retry_on_intr};
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::thread;

use tracing_mutex::stdsync::{Condvar, Mutex};

/// Threads that help the reader when several pins arrive at once.
const HELPERS: usize = 3;
/// Bytes read from the link at once.
const READ_BYTES: usize = 4096;

/// One pin to carry out.
#[derive(Clone, Copy, Debug)]
struct Pin {
    stream: u64,
    file: FileId,
    blocks: BlockSpan,
    to: PinTo,
    quick: bool, // nothing has to be asked of the server
}

impl Pin {
    fn shares_blocks_with(&self, other: &Pin) -> bool {
        let [a, b] = [self.blocks, other.blocks];
        self.file == other.file && a.first <= b.last && b.first <= a.last
    }
}

#[derive(Debug, Default)]
struct Work {
    queue: VecDeque<Pin>,
    running: Vec<Pin>,
    stopped: bool,
}

/// What the reader and its helpers share.
#[derive(Debug)]
struct Pool {
    shared: Arc<Shared>,
    work: Mutex<Work>, // leaf; never held across a system call
    more: Condvar,     // something is queued, or it is over
    done: Condvar,     // a pin was carried out
}

/// Starts to read the link.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<(), ClientError> {
    let work = Mutex::default();
    let pool =
        Arc::new(Pool { shared: Arc::clone(shared), work, more: Condvar::new(), done: Condvar::new() });
    for _ in 0..HELPERS {
        let helper = Arc::clone(&pool);
        spawn("revfs-pin", move || helper.help()).inspect_err(|_| pool.stop())?;
    }
    let reader = Arc::clone(&pool);
    spawn("revfs-link", move || reader.run()).inspect_err(|_| pool.stop())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), ClientError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).map_err(|error| {
        let cause = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
        ClientError::Thread { cause }
    })
}

impl Pool {
    /// The reader's life.
    fn run(&self) {
        let cause = self.read_link();
        let was_up = self.shared.fail(cause.clone());
        self.stop();
        // All mappings fault already, so nothing wrong is seen when the server lets its READs go.
        let said = self.shared.link.say_bye();
        self.shared.set_ended();
        if let Some((file, errno)) = self.shared.stuck() {
            log::error!("file {file}: its mappings cannot be taken away, and may change: {errno}");
        }
        if was_up {
            log::error!("the watch link is down: {cause}");
        } else if let Err(errno) = said {
            log::debug!("the server did not hear bye: {errno}");
        }
    }

    fn stop(&self) {
        lock(&self.work).stopped = true;
        self.more.notify_all();
    }

    /// Reads until the link ends, and says why it did.
    fn read_link(&self) -> DownCause {
        let mut lines = LineBuffer::new(FRAME_BYTES_MAX);
        let mut chunk = [0; READ_BYTES];
        loop {
            let len = match retry_on_intr(|| read(self.shared.link.fd(), &mut chunk)) {
                Ok(0) => return DownCause::ServerGone,
                Ok(len) => len,
                Err(errno) => return DownCause::of_link(errno),
            };
            let mut input = &chunk[..len];
            while let Some(line) = lines.next_line(&mut input) {
                let line = line.map_err(|error| error.to_string());
                if let Err(cause) = line.map_err(protocol).and_then(|line| self.take(line)) {
                    return cause;
                }
            }
            // Not the others: the link is read while they wait for the server.
            self.work_off(|pin| pin.quick);
        }
    }

    /// Handles one line.
    fn take(&self, line: &[u8]) -> Result<(), DownCause> {
        let frame = Frame::parse(line).map_err(|error| protocol(error.to_string()))?;
        let message = ServerMessage::parse(frame.stream, frame.message);
        match message.map_err(|error| protocol(error.to_string()))? {
            ServerMessage::Pin { file, blocks, to } => {
                let quick = match to {
                    PinTo::Rev(rev) => self.shared.mount.has_open(file, rev),
                    PinTo::Head => true,
                };
                self.queue(Pin { stream: frame.stream, file, blocks, to, quick });
                Ok(())
            }
            ServerMessage::Ok(reply) => self.answer(frame.stream, Ok(reply)),
            ServerMessage::Error(text) => self.answer(frame.stream, Err(text.into())),
            ServerMessage::Closing(Closing::Error(text) | Closing::Fatal(text)) => {
                Err(DownCause::ByServer(text.into()))
            }
        }
    }

    fn answer(&self, stream: u64, reply: crate::link::Reply) -> Result<(), DownCause> {
        self.drain();
        if self.shared.closed_by(stream) || self.shared.link.deliver(stream, reply) {
            return Ok(());
        }
        // What was asked before the link went down is of no interest any more.
        match self.shared.link.check() {
            Err(_) => Ok(()),
            Ok(()) => Err(protocol(format!("{stream}: reply on unexpected stream"))),
        }
    }

    /// Queues a pin; helpers are woken for all but the first that is quick, which the reader takes.
    fn queue(&self, pin: Pin) {
        let clashes = {
            let work = lock(&self.work);
            work.queue.iter().chain(&work.running).any(|other| other.shares_blocks_with(&pin))
        };
        if clashes {
            self.drain();
        }
        let mut work = lock(&self.work);
        work.queue.push_back(pin);
        if work.queue.len() > 1 || !pin.quick {
            self.more.notify_one();
        }
    }

    /// Carries out pins until none that is wanted is queued.
    fn work_off(&self, wanted: impl Fn(&Pin) -> bool) {
        while let Some(pin) = self.next(&wanted) {
            self.carry_out(pin);
        }
    }

    /// Waits until all pins that were queued are carried out.
    fn drain(&self) {
        self.work_off(|_| true);
        let running = self.done.wait_while(lock(&self.work), |work| !work.running.is_empty());
        drop(running.unwrap_or_else(PoisonError::into_inner));
    }

    /// A helper's life.
    fn help(&self) {
        loop {
            let idle = |work: &mut Work| work.queue.is_empty() && !work.stopped;
            let waited = self.more.wait_while(lock(&self.work), idle);
            if waited.unwrap_or_else(PoisonError::into_inner).stopped {
                return;
            }
            self.work_off(|_| true);
        }
    }

    fn next(&self, wanted: impl Fn(&Pin) -> bool) -> Option<Pin> {
        let mut work = lock(&self.work);
        let first = work.queue.iter().position(wanted)?;
        let pin = work.queue.remove(first)?;
        work.running.push(pin);
        Some(pin)
    }

    /// Carries out one pin and answers it.
    fn carry_out(&self, pin: Pin) {
        let outcome = self
            .shared
            .watched(pin.file)
            .map_or(PinOutcome::Done, |file| file.pin(&self.shared.mount, pin.blocks, pin.to));
        let failed = match outcome {
            // A file that is not watched any more has no mapping that could show anything else.
            PinOutcome::Done => self.shared.link.send(&ack_frame(pin.stream)).err(),
            PinOutcome::Beyond => {
                let text =
                    format!("pin {} {} {}: that state was not asked for", pin.file, pin.blocks, pin.to);
                Some(ClientError::Down(protocol(text)))
            }
            PinOutcome::Stuck(cause) => {
                // The server kills us, and that is right: nothing else takes wrong bytes out of sight.
                let _killed_anyway = self.shared.link.send(&nak_frame(pin.stream, &cause));
                Some(ClientError::Down(DownCause::Io(cause)))
            }
        };
        if let Some(ClientError::Down(cause)) = failed
            && self.shared.fail(cause)
        {
            // The reader is told by the end of the link that the server makes of this.
            let _gone_anyway = self.shared.link.say_bye();
        }
        lock(&self.work).running.retain(|running| running.stream != pin.stream);
        self.done.notify_all();
    }
}

fn protocol(text: impl Into<Arc<str>>) -> DownCause {
    DownCause::Protocol(text.into())
}
