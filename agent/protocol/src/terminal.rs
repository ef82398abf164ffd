//! How the host sends a terminal's size: a stream of records, one for each change.
//!
//! A record is four bytes: rows, then columns, each a little-endian u16.

/// The length of a record, in bytes.
pub const LENGTH: usize = 4;

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Size {
    /// The record of this size.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let [r0, r1] = self.rows.to_le_bytes();
        let [c0, c1] = self.columns.to_le_bytes();
        [r0, r1, c0, c1]
    }

    /// The size in a record.
    #[must_use]
    pub fn decode([r0, r1, c0, c1]: [u8; LENGTH]) -> Self {
        Self {
            rows: u16::from_le_bytes([r0, r1]),
            columns: u16::from_le_bytes([c0, c1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let size = Size {
            rows: 24,
            columns: 0x0150,
        };
        assert_eq!(size.encode(), [24, 0, 0x50, 1]);
        assert_eq!(Size::decode(size.encode()), size);
    }
}
