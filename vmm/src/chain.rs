//! Formats an error in one line, with its causes.

use std::error::Error as StdError;
use std::fmt::Write as _;

/// An error and its causes in one line: `what: why: why`.
///
/// A source whose text the error that wraps it ends with already isn't repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("/x")]
        File(#[source] std::io::Error),
        #[error(transparent)]
        Other(#[from] std::io::Error),
    }

    #[test]
    fn a_cause_follows_what_it_caused() {
        let error = Failure::File(std::io::Error::other("gone"));
        assert_eq!(chain(&error), "/x: gone");
    }

    #[test]
    fn a_transparent_wrapper_says_nothing_twice() {
        let error = Failure::Other(std::io::Error::other("full"));
        assert_eq!(chain(&error), "full");
    }
}
