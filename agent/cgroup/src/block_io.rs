//! Limits of block devices: `linux.resources.blockIO`, and what was written before (cgroup-v2.rst, "IO").

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use crate::limits::{Value, read};

const MAX: &str = "io.max";
const WEIGHT: &str = "io.weight";

/// The weights of the scheduler BFQ, where it is there.
const BFQ_WEIGHT: &str = "io.bfq.weight";

/// The values for a `blockIO` object.
pub fn values(directory: &Path, io: &LinuxBlockIo, values: &mut Vec<Value>) {
    let bfq = directory.join(BFQ_WEIGHT).exists();
    let weighed = |weight: u16| match bfq {
        true => (BFQ_WEIGHT, weight.into()),
        false => (WEIGHT, weight_of(weight)),
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let (file, weight) = weighed(weight);
        values.push(Value::new(field("weight"), file, weight));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let (file, weight) = weighed(weight);
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let field = field(&format!("weightDevice[{index}]"));
            values.push(Value::new(field, file, value));
        }
    }
    let throttles = [
        (
            "throttleReadBpsDevice",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "throttleWriteBpsDevice",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "throttleReadIOPSDevice",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    for (name, what, devices) in throttles {
        throttle(&field(name), what, devices, values);
    }
}

fn field(name: &str) -> String {
    format!("linux.resources.blockIO.{name}")
}

/// cgroup v1 knows no limit by zero.
fn throttle(
    field: &str,
    what: &str,
    devices: &Option<Vec<LinuxThrottleDevice>>,
    values: &mut Vec<Value>,
) {
    for (index, device) in devices.iter().flatten().enumerate() {
        let rate = match device.rate() {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let value = format!("{}:{} {what}={rate}", device.major(), device.minor());
        values.push(Value::new(format!("{field}[{index}]"), MAX, value));
    }
}

/// The weight of cgroup2 (1 to 10000) for one of cgroup v1 (10 to 1000), as runc has it.
fn weight_of(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// What has to be written to take back `value`: such a file has a line for each device, and a value
/// changes one of them.
pub fn previous(directory: &Path, file: &str, value: &str) -> Option<String> {
    let text = read(directory, file)?;
    let device = value.split(' ').next().filter(|word| word.contains(':'));
    let key = device.unwrap_or("default");
    let old = text
        .lines()
        .find(|line| line.split(' ').next() == Some(key));
    let reset = match file {
        MAX => "rbps=max wbps=max riops=max wiops=max",
        _ => "default",
    };
    let old = old.map(str::to_owned);
    old.or_else(|| device.map(|device| format!("{device} {reset}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn each_limit_of_a_device_is_a_value_of_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let device = |rate: u64| json!([{"major": 8, "minor": 0, "rate": rate}]);
        let io = json!({
            "weight": 1000, "weightDevice": [{"major": 8, "minor": 16, "weight": 10}],
            "throttleReadBpsDevice": device(1000), "throttleWriteIOPSDevice": device(0),
        });
        let io = serde_json::from_value(io).expect("blockIO");
        let mut found = Vec::new();
        values(directory.path(), &io, &mut found);
        let expected = [
            ("weight", WEIGHT, "10000"),
            ("weightDevice[0]", WEIGHT, "8:16 1"),
            ("throttleReadBpsDevice[0]", MAX, "8:0 rbps=1000"),
            ("throttleWriteIOPSDevice[0]", MAX, "8:0 wiops=max"),
        ];
        let expected = expected.map(|(name, file, value)| Value::new(field(name), file, value));
        assert_eq!(found, expected);

        fs::write(directory.path().join(BFQ_WEIGHT), "default 100\n").expect("write");
        let mut found = Vec::new();
        values(directory.path(), &io, &mut found);
        assert_eq!(found[0], Value::new(field("weight"), BFQ_WEIGHT, 1000));
    }

    #[test]
    fn what_was_is_found_line_by_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("write");
        };
        file(MAX, "8:0 rbps=5 wbps=max riops=max wiops=max\n");
        file(WEIGHT, "default 100\n8:16 50\n");
        let before = |file, value| previous(directory.path(), file, value);
        let line = |text: &str| Some(text.to_owned());
        assert_eq!(
            before(MAX, "8:0 wbps=7"),
            line("8:0 rbps=5 wbps=max riops=max wiops=max")
        );
        assert_eq!(
            before(MAX, "8:1 wbps=7"),
            line("8:1 rbps=max wbps=max riops=max wiops=max")
        );
        assert_eq!(before(WEIGHT, "300"), line("default 100"));
        assert_eq!(before(WEIGHT, "8:16 300"), line("8:16 50"));
        assert_eq!(before(WEIGHT, "8:0 300"), line("8:0 default"));
    }
}
