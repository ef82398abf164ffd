//! Limits of block devices: `linux.resources.blockIO`, and the previous settings (cgroup-v2.rst, "IO").

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use crate::limits::{Setting, read};

const MAX: &str = "io.max";
const WEIGHT: &str = "io.weight";

/// The weights of the scheduler BFQ, if the kernel has it.
const BFQ_WEIGHT: &str = "io.bfq.weight";

/// Adds the settings for a `blockIO` object.
pub fn settings(directory: &Path, io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    let bfq = directory.join(BFQ_WEIGHT).exists();
    let weight_setting = |weight: u16| match bfq {
        true => (BFQ_WEIGHT, weight.into()),
        false => (WEIGHT, weight_of(weight)),
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let (file, weight) = weight_setting(weight);
        settings.push(Setting::new(field("weight"), file, weight));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let (file, weight) = weight_setting(weight);
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let field = field(&format!("weightDevice[{index}]"));
            settings.push(Setting::new(field, file, value));
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
        throttle(&field(name), what, devices, settings);
    }
}

fn field(name: &str) -> String {
    format!("linux.resources.blockIO.{name}")
}

/// Adds the settings of one kind of limit. In cgroup v1, a rate of 0 means no limit.
fn throttle(
    field: &str,
    what: &str,
    devices: &Option<Vec<LinuxThrottleDevice>>,
    settings: &mut Vec<Setting>,
) {
    for (index, device) in devices.iter().flatten().enumerate() {
        let rate = match device.rate() {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let value = format!("{}:{} {what}={rate}", device.major(), device.minor());
        settings.push(Setting::new(format!("{field}[{index}]"), MAX, value));
    }
}

/// Converts a weight of cgroup v1 (10 to 1000) into one of cgroup2 (1 to 10000), as runc does.
fn weight_of(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// What has to be written to undo writing `value`: these files have a line for each device, and a write changes one
/// of them.
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
    fn each_limit_of_a_device_is_a_setting_of_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let device = |rate: u64| json!([{"major": 8, "minor": 0, "rate": rate}]);
        let io = json!({
            "weight": 1000, "weightDevice": [{"major": 8, "minor": 16, "weight": 10}],
            "throttleReadBpsDevice": device(1000), "throttleWriteIOPSDevice": device(0),
        });
        let io = serde_json::from_value(io).expect("blockIO");
        let mut found = Vec::new();
        settings(directory.path(), &io, &mut found);
        let expected = [
            ("weight", WEIGHT, "10000"),
            ("weightDevice[0]", WEIGHT, "8:16 1"),
            ("throttleReadBpsDevice[0]", MAX, "8:0 rbps=1000"),
            ("throttleWriteIOPSDevice[0]", MAX, "8:0 wiops=max"),
        ];
        let expected = expected.map(|(name, file, value)| Setting::new(field(name), file, value));
        assert_eq!(found, expected);

        fs::write(directory.path().join(BFQ_WEIGHT), "default 100\n").expect("write");
        let mut found = Vec::new();
        settings(directory.path(), &io, &mut found);
        assert_eq!(found[0], Setting::new(field("weight"), BFQ_WEIGHT, 1000));
    }

    #[test]
    fn the_previous_setting_is_found_by_device() {
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
