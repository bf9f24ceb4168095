//! What a client says on a watch link: requests, and replies to pins.
//!
//! ```text
//! C: 1 hello range size                            what the client can do; unknown words are ignored
//! C: 3 watch 000000000000002a @03caa84275fc1166    set up or move the watch on a file
//! C: 5 watch 000000000000002a -                    stop watching it
//! C: 7 bye                                         orderly end
//! C: 2 ack                                         the reply to a pin; anything else is a fault
//! ```
//!
//! Invariant: the words of errors are those of WCFS, because existing clients compare them.

use crate::frame::{FrameText, StreamKind, parse_hex};
use crate::quote::Quoted;
use crate::{FileId, LINE_BYTES_MAX, Tid};
use std::fmt;
use thiserror::Error;

const ACK: &[u8] = b"ack";

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientRequest {
    /// Set up the watch on a file, or move it to a later state.
    Watch {
        /// Which file.
        file: FileId,
        /// Which state the client shall see.
        at: Tid,
    },
    /// Stop watching a file.
    Unwatch {
        /// Which file.
        file: FileId,
    },
    /// End the link; there is no reply.
    Bye,
    /// What the client understands beyond the first version of the protocol.
    Hello {
        /// Pins of several blocks.
        range: bool,
        /// Sizes in the reply to a watch.
        size: bool,
    },
}

/// A request that is none. It shows in the words of WCFS.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No word that is known.
    #[error("bad watch: not a watch request: {}", Quoted(.message))]
    NotWatch {
        /// The message, as far as a line may be long.
        message: Box<[u8]>,
    },
    /// Not a file and a state.
    #[error("bad watch: expected 2 arguments, got {count}")]
    ArgumentCount {
        /// How many words there were after `watch`.
        count: usize,
    },
    /// The file is not 16 hex digits.
    #[error("bad watch: invalid oid")]
    BadFile,
    /// The state is neither `-` nor `@` and 16 hex digits.
    #[error("bad watch: invalid at")]
    BadAt,
}

impl ClientRequest {
    /// Reads what a client said on an odd stream.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(message: &[u8]) -> Result<ClientRequest, RequestError> {
        if message == b"bye" {
            return Ok(ClientRequest::Bye);
        }
        if let Some(words) = message.strip_prefix(b"hello")
            && matches!(words, [] | [b' ', ..])
        {
            let has = |wanted: &[u8]| words.split(|byte| *byte == b' ').any(|word| word == wanted);
            return Ok(ClientRequest::Hello { range: has(b"range"), size: has(b"size") });
        }
        let Some(arguments) = message.strip_prefix(b"watch ") else {
            let message = message[..message.len().min(LINE_BYTES_MAX)].into();
            return Err(RequestError::NotWatch { message });
        };
        parse_watch(arguments)
    }

    /// The frame of this request on `stream`, which is odd.
    pub fn to_frame(&self, stream: u64) -> FrameText {
        debug_assert_eq!(StreamKind::of(stream), StreamKind::Client, "{self:?} on stream {stream}");
        FrameText::print(format_args!("{stream} {self}"))
    }
}

fn parse_watch(arguments: &[u8]) -> Result<ClientRequest, RequestError> {
    let mut words = arguments.split(|byte| *byte == b' ');
    let (Some(file), Some(at), None) = (words.next(), words.next(), words.next()) else {
        let count = arguments.split(|byte| *byte == b' ').count();
        return Err(RequestError::ArgumentCount { count });
    };
    let file = parse_hex(file).map(FileId::from_raw).ok_or(RequestError::BadFile)?;
    if at == b"-" {
        return Ok(ClientRequest::Unwatch { file });
    }
    let at = at.strip_prefix(b"@").and_then(parse_hex).ok_or(RequestError::BadAt)?;
    Ok(ClientRequest::Watch { file, at: Tid::from_raw(at) })
}

impl fmt::Display for ClientRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientRequest::Watch { file, at } => write!(f, "watch {file} @{at}"),
            ClientRequest::Unwatch { file } => write!(f, "watch {file} -"),
            ClientRequest::Bye => f.write_str("bye"),
            ClientRequest::Hello { range, size } => {
                let word = |said: bool, word: &'static str| if said { word } else { "" };
                write!(f, "hello{}{}", word(*range, " range"), word(*size, " size"))
            }
        }
    }
}

/// Whether the reply to a pin says that it is done; anything else says that it is not.
pub fn is_ack(message: &[u8]) -> bool {
    message == ACK
}

/// The reply that a pin is done, on the stream of the pin.
pub fn ack_frame(stream: u64) -> FrameText {
    debug_assert_eq!(StreamKind::of(stream), StreamKind::Server, "ack on stream {stream}");
    FrameText::print(format_args!("{stream} ack"))
}

