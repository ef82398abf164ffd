//! A message with its length before it, as it comes and goes on the agent's stream in parts.

use hull_protocol::resolver::{MAX_MESSAGE, PREFIX};

/// One message: what of it has come, or what of it has gone.
pub struct Frame {
    /// Of the largest size that there is.
    bytes: Vec<u8>,
    /// How many bytes have come or gone.
    done: usize,
    /// How many bytes go, of a message that is sent.
    length: usize,
}

impl Frame {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; PREFIX + MAX_MESSAGE],
            done: 0,
            length: 0,
        }
    }

    /// Where the bytes go that come next: those of the length, then those of the message. Empty if the message is whole.
    pub fn room(&mut self) -> &mut [u8] {
        let end = self.announced().map_or(PREFIX, |length| PREFIX + length);
        self.bytes.get_mut(self.done..end).unwrap_or_default()
    }

    /// So many bytes have come.
    pub fn came(&mut self, count: usize) {
        self.done = (self.done + count).min(self.bytes.len());
    }

    /// The message, once, if it is whole.
    pub fn take(&mut self) -> Option<&[u8]> {
        let end = PREFIX + self.announced()?;
        if self.done < end {
            return None;
        }
        self.done = 0;
        self.bytes.get(PREFIX..end)
    }

    /// The message's length, if that has come.
    fn announced(&self) -> Option<usize> {
        let prefix = self.bytes.first_chunk::<PREFIX>()?;
        (self.done >= PREFIX).then(|| u16::from_be_bytes(*prefix).into())
    }

    /// Where a message goes that is to be sent.
    pub fn message(&mut self) -> &mut [u8] {
        self.bytes.get_mut(PREFIX..).unwrap_or_default()
    }

    /// There is a message of so many bytes to be sent.
    pub fn send(&mut self, length: usize) {
        let Ok(prefix) = u16::try_from(length) else {
            return;
        };
        if let Some(first) = self.bytes.first_chunk_mut() {
            *first = prefix.to_be_bytes();
        }
        (self.done, self.length) = (0, PREFIX + length);
    }

    /// What is still to be sent.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.done..self.length).unwrap_or_default()
    }

    /// So many bytes have gone.
    pub fn went(&mut self, count: usize) {
        self.done = (self.done + count).min(self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In parts of any size, each message comes as it was sent, and nothing else does.
        #[test]
        fn messages_arrive_whole_and_in_order(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..8),
            parts in proptest::collection::vec(1_usize..700, 1..8),
        ) {
            let mut sent = Vec::new();
            let mut frame = Frame::new();
            for message in &messages {
                frame.message()[..message.len()].copy_from_slice(message);
                frame.send(message.len());
                for part in parts.iter().cycle() {
                    let rest = frame.rest();
                    let part = *part.min(&rest.len());
                    if part == 0 {
                        break;
                    }
                    sent.extend(&rest[..part]);
                    frame.went(part);
                }
            }
            let mut received = Vec::new();
            let mut frame = Frame::new();
            let mut left = &sent[..];
            for part in parts.iter().cycle() {
                let room = frame.room();
                let count = (*part).min(room.len()).min(left.len());
                room[..count].copy_from_slice(&left[..count]);
                left = &left[count..];
                frame.came(count);
                received.extend(frame.take().map(<[u8]>::to_vec));
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(received, messages);
        }

        /// Whatever comes, there is room for what comes next, within bounds, and no message is longer than what came.
        #[test]
        fn no_bytes_do_it_harm(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            times in 1_usize..200,
        ) {
            let bytes = bytes.repeat(times);
            let mut frame = Frame::new();
            let mut left = &bytes[..];
            while !left.is_empty() {
                let room = frame.room();
                prop_assert!(!room.is_empty() && room.len() <= MAX_MESSAGE);
                let count = room.len().min(left.len());
                room[..count].copy_from_slice(&left[..count]);
                left = &left[count..];
                frame.came(count);
                prop_assert!(frame.take().is_none_or(|message| message.len() <= bytes.len()));
            }
        }
    }
}
