//! The table as a page, which is docs/config-json.md (see CONTRIBUTING.md).

use std::fmt::Write as _;

use super::fields::{Enforcer, FIELDS, Field};
use super::mount_options;

const HEAD: &str = "\
# config.json, field by field
Who enforces each field of the [runtime-spec](https://github.com/opencontainers/runtime-spec) 1.3, and
what is refused. This page is generated from the table that hull itself goes by
(`runtime/src/spec/fields.rs`); `hull spec --audit` says the same of one bundle.

- **guest**: the agent and the kernel in the guest.
- **host**: hull on the host, by the VM's process, its file shares or the container's state.
- **both**: each does its part.
- **refused**: nobody does it, so `create` fails and names the field. A value that asks for nothing (an
  empty string, list or object, `0`, `false`, `null`) is not refused.

Fields that the specification doesn't have are ignored, as it asks.
";

/// The page's sections, and the beginnings of the paths that belong there. The first that fits counts.
const SECTIONS: &[(&str, &[&str])] = &[
    ("The process", &["process"]),
    (
        "The container",
        &[
            "ociVersion",
            "root",
            "hostname",
            "domainname",
            "annotations",
        ],
    ),
    ("Mounts", &["mounts"]),
    ("Hooks", &["hooks"]),
    ("Limits", &["linux.resources", "linux.cgroupsPath"]),
    ("Seccomp", &["linux.seccomp"]),
    ("The rest of `linux`", &["linux"]),
    (
        "Other platforms",
        &["solaris", "windows", "vm", "zos", "freebsd"],
    ),
];

fn section(field: &Field) -> Option<usize> {
    SECTIONS.iter().position(|(_, beginnings)| {
        beginnings.iter().any(|beginning| {
            let rest = field.path.strip_prefix(beginning);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    })
}

/// The page, as Markdown.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for (index, (title, _)) in SECTIONS.iter().enumerate() {
        let _ = write!(
            text,
            "\n## {title}\n| field | enforced by | |\n| --- | --- | --- |\n"
        );
        for field in FIELDS.iter().filter(|f| section(f) == Some(index)) {
            let cells = row(field).join(" | ");
            let _ = writeln!(text, "| {} |", cells.trim_end());
        }
        if *title == "Mounts" {
            text.push_str(&options());
        }
    }
    text
}

fn row(field: &Field) -> [String; 3] {
    let words = match field.enforcer {
        Enforcer::Refused { reason, remedy } => format!("{reason}; {remedy}"),
        _ => field.note.to_owned(),
    };
    let who = match field.enforcer {
        Enforcer::Refused { .. } => format!("**{}**", field.enforcer.word()),
        _ => field.enforcer.word().to_owned(),
    };
    [format!("`{}`", field.path), who, words]
}

fn options() -> String {
    let taken: Vec<_> = mount_options::supported()
        .map(|o| format!("`{o}`"))
        .collect();
    let mut text = format!(
        "\nMount options that hull takes, beside those of a file system itself: {}.\n\n\
         | mount option | |\n| --- | --- |\n",
        taken.join(", ")
    );
    for (name, reason) in mount_options::refused() {
        let _ = writeln!(text, "| `{name}` | **refused**: {reason} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_config_json_md_is_what_the_table_says() {
        assert!(
            reference() == include_str!("../../../docs/config-json.md"),
            "it is stale: cargo run -p hull -- spec --reference >docs/config-json.md"
        );
    }

    #[test]
    fn every_field_has_its_section() {
        let lost: Vec<_> = FIELDS.iter().filter(|f| section(f).is_none()).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    #[test]
    fn a_value_that_is_refused_is_so_in_words() {
        let silent = |field: &&Field| field.check.is_some() && !field.note.contains("refused");
        let silent: Vec<_> = FIELDS.iter().filter(silent).map(|f| f.path).collect();
        assert!(silent.is_empty(), "give them a note: {silent:?}");
    }
}
