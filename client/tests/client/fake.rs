//! A server that a test plays: plain files in the shape of a mount, and a thread at the other end of the link.
//!
//! Invariant: it says only what a server may say, but for what a test hands to `say`; its thread ends when the link
//! does, and waits have a time limit.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use revfs_client::{Conn, FileId, Tid};
use revfs_protocol::{
    BlockIndex, BlockSpan, ClientRequest, Frame, LINE_BYTES_MAX, LineBuffer, OkReply, PinTo, ServerMessage,
    is_ack,
};
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Limit of each wait.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Bytes in a block of a plain file.
pub const BLOCK: usize = 4096;
/// The file of most tests.
pub const FILE: FileId = FileId::from_raw(0x2a);

pub fn tid(raw: u64) -> Tid {
    Tid::from_raw(raw)
}

pub fn span(first: u64, last: u64) -> BlockSpan {
    BlockSpan::new(BlockIndex::new(first), BlockIndex::new(last)).unwrap()
}

/// Blocks, each filled with one byte.
pub fn blocks(fills: &[u8]) -> Vec<u8> {
    fills.iter().flat_map(|fill| [*fill; BLOCK]).collect()
}

/// What a watch is answered.
#[derive(Clone, Debug)]
pub struct Plan {
    pub pins: Vec<(BlockSpan, PinTo)>,
    pub reply: Result<u64, String>,
    /// Send the reply in one write with the pins, without waiting for acks.
    pub at_once: bool,
}

impl Plan {
    pub fn size(size: usize) -> Plan {
        Plan { pins: Vec::new(), reply: Ok(size as u64), at_once: false }
    }

    pub fn pin(mut self, first: u64, last: u64, to: PinTo) -> Plan {
        self.pins.push((span(first, last), to));
        self
    }
}

#[derive(Debug, Default)]
struct State {
    plans: HashMap<(FileId, Tid), Plan>,
    knows_hello: bool,
    next_stream: u64,
    owed: Vec<u64>,                    // pins without an ack
    replies: Vec<(Vec<u64>, Vec<u8>)>, // a reply, and the pins that it waits for
    seen: Vec<String>,                 // what the client said, without its stream for requests
    ended: bool,
}

struct Inner {
    link: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

/// The server, and its tree.
pub struct Fake {
    tree: tempfile::TempDir,
    inner: Arc<Inner>,
    client_end: Mutex<Option<UnixStream>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn new() -> Fake {
        Fake::that_knows_hello(true)
    }

