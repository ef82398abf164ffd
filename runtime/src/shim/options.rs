//! What containerd's configuration says of the runtime: `options` of a runtime in its config.toml, or of a request.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::rt::skip_field_for_tag;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;

use super::error::Error;

/// The options that mean something here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `Root`: below it are the stores, in the place of the usual one.
    pub root: Option<PathBuf>,
    /// `SystemdCgroup`.
    pub systemd_cgroup: bool,
    /// `ConfigPath`: the hull.toml.
    pub config: Option<PathBuf>,
}

/// The number of `config_path` in `runtimeoptions.v1.Options`, which containerd sends for runtimes that it doesn't know.
const CONFIG_PATH: u32 = 2;

impl Options {
    /// Reads them; none are none.
    ///
    /// # Errors
    /// When they aren't of a kind that is known, or damaged.
    pub fn read(any: Option<&Any>) -> Result<Self, Error> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let damaged = |source| Error::Message {
            what: "the runtime's options",
            source,
        };
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "containerd.runc.v1.Options" => {
                let runc = oci::Options::parse_from_bytes(&any.value).map_err(damaged)?;
                Ok(Self {
                    root: Some(runc.root.into()).filter(|root: &PathBuf| root.is_absolute()),
                    systemd_cgroup: runc.systemd_cgroup,
                    config: None,
                })
            }
            // An older ctr's, sent with every user namespace: there is nothing in it for a runtime of version 2.
            "containerd.linux.runc.CreateOptions" => Ok(Self::default()),
            "runtimeoptions.v1.Options" => Ok(Self {
                config: config_path(&any.value).map_err(damaged)?.map(PathBuf::from),
                ..Self::default()
            }),
            other => Err(Error::Invalid(format!(
                "the runtime's options are of the type {other}, which hull doesn't know: use the options of \
                 runtimeoptions.v1, ConfigPath, or runc's"
            ))),
        }
    }
}

/// In the bundle: where the store is, if it isn't at its usual place. `delete` is told no options.
const ROOT: &str = "hull-root";

/// Writes down for `delete` what it has to know.
///
/// # Errors
/// When the bundle can't be written to.
pub fn keep_root(bundle: &Path, root: &Path) -> Result<(), Error> {
    let path = bundle.join(ROOT);
    fs::write(&path, root.as_os_str().as_bytes()).map_err(Error::file("write", path))
}

/// What [`keep_root`] has written down, if anything.
pub fn kept_root(bundle: &Path) -> Option<PathBuf> {
    let root = fs::read(bundle.join(ROOT)).ok()?;
    Some(PathBuf::from(OsString::from_vec(root)))
}

fn config_path(message: &[u8]) -> Result<Option<String>, containerd_shim_protos::protobuf::Error> {
    let mut stream = CodedInputStream::from_bytes(message);
    let mut path = None;
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        // A field of the wire type 2: a length, and as many bytes.
        if tag == CONFIG_PATH << 3 | 2 {
            path = Some(stream.read_string()?);
        } else {
            skip_field_for_tag(tag, &mut stream)?;
        }
    }
    Ok(path.filter(|path| !path.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: url.to_owned(),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn what_containerd_is_configured_with_is_known() {
        assert_eq!(Options::read(None).expect("none"), Options::default());
        let mut runc = oci::Options::new();
        runc.systemd_cgroup = true;
        runc.root = "/run/elsewhere".to_owned();
        let value = runc.write_to_bytes().expect("a message");
        let read = Options::read(Some(&any("containerd.runc.v1.Options", value))).expect("runc's");
        assert!(read.systemd_cgroup);
        assert_eq!(read.root, Some("/run/elsewhere".into()));

        // type_url = "x", config_path = "/h", config_body = "y"
        let value = b"\x0a\x01x\x12\x02/h\x1a\x01y".to_vec();
        let generic = any("type.googleapis.com/runtimeoptions.v1.Options", value);
        let read = Options::read(Some(&generic)).expect("options");
        assert_eq!(read.config, Some("/h".into()));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(Options::read(Some(&any("io.other.Options", Vec::new()))).is_err());
        let cut = any("runtimeoptions.v1.Options", b"\x12\x09/h".to_vec());
        assert!(Options::read(Some(&cut)).is_err());
    }
}
