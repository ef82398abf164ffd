//! From a folder's name to a parsed, checked and audited config.json.
//!
//! The folder is opened once, and what is in it is opened through it: a name that is changed meanwhile
//! changes nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::audit::{Finding, Verdict, audit};
use super::defaults::{
    forget_lone_ambient_capabilities, forget_pids_limit_of_zero, forget_unknown_capabilities,
    map_identity,
};
use super::policy::judge;
use super::validate::{validate, validate_process};
use super::{Bundle, SpecError, json};
use crate::config::Config;

/// The largest config.json, in bytes: it has to fit into one message to the agent (4 MiB).
const MAX_CONFIG: u64 = 3 << 20;

const CONFIG: &str = "config.json";

/// Reads a bundle.
///
/// # Errors
/// When the bundle can't be read, or when its config.json is not one that hull takes as it stands.
pub fn load(bundle: &Path) -> Result<Bundle, SpecError> {
    let (dir, path) = open_bundle(bundle)?;
    let file = open_config(&dir, &path)?;
    let mut config = parse(file, &path.join(CONFIG))?;
    normalize(&mut config, "")?;
    refuse(&config)?;
    fill_in(&mut config);
    let spec: Spec = typed(&config, "")?;
    validate(&spec)?;
    let (rootfs, rootfs_path) = open_rootfs(&dir, &path, &spec)?;
    Ok(Bundle {
        dir,
        path,
        spec,
        rootfs,
        rootfs_path,
    })
}

/// Says of every field that a bundle's config.json sets who enforces it, whether hull takes it or not.
/// Beside all that is refused, the first value that makes no sense is found.
///
/// # Errors
/// When there is no config.json, or it isn't a JSON object.
pub fn audit_bundle(bundle: &Path, config: &Config) -> Result<Vec<Finding>, SpecError> {
    let (dir, path) = open_bundle(bundle)?;
    let mut json = parse(open_config(&dir, &path)?, &path.join(CONFIG))?;
    let readable = normalize(&mut json, "");
    let mut findings = audit(&json);
    fill_in(&mut json);
    let spec = readable.and_then(|()| typed::<Spec>(&json, ""));
    if let Ok(spec) = &spec {
        // Engines name the folder as the container, if after anything.
        let id = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        add_policy(&mut findings, spec, &dir, id, config);
    }
    let meaning = spec.and_then(|spec| validate(&spec));
    if let Some(invalid) = meaning.err().and_then(SpecError::finding) {
        // What is refused need not make sense as well.
        let refused = |f: &Finding| f.verdict.is_fatal() && invalid.path.starts_with(&f.path);
        if !findings.iter().any(refused) {
            findings.retain(|finding| finding.path != invalid.path);
            findings.push(invalid);
        }
    }
    Ok(findings)
}

/// Adds what the operator's decisions make of a config.json, in the place of what the table says.
fn add_policy(
    findings: &mut Vec<Finding>,
    spec: &Spec,
    folder: &OwnedFd,
    id: &str,
    config: &Config,
) {
    let (said, left_out) = judge(spec, folder, Some(id), config);
    let of_left_out: Vec<_> = left_out
        .iter()
        .map(|index| format!("linux.devices[{index}]"))
        .collect();
    let is_gone = |path: &str| {
        let device = path.find(']').map(|end| &path[..=end]);
        device.is_some_and(|device| of_left_out.iter().any(|gone| gone == device))
    };
    let is_replaced = |path: &str| said.iter().any(|finding| finding.path == path);
    findings.retain(|finding| {
        finding.verdict.is_fatal() || !is_replaced(&finding.path) && !is_gone(&finding.path)
    });
    findings.extend(said);
}

/// Reads the `process` object of `exec --process`, which may come through a pipe.
///
/// # Errors
/// As [`load`]; the fields are named as if they stood in a config.json.
pub fn load_process(path: &Path) -> Result<Process, SpecError> {
    let failed = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    process_of(parse(File::open(path).map_err(failed)?, path)?)
}

/// Reads a process object that isn't in a file.
///
/// # Errors
/// When it isn't one that hull takes as it stands.
pub fn parse_process(json: &[u8]) -> Result<Process, SpecError> {
    process_of(parse(json, Path::new("the process"))?)
}

fn process_of(process: Value) -> Result<Process, SpecError> {
    let mut config = Value::Object(Map::from_iter([("process".to_owned(), process)]));
    normalize(&mut config, "")?;
    refuse(&config)?;
    fill_in(&mut config);
    let process: Process = typed(&config["process"], "process")?;
    validate_process(&process)?;
    Ok(process)
}

fn fill_in(config: &mut Value) {
    forget_unknown_capabilities(config);
    forget_lone_ambient_capabilities(config);
    forget_pids_limit_of_zero(config);
    map_identity(config);
}

