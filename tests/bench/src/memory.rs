//! What processes cost in memory: their proportional set size, with the guest's memory told apart
//! from the monitor's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Parts of the names by which runtimes mark the mapping that is the guest's memory: a memfd's or,
/// by prctl, an anonymous mapping's.
const GUEST_MAPPINGS: [&str; 3] = ["hull-guest", "guest-memory", "runsc-memory"];

/// Bytes of proportional set size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Of the processes themselves.
    pub host: u64,
    /// Of what the guest has touched of its memory.
    pub guest: u64,
}

/// The pids of all processes there are, kernel threads left out.
pub fn processes() -> Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A kernel thread has no executable. One that has just ended isn't there any more either.
        if Path::new("/proc")
            .join(&name)
            .join("exe")
            .read_link()
            .is_ok()
        {
            pids.insert(pid);
        }
    }
    Ok(pids)
}

/// What these processes take together. One that has ended takes nothing.
pub fn footprint(pids: &BTreeSet<u32>) -> Footprint {
    let mut sum = Footprint::default();
    for pid in pids {
        let Ok(smaps) = fs::read_to_string(format!("/proc/{pid}/smaps")) else {
            continue;
        };
        let one = parse_smaps(&smaps);
        sum.host += one.host;
        sum.guest += one.guest;
    }
    sum
}

/// Adds up the Pss lines of a smaps file (proc(5)), each to the mapping whose head line it follows.
fn parse_smaps(smaps: &str) -> Footprint {
    let mut sum = Footprint::default();
    let mut in_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Pss:") => {
                let bytes = words
                    .next()
                    .and_then(|word| word.parse::<u64>().ok())
                    .unwrap_or(0)
                    * 1024;
                if in_guest {
                    sum.guest += bytes
                } else {
                    sum.host += bytes
                }
            }
            // every other line than a mapping's head begins with "Field:"
            Some(first) if !first.ends_with(':') => {
                in_guest = GUEST_MAPPINGS.iter().any(|name| line.contains(name));
            }
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_apart() {
        let smaps = "\
00400000-00500000 r-xp 00000000 00:1d 9 /usr/bin/hull
Size:               1024 kB
Pss:                 100 kB
Pss_Dirty:            50 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 [anon:hull-guest]
Pss:               20000 kB
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Pss:                   4 kB
";
        assert_eq!(
            parse_smaps(smaps),
            Footprint {
                host: 104 * 1024,
                guest: 20000 * 1024
            }
        );
    }
}
