//! Signals by name or number, as `kill` takes them.

use super::Error;

/// The names, without `SIG`, in the order of their numbers from 1 (signal(7), x86 and ARM).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

const ALIASES: [(&str, i32); 3] = [("IOT", 6), ("CLD", 17), ("POLL", 29)];

/// The first and the last real-time signal, as the C library counts them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+1`; `0` only asks whether there
/// is somebody to signal (kill(2)).
///
/// # Errors
/// When it is none.
pub fn parse(text: &str) -> Result<i32, Error> {
    by_number(text)
        .or_else(|| by_name(text))
        .ok_or_else(|| Error::Usage(format!("unknown signal {text:?}")))
}

fn by_number(text: &str) -> Option<i32> {
    text.parse()
        .ok()
        .filter(|number| (0..=RTMAX).contains(number))
}

fn by_name(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|n| *n == name) {
        return i32::try_from(index + 1).ok();
    }
    if let Some((_, number)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some(*number);
    }
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest, '+')?
    } else {
        RTMAX - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    text.strip_prefix(sign)?
        .parse()
        .ok()
        .filter(|n| (0..=RTMAX).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", "Kill"] {
            assert_eq!(parse(text).expect(text), 9);
        }
        assert_eq!(parse("SYS").expect("SYS"), libc::SIGSYS);
        assert_eq!(parse("RTMIN+1").expect("RTMIN+1"), 35);
        assert_eq!(parse("SIGRTMAX").expect("SIGRTMAX"), 64);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "", "65", "-9", "FOO", "RTMIN+99", "RTMAX-31", "SIG", "RTMIN-1",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
