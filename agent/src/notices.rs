//! What the VM process tells without being asked ([`hull_protocol::notices`]), and the time when it is asked.
//!
//! Signals are handed on as they come, also between a question and its answer. What the clock is set to is
//! the business of [`clock`](crate::clock).

use std::io;
use std::time::Duration;

use hull_protocol::notices::{LENGTH, LISTENING, Notice};
use hull_protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::{self, Dial, Stream};

/// What is done with a signal that was sent to the VM process.
pub type OnSignal = Box<dyn Fn(i32) + Send>;

/// The connection.
pub struct Notices {
    host: Box<dyn Stream>,
    on_signal: OnSignal,
}

/// What the host has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The host's wall clock since the epoch, at some moment after the question.
    pub time: Duration,
    /// Whether the host said, after the question and before this, that its clock was changed.
    pub changed: bool,
}

impl Notices {
    /// Makes the connection, and says that it listens: the host then has it joined to its port, which
    /// nobody else gets any more.
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
    /// When there is no host any more.
    pub async fn clock_changed(&mut self) -> io::Result<()> {
        while self.about_the_clock().await? != Notice::ClockChanged {}
        Ok(())
    }

    /// Asks for the time.
    ///
    /// # Errors
    /// When there is no host any more.
    pub async fn ask(&mut self, number: u8) -> io::Result<Answer> {
        self.host.write_all(&[number]).await?;
        let mut changed = false;
        loop {
            match self.about_the_clock().await? {
                Notice::Time { question, time } if question == number => {
                    return Ok(Answer { time, changed });
                }
                notice => changed |= notice == Notice::ClockChanged,
            }
        }
    }

    /// The next notice that isn't a signal.
    async fn about_the_clock(&mut self) -> io::Result<Notice> {
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

    /// A connection, the host's end of it, and the signals that were handed on.
    pub fn connection() -> (Notices, DuplexStream, Arc<Mutex<Vec<i32>>>) {
        let (ours, hosts) = duplex(1024);
        let signals = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&signals);
        let notices = Notices {
            host: Box::new(ours),
            on_signal: Box::new(move |signal| heard.lock().expect("no panic").push(signal)),
        };
        (notices, hosts, signals)
    }

    #[tokio::test]
    async fn signals_are_handed_on_between_a_question_and_its_answer_too() {
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
        let answer = notices.ask(1).await.expect("an answer");

        let changed = false;
        assert_eq!(answer, Answer { time, changed });
        assert_eq!(*signals.lock().expect("no panic"), [10, 15]);
    }
}
