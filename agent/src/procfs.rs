//! Processes as /proc shows them, for `hull ps`: what `ps -ef` would print in the guest.

use std::fs;
use std::os::linux::fs::MetadataExt;

use hull_protocol::agent::ProcessInfo;

/// The longest command line that is reported, in bytes.
const MAX_COMMAND_LENGTH: usize = 512;

/// The first of the eight major numbers of pseudo-terminals, each with 256 minor numbers.
const PTS_MAJOR: u32 = 136;

/// The flag of a task that is ending, `PF_EXITING` of linux/sched.h.
const PF_EXITING: u32 = 4;

/// Whether a process has ended or is exiting (`PF_EXITING`): it no longer runs its program, and its files are
/// being closed.
#[must_use]
pub fn is_ending(pid: i32) -> bool {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            flags(&String::from_utf8_lossy(&stat)).is_none_or(|flags| flags & PF_EXITING != 0)
        }
        Err(_) => true,
    }
}

/// The flags in proc(5), `/proc/<pid>/stat`.
fn flags(stat: &str) -> Option<u32> {
    let (_, after) = stat.rsplit_once(')')?;
    // The first of them is field 3.
    after.split_ascii_whitespace().nth(9 - 3)?.parse().ok()
}

/// Describes a process; `None` if it has ended.
#[must_use]
pub fn describe(pid: i32) -> Option<ProcessInfo> {
    let directory = format!("/proc/{pid}");
    let uid = fs::metadata(&directory).ok()?.st_uid();
    // A process chooses its own name, which need not be UTF-8.
    let stat = fs::read(format!("{directory}/stat")).ok()?;
    let command = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
    let mut info = parse_stat(&String::from_utf8_lossy(&stat))?;
    if let Some(command) = command_line(&command) {
        info.command = command;
    }
    info.pid = pid;
    info.uid = uid;
    Some(info)
}

/// Parses `/proc/<pid>/stat`, proc(5). The name, in parentheses, may contain both blanks and parentheses.
fn parse_stat(text: &str) -> Option<ProcessInfo> {
    let (before, after) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    // The first of them is field 3.
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |index: usize| field(index)?.parse::<u64>().ok();
    let ticks = u64::from(rustix::param::clock_ticks_per_second() as u32).max(1);
    let device = u32::try_from(number(7)?).ok()?;
    Some(ProcessInfo {
        parent: field(4)?.parse().ok()?,
        terminal: terminal(device).unwrap_or_default(),
        cpu_ms: (number(14)? + number(15)?).saturating_mul(1000) / ticks,
        age_ms: uptime_ms()?.saturating_sub(number(22)?.saturating_mul(1000) / ticks),
        command: format!("[{name}]"),
        ..Default::default()
    })
}

/// How long the guest has run.
fn uptime_ms() -> Option<u64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec.saturating_mul(1000) + now.tv_nsec / 1_000_000).ok()
}

fn terminal(device: u32) -> Option<String> {
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    );
    let index = major.checked_sub(PTS_MAJOR).filter(|index| *index < 8)?;
    Some(format!("pts/{}", index * 256 + minor))
}

/// The arguments with blanks between them; `None` for a process that has none, like a kernel thread.
fn command_line(arguments: &[u8]) -> Option<String> {
    let end = arguments.iter().rposition(|byte| *byte != 0)? + 1;
    let bytes = arguments.get(..end.min(MAX_COMMAND_LENGTH))?;
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|byte| if *byte == 0 { b' ' } else { *byte })
        .collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id().cast_signed();
        let info = describe(pid).expect("it runs");
        assert_eq!(info.pid, pid);
        assert_eq!(
            info.parent,
            std::os::unix::process::parent_id().cast_signed()
        );
        assert_eq!(info.uid, rustix::process::getuid().as_raw());
        assert!(info.command.contains("hull_agent"), "{}", info.command);
        assert!(info.age_ms < 3_600_000, "{}", info.age_ms);
    }

    #[test]
    fn a_process_is_ending_once_its_program_has_ended() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cat");
        let pid = child.id().cast_signed();
        assert!(!is_ending(pid));
        drop(child.stdin.take());
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let whom = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(whom), options).expect("a zombie");
        assert!(is_ending(pid));
        child.wait().expect("our own child");
        assert!(is_ending(pid));
    }

    #[test]
    fn a_process_whose_name_is_not_utf8_is_described() {
        let thread = std::thread::spawn(|| {
            rustix::thread::set_name(c"\xff").expect("set a name");
            describe(rustix::thread::gettid().as_raw_nonzero().get())
        });
        assert!(thread.join().expect("no panic").is_some());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 3 7 7 34817 7 4194560 0 0 0 0 150 50 0 0 20 0 1 0 0 0 0";
        let info = parse_stat(text).expect("a stat");
        assert_eq!((info.parent, info.cpu_ms), (3, 2000));
        assert_eq!(
            (info.terminal.as_str(), info.command.as_str()),
            ("pts/1", "[a) b (c)]")
        );
    }

    #[test]
    fn a_command_line_joins_the_arguments_and_is_bounded() {
        assert_eq!(command_line(b"sh\0-c\0a b\0").as_deref(), Some("sh -c a b"));
        assert_eq!(command_line(b""), None);
        assert_eq!(
            command_line(&[b'x'; 4096]).map(|c| c.len()),
            Some(MAX_COMMAND_LENGTH)
        );
    }
}
