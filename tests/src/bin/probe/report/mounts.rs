//! The mounts, by where they are. Left out is what differs from one run to the next: numbers of mounts,
//! devices and peer groups, and the part of a file system that is mounted.

use serde_json::{Map, Value, json};

use super::of_text;

/// Of several mounts at one place, all but the first have a number.
pub fn report() -> Value {
    of_text("/proc/self/mountinfo", by_place)
}

fn by_place(text: &str) -> Value {
    let mut mounts = Map::new();
    for (place, mount) in text.lines().filter_map(parse) {
        let nth = |n: u32| {
            if n == 1 {
                place.clone()
            } else {
                format!("{place} #{n}")
            }
        };
        let key = (1..).map(nth).find(|key| !mounts.contains_key(key));
        mounts.insert(key.unwrap_or_default(), mount);
    }
    mounts.into()
}

/// A line of mountinfo: `ID PARENT DEVICE ROOT PLACE OPTIONS [PROPAGATION…] - TYPE SOURCE OPTIONS`.
fn parse(line: &str) -> Option<(String, Value)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (place, options) = (mount.next()?, mount.next()?);
    let propagation: Vec<_> = mount.filter_map(|tag| tag.split(':').next()).collect();
    let mut file_system = file_system.split(' ');
    let (kind, source) = (file_system.next()?, file_system.next()?);
    let value = json!({
        "type": kind,
        "source": source,
        "options": words(options),
        "propagation": propagation.join(" "),
        "superblock": words(file_system.next().unwrap_or_default()),
    });
    Some((place.to_owned(), value))
}

/// `rw,size=1k` as an object, so that each option can be compared by itself.
fn words(options: &str) -> Value {
    options
        .split(',')
        .map(|word| word.split_once('=').unwrap_or((word, "set")))
        .collect()
}