    pub fn that_knows_hello(knows_hello: bool) -> Fake {
        let tree = tempfile::tempdir().unwrap();
        for folder in ["head/by-id", "head/bigfile"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        let (link, client_end) = UnixStream::pair().unwrap();
        let state = Mutex::new(State { knows_hello, next_stream: 2, ..State::default() });
        let inner = Arc::new(Inner { link, state, changed: Condvar::new() });
        let thread = std::thread::Builder::new().spawn({
            let inner = Arc::clone(&inner);
            move || inner.serve()
        });
        let fake =
            Fake { tree, inner, client_end: Mutex::new(Some(client_end)), thread: Some(thread.unwrap()) };
        fake.set_head(tid(10));
        fake
    }

    pub fn path(&self) -> &Path {
        self.tree.path()
    }

    pub fn set_head(&self, at: Tid) {
        fs::write(self.path().join("head/at"), at.to_string()).unwrap();
    }

    /// Writes a file of head, in place: mappings see it.
    pub fn write_head(&self, file: FileId, bytes: &[u8]) {
        let path = self.path().join(format!("head/by-id/{file}"));
        let mut opened = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        opened.write_all(bytes).unwrap();
        opened.set_len(bytes.len() as u64).unwrap();
    }

    pub fn rev_path(&self, file: FileId, rev: Tid) -> PathBuf {
        let folder = self.path().join(format!("@{rev}/by-id"));
        fs::create_dir_all(&folder).unwrap();
        folder.join(file.to_string())
    }

    pub fn write_rev(&self, file: FileId, rev: Tid, bytes: &[u8]) {
        fs::write(self.rev_path(file, rev), bytes).unwrap();
    }

    pub fn plan(&self, file: FileId, at: Tid, plan: Plan) {
        self.state().plans.insert((file, at), plan);
    }

    /// A client as of `at`, once.
    pub fn connect_at(&self, at: Option<Tid>) -> Arc<Conn> {
        let link = self.client_end.lock().unwrap().take().unwrap();
        Conn::open_with_link(self.path(), link.into(), at).unwrap()
    }

    pub fn connect(&self, at: Tid) -> Arc<Conn> {
        self.connect_at(Some(at))
    }

    /// Counts the bytes that the client has not read yet; to be had before it connects.
    pub fn unread(&self) -> impl Fn() -> u64 + use<> {
        let end = self.client_end.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        move || rustix::io::ioctl_fionread(&end).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    fn wait_until(&self, what: &str, mut reached: impl FnMut(&mut State) -> bool) {
        let state = self.state();
        let (state, waited) =
            self.inner.changed.wait_timeout_while(state, LIMIT, |state| !reached(state)).unwrap();
        assert!(!waited.timed_out(), "{what} not within {LIMIT:?}; the client said {:?}", state.seen);
    }

    /// Sends pins in one write; their streams.
    pub fn send_pins(&self, file: FileId, pins: &[(BlockSpan, PinTo)]) -> Vec<u64> {
        let (streams, frames) = self.owe_pins(file, pins);
        self.say(&frames);
        streams
    }

    /// Streams and frames of pins, for a test that sends them itself.
    pub fn owe_pins(&self, file: FileId, pins: &[(BlockSpan, PinTo)]) -> (Vec<u64>, Vec<u8>) {
        self.state().pins(file, pins)
    }

    /// Waits for the acks of pins.
    pub fn wait_acks(&self, streams: &[u64]) {
        self.wait_until("acks", |state| !streams.iter().any(|stream| state.owed.contains(stream)));
    }

    /// Pins, and waits for the ack.
    pub fn pin(&self, file: FileId, first: u64, last: u64, to: PinTo) {
        self.wait_acks(&self.send_pins(file, &[(span(first, last), to)]));
    }

    /// Sends any bytes.
    pub fn say(&self, bytes: &[u8]) {
        (&self.inner.link).write_all(bytes).unwrap();
    }

    /// Ends the link as a killed server does.
    pub fn die(&self) {
        self.inner.link.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Waits until the client has said something.
    pub fn wait_said(&self, what: &str) {
        self.wait_until(what, |state| state.seen.iter().any(|said| said == what));
    }

    /// All that the client said until now.
    pub fn said(&self) -> Vec<String> {
        self.state().seen.clone()
    }

    /// Waits until the link has ended.
    pub fn wait_end(&self) {
        self.wait_until("the end of the link", |state| state.ended);
    }
}

impl State {
    /// Frames of pins, which are owed from now on.
    fn pins(&mut self, file: FileId, pins: &[(BlockSpan, PinTo)]) -> (Vec<u64>, Vec<u8>) {
        let mut frames = Vec::new();
        let mut streams = Vec::new();
        for (blocks, to) in pins {
            let pin = ServerMessage::Pin { file, blocks: *blocks, to: *to };
            frames.extend_from_slice(&pin.to_frame(self.next_stream));
            streams.push(self.next_stream);
            self.next_stream += 2;
        }
        self.owed.extend(&streams);
        (streams, frames)
    }

    /// What a request is answered at once.
    fn request(&mut self, stream: u64, request: ClientRequest) -> Vec<u8> {
        let ok = |reply: OkReply| ServerMessage::Ok(reply).to_frame(stream).to_vec();
        match request {
            ClientRequest::Hello { range, size } if self.knows_hello => {
                ok(OkReply { range, size_granted: size, size: None })
            }
            ClientRequest::Hello { .. } => {
                ServerMessage::Error("bad watch: not a watch request").to_frame(stream).to_vec()
            }
            ClientRequest::Unwatch { .. } => ok(OkReply::default()),
            ClientRequest::Bye => Vec::new(),
            ClientRequest::Watch { file, at } => {
                let plan = self.plans.get(&(file, at)).cloned().expect("a watch that the test planned");
                let reply = match &plan.reply {
                    Ok(size) => ok(OkReply { size: self.knows_hello.then_some(*size), ..OkReply::default() }),
                    Err(text) => ServerMessage::Error(text).to_frame(stream).to_vec(),
                };
                let (streams, mut frames) = self.pins(file, &plan.pins);
                if plan.at_once || streams.is_empty() {
                    frames.extend(reply);
                } else {
                    self.replies.push((streams, reply));
                }
                frames
            }
        }
    }

    /// Replies that an ack lets go.
    fn ack(&mut self, stream: u64) -> Vec<u8> {
        self.owed.retain(|owed| *owed != stream);
        let mut frames = Vec::new();
        self.replies.retain_mut(|(streams, reply)| {
            streams.retain(|owed| *owed != stream);
            if streams.is_empty() {
                frames.append(reply);
            }
            !streams.is_empty()
        });
        frames
    }
}

impl Inner {
    /// Answers until the client ends the link or says bye.
    fn serve(&self) {
        let mut lines = LineBuffer::new(LINE_BYTES_MAX);
        let mut chunk = [0; 512];
        while let Ok(len @ 1..) = (&self.link).read(&mut chunk) {
            let mut input = &chunk[..len];
            while let Some(line) = lines.next_line(&mut input) {
                self.take(line.unwrap());
            }
        }
        self.state.lock().unwrap().ended = true;
        self.changed.notify_all();
    }

    fn take(&self, line: &[u8]) {
        let Frame { stream, message } = Frame::parse(line).unwrap();
        let mut state = self.state.lock().unwrap();
        let said = String::from_utf8(message.to_vec()).unwrap();
        let frames = if stream % 2 == 0 {
            state.seen.push(format!("{stream} {said}"));
            assert!(is_ack(message) && state.owed.contains(&stream), "{stream} {said}");
            state.ack(stream)
        } else {
            state.seen.push(said);
            state.request(stream, ClientRequest::parse(message).unwrap())
        };
        // The client may have left meanwhile.
        let _gone = (&self.link).write_all(&frames);
        if message == b"bye" {
            let _gone = self.link.shutdown(std::net::Shutdown::Both);
        }
        self.changed.notify_all();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _gone = self.inner.link.shutdown(std::net::Shutdown::Both);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().expect("the server saw nothing wrong");
        }
    }
}
