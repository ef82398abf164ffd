//! The connection for notices of the VM process ([`hull_protocol::notices`]): clock changes and signals, and the
//! time when the agent asks for it.
//!
//! Signals are passed on as they come, also between a question and its answer. [`clock`](crate::clock) decides
//! how the guest's clock is set.

use std::io;
use std::time::Duration;

use hull_protocol::notices::{LENGTH, LISTENING, Notice};
use hull_protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::{self, Dial, Stream};

/// Called with each signal that was sent to the VM process.
pub type OnSignal = Box<dyn Fn(i32) + Send>;

/// The connection.
pub struct Notices {
    host: Box<dyn Stream>,
    on_signal: OnSignal,
}

/// The host's answer to a question for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The host's wall clock since the epoch, at some moment after the question.
    pub time: Duration,
    /// Whether a notice that the host's clock was changed came between the question and the answer.
    pub changed: bool,
}

impl Notices {
    /// Connects, and sends [`LISTENING`]: the host accepts one such connection, so no later one gets the port.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn connect(host: &dyn Dial, on_signal: OnSignal) -> io::Result<Self> {
        let mut host = transport::dial(host, ports::NOTICES).await?;
        host.write_all(&[LISTENING]).await?;
        Ok(Self { host, on_signal })
    }

    /// Waits until the host's clock may differ from the guest's.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn clock_changed(&mut self) -> io::Result<()> {
        while self.next_clock_notice().await? != Notice::ClockChanged {}
        Ok(())
    }

    /// Asks for the time, with the question's number.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn ask_time(&mut self, number: u8) -> io::Result<Answer> {
        self.host.write_all(&[number]).await?;
        let mut changed = false;
        loop {
            match self.next_clock_notice().await? {
                Notice::Time { question, time } if question == number => {
                    return Ok(Answer { time, changed });
                }
                notice => changed |= notice == Notice::ClockChanged,
            }
        }
    }

    /// The next notice that isn't a signal.
    async fn next_clock_notice(&mut self) -> io::Result<Notice> {
        loop {
            let mut record = [0; LENGTH];
            self.host.read_exact(&mut record).await?;
            match Notice::decode(record) {
                Notice::Signal(signal) => (self.on_signal)(signal),
                notice => return Ok(notice),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{DuplexStream, duplex};

    /// A connection, the host's end of it, and the signals that were passed on.
    pub fn connection() -> (Notices, DuplexStream, Arc<Mutex<Vec<i32>>>) {
        let (ours, hosts) = duplex(1024);
        let signals = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&signals);
        let notices = Notices {
            host: Box::new(ours),
            on_signal: Box::new(move |signal| received.lock().expect("no panic").push(signal)),
        };
        (notices, hosts, signals)
    }

    #[tokio::test]
    async fn signals_are_passed_on_between_a_question_and_its_answer_too() {
        let (mut notices, mut host, signals) = connection();
        let time = Duration::from_secs(1);
        for notice in [
            Notice::Signal(10),
            Notice::ClockChanged,
            Notice::Signal(15),
            Notice::Time { question: 1, time },
        ] {
            host.write_all(&notice.encode()).await.expect("write");
        }

        notices.clock_changed().await.expect("a change");
        let answer = notices.ask_time(1).await.expect("an answer");

        let changed = false;
        assert_eq!(answer, Answer { time, changed });
        assert_eq!(*signals.lock().expect("no panic"), [10, 15]);
    }
}
