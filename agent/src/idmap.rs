//! newuidmap and newgidmap, by whose names libcontainer runs a program to map more than one range of ids
//! to a user namespace. The guest has no such programs, and root needs no help: this is the agent's own
//! binary under those names.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use oci_spec::runtime::Linux;

/// The folder with the two names, which is a helper's `PATH`.
pub const FOLDER: &str = "/run/hull/bin";

/// The names, and the file of a process's folder in /proc that each writes: user_namespaces(7).
const MAPPERS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// Makes the two names, if libcontainer is going to ask for them.
///
/// # Errors
/// When a link can't be made.
pub fn provide(linux: &Linux) -> io::Result<()> {
    if !is_asked_for(linux) {
        return Ok(());
    }
    fs::create_dir_all(FOLDER)?;
    for (name, _) in MAPPERS {
        match symlink("/init", Path::new(FOLDER).join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is more than one range: a single one is written without help.
fn is_asked_for(linux: &Linux) -> bool {
    [linux.uid_mappings(), linux.gid_mappings()]
        .into_iter()
        .flatten()
        .any(|ranges| ranges.len() > 1)
}

/// The file that a program of this name (or path) writes.
#[must_use]
pub fn file_of(program: &str) -> Option<&'static str> {
    let name = Path::new(program).file_name()?;
    let mapper = MAPPERS.iter().find(|(mapper, _)| name == *mapper);
    mapper.map(|(_, file)| *file)
}

/// Maps: a process, and ranges of three numbers each.
#[must_use]
pub fn run(file: &str, arguments: &[String]) -> ExitCode {
    let Some((process, ranges)) = arguments.split_first() else {
        return ExitCode::FAILURE;
    };
    match fs::write(format!("/proc/{process}/{file}"), lines(ranges)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hull-agent: cannot write {file}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn lines(ranges: &[String]) -> String {
    ranges.chunks(3).fold(String::new(), |mut text, range| {
        let _ = writeln!(text, "{}", range.join(" "));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_by_its_name() {
        assert_eq!(file_of("/run/hull/bin/newgidmap"), Some("gid_map"));
        assert_eq!(file_of("newuidmap"), Some("uid_map"));
        assert_eq!(file_of("/init"), None);
    }

    #[test]
    fn a_single_range_needs_no_program() {
        let with = |ranges: usize| {
            let range = serde_json::json!({"containerID": 0, "hostID": 0, "size": 1});
            let maps =
                serde_json::json!({"uidMappings": [range], "gidMappings": vec![range; ranges]});
            serde_json::from_value(maps).expect("linux")
        };
        assert!(!is_asked_for(&Linux::default()) && !is_asked_for(&with(1)));
        assert!(is_asked_for(&with(2)));
    }

    #[test]
    fn each_range_is_a_line() {
        let words = ["0", "1000", "1", "1", "100000", "9"].map(str::to_owned);
        assert_eq!(lines(&words), "0 1000 1\n1 100000 9\n");
    }
}
