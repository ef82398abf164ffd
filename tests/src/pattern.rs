//! A stream of bytes that both ends can make and check: no block of it is like another.

use std::io::{self, Read, Write};

/// Bytes made or checked at a time.
pub const BLOCK: usize = 64 << 10;

/// Fills `block`, which is block number `index` of the stream.
pub fn fill(block: &mut [u8], index: u64) {
    for (i, word) in block.chunks_mut(8).enumerate() {
        let value = (index << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

/// Writes the first `length` bytes of the stream.
///
/// # Errors
/// What the writer returned.
pub fn write(to: &mut impl Write, length: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    for index in 0..length.div_ceil(BLOCK as u64) {
        let left = (length - index * BLOCK as u64).min(BLOCK as u64) as usize;
        fill(&mut block[..left], index);
        to.write_all(&block[..left])?;
    }
    to.flush()
}

/// Reads to the end, and says where it first differs from the stream of `length` bytes.
///
/// # Errors
/// `InvalidData` with the offset of the first wrong block or the wrong length, or what the reader
/// returned.
pub fn check(from: &mut impl Read, length: u64) -> io::Result<()> {
    let wrong = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    let (mut found, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut offset = 0;
    loop {
        let read = read_block(from, &mut found)?;
        fill(&mut expected, offset / BLOCK as u64);
        if found[..read] != expected[..read] {
            return wrong(format!("wrong bytes in the block at {offset}"));
        }
        offset += read as u64;
        if read < BLOCK {
            break;
        }
    }
    if offset != length {
        return wrong(format!("{offset} bytes instead of {length}"));
    }
    Ok(())
}

fn read_block(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_was_written_checks() {
        for length in [0, 1, BLOCK as u64, 3 * BLOCK as u64 + 5] {
            let mut bytes = Vec::new();
            write(&mut bytes, length).expect("a Vec takes all");
            check(&mut bytes.as_slice(), length).expect("it is the stream");
        }
    }

    #[test]
    fn a_changed_byte_or_length_is_found() {
        let mut bytes = Vec::new();
        write(&mut bytes, 200_000).expect("a Vec takes all");
        assert!(check(&mut &bytes[..199_999], 200_000).is_err());
        bytes[150_000] ^= 1;
        assert!(check(&mut bytes.as_slice(), 200_000).is_err());
    }
}
