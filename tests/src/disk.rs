//! A block device of the host: a loop device on a file of a bundle's folder.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::Bundle;

/// A block device. Dropped, it is taken away, and the test fails if somebody still has it open.
#[derive(Debug)]
pub struct HostDisk {
    /// Its node on the host.
    pub path: PathBuf,
    /// Its major and minor number.
    pub number: (u32, u32),
}

impl HostDisk {
    /// One of this size, `None` on a machine that has no loop devices.
    pub fn new(bundle: &Bundle, name: &str, bytes: u64) -> Option<Self> {
        let image = bundle.beside(name);
        let file = File::create(&image).expect("a file can be made");
        file.set_len(bytes).expect("a sparse file");
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image)
            .output()
            .ok()?;
        if !output.status.success() {
            return None;
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let device = fs::metadata(&path).expect("losetup has named it").rdev();
        let number = (rustix::fs::major(device), rustix::fs::minor(device));
        Some(Self { path, number })
    }

    /// What `linux.devices` says of it.
    pub fn device(&self, path: &str) -> Value {
        let (major, minor) = self.number;
        json!({ "path": path, "type": "b", "major": major, "minor": minor })
    }

    /// A rule of `linux.resources.devices` that allows this access to it.
    pub fn rule(&self, access: &str) -> Value {
        let (major, minor) = self.number;
        json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access })
    }

    /// The bundle with this disk at a path, and with this access to it.
    #[must_use]
    pub fn attach(&self, bundle: Bundle, path: &str, access: &str) -> Bundle {
        bundle
            .push("/linux/devices", self.device(path))
            .push("/linux/resources/devices", self.rule(access))
    }

    /// Writes to it on the host.
    pub fn write(&self, offset: u64, text: &str) {
        let device = File::options().write(true).open(&self.path);
        let device = device.expect("it can be opened");
        device
            .write_all_at(text.as_bytes(), offset)
            .and_then(|()| device.sync_all())
            .expect("it can be written");
    }

    /// What the host reads from it.
    pub fn read(&self, offset: u64, length: usize) -> String {
        let mut bytes = vec![0; length];
        let device = File::open(&self.path).expect("it can be opened");
        let read = device.read_exact_at(&mut bytes, offset);
        read.expect("it can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether its file is still held: as long as anybody has it open.
    fn is_in_use(&self) -> bool {
        let name = self.path.file_name().expect("a node has a name");
        let folder = Path::new("/sys/block").join(name);
        folder.join("loop/backing_file").exists()
    }
}

impl Drop for HostDisk {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        if !std::thread::panicking() {
            assert!(detached.expect("losetup runs").success());
            assert!(!self.is_in_use(), "{} is still open", self.path.display());
        }
    }
}
