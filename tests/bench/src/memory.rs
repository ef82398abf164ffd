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

/// Private writable mappings side by side are a guest's memory if together they have this many bytes:
/// many kernels can't name mappings, and hull maps a part of guest memory from its own file.
const GUEST_RUN: u64 = 64 << 20;

/// One mapping of a smaps file (proc(5)).
struct Mapping {
    start: u64,
    end: u64,
    /// `rw-p`: private and writable.
    is_private: bool,
    is_named: bool,
    /// Bytes of proportional set size.
    pss: u64,
}

/// Adds up what the mappings of a smaps file take, the guest's apart.
fn parse_smaps(smaps: &str) -> Footprint {
    let mappings = mappings(smaps);
    let mut sum = Footprint::default();
    let adjacent = |a: &Mapping, b: &Mapping| a.is_private && b.is_private && a.end == b.start;
    for run in mappings.chunk_by(adjacent) {
        let size: u64 = run.iter().map(|mapping| mapping.end - mapping.start).sum();
        let is_guest = run[0].is_private && size >= GUEST_RUN;
        for mapping in run {
            if is_guest || mapping.is_named {
                sum.guest += mapping.pss;
            } else {
                sum.host += mapping.pss;
            }
        }
    }
    sum
}

/// Reads the heads, `START-END PERMISSIONS …`, and of the lines `Field: …` below each of them its Pss.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::<Mapping>::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Pss:" {
            let kib = words.next().and_then(|word| word.parse::<u64>().ok());
            if let (Some(mapping), Some(kib)) = (mappings.last_mut(), kib) {
                mapping.pss = kib * 1024;
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            mappings.push(Mapping {
                start: address(start),
                end: address(end),
                is_private: words.next() == Some("rw-p"),
                is_named: GUEST_MAPPINGS.iter().any(|name| line.contains(name)),
                pss: 0,
            });
        }
    }
    mappings
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
7f0000000000-7f0001000000 rw-p 00000000 00:00 0
Pss:                2000 kB
7f0001000000-7f0001100000 rw-p 00200000 00:1d 9 /usr/bin/hull
Pss:                 500 kB
7f0001100000-7f0008000000 rw-p 00000000 00:00 0
Pss:               10000 kB
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Pss:                   4 kB
7f0020000000-7f0020001000 rw-s 00000000 00:01 7 /memfd:runsc-memory (deleted)
Pss:                   7 kB
";
        assert_eq!(
            parse_smaps(smaps),
            Footprint {
                host: 104 * 1024,
                guest: 12507 * 1024
            }
        );
    }
}
