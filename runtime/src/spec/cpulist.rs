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

    /// Binds all threads of a process, and what they start.
    ///
    /// # Errors
    /// When the host has none of these CPUs (EINVAL), or there is no such process.
    pub fn pin_process(&self, pid: i32) -> io::Result<()> {
        let mask = self.mask();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread.and_then(Pid::from_raw) else {
                continue;
            };
            match rustix::thread::sched_setaffinity(Some(thread), &mask) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
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
}
