//! Colour, where a person reads.

use std::io::IsTerminal;

/// The colours of ECMA-48 that are used, by their numbers.
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    /// Bad.
    Red = 31,
    /// All is well.
    Green = 32,
    /// Mind this.
    Yellow = 33,
    /// Neither good nor bad.
    Cyan = 36,
}

/// Whether to use colour at all.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Without colour, words stay as they are.
    pub colourful: bool,
}

impl Palette {
    /// Colourful on a terminal, unless the user has set NO_COLOR.
    pub fn of(out: &impl IsTerminal) -> Self {
        let colourful = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colourful }
    }

    /// A word in a colour.
    pub fn paint(self, colour: Colour, word: &str) -> String {
        if self.colourful {
            format!("\x1b[{}m{word}\x1b[0m", colour as u8)
        } else {
            word.to_owned()
        }
    }
}
