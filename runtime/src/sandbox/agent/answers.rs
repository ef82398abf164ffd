//! What the agent says on a connection, as ttrpc is to read it: an answer that is longer than any of an agent's
//! ends the connection before ttrpc makes room for it.
//!
//! ttrpc itself takes 4 MiB, which a guest that lies can have decoded to a hundred.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hull_protocol::answers;
use tokio::io::{AsyncRead, ReadBuf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader};

/// A stream whose answers have a bounded length.
#[derive(Debug)]
pub struct BoundedAnswers<S> {
    stream: S,
    frames: Frames,
}

impl<S> BoundedAnswers<S> {
    /// Of a stream that begins with an answer.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
        }
    }
}

/// Where in the stream of frames the reader is.
#[derive(Debug, Default)]
struct Frames {
    /// What there is of a header.
    header: Vec<u8>,
    /// How much is still to come of the answer behind the last header.
    rest: usize,
}

impl Frames {
    /// Follows what was read.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = match self.rest {
                0 => MESSAGE_HEADER_LENGTH - self.header.len(),
                rest => rest,
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.rest > 0 {
                self.rest -= now.len();
                continue;
            }
            self.header.extend(now);
            if self.header.len() == MESSAGE_HEADER_LENGTH {
                self.rest = MessageHeader::from(&self.header).length as usize;
                self.header.clear();
                if self.rest > answers::MAX_LENGTH {
                    let text = format!("an answer of {} bytes is too long", self.rest);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedAnswers<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.frames.follow(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize) -> Vec<u8> {
        let header = MessageHeader::new_response(1, length as u32);
        let mut bytes = Vec::from(header);
        bytes.resize(MESSAGE_HEADER_LENGTH + length.min(answers::MAX_LENGTH), 7);
        bytes
    }

    /// How many bytes come through before the stream is refused.
    fn read(stream: &[u8], part: usize) -> Result<(), usize> {
        let mut frames = Frames::default();
        for (index, part) in stream.chunks(part).enumerate() {
            frames.follow(part).map_err(|_| index)?;
        }
        Ok(())
    }

    #[test]
    fn the_header_of_an_answer_that_is_too_long_is_the_end() {
        let stream = [frame(3), frame(answers::MAX_LENGTH + 1)].concat();
        assert_eq!(read(&stream, 1), Err(2 * MESSAGE_HEADER_LENGTH + 3 - 1));
        assert_eq!(read(&frame(u32::MAX as usize), 4096), Err(0));
    }

    proptest! {
        #[test]
        fn answers_come_through_in_whatever_parts(
            lengths in proptest::collection::vec(0..=answers::MAX_LENGTH, 0..5),
            part in 1..100_usize,
        ) {
            let stream = lengths.into_iter().flat_map(frame).collect::<Vec<_>>();
            prop_assert_eq!(read(&stream, part), Ok(()));
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..200), part in 1..9_usize) {
            let _ = read(&bytes, part);
        }
    }
}
