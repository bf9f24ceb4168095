//! A watch link by hand: frames on `head/watch`, as the plainest client would have them.
//!
//! Invariant: a link that is dropped says bye first, so whatever became of a row, the server finds no pin that
//! this process owes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use revfs::protocol::{
    BlockSpan, ClientRequest, FRAME_BYTES_MAX, FileId, Frame, LineBuffer, PinTo, ServerMessage, Tid,
    ack_frame,
};
use rustix::fs::OFlags;

use crate::driver::Mounted;
use crate::error::{BenchError, Named, Result};

const PATH: &str = "head/watch";
/// Room for a thousand frames.
const READ_BYTES: usize = 128 << 10;

/// An open of `head/watch`.
#[derive(Debug)]
pub struct Link {
    file: File,
    lines: LineBuffer,
    stream: u64,
}

impl Link {
    /// Opens a link; nothing is said on it yet.
    ///
    /// # Errors
    /// The server refuses.
    pub fn open(mounted: &Mounted) -> Result<Link> {
        let file = File::options().read(true).write(true).open(mounted.join(PATH)).named(PATH)?;
        Ok(Link { file, lines: LineBuffer::new(FRAME_BYTES_MAX), stream: 1 })
    }

    /// Opens links that each watch `file` as of `at` and have nothing to pin.
    ///
    /// # Errors
    /// The server refuses, or has something to pin.
    pub fn open_idle(mounted: &Mounted, count: u64, (file, at): (FileId, Tid)) -> Result<Vec<Link>> {
        let open = |_| {
            let mut link = Link::open(mounted)?;
            link.watch_idle(file, at)?;
            Ok(link)
        };
        (0..count).map(open).collect()
    }

    fn say(&mut self, request: ClientRequest) -> Result<()> {
        let frame = request.to_frame(self.stream);
        self.stream += 2;
        (&self.file).write_all(&frame).named(PATH)
    }

    /// Asks for pins of several blocks in one frame.
    ///
    /// # Errors
    /// The server does not know such pins.
    pub fn hello_range(&mut self) -> Result<()> {
        self.say(ClientRequest::Hello { range: true, size: false })?;
        self.hear_ok(|_, _| Err(unexpected("a pin before any watch"))).map(drop)
    }

    /// Sets a watch up; `obey` maps blocks as a pin says, each before its ack. Answers how many pins there were.
    ///
    /// # Errors
    /// The server refuses, or `obey` fails.
    pub fn watch(
        &mut self,
        (file, at): (FileId, Tid),
        obey: impl FnMut(BlockSpan, PinTo) -> Result<()>,
    ) -> Result<u64> {
        self.say(ClientRequest::Watch { file, at })?;
        self.hear_ok(obey)
    }

    /// Sets a watch up that has nothing to pin.
    ///
    /// # Errors
    /// The server refuses, or has something to pin.
    pub fn watch_idle(&mut self, file: FileId, at: Tid) -> Result<()> {
        self.watch((file, at), |span, _| Err(unexpected(format!("a pin of {span}")))).map(drop)
    }

    fn hear_ok(&mut self, mut obey: impl FnMut(BlockSpan, PinTo) -> Result<()>) -> Result<u64> {
        let mut chunk = vec![0; READ_BYTES];
        let mut pins = 0;
        loop {
            let len = (&self.file).read(&mut chunk).named(PATH)?;
            if len == 0 {
                return Err(unexpected("the end of the link"));
            }
            let mut input = &chunk[..len];
            while let Some(line) = self.lines.next_line(&mut input) {
                let frame =
                    line.map_err(unexpected).and_then(|line| Frame::parse(line).map_err(unexpected))?;
                match ServerMessage::parse(frame.stream, frame.message).map_err(unexpected)? {
                    ServerMessage::Pin { blocks, to, .. } => {
                        obey(blocks, to)?;
                        (&self.file).write_all(&ack_frame(frame.stream)).named(PATH)?;
                        pins += 1;
                    }
                    ServerMessage::Ok(_) => return Ok(pins),
                    other => return Err(unexpected(other)),
                }
            }
        }
    }

    /// Refuses a link on which the server said something that was not read.
    ///
    /// # Errors
    /// It did.
    pub fn check_silent(links: &[Link]) -> Result<()> {
        // Non-blocking mode is one of the open file, not of the call: it is set for good.
        for link in links {
            rustix::fs::fcntl_setfl(&link.file, OFlags::RDWR | OFlags::NONBLOCK).named(PATH)?;
            match (&link.file).read(&mut [0; FRAME_BYTES_MAX]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).named(PATH),
                Ok(_) => return Err(unexpected("a frame on a link that needs no pin")),
            }
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Where the server is gone already there is nobody to be told.
        let _ = self.say(ClientRequest::Bye);
    }
}

fn unexpected(what: impl std::fmt::Display) -> BenchError {
    BenchError::Wrong(format!("the watch link said what was not expected: {what}"))
}
