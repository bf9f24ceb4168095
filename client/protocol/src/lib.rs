//! What a revfs server and its clients share: ids, frames, and the text forms of revisions, sizes and durations.
//!
//! Invariant: no I/O, no clock and no randomness; each function is a function of its arguments, and no text
//! or number that comes from outside makes one panic. Everything is exported flat from the crate's root.

mod block;
mod duration;
mod file_id;
mod frame;
mod go_duration;
mod id_text;
mod line_buffer;
mod message;
mod quote;
mod range;
mod request;
mod rev_spec;
mod rev_time;
mod size;
mod tag_name;
mod tid;

pub use block::{BlockCount, BlockIndex, BlockSize, BlockSizeError};
pub use duration::{DurationError, format_duration, parse_duration};
pub use file_id::FileId;
pub use frame::{
    CONTROL_STREAM, FIRST_CLIENT_STREAM, FIRST_SERVER_STREAM, FRAME_BYTES_MAX, Frame, FrameError, FrameText,
    LINE_BYTES_MAX, StreamKind,
};
pub use go_duration::{GoDurationError, format_go_duration, parse_go_duration};
pub use id_text::{IdKind, ParseIdError};
pub use line_buffer::{LineBuffer, LineTooLong};
pub use message::{BlockSpan, Closing, MessageError, OkReply, PinTo, ServerMessage};
pub use range::{ByteRange, RangeError, parse_range};
pub use request::{ClientRequest, RequestError, ack_frame, is_ack, nak_frame};
pub use rev_spec::{RevSpec, RevSpecError};
pub use size::{SizeError, format_size, parse_size};
pub use tag_name::{TAG_NAME_LEN_MAX, TagName, TagNameError};
pub use tid::Tid;