/// The reply that a pin could not be done, and why; the server kills who sends it.
pub fn nak_frame(stream: u64, cause: &dyn fmt::Display) -> FrameText {
    debug_assert_eq!(StreamKind::of(stream), StreamKind::Server, "nak on stream {stream}");
    FrameText::print(format_args!("{stream} nak: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, ServerMessage};
    use proptest::prelude::*;
    use std::str;

    const FILE: FileId = FileId::from_raw(0x2a);
    const AT: Tid = Tid::from_raw(0x03ca_a842_75fc_1166);

    #[test]
    fn requests_look_as_the_protocol_says() {
        for (request, expected) in [
            (ClientRequest::Watch { file: FILE, at: AT }, "5 watch 000000000000002a @03caa84275fc1166\n"),
            (ClientRequest::Unwatch { file: FILE }, "5 watch 000000000000002a -\n"),
            (ClientRequest::Bye, "5 bye\n"),
            (ClientRequest::Hello { range: true, size: true }, "5 hello range size\n"),
            (ClientRequest::Hello { range: false, size: true }, "5 hello size\n"),
            (ClientRequest::Hello { range: false, size: false }, "5 hello\n"),
        ] {
            let frame = request.to_frame(5);
            assert_eq!(str::from_utf8(&frame).unwrap(), expected);
            assert_eq!(ClientRequest::parse(Frame::parse(frame.line()).unwrap().message), Ok(request));
        }
        assert_eq!(&*ack_frame(2), b"2 ack\n");
        assert_eq!(&*nak_frame(4, &"no\nroom"), b"4 nak: no room\n");
    }

    #[test]
    fn hello_ignores_words_of_later_versions() {
        let both = Ok(ClientRequest::Hello { range: true, size: true });
        assert_eq!(ClientRequest::parse(b"hello size later=1 range"), both);
        assert_eq!(
            ClientRequest::parse(b"hello ranges sizes"),
            Ok(ClientRequest::Hello { range: false, size: false })
        );
        assert!(ClientRequest::parse(b"hellorange").is_err());
    }

    #[test]
    fn errors_are_in_the_words_of_wcfs() {
        let not_watch = |quoted: &str| format!("bad watch: not a watch request: {quoted}");
        let count = |count: usize| format!("bad watch: expected 2 arguments, got {count}");
        for (message, expected) in [
            ("hello-world", not_watch(r#""hello-world""#)),
            ("", not_watch(r#""""#)),
            ("watch", not_watch(r#""watch""#)),
            ("bye ", not_watch(r#""bye ""#)),
            ("byebye\t", not_watch(r#""byebye\t""#)),
            ("watch ", count(1)),
            ("watch 000000000000002a", count(1)),
            ("watch 000000000000002a @03caa84275fc1166 ", count(3)),
            ("watch  000000000000002a @03caa84275fc1166", count(3)),
            ("watch 2a @03caa84275fc1166", "bad watch: invalid oid".into()),
            ("watch 000000000000002g -", "bad watch: invalid oid".into()),
            ("watch 000000000000002a 03caa84275fc1166", "bad watch: invalid at".into()),
            ("watch 000000000000002a @03caa84275fc116", "bad watch: invalid at".into()),
            ("watch 000000000000002a @head", "bad watch: invalid at".into()),
            ("watch 000000000000002a --", "bad watch: invalid at".into()),
            ("watch 000000000000002a ", "bad watch: invalid at".into()),
        ] {
            assert_eq!(ClientRequest::parse(message.as_bytes()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn an_error_of_any_length_fits_a_frame() {
        let error = ClientRequest::parse(&[b'x'; 100_000]).unwrap_err();
        assert!(error.to_string().len() < 2 * LINE_BYTES_MAX);
        let frame = ServerMessage::Error(&error.to_string()).to_frame(1);
        assert!(
            frame.starts_with(b"1 error bad watch: not a watch request: \"xxx") && frame.ends_with(b"x\n")
        );
    }

    #[test]
    fn only_ack_is_ack() {
        assert!(is_ack(b"ack"));
        for reply in ["", "ac", "ack ", " ack", "ACK", "acknowledged", "nak"] {
            assert!(!is_ack(reply.as_bytes()), "{reply:?}");
        }
    }

    proptest! {
        #[test]
        fn watches_round_trip_and_no_part_of_one_is_a_request(file: u64, at: u64, stream: u64) {
            let stream = stream | 1;
            let file = FileId::from_raw(file);
            for request in [ClientRequest::Watch { file, at: Tid::from_raw(at) }, ClientRequest::Unwatch { file }] {
                let frame = request.to_frame(stream);
                let parsed = Frame::parse(frame.line()).unwrap();
                prop_assert_eq!(parsed.stream, stream);
                prop_assert_eq!(ClientRequest::parse(parsed.message), Ok(request));
                let upper = parsed.message[6..].to_ascii_uppercase();
                prop_assert_eq!(ClientRequest::parse(&[b"watch ", &upper[..]].concat()), Ok(request));
                for end in 0..parsed.message.len() {
                    prop_assert!(ClientRequest::parse(&parsed.message[..end]).is_err());
                }
            }
        }

        #[test]
        fn no_bytes_panic(message: Vec<u8>, near in "(watch |hello|bye)[0-9a-f @-]{0,40}") {
            for message in [&message[..], near.as_bytes()] {
                if let Err(error) = ClientRequest::parse(message) {
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }
}
