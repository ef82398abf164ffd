//! `hull completion` and `hull man`: what a shell and man(1) know of the command line, made from the
//! command line itself.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap_complete::Shell;

use super::{Error, output};

/// `hull completion`.
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// `hull man`.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The folder that gets the pages
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the shell's script.
///
/// # Errors
/// When standard output is closed.
pub fn completion(mut command: clap::Command, args: &Completion) -> Result<ExitCode, Error> {
    // Not straight to standard output: there it would panic if nobody reads.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "hull", &mut script);
    output::text(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages, one for each verb.
///
/// # Errors
/// When they can't be written.
pub fn man(command: clap::Command, args: &Man) -> Result<ExitCode, Error> {
    fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(command, &args.folder))
        .map_err(|source| Error::File {
            path: args.folder.clone(),
            source,
        })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> clap::Command {
        let verbs = ["run", "vmm"].map(|verb| clap::Command::new(verb).hide(verb == "vmm"));
        clap::Command::new("hull").subcommands(verbs)
    }

    #[test]
    fn there_is_a_page_for_each_verb_that_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = Man {
            folder: folder.path().join("man1"),
        };
        man(command(), &args).expect("written");
        let mut pages: Vec<_> = fs::read_dir(&args.folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        pages.sort();
        assert_eq!(pages, ["hull-run.1", "hull.1"]);
    }
}
