//! `hull update`: change the limits of a container that exists.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context};
use hull_runtime::spec;
use serde_json::{Value, json};

use super::Error;

/// `hull update`.
#[derive(Debug, clap::Args)]
pub struct Update {
    /// Read the limits from FILE, as config.json's linux.resources; - is standard input. Other options
    /// are then ignored
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// runc's options, those that are refused as well: each becomes its field of config.json.
#[derive(Debug, clap::Args)]
struct Limits {
    /// Memory in bytes; b, k, m, g and t are units; -1 is no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    memory: Option<i64>,
    /// Memory that is reclaimed last
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = size)]
    memory_swap: Option<i64>,
    /// The period of --cpu-quota, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds; -1 is no limit
    #[arg(long, value_name = "USEC", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU time that may be saved up for later periods, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_burst: Option<u64>,
    /// CPU shares: the VM's weight on the host
    #[arg(long, value_name = "N")]
    cpu_share: Option<u64>,
    /// 1: run only when nothing else wants to
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// The host's CPUs that the VM may use, like 0-3,8
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The most processes; -1 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// The VM's weight among all that use the host's block devices: 10 to 1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    #[arg(long, hide = true)]
    cpu_rt_period: Option<u64>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// The host's NUMA nodes that the VM's memory may be on, like 0-1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true, value_parser = size)]
    kernel_memory: Option<i64>,
    #[arg(long, hide = true, allow_hyphen_values = true, value_parser = size)]
    kernel_memory_tcp: Option<i64>,
    #[arg(long, hide = true)]
    l3_cache_schema: Option<String>,
    #[arg(long, hide = true)]
    mem_bw_schema: Option<String>,
}

impl Limits {
    /// As a `linux.resources` object; what isn't given is null.
    fn to_json(&self) -> Value {
        json!({
            "memory": {
                "limit": self.memory,
                "reservation": self.memory_reservation,
                "swap": self.memory_swap,
                "kernel": self.kernel_memory,
                "kernelTCP": self.kernel_memory_tcp,
            },
            "cpu": {
                "period": self.cpu_period,
                "quota": self.cpu_quota,
                "burst": self.cpu_burst,
                "shares": self.cpu_share,
                "idle": self.cpu_idle,
                "cpus": self.cpuset_cpus,
                "mems": self.cpuset_mems,
                "realtimePeriod": self.cpu_rt_period,
                "realtimeRuntime": self.cpu_rt_runtime,
            },
            "pids": { "limit": self.pids_limit },
            "blockIO": { "weight": self.blkio_weight },
        })
    }
}

/// Changes the limits: in the guest, on the host, and in the container's config.json.
///
/// # Errors
/// When one is refused; then none is changed in the guest.
pub fn run(context: &Context, args: &Update) -> Result<ExitCode, Error> {
    lifecycle::update(context, &args.id.parse()?, changes(args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn changes(args: &Update) -> Result<Value, Error> {
    if args.limits.l3_cache_schema.is_some() || args.limits.mem_bw_schema.is_some() {
        let text =
            "--l3-cache-schema, --mem-bw-schema: hull does not partition the host's caches yet";
        return Err(Error::Usage(text.to_owned()));
    }
    let Some(path) = &args.resources else {
        return Ok(args.limits.to_json());
    };
    let read = if path.as_os_str() == "-" {
        spec::read_changes(io::stdin().lock())
    } else {
        File::open(path).and_then(spec::read_changes)
    };
    read.map_err(|source| Error::File {
        path: path.clone(),
        source,
    })
}

/// A number of bytes with an optional unit: `512m`, `1.5GiB`; -1 is no limit.
fn size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size in bytes, like 512m");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| c != '.' && !c.is_ascii_digit());
    let (number, unit) = lower.split_at(end.unwrap_or(lower.len()));
    let unit = unit.trim_start();
    let exponent = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(unit)
    {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * (1_u64 << exponent) as f64;
    // Without a fraction, and within what an f64 has exactly: 8 PiB.
    if bytes < (1_u64 << 53) as f64 {
        Ok(bytes as i64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("-1"), Ok(-1));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("1.5Gb"), Ok(3 << 29));
        for text in ["", "m", "-2", "5x", "1e9", "9999999p", "1.2.3", "5ib"] {
            assert!(size(text).is_err(), "{text:?}");
        }
    }
}
