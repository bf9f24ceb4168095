//! Lines out of a stream of bytes that arrive in pieces of any size.
//!
//! Invariant: it holds at most one unfinished line, and never more than its limit, however much a peer sends;
//! each byte is looked at once and copied at most once.

use thiserror::Error;

/// A line was longer than allowed. It stays: nothing after it can be trusted to start a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line of more than {limit} bytes: a frame has at most that, with its line feed")]
pub struct LineTooLong {
    /// Most bytes of a line, with its LF.
    pub limit: usize,
}

/// Collects bytes and gives lines.
///
/// ```
/// let mut buffer = revfs_protocol::LineBuffer::new(revfs_protocol::LINE_BYTES_MAX);
/// let mut input = &b"1 bye\n3 wat"[..];
/// assert_eq!(buffer.next_line(&mut input), Some(Ok(&b"1 bye"[..])));
/// assert_eq!(buffer.next_line(&mut input), None); // the rest is kept
/// let mut input = &b"ch\n"[..];
/// assert_eq!(buffer.next_line(&mut input), Some(Ok(&b"3 watch"[..])));
/// ```
#[derive(Debug)]
pub struct LineBuffer {
    limit: usize,
    kept: Vec<u8>, // an unfinished line, or a finished one that the last call gave out
    given: bool,   // `kept` was given out and is to be emptied
    too_long: bool,
}

impl LineBuffer {
    /// A buffer for lines of at most `limit` bytes, with their LF: [`LINE_BYTES_MAX`](crate::LINE_BYTES_MAX)
    /// in a server, [`FRAME_BYTES_MAX`](crate::FRAME_BYTES_MAX) in a client.
    pub fn new(limit: usize) -> LineBuffer {
        LineBuffer { limit, kept: Vec::new(), given: false, too_long: false }
    }

    /// The next line, without its LF, taken from the front of `input`; none when `input` is used up. Call it
    /// until it gives none, then read more.
    ///
    /// # Errors
    /// [`LineTooLong`], and from then on at each call.
    pub fn next_line<'a, 'input: 'a>(
        &'a mut self,
        input: &mut &'input [u8],
    ) -> Option<Result<&'a [u8], LineTooLong>> {
        if self.given {
            self.kept.clear();
            self.given = false;
        }
        if self.too_long {
            return Some(Err(LineTooLong { limit: self.limit }));
        }
        // The line and its LF must fit, so this many bytes of input can belong to it.
        let room = self.limit.saturating_sub(self.kept.len());
        let near = &input[..input.len().min(room)];
        match near.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = &input[..end];
                *input = &input[end + 1..];
                if self.kept.is_empty() {
                    return Some(Ok(line));
                }
                self.kept.extend_from_slice(line);
                self.given = true;
                Some(Ok(&self.kept))
            }
            None if near.len() == room => {
                self.too_long = true;
                self.kept = Vec::new();
                Some(Err(LineTooLong { limit: self.limit }))
            }
            None => {
                self.kept.extend_from_slice(input);
                *input = &[];
                None
            }
        }
    }

    /// Whether the bytes so far end within a line.
    pub fn is_inside_line(&self) -> bool {
        self.too_long || (!self.given && !self.kept.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All lines of pieces given one after the other, and whether it ended in an error.
    fn lines(limit: usize, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
        let mut buffer = LineBuffer::new(limit);
        let mut lines = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(line) = buffer.next_line(&mut input) {
                match line {
                    Ok(line) => lines.push(line.to_vec()),
                    Err(error) => {
                        assert_eq!(error, LineTooLong { limit });
                        return (lines, true);
                    }
                }
            }
            assert!(input.is_empty());
            assert!(buffer.kept.len() < limit);
        }
        (lines, false)
    }

    #[test]
    fn lines_come_out_of_pieces() {
        assert_eq!(lines(9, &[b"ab\ncd", b"", b"e", b"\n\nf\n"]).0, [&b"ab"[..], b"cde", b"", b"f"]);
        assert_eq!(lines(9, &[b"no end"]), (vec![], false));
        assert_eq!(lines(9, &[]), (vec![], false));
    }

    #[test]
    fn the_limit_counts_the_lf() {
        assert_eq!(lines(4, &[b"abc\n"]), (vec![b"abc".to_vec()], false));
        assert_eq!(lines(4, &[b"ab", b"c", b"\n"]), (vec![b"abc".to_vec()], false));
        assert_eq!(lines(4, &[b"a\nabcd\n"]), (vec![b"a".to_vec()], true));
        assert_eq!(lines(4, &[b"ab", b"c", b"d"]), (vec![], true));
        assert_eq!(lines(4, &[b"abcd"]), (vec![], true), "it need not wait for the end of the line");
        assert_eq!(lines(4, &[b"abc"]), (vec![], false));
    }

    #[test]
    fn a_line_that_was_too_long_stays_an_error() {
        let mut buffer = LineBuffer::new(4);
        let mut input = &b"abcdef\n1\n"[..];
        for _ in 0..3 {
            assert_eq!(buffer.next_line(&mut input), Some(Err(LineTooLong { limit: 4 })));
        }
        assert_eq!(buffer.next_line(&mut &b"1\n"[..]), Some(Err(LineTooLong { limit: 4 })));
        assert!(buffer.is_inside_line());
    }

    #[test]
    fn a_flood_takes_no_memory() {
        let mut flood = vec![b'x'; 1 << 20];
        flood[0] = b'\n';
        let mut buffer = LineBuffer::new(256);
        let mut input = &flood[..];
        assert_eq!(buffer.next_line(&mut input), Some(Ok(&b""[..])));
        assert_eq!(buffer.next_line(&mut input), Some(Err(LineTooLong { limit: 256 })));
        assert_eq!(buffer.kept.capacity(), 0);
    }

    #[test]
    fn it_knows_whether_a_line_is_unfinished() {
        let mut buffer = LineBuffer::new(9);
        assert!(!buffer.is_inside_line());
        assert_eq!(buffer.next_line(&mut &b"a"[..]), None);
        assert!(buffer.is_inside_line());
        assert_eq!(buffer.next_line(&mut &b"\n"[..]), Some(Ok(&b"a"[..])));
        assert!(!buffer.is_inside_line());
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_into_pieces_does_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..60),
            piece_len in 1usize..9,
            limit in 1usize..9,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(piece_len).collect();
            let in_pieces = lines(limit, &pieces);
            prop_assert_eq!(&in_pieces, &lines(limit, &[&bytes]));
            let whole: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            let (unfinished, whole) = whole.split_last().unwrap();
            let fit = whole.iter().take_while(|line| line.len() < limit).count();
            let too_long = fit < whole.len() || unfinished.len() >= limit;
            prop_assert_eq!(in_pieces, (whole[..fit].iter().map(|l| l.to_vec()).collect(), too_long));
        }
    }
}
