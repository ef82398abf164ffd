//! The questions that the host hasn't answered yet, and who has asked them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::oneshot;

/// How long an answer is waited for: docker's resolver gives each of three further servers four seconds.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// The most questions at a time; another one takes the place of the oldest.
const MOST: usize = 512;

/// The length of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// Which byte of the header has the bit that tells an answer from a question, and which bit that is.
const IS_ANSWER: (usize, u8) = (2, 0x80);

/// Who has asked.
#[derive(Debug)]
pub enum Client {
    /// Somebody at this address, by a datagram.
    Datagram(SocketAddrV4),
    /// A connection's task.
    Connection(oneshot::Sender<Vec<u8>>),
}

#[derive(Debug)]
struct Query {
    /// The client's own id.
    id: [u8; 2],
    client: Client,
    asked: Instant,
}

/// All of them. Each has an id of the agent's making on its way to the host, which nobody in the container can know, and
/// no two have the same.
#[derive(Debug, Default)]
pub struct Queries(HashMap<[u8; 2], Query>);

impl Queries {
    /// Notes a question, and writes another id into it. Returns whether it is one.
    pub fn ask(&mut self, message: &mut [u8], client: Client) -> bool {
        if is_answer(message) != Some(false) {
            return false;
        }
        let now = Instant::now();
        self.make_room(now);
        let Some(id) = message.first_chunk_mut::<2>() else {
            return false;
        };
        let query = Query {
            id: *id,
            client,
            asked: now,
        };
        loop {
            // One in 128 is taken at the most.
            if getrandom(&mut id[..], GetRandomFlags::empty()).is_err() {
                return false;
            }
            if let Entry::Vacant(free) = self.0.entry(*id) {
                free.insert(query);
                return true;
            }
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.0.len() < MOST {
            return;
        }
        self.0.retain(|_, query| !query.is_late(now));
        if self.0.len() < MOST {
            return;
        }
        let oldest = self.0.iter().min_by_key(|(_, query)| query.asked);
        if let Some(id) = oldest.map(|(id, _)| *id) {
            self.0.remove(&id);
        }
    }

    /// Who is to get an answer of the host's, into which the client's own id is written; nobody if nobody waits for it.
    pub fn answer(&mut self, message: &mut [u8]) -> Option<Client> {
        if is_answer(message) != Some(true) {
            return None;
        }
        let id = message.first_chunk_mut::<2>()?;
        let query = self.0.remove(id)?;
        *id = query.id;
        (!query.is_late(Instant::now())).then_some(query.client)
    }
}

impl Query {
    fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) > TIMEOUT
    }
}

/// Whether it is an answer or a question; `None` if it is too short to be either.
fn is_answer(message: &[u8]) -> Option<bool> {
    let (byte, bit) = IS_ANSWER;
    let flags = message.get(..HEADER)?.get(byte)?;
    Some(flags & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn question(id: u16) -> Vec<u8> {
        let mut message = vec![0; HEADER + 5];
        message[..2].copy_from_slice(&id.to_be_bytes());
        message
    }

    fn answer(mut question: Vec<u8>) -> Vec<u8> {
        question[2] |= 0x80;
        question
    }

    fn at(port: u16) -> Client {
        Client::Datagram(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    }

    fn port(client: Option<Client>) -> Option<u16> {
        match client? {
            Client::Datagram(address) => Some(address.port()),
            Client::Connection(_) => None,
        }
    }

    #[test]
    fn an_answer_goes_to_who_has_asked_with_the_id_that_was_asked_with() {
        let mut queries = Queries::default();
        let (mut first, mut second) = (question(7), question(7));
        assert!(queries.ask(&mut first, at(1)) && queries.ask(&mut second, at(2)));
        assert_ne!(first[..2], second[..2]);
        let (mut first, mut second) = (answer(first), answer(second));
        assert_eq!(port(queries.answer(&mut second)), Some(2));
        assert_eq!(second, answer(question(7)));
        assert_eq!(port(queries.answer(&mut second)), None, "once only");
        assert_eq!(port(queries.answer(&mut first)), Some(1));
    }

    #[test]
    fn what_is_no_question_is_not_asked_and_what_is_no_answer_not_given() {
        let mut queries = Queries::default();
        for mut message in [vec![], vec![0; HEADER - 1], answer(question(1))] {
            assert!(!queries.ask(&mut message, at(1)));
        }
        let mut asked = question(1);
        assert!(queries.ask(&mut asked, at(1)));
        assert_eq!(port(queries.answer(&mut asked.clone())), None);
        assert_eq!(port(queries.answer(&mut asked[..HEADER - 1])), None);
        assert_eq!(port(queries.answer(&mut answer(asked))), Some(1));
    }

    #[test]
    fn a_flood_takes_the_places_of_the_oldest() {
        let mut queries = Queries::default();
        let mut first = question(1);
        assert!(queries.ask(&mut first, at(1)));
        let mut last = Vec::new();
        for _ in 0..2 * MOST {
            last = question(2);
            assert!(queries.ask(&mut last, at(2)));
        }
        assert_eq!(queries.0.len(), MOST);
        let ids: Vec<_> = queries.0.keys().copied().collect();
        if !ids.contains(&[first[0], first[1]]) {
            assert_eq!(port(queries.answer(&mut answer(first))), None);
        }
        assert_eq!(port(queries.answer(&mut answer(last))), Some(2));
    }

    #[test]
    fn a_late_answer_is_nobodys() {
        let mut queries = Queries::default();
        let mut asked = question(1);
        assert!(queries.ask(&mut asked, at(1)));
        for query in queries.0.values_mut() {
            query.asked = Instant::now() - 2 * TIMEOUT;
        }
        assert_eq!(port(queries.answer(&mut answer(asked))), None);
    }
}
