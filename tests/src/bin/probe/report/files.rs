//! One path: what is there, and whether it can be read, written and executed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, OFlags, access};
use serde_json::{Value, json};

use super::{content, why, works};

/// Below these, a file is a value of the kernel's, and its text is part of the report.
const VALUES: &[&str] = &["/proc/sys/", "/sys/fs/cgroup/"];

/// Looks at a path. Writes nothing into a file that is there, and takes away what it makes.
pub fn report(path: &str) -> Value {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => return why(error),
    };
    let folder = found.is_dir();
    let mut report = json!({
        "kind": match found.file_type() {
            _ if folder => "folder",
            kind if kind.is_char_device() => "device",
            _ => "file",
        },
        "mode": format!("{:04o}", found.mode() & 0o7777),
        "owner": format!("{}:{}", found.uid(), found.gid()),
        "reading": if folder { list(path) } else { read(path) },
        "writing": if folder { make_in(path) } else { open_to_write(path) },
    });
    if found.is_file() {
        report["executing"] = execute(path);
        if VALUES.iter().any(|prefix| path.starts_with(prefix)) {
            report["value"] = content(path);
        }
    }
    report
}

fn list(path: &str) -> Value {
    match fs::read_dir(path).map(Iterator::count) {
        Ok(0) => "is empty".into(),
        Ok(_) => "works".into(),
        Err(error) => why(error),
    }
}

fn read(path: &str) -> Value {
    let mut options = File::options();
    let options = options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    match options.open(path).and_then(|mut file| file.read(&mut [0])) {
        Ok(0) => "is empty".into(),
        Ok(_) => "works".into(),
        Err(error) => why(error),
    }
}

fn open_to_write(path: &str) -> Value {
    let mut options = File::options();
    let options = options
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    works(options.open(path))
}

/// Whether a file can be made in a folder.
fn make_in(path: &str) -> Value {
    let new = Path::new(path).join(".probe-was-here");
    works(File::create_new(&new).and_then(|_| fs::remove_file(&new)))
}

fn execute(path: &str) -> Value {
    let Ok(path) = CString::new(path) else {
        return why("a NUL");
    };
    works(access(path, Access::EXEC_OK))
}
