//! A process's environment: config.json's, without duplicates and with HOME.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use oci_spec::runtime::Process;

/// How much of a container's /etc/passwd is read at most, in bytes.
const MAX_PASSWD_LENGTH: u64 = 1 << 20;

/// The environment of a process, to be called in its container.
///
/// If a name is given twice, the last value counts. If HOME is missing or empty, it is set to the home of the
/// process's user in the container's /etc/passwd, or to `/` if that names none.
pub fn of(process: &Process) -> Vec<String> {
    let mut env = last_value_of_each(process.env().as_deref().unwrap_or_default());
    if get(&env, "HOME").is_none_or(str::is_empty) {
        let home = passwd().and_then(|passwd| home_in(&passwd, process.user().uid()));
        let home = format!("HOME={}", home.as_deref().unwrap_or("/"));
        match env.iter_mut().find(|entry| *entry == "HOME=") {
            Some(empty) => *empty = home,
            None => env.push(home),
        }
    }
    env
}

/// The value of a variable.
pub fn get<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    let value = |entry: &'a String| entry.strip_prefix(name)?.strip_prefix('=');
    env.iter().rev().find_map(value)
}

fn last_value_of_each(given: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
    let mut env: Vec<String> = Vec::with_capacity(given.len());
    // The host has refused entries without "=".
    for (name, entry) in given.iter().filter_map(|e| Some((name(e)?, e))) {
        let earlier = env
            .iter_mut()
            .find(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
        match earlier {
            Some(earlier) => earlier.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    env
}

/// The container's /etc/passwd, if it is a regular file. The C library isn't used, as it would follow the
/// container's nsswitch.conf.
fn passwd() -> Option<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/etc/passwd")
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD_LENGTH).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The home of a user: name:password:uid:gid:comment:home:shell, passwd(5).
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.get(2)?.parse() == Ok(uid);
        fields
            .get(5)
            .filter(|_| found)
            .map(|home| (*home).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let env = last_value_of_each(&strings(&["A=1", "B=2", "A=3", "novalue"]));
        assert_eq!(env, strings(&["A=3", "B=2"]));
        assert_eq!(get(&env, "A"), Some("3"));
        assert_eq!(get(&env, ""), None);
    }

    #[test]
    fn the_home_is_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/u"));
        assert_eq!(home_in(passwd, 1), None);
    }
}
