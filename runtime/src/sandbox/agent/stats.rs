//! What goes on in a container, as its agent tells it.

use std::collections::BTreeMap;

use hull_protocol::agent::{self as messages, ContainerStatsResponse, CpuStats};

pub use hull_protocol::agent::{Limited, Pressure, PressureLine};

/// As many processes are listed, and maybe the rest of an answer's.
pub const MOST_PROCESSES: usize = 4096;

/// The highest pid that a guest's kernel gives: one less than `PID_MAX_LIMIT` of linux/threads.h.
pub const HIGHEST_PID: i32 = (4 << 20) - 1;

/// The longest command of a process, in characters.
const LONGEST_COMMAND: usize = 512;

/// The longest name of a terminal, a size of pages or a statistic, in characters.
const LONGEST_NAME: usize = 64;

/// The most statistics in a table of them.
const MOST_STATS: usize = 256;

/// A process of a container.
#[derive(Debug)]
pub struct ProcessInfo {
    /// In the guest's root pid namespace, as is the parent's.
    pub pid: i32,
    /// The parent's.
    pub parent: i32,
    /// Its user, as the guest's root sees it.
    pub uid: u32,
    /// The CPU time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// How long ago it started, in milliseconds.
    pub age_ms: u64,
    /// Its controlling terminal; empty without one.
    pub terminal: String,
    /// Its arguments, or its name in brackets.
    pub command: String,
}

/// The statistics of a cgroup: a container's in the guest, or its VM's on the host.
#[derive(Debug)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory, in bytes.
    pub memory: Limited,
    /// Swap space without memory, in bytes.
    pub swap: Limited,
    /// The kernel's table of what memory is used for.
    pub memory_stat: BTreeMap<String, u64>,
    /// Time lost waiting for memory.
    pub memory_pressure: Pressure,
    /// Processes and threads.
    pub pids: Limited,
    /// Time lost waiting for block devices.
    pub io_pressure: Pressure,
    /// Huge pages by their size, in bytes.
    pub hugetlb: BTreeMap<String, Limited>,
    /// How many processes were killed for want of memory.
    pub oom_kills: u64,
}

impl From<messages::ProcessInfo> for ProcessInfo {
    fn from(process: messages::ProcessInfo) -> Self {
        Self {
            pid: process.pid,
            parent: process.parent,
            uid: process.uid,
            cpu_ms: process.cpu_ms,
            age_ms: process.age_ms,
            terminal: printable(&process.terminal, LONGEST_NAME),
            command: printable(&process.command, LONGEST_COMMAND),
        }
    }
}

impl From<ContainerStatsResponse> for Stats {
    fn from(answer: ContainerStatsResponse) -> Self {
        let hugetlb = answer.hugetlb.into_iter().take(MOST_STATS);
        Self {
            cpu: answer.cpu.unwrap_or_default(),
            memory: answer.memory.unwrap_or_default(),
            swap: answer.swap.unwrap_or_default(),
            memory_stat: table(answer.memory_stat),
            memory_pressure: answer.memory_pressure.unwrap_or_default(),
            pids: answer.pids.unwrap_or_default(),
            io_pressure: answer.io_pressure.unwrap_or_default(),
            hugetlb: table(hugetlb.map(|s| (s.page_size, s.pages.unwrap_or_default()))),
            oom_kills: answer.oom_kills,
        }
    }
}

/// The first `longest` characters of a text, without what would do something to a terminal.
pub fn printable(text: &str, longest: usize) -> String {
    let characters = text.chars().take(longest);
    let changes = |c: char| c.is_control() || is_invisible(c);
    characters
        .map(|c| if changes(c) { '?' } else { c })
        .collect()
}

/// What shows nothing itself but has other text look other than it is: turned around, broken into lines, or
/// joined (the characters of the Unicode categories Cf, Zl and Zp that are of no use in a name).
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn table<T>(entries: impl IntoIterator<Item = (String, T)>) -> BTreeMap<String, T> {
    let entries = entries.into_iter().take(MOST_STATS);
    entries
        .map(|(name, value)| (printable(&name, LONGEST_NAME), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_can_be_printed() {
        assert_eq!(printable("sh\n\x1b[2J\u{9b}é", 64), "sh??[2J?é");
        assert_eq!(
            printable("\u{202e}live\u{200b}\u{2028}\u{feff}", 64),
            "?live???"
        );
        assert_eq!(printable(&"x".repeat(5000), LONGEST_COMMAND).len(), 512);
    }

    #[test]
    fn a_table_is_bounded() {
        let endless = (0_u64..).map(|n| (format!("{n}\r"), n));
        let table = table(endless);
        assert_eq!(table.len(), MOST_STATS);
        assert_eq!(table.get("7?"), Some(&7));
    }
}
