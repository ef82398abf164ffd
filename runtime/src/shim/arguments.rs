//! The shim's arguments, as containerd gives them: flags in the form of Go's `flag` package (`-id web`, `--id=web`), then
//! an action (containerd's runtime v2 README).

use std::path::PathBuf;

use super::error::Error;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `-v`: print the version.
    Version,
    /// `-info`: describe the runtime.
    Info,
    /// `start`: leave a server behind, or name the one that there is.
    Start,
    /// `delete`: remove what a server that is gone has left of a container.
    Delete,
    /// No action: be the server.
    Serve,
}

/// The arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What is to be done.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// containerd's own address.
    pub address: String,
    /// The socket that the server serves at, which it removes in the end.
    pub socket: Option<PathBuf>,
    /// Where the bundle is, if it isn't the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether more is logged.
    pub debug: bool,
}

impl Arguments {
    /// Reads them.
    ///
    /// # Errors
    /// When one isn't known, or lacks its value, or a namespace is missing where one is needed.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut parsed = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            socket: None,
            bundle: None,
            debug: false,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                parsed.action = action(&argument)?;
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                let value = value.clone().or_else(|| arguments.next());
                value.ok_or_else(|| Error::Usage(format!("flag needs a value: -{name}")))
            };
            match name {
                "v" | "version" => parsed.action = Action::Version,
                "info" => parsed.action = Action::Info,
                "debug" => parsed.debug = true,
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "socket" => parsed.socket = Some(value()?.into()),
                "bundle" => parsed.bundle = Some(value()?.into()),
                // What publishes events where there is no TTRPC_ADDRESS; and a second socket, for profiles.
                "publish-binary" | "debug-socket" => drop(value()?),
                _ => return Err(Error::Usage(format!("no such flag: -{name}"))),
            }
        }
        parsed.check()
    }

    fn check(self) -> Result<Self, Error> {
        match self.action {
            Action::Version | Action::Info => return Ok(self),
            Action::Start | Action::Delete | Action::Serve => {}
        }
        // Both become parts of paths.
        let is_name =
            |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        for (flag, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if !is_name(value) {
                return Err(Error::Usage(format!(
                    "-{flag} {value:?}: it can't be empty or a path"
                )));
            }
        }
        Ok(self)
    }
}

fn action(name: &str) -> Result<Action, Error> {
    match name {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(Error::Usage(format!("no such action: {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_flags_are_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
                    -id web -debug start";
        let parsed = parse(line).expect("arguments");
        assert_eq!(parsed.action, Action::Start);
        assert_eq!(
            (parsed.namespace.as_str(), parsed.id.as_str()),
            ("k8s.io", "web")
        );
        assert!(parsed.debug);
        let parsed = parse("--namespace=n --id=a=b -bundle /b delete").expect("arguments");
        assert_eq!(parsed.action, Action::Delete);
        assert_eq!(
            (parsed.id.as_str(), parsed.bundle),
            ("a=b", Some("/b".into()))
        );
        assert_eq!(parse("-v").expect("arguments").action, Action::Version);
        assert_eq!(parse("-info").expect("arguments").action, Action::Info);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "start",
            "-id a start",
            "-namespace n -id",
            "-namespace ../n -id a",
            "-x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("-namespace n -id a stop").is_err());
    }
}