/// Opens the bundle's folder, and finds out where it really is.
fn open_bundle(bundle: &Path) -> Result<(OwnedFd, PathBuf), SpecError> {
    let failed = |e: rustix::io::Errno| SpecError::Bundle {
        path: bundle.to_owned(),
        source: e.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, bundle, flags, Mode::empty()).map_err(failed)?;
    let path = path_of(&dir).map_err(failed)?;
    if path.to_str().is_none() {
        return Err(SpecError::BundleName { path });
    }
    Ok((dir, path))
}

fn path_of(fd: impl AsFd) -> rustix::io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let target = rustix::fs::readlink(link, Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(
        target.into_bytes(),
    )))
}

fn open_config(dir: &OwnedFd, bundle: &Path) -> Result<File, SpecError> {
    // Without NONBLOCK, a FIFO of that name would hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let failed = |source| SpecError::Read {
        path: bundle.join(CONFIG),
        source,
    };
    match openat(dir, CONFIG, flags, Mode::empty()).map(File::from) {
        Ok(file) if !file.metadata().map_err(failed)?.is_file() => Err(SpecError::File {
            path: bundle.join(CONFIG),
            why: "it is not a regular file".to_owned(),
        }),
        Ok(file) => Ok(file),
        Err(rustix::io::Errno::NOENT) => Err(SpecError::NoConfig {
            path: bundle.to_owned(),
        }),
        Err(e) => Err(failed(e.into())),
    }
}

fn parse(file: impl Read, path: &Path) -> Result<Value, SpecError> {
    let failed = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let no_file = |why: String| SpecError::File {
        path: path.to_owned(),
        why,
    };
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(no_file(format!(
            "it is larger than {} MiB",
            MAX_CONFIG >> 20
        )));
    }
    let path = path.to_owned();
    let config = match json::parse(&text) {
        Ok(config) => config,
        Err(source) if json::is_repeated_key(&source) => {
            return Err(SpecError::RepeatedKey { path, source });
        }
        Err(source) => return Err(SpecError::Syntax { path, source }),
    };
    if !config.is_object() {
        return Err(no_file("it is JSON, but not an object".to_owned()));
    }
    Ok(config)
}

/// What Go's reader, and so runc, makes of a config.json: null is absence, a user is root by default.
/// Strings with a NUL byte end here: no system call takes one.
pub(super) fn normalize(value: &mut Value, path: &str) -> Result<(), SpecError> {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            for (key, value) in &mut *fields {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if key.contains('\0') {
                    return Err(SpecError::invalid(path, "it has a NUL byte"));
                }
                normalize(value, &path)?;
            }
            if path == "process" {
                fields
                    .entry("user")
                    .or_insert_with(|| Value::Object(Map::new()));
                rename_flags(fields);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.iter_mut().enumerate() {
                normalize(value, &format!("{path}[{index}]"))?;
            }
        }
        Value::String(text) if text.contains('\0') => {
            return Err(SpecError::invalid(path, "it has a NUL byte"));
        }
        _ => {}
    }
    Ok(())
}

/// The library's names of two scheduler flags are not the specification's.
fn rename_flags(process: &mut Map<String, Value>) {
    let flags = process
        .get_mut("scheduler")
        .and_then(|s| s.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// Fails with what the audit refuses; says what it doesn't know.
pub(super) fn refuse(config: &Value) -> Result<(), SpecError> {
    let mut findings = audit(config);
    for finding in findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Unknown)
    {
        log::debug!("config.json: {}: unknown field, ignored", finding.path);
    }
    findings.retain(|finding| matches!(finding.verdict, Verdict::Refused(_)));
    if findings.is_empty() {
        Ok(())
    } else {
        Err(SpecError::Refused(findings))
    }
}

/// Reads a value into its type; an error names the field, as seen from `base`.
pub(super) fn typed<T: DeserializeOwned>(value: &Value, base: &str) -> Result<T, SpecError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = match (base, e.path().to_string().as_str()) {
            ("", ".") => "(top level)".to_owned(),
            ("", path) => path.to_owned(),
            (base, ".") => base.to_owned(),
            (base, path) => format!("{base}.{path}"),
        };
        SpecError::Type {
            field,
            source: e.into_inner(),
        }
    })
}

/// Opens the container's root. As with runc, no part of its path below the bundle is a symlink.
fn open_rootfs(dir: &OwnedFd, bundle: &Path, spec: &Spec) -> Result<(OwnedFd, PathBuf), SpecError> {
    let root = spec.root().as_ref().ok_or(SpecError::Missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(SpecError::Missing("root.path"));
    }
    let path = bundle.join(root.path());
    let failed = |source: io::Error| SpecError::Source {
        field: "root.path".to_owned(),
        path: path.clone(),
        source,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = match openat2(
        dir,
        root.path(),
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    ) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::LOOP) => {
            return Err(SpecError::invalid(
                "root.path",
                format!("{}: it leads through a symlink", path.display()),
            ));
        }
        Err(e) => return Err(failed(e.into())),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let path = path_of(&fd).map_err(|e| failed(e.into()))?;
    Ok((fd, path))
}
