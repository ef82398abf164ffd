//! I/O ports: a serial port with a transmitter only, and the keyboard controller's reset command.
//! All other ports read as all ones.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::arch::PlatformStateError;
use crate::console::Console;
use crate::vcpu::StopReason;

/// The first serial port's registers (8250): data,
const SERIAL_DATA: u16 = 0x3f8;
/// line control, whose highest bit turns the data register into the divisor's,
const SERIAL_LINE_CONTROL: u16 = SERIAL_DATA + 3;
const DIVISOR_LATCH: u8 = 1 << 7;
/// and line status: the transmitter is always empty.
const SERIAL_LINE_STATUS: u16 = SERIAL_DATA + 5;
const TRANSMITTER_EMPTY: u8 = 0x60;

/// The keyboard controller's status and command register: nothing to read, ready for a command.
const KEYBOARD: u16 = 0x64;
/// The command that pulses the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;

/// The ports, shared by all vCPUs.
#[derive(Debug)]
pub(crate) struct Ports {
    console: Arc<Console>,
    divisor_latch: AtomicBool,
}

/// The state of the ports. It doesn't contain how much the console may still write to its log,
/// which concerns the host alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortsState {
    divisor_latch: bool,
    /// The console's unfinished line.
    line: Vec<u8>,
}

impl Ports {
    pub(crate) fn new(console: Arc<Console>) -> Self {
        Self {
            console,
            divisor_latch: AtomicBool::new(false),
        }
    }

    /// Saves their state.
    pub(super) fn save(&self) -> PortsState {
        PortsState {
            divisor_latch: self.divisor_latch.load(Ordering::Relaxed),
            line: self.console.partial_line(),
        }
    }

    /// Restores a state that [`Self::save`] has returned.
    pub(super) fn restore(&self, state: &PortsState) -> Result<(), PlatformStateError> {
        if !self.console.restore_partial_line(&state.line) {
            return Err(PlatformStateError::ConsoleLine);
        }
        self.divisor_latch
            .store(state.divisor_latch, Ordering::Relaxed);
        Ok(())
    }

    /// Handles a read of a port; `data` has several bytes for a string instruction (`rep ins`).
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            SERIAL_LINE_STATUS => TRANSMITTER_EMPTY,
            KEYBOARD => 0,
            _ => 0xff,
        });
    }

    /// Handles a write to a port; `data` has several bytes for a string instruction (`rep outs`).
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> ControlFlow<StopReason> {
        match (port, data) {
            (SERIAL_DATA, _) if !self.divisor_latch.load(Ordering::Relaxed) => {
                self.console.write(data);
            }
            (SERIAL_LINE_CONTROL, [.., control]) => {
                let latch = control & DIVISOR_LATCH != 0;
                self.divisor_latch.store(latch, Ordering::Relaxed);
            }
            (KEYBOARD, [KEYBOARD_RESET]) => return ControlFlow::Break(StopReason::Reset),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::testing::Captured;

    #[test]
    fn only_the_transmitter_writes_to_the_console() {
        let captured = Captured::new();
        let ports = Ports::new(Arc::new(captured.console()));
        assert!(ports.write(SERIAL_DATA, b"a").is_continue());
        assert!(ports.write(SERIAL_LINE_CONTROL, &[0x83]).is_continue());
        assert!(ports.write(SERIAL_DATA, &[1]).is_continue()); // the divisor
        assert!(ports.write(SERIAL_LINE_CONTROL, &[0x03]).is_continue());
        assert!(ports.write(SERIAL_DATA, b"b\n").is_continue());
        assert!(ports.write(0x80, b"x").is_continue());
        assert_eq!(captured.text(), "ab\n");
    }

    fn json(state: &PortsState) -> PortsState {
        let text = serde_json::to_string(state).expect("JSON");
        serde_json::from_str(&text).expect("a state")
    }

    #[test]
    fn saved_ports_go_on_in_the_middle_of_a_line() {
        let (first, second) = (Captured::new(), Captured::new());
        let ports = |log: &Captured| Ports::new(Arc::new(log.console()));
        let (saved, restored) = (ports(&first), ports(&second));
        assert!(saved.write(SERIAL_DATA, b"one\ntw").is_continue());
        assert!(saved.write(SERIAL_LINE_CONTROL, &[0x83]).is_continue());
        let state = json(&saved.save());
        restored.restore(&state).expect("the same");
        assert_eq!(restored.save(), state);

        assert!(restored.write(SERIAL_DATA, &[1]).is_continue()); // the divisor
        assert!(restored.write(SERIAL_LINE_CONTROL, &[3]).is_continue());
        assert!(restored.write(SERIAL_DATA, b"o\n").is_continue());
        assert_eq!([first.text(), second.text()], ["one\n", "two\n"]);
    }

    #[test]
    fn a_line_that_no_guest_writes_is_refused() {
        let log = Captured::new();
        let ports = Ports::new(Arc::new(log.console()));
        for line in [b"\x1b[2J".to_vec(), b"\n".to_vec(), vec![b'x'; 512]] {
            let divisor_latch = true;
            let refused = ports.restore(&PortsState {
                divisor_latch,
                line,
            });
            assert!(matches!(refused, Err(PlatformStateError::ConsoleLine)));
        }
        assert!(ports.write(SERIAL_DATA, b"ok\n").is_continue());
        assert_eq!(log.text(), "ok\n");
    }

    #[test]
    fn the_keyboard_controller_resets_and_nothing_else_does() {
        let ports = Ports::new(Arc::new(Captured::new().console()));
        assert!(ports.write(KEYBOARD, &[0xfe]).is_break());
        for (port, data) in [
            (0x64, &[0xd1][..]),
            (0x64, &[]),
            (0x64, &[0xfe, 0]),
            (0x60, &[0xfe]),
        ] {
            assert!(ports.write(port, data).is_continue());
        }
    }

    #[test]
    fn unknown_ports_read_as_all_ones() {
        let ports = Ports::new(Arc::new(Captured::new().console()));
        for (port, value) in [
            (0x3fd, 0x60),
            (0x64, 0),
            (0x3f8, 0xff),
            (0xcf8, 0xff),
            (0, 0xff),
        ] {
            let mut data = [0x55; 3];
            ports.read(port, &mut data);
            assert_eq!(data, [value; 3], "port {port:#x}");
        }
    }
}
