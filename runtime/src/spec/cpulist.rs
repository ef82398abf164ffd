//! Lists of CPUs, and of NUMA nodes, as the kernel writes them: `0-3,8` (cpuset(7), "List format").

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CpuSet;

/// The number of CPUs that an affinity mask has room for (`CPU_SETSIZE`).
const MAX_CPUS: u32 = CpuSet::MAX_CPU as u32;

/// A list of CPUs, as ranges that neither overlap nor touch, in rising order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(Vec<RangeInclusive<u32>>);

/// A list that isn't one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of CPUs, like \"0-3,8\"")]
pub struct CpuListError(String);

impl CpuList {
    /// How many CPUs it names.
    pub fn count(&self) -> u32 {
        self.0
            .iter()
            .map(|range| range.end() - range.start() + 1)
            .sum()
    }

    /// One bit for each, in words of 64; as many words as the last one needs.
    pub fn bits(&self) -> Vec<u64> {
        let mut words = Vec::new();
        for number in self.0.iter().cloned().flatten() {
            let word = (number / u64::BITS) as usize;
            words.resize(words.len().max(word + 1), 0);
            words[word] |= 1 << (number % u64::BITS);
        }
        words
    }

    /// Binds the calling thread, and what it starts, to these CPUs, until the value that is returned is
    /// dropped.
    ///
    /// # Errors
    /// When the host has none of them (EINVAL).
    pub fn pin(&self) -> io::Result<Pinned> {
        let before = rustix::thread::sched_getaffinity(None)?;
        rustix::thread::sched_setaffinity(None, &self.mask())?;
        Ok(Pinned(before))
    }

    /// Binds all threads of a process, and what they start. Dropped, what is returned leaves them so; it can
    /// take that back as well.
    ///
    /// # Errors
    /// When the host has none of these CPUs (EINVAL), or there is no such process; then none is bound.
    pub fn pin_process(&self, pid: i32) -> io::Result<PinnedProcess> {
        let mut pinned = PinnedProcess(Vec::new());
        match self.pin_threads(pid, &mut pinned) {
            Ok(()) => Ok(pinned),
            Err(e) => {
                pinned.undo();
                Err(e)
            }
        }
    }

    fn pin_threads(&self, pid: i32, pinned: &mut PinnedProcess) -> io::Result<()> {
        let mask = self.mask();
        let pin = |thread| -> Result<CpuSet, Errno> {
            let before = rustix::thread::sched_getaffinity(Some(thread))?;
            rustix::thread::sched_setaffinity(Some(thread), &mask)?;
            Ok(before)
        };
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread.and_then(Pid::from_raw) else {
                continue;
            };
            match pin(thread) {
                Ok(before) => pinned.0.push((thread, before)),
                // It has ended meanwhile.
                Err(Errno::SRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn mask(&self) -> CpuSet {
        let mut set = CpuSet::new();
        for cpu in self.0.iter().cloned().flatten() {
            set.set(cpu as usize);
        }
        set
    }
}

/// The calling thread is bound to some CPUs; dropped, it is bound to those that it was before.
#[derive(Debug)]
pub struct Pinned(CpuSet);

impl Drop for Pinned {
    fn drop(&mut self) {
        // They may have gone meanwhile; then this thread stays where it is.
        let _ = rustix::thread::sched_setaffinity(None, &self.0);
    }
}

/// The threads of a process are bound to some CPUs: those, and to which they were before.
#[derive(Debug)]
pub struct PinnedProcess(Vec<(Pid, CpuSet)>);

impl PinnedProcess {
    /// Binds them to the CPUs of before.
    pub fn undo(self) {
        for (thread, before) in self.0 {
            // It may have ended meanwhile.
            let _ = rustix::thread::sched_setaffinity(Some(thread), &before);
        }
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let wrong = || CpuListError(text.to_owned());
        let number = |word: &str| -> Result<u32, CpuListError> {
            let number = word.trim().parse().map_err(|_| wrong())?;
            if number < MAX_CPUS {
                Ok(number)
            } else {
                Err(wrong())
            }
        };
        let mut ranges = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(wrong());
            }
            ranges.push(first..=last);
        }
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u32>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end() + 1 => {
                    *last = *last.start()..=*range.end().max(last.end());
                }
                _ => merged.push(range),
            }
        }
        Ok(Self(merged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Result<u32, CpuListError> {
        text.parse::<CpuList>().map(|list| list.count())
    }

    #[test]
    fn a_cpu_counts_once_however_often_it_is_named() {
        assert_eq!(count("0-3,2,8, 3-4"), Ok(6));
        assert_eq!(count(""), Ok(0));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["a", "3-1", "-1", "1-", "0-4294967295", "1--2"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_process_is_bound_and_let_go_again() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("a process");
        let pid = Pid::from_child(&child);
        let bound_to = || rustix::thread::sched_getaffinity(Some(pid)).expect("a mask");
        let before = bound_to();
        let first = (0..MAX_CPUS as usize).find(|cpu| before.is_set(*cpu));
        let list: CpuList = first.expect("a CPU").to_string().parse().expect("a list");
        let pinned = list.pin_process(pid.as_raw_nonzero().get()).expect("bound");
        let meanwhile = bound_to();
        pinned.undo();
        let after = bound_to();
        child.kill().and_then(|()| child.wait()).expect("killed");
        assert_eq!((meanwhile.count(), after), (1, before));
    }
}
