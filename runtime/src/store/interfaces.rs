//! The list of the interfaces that a sandbox's follower has connected, in a file that it was given open: it can
//! make none.

use std::fs::File;
use std::io;

/// The length of the file, in bytes: more than all interfaces that a VM can have take.
const LENGTH: usize = 2048;

/// The list, as the follower has it.
#[derive(Debug)]
pub struct ConnectedInterfaces(File);

impl From<std::os::fd::OwnedFd> for ConnectedInterfaces {
    fn from(file: std::os::fd::OwnedFd) -> Self {
        Self(file.into())
    }
}

impl ConnectedInterfaces {
    /// Replaces it. That is one write(2) within one page, of the length that the file has: who is killed has written
    /// all of it or nothing.
    ///
    /// # Errors
    /// When the file system has no room, or there are too many.
    pub fn write(&self, indexes: Vec<u32>) -> io::Result<()> {
        let mut text = serde_json::to_vec(&indexes)?;
        if text.len() > LENGTH {
            return Err(io::Error::other("there are too many interfaces"));
        }
        text.resize(LENGTH, b' ');
        match rustix::io::pwrite(&self.0, &text, 0)? {
            LENGTH => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Reads such a file's text; nothing, where nothing was written, nor where it is longer than any list: a follower in
/// the wrong hands has written it.
pub(super) fn parse(text: &[u8]) -> Vec<u32> {
    match text.len() {
        0..=LENGTH => serde_json::from_slice(text).unwrap_or_default(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_shorter_list_leaves_nothing_of_a_longer_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let list = ConnectedInterfaces(file.reopen().expect("the same"));
        let read = || {
            let mut text = Vec::new();
            (file.reopen().expect("the same").read_to_end(&mut text)).expect("read");
            parse(&text)
        };
        assert_eq!(read(), [0_u32; 0]);
        for indexes in [vec![u32::MAX; 100], vec![4, 5], vec![]] {
            list.write(indexes.clone()).expect("written");
            assert_eq!(read(), indexes);
        }
        list.write(vec![u32::MAX; 1000]).expect_err("too many");
        assert_eq!(read(), [0_u32; 0], "nothing of it");
    }
}
