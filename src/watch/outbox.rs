//! Frames that wait to be read by the client.
//!
//! Invariant: frames leave whole and in order, however small the client's reads are. A pin whose watch is dropped
//! leaves the queue unless its first byte was read: a client that forgot the file need not hear of it (rule 13).

use std::collections::VecDeque;

use revfs_protocol::{BlockSpan, FileId, FrameText, OkReply, PinTo, ServerMessage};

/// A frame, before it is text: a link may have hundreds of thousands of pins queued.
#[derive(Clone, Copy, Debug)]
pub(super) enum Out {
    /// A pin, by its id.
    Pin { id: u64, file: FileId, blocks: BlockSpan, to: PinTo },
    /// `ok` to a request.
    Ok { stream: u64, reply: OkReply },
    /// Anything else, as it is sent.
    Text(FrameText),
}

impl Out {
    fn to_frame(self) -> FrameText {
        match self {
            Out::Pin { id, file, blocks, to } => ServerMessage::Pin { file, blocks, to }.to_frame(id),
            Out::Ok { stream, reply } => ServerMessage::Ok(reply).to_frame(stream),
            Out::Text(text) => text,
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Out>,
    /// The frame that is being read, and how much of it was.
    current: Option<(FrameText, usize)>,
}

impl Outbox {
    pub(super) fn push(&mut self, out: Out) {
        self.frames.push_back(out);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.current.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Takes at most `max` bytes.
    pub(super) fn take(&mut self, max: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let (text, done) = match self.current.take() {
                Some(current) => current,
                None => match self.frames.pop_front() {
                    Some(out) => (out.to_frame(), 0),
                    None => break,
                },
            };
            let bytes: &[u8] = &text;
            let count = (bytes.len() - done).min(max - taken.len());
            taken.extend_from_slice(&bytes[done..done + count]);
            if done + count < bytes.len() {
                self.current = Some((text, done + count));
            }
        }
        taken
    }

    /// Forgets pins of a file.
    pub(super) fn drop_pins(&mut self, file: FileId) {
        self.frames.retain(|out| !matches!(out, Out::Pin { file: of, .. } if *of == file));
    }

    /// Forgets all that was not begun to be read.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
    }
}
