//! A container's statistics, read from its cgroup's files.
//!
//! A file that the kernel doesn't have is treated as an empty one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use hull_protocol::agent::{ContainerStatsResponse, CpuStats, HugetlbStats, Limited, Pressure};

/// Reads the statistics of the cgroup with this directory.
#[must_use]
pub fn read(directory: &Path) -> ContainerStatsResponse {
    let cgroup = Files(directory);
    ContainerStatsResponse {
        cpu: Some(cpu(&cgroup)).into(),
        memory: Some(cgroup.limited("memory", "max")).into(),
        swap: Some(cgroup.limited("memory.swap", "fail")).into(),
        memory_stat: cgroup.table("memory.stat"),
        memory_pressure: Some(cgroup.pressure("memory.pressure")).into(),
        pids: Some(cgroup.limited("pids", "max")).into(),
        io_pressure: Some(cgroup.pressure("io.pressure")).into(),
        hugetlb: hugetlb(&cgroup),
        oom_kills: oom_kills(directory),
        ..Default::default()
    }
}

/// How many processes of this cgroup the kernel's OOM killer has killed.
#[must_use]
pub fn oom_kills(directory: &Path) -> u64 {
    Files(directory)
        .table("memory.events")
        .get("oom_kill")
        .copied()
        .unwrap_or(0)
}

/// What has been read from and written to a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// How many bytes were read.
    pub bytes_read: u64,
    /// How many bytes were written.
    pub bytes_written: u64,
    /// How many requests to read.
    pub reads: u64,
    /// How many requests to write.
    pub writes: u64,
}

/// The block devices that a cgroup has used, from `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
#[must_use]
pub fn io(directory: &Path) -> Vec<DeviceIo> {
    let text = Files(directory).text("io.stat");
    text.lines().filter_map(device_io).collect()
}

fn device_io(line: &str) -> Option<DeviceIo> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = DeviceIo {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..DeviceIo::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => device.bytes_read = value,
            "wbytes" => device.bytes_written = value,
            "rios" => device.reads = value,
            "wios" => device.writes = value,
            _ => {}
        }
    }
    Some(device)
}

fn cpu(cgroup: &Files<'_>) -> CpuStats {
    let table = cgroup.table("cpu.stat");
    let value = |key: &str| table.get(key).copied().unwrap_or(0);
    CpuStats {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        pressure: Some(cgroup.pressure("cpu.pressure")).into(),
        ..Default::default()
    }
}

/// The statistics for each huge page size that the kernel has.
fn hugetlb(cgroup: &Files<'_>) -> Vec<HugetlbStats> {
    let mut sizes: Vec<String> = fs::read_dir(cgroup.0)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
        .into_iter()
        .map(|size| HugetlbStats {
            pages: Some(cgroup.limited(&format!("hugetlb.{size}"), "max")).into(),
            page_size: size,
            ..Default::default()
        })
        .collect()
}

/// The files of one cgroup.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    /// A file with one number; `max` is no limit.
    fn number(&self, file: &str) -> Option<u64> {
        match self.text(file).trim() {
            "max" => Some(u64::MAX),
            text => text.parse().ok(),
        }
    }

    /// A file with a key and a number on each line.
    fn table(&self, file: &str) -> HashMap<String, u64> {
        let text = self.text(file);
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// Usage and limit of a resource; `failure` is the event that counts how often the limit was hit.
    fn limited(&self, name: &str, failure: &str) -> Limited {
        let events = self.table(&format!("{name}.events"));
        Limited {
            usage: self.number(&format!("{name}.current")).unwrap_or(0),
            limit: self.number(&format!("{name}.max")).unwrap_or(u64::MAX),
            peak: self.number(&format!("{name}.peak")).unwrap_or(0),
            failures: events.get(failure).copied().unwrap_or(0),
            ..Default::default()
        }
    }

    /// The share of time that was lost waiting, in a file like
    /// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` (Documentation/accounting/psi.rst).
    fn pressure(&self, file: &str) -> Pressure {
        let text = self.text(file);
        let line = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind));
            let value = |name: &str| {
                let mut words = line.unwrap_or_default().split_ascii_whitespace();
                words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            let average = |name| {
                value(name)
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0.0)
            };
            hull_protocol::agent::PressureLine {
                avg10: average("avg10"),
                avg60: average("avg60"),
                avg300: average("avg300"),
                total_usec: value("total")
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0),
                ..Default::default()
            }
        };
        Pressure {
            some: Some(line("some")).into(),
            full: Some(line("full")).into(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_parsed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("write");
        };
        file("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\n");
        file(
            "cpu.pressure",
            "some avg10=1.50 avg60=0.20 avg300=0.00 total=42\n",
        );
        file(
            "io.stat",
            "7:0\n8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
        );
        file("memory.current", "4096\n");
        file("memory.max", "max\n");
        file("memory.events", "low 0\nmax 5\noom_kill 2\n");
        file("hugetlb.2MB.current", "0\n");
        file("hugetlb.2MB.rsvd.current", "0\n");

        let stats = read(directory.path());

        assert_eq!((stats.cpu.usage_usec, stats.cpu.system_usec), (7, 3));
        assert_eq!(stats.cpu.pressure.some.total_usec, 42);
        assert!((stats.cpu.pressure.some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!((stats.memory.usage, stats.memory.limit), (4096, u64::MAX));
        assert_eq!(stats.memory.failures, 5);
        assert_eq!(stats.hugetlb.len(), 1);
        assert_eq!(oom_kills(directory.path()), 2);
        let io = io(directory.path());
        assert_eq!((io[0].major, io[0].minor, io[0].reads), (7, 0, 0));
        assert_eq!((io[1].bytes_read, io[1].bytes_written), (1, 2));
        assert_eq!((io[1].reads, io[1].writes), (3, 4));
    }
}
