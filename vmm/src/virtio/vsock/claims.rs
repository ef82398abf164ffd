//! Claims to the ports on offer: connections of the guest's that haven't shown yet whose they are.
//!
//! Whoever gets at the guest's vsock can dial a port on offer. The one who is meant knows the offer's
//! token and sends it first; only then is the descriptor his. Until then the offer stands: a port can be
//! claimed by several at once, and a claim that shows anything else, or not all of the token in time, is
//! reset without taking the offer from the others. So tries aren't counted: at 2^128 there is nothing to
//! be had by them, while a limit would be a way to take the offer away.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::packet::{Header, advance};

/// The length of a [`Token`] in bytes.
pub const TOKEN_LENGTH: usize = 16;

/// What is to be sent first on a stream, chosen at random.
pub type Token = [u8; TOKEN_LENGTH];

/// Claims there may be; a further one ends the oldest, so that those who sit still keep nobody out.
pub(super) const MAX_CLAIMS: usize = 64;

/// A connection to a port on offer.
#[derive(Debug)]
pub(super) struct Claim {
    /// Which no other claim ever has.
    pub number: u64,
    /// The guest's `REQUEST`, with the credit that it has given since.
    pub request: Header,
    /// Bytes of the token that were right.
    shown: usize,
}

/// What a claim has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// All that is asked for.
    Token,
    /// The beginning of it.
    Part,
    /// Something else.
    Other,
}

impl Claim {
    /// Compares what the guest sends with the token, where there is one, and takes that much off `payload`.
    pub fn show(&mut self, token: Option<&Token>, payload: &mut Vec<VolatileSlice<'_>>) -> Shown {
        let wanted = token.map_or(&[][..], |token| &token[self.shown..]);
        let mut bytes = [0; TOKEN_LENGTH];
        let mut found = 0;
        for slice in &*payload {
            found += slice.copy_to(&mut bytes[found..wanted.len()]);
        }
        advance(payload, found);
        self.shown += found;
        match wanted.strip_prefix(&bytes[..found]) {
            Some([]) => Shown::Token,
            Some(_) => Shown::Part,
            None => Shown::Other,
        }
    }

    /// Takes note of the credit in a packet of the guest's.
    pub fn learn_credit(&mut self, header: &Header) {
        self.request.buf_alloc = header.buf_alloc;
        self.request.fwd_cnt = header.fwd_cnt;
    }

    /// The bytes that it has sent.
    pub fn sent(&self) -> u32 {
        self.shown as u32 // at most TOKEN_LENGTH
    }
}

/// All claims, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claims: VecDeque<Claim>,
    next_number: u64,
}

impl Claims {
    /// Adds a claim and returns its number, and the oldest claim if that has to make room.
    pub fn add(&mut self, request: Header) -> (u64, Option<Claim>) {
        let oldest = match self.claims.len() {
            MAX_CLAIMS.. => self.claims.pop_front(),
            _ => None,
        };
        let number = self.next_number;
        self.next_number += 1;
        self.claims.push_back(Claim {
            number,
            request,
            shown: 0,
        });
        (number, oldest)
    }

    /// The claim that a packet of the guest's is for.
    pub fn of(&mut self, header: &Header) -> Option<&mut Claim> {
        let ports = (header.src_port, header.dst_port);
        let is_it = |claim: &&mut Claim| (claim.request.src_port, claim.request.dst_port) == ports;
        self.claims.iter_mut().find(is_it)
    }

    /// Takes a claim out.
    pub fn take(&mut self, number: u64) -> Option<Claim> {
        let index = self.claims.iter().position(|claim| claim.number == number);
        self.claims.remove(index?)
    }

    /// Takes out the claims to ports of a kind.
    pub fn take_all(&mut self, which: impl Fn(u32) -> bool) -> Vec<Claim> {
        let (taken, kept) = std::mem::take(&mut self.claims)
            .into_iter()
            .partition(|claim| which(claim.request.dst_port));
        self.claims = kept;
        VecDeque::into(taken)
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.claims.len()
    }
}
