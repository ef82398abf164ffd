//! What a container is from within: one JSON object, for comparing what two runtimes make of one
//! config.json (`tests/differential`).
//!
//! It judges nothing. What can't be found out is in the report as the reason why, so that a report
//! always comes to its end.

mod calls;
mod devices;
mod files;
mod mounts;
mod process;

use std::fmt::Display;
use std::fs;
use std::io;

use rustix::system::uname;
use serde_json::{Value, json};

/// Prints the report. `paths` are the files and folders whose state is to be in it.
pub fn print(paths: &[&str]) -> io::Result<()> {
    // First, as what follows opens files.
    let process = process::report();
    let names = uname();
    let report = json!({
        "process": process,
        "nodename": names.nodename().to_string_lossy(),
        "domainname": names.domainname().to_string_lossy(),
        "interfaces": interfaces(),
        "mounts": mounts::report(),
        "devices": devices::report(),
        "files": paths.iter().map(|path| (*path, files::report(path))).collect::<Value>(),
        "calls": calls::report(),
    });
    println!("{report}");
    Ok(())
}

/// The network interfaces by name, with their flags.
fn interfaces() -> Value {
    of_text("/proc/self/net/dev", |text| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| {
                let name = name.trim().to_owned();
                let flags = content(&format!("/sys/class/net/{name}/flags"));
                (name, flags)
            })
            .collect()
    })
}

/// A small file's text.
fn content(path: &str) -> Value {
    of_text(path, |text| text.trim_end().into())
}

/// What a small file's text says.
fn of_text(path: &str, says: impl FnOnce(&str) -> Value) -> Value {
    fs::read_to_string(path).map_or_else(why, |text| says(&text))
}

/// Whether something can be done.
fn works<T>(tried: Result<T, impl Display>) -> Value {
    tried.map_or_else(why, |_| "works".into())
}

/// The reason why there is no answer, in place of the answer.
fn why(error: impl Display) -> Value {
    format!("({error})").into()
}
