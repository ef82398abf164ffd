//! `hull spec`: a config.json to start from, the same that runc writes; with `--audit`, what hull makes
//! of one that is there, and with `--reference`, of any.

mod audit;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hull_runtime::lifecycle::Context;
use hull_runtime::spec;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

use super::{Error, output};

/// runc's own (its `libcontainer/specconv/example.go`), as it is on a host with cgroup v2.
const TEMPLATE: &str = include_str!("config.json");

/// `hull spec`.
#[derive(Debug, clap::Args)]
pub struct Spec {
    /// The folder that gets the config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a user who isn't root
    #[arg(long)]
    rootless: bool,
    /// Write nothing: say of each field of a bundle's config.json who enforces it, or why it is refused
    #[arg(long, conflicts_with = "rootless")]
    audit: bool,
    /// The form of the audit
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        requires = "audit"
    )]
    format: audit::Format,
    /// Write nothing: print who enforces each field that a config.json can have, as Markdown
    #[arg(long, conflicts_with_all = ["rootless", "audit"])]
    reference: bool,
    /// The bundle to audit (default: the current folder)
    #[arg(value_name = "BUNDLE", requires = "audit")]
    audited: Option<PathBuf>,
}

/// Writes the file, audits the one that is there, or prints the reference.
///
/// # Errors
/// When there is one, or it can't be written; with `--audit`, when there is none to read.
pub fn run(context: &Context, args: &Spec) -> Result<ExitCode, Error> {
    if args.reference {
        output::text(spec::reference())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.audit {
        let bundle = args.audited.as_ref().unwrap_or(&args.bundle);
        return audit::run(context, bundle, args.format);
    }
    let user = args.rootless.then(|| {
        (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    });
    let text = template(user).map_err(Error::Json)?;
    let path = args.bundle.join("config.json");
    write_new(&path, &text).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::Usage("File config.json exists. Remove it first".to_owned())
        }
        _ => Error::File { path, source },
    })?;
    Ok(ExitCode::SUCCESS)
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?
        .write_all(text)
}

/// The config.json, for root or for the user and group of these ids, as Go would print it.
fn template(rootless: Option<(u32, u32)>) -> serde_json::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_str(TEMPLATE)?;
    if let Some((uid, gid)) = rootless {
        make_rootless(&mut config, uid, gid);
    }
    let mut text = Vec::new();
    config.serialize(&mut Serializer::with_formatter(
        &mut text,
        PrettyFormatter::with_indent(b"\t"),
    ))?;
    Ok(text)
}

/// What a user namespace with one user in it asks for: no network of its own, the host's sysfs, no
/// groups that aren't mapped, and no cgroup limits.
fn make_rootless(config: &mut Value, uid: u32, gid: u32) {
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = config["linux"].take();
    let mut namespaces = linux["namespaces"].as_array().cloned().unwrap_or_default();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "user"}));
    config["linux"] = json!({
        "uidMappings": map(uid),
        "gidMappings": map(gid),
        "namespaces": namespaces,
        "maskedPaths": linux["maskedPaths"],
        "readonlyPaths": linux["readonlyPaths"],
    });
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            mount["type"] = json!("none");
            mount["source"] = json!("/sys");
            mount["options"] = json!(["rbind", "nosuid", "noexec", "nodev", "ro"]);
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| {
                !option
                    .as_str()
                    .is_some_and(|o| o.starts_with("uid=") || o.starts_with("gid="))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_one_that_hull_takes() {
        let bundle = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(bundle.path().join("rootfs")).expect("a rootfs");
        let text = String::from_utf8(template(None).expect("text")).expect("UTF-8");
        let text = text.replace("\"terminal\": true", "\"terminal\": false");
        write_new(&bundle.path().join("config.json"), text.as_bytes()).expect("written");
        spec::load(bundle.path()).expect("hull takes what it writes");
    }

    #[test]
    fn it_looks_as_runcs_does() {
        let text = String::from_utf8(template(None).expect("text")).expect("UTF-8");
        assert!(text.starts_with("{\n\t\"ociVersion\": \""));
        assert!(text.ends_with("\n\t}\n}"));
        assert_eq!(format!("{text}\n"), TEMPLATE);
    }

    #[test]
    fn without_root_there_is_a_user_namespace_and_no_limit() {
        let config: Value =
            serde_json::from_slice(&template(Some((1000, 100))).expect("text")).expect("JSON");
        assert_eq!(config["linux"]["uidMappings"][0]["hostID"], 1000);
        assert_eq!(config["linux"]["gidMappings"][0]["hostID"], 100);
        assert_eq!(config["linux"]["resources"], Value::Null);
        assert!(!config.to_string().contains("gid=5"));
    }

    #[test]
    fn a_config_json_that_is_there_is_left_alone() {
        let bundle = tempfile::tempdir().expect("a folder");
        let path = bundle.path().join("config.json");
        std::fs::write(&path, "mine").expect("written");
        assert!(write_new(&path, b"ours").is_err());
        assert_eq!(std::fs::read(&path).expect("read"), b"mine");
    }
}
