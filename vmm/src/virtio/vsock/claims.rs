//! Claims to offered ports: connections from the guest that haven't sent the port's token yet.
//!
//! Any process in the guest that can use vsock may dial an offered port. The intended one knows the
//! offer's token and sends it first; only then is the connection joined to the descriptor. Until
//! then the port stays on offer: several connections can claim it at once, and a claim that sends
//! anything else, or doesn't send the whole token in time, is reset without affecting the others.
//! Failed attempts aren't limited: a token of 128 bits can't be guessed, and a limit would let any
//! process use up the attempts of the intended one.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::packet::{Header, advance};

/// The length of a [`Token`] in bytes.
pub const TOKEN_LENGTH: usize = 16;

/// The random bytes that must be sent first on a stream.
pub type Token = [u8; TOKEN_LENGTH];

/// The most claims at a time; another one ends the oldest, so that idle claims can't block new
/// ones.
pub(super) const MAX_CLAIMS: usize = 64;

/// A connection to an offered port whose token hasn't been received yet.
#[derive(Debug)]
pub(super) struct Claim {
    /// Its unique number, which is never reused.
    pub number: u64,
    /// The guest's `REQUEST` packet, with its credit fields updated by later packets.
    pub request: Header,
    /// The number of bytes of the token that have been received.
    matched: usize,
}

/// How what a claim has sent compares with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenMatch {
    /// The whole token has been received.
    Complete,
    /// A part of the token has been received.
    Partial,
    /// Something else has been received.
    Wrong,
}

impl Claim {
    /// Compares the payload with the rest of the token, if the port has one, and removes the
    /// compared bytes from `payload`.
    pub fn match_token(
        &mut self,
        token: Option<&Token>,
        payload: &mut Vec<VolatileSlice<'_>>,
    ) -> TokenMatch {
        let wanted = token.map_or(&[][..], |token| &token[self.matched..]);
        let mut bytes = [0; TOKEN_LENGTH];
        let mut found = 0;
        for slice in &*payload {
            found += slice.copy_to(&mut bytes[found..wanted.len()]);
        }
        advance(payload, found);
        self.matched += found;
        match wanted.strip_prefix(&bytes[..found]) {
            Some([]) => TokenMatch::Complete,
            Some(_) => TokenMatch::Partial,
            None => TokenMatch::Wrong,
        }
    }

    /// Stores the credit fields of a packet from the guest.
    pub fn update_credit(&mut self, header: &Header) {
        self.request.buf_alloc = header.buf_alloc;
        self.request.fwd_cnt = header.fwd_cnt;
    }

    /// The number of bytes that it has sent, all of them of the token.
    pub fn sent(&self) -> u32 {
        self.matched as u32 // at most TOKEN_LENGTH
    }
}

/// All claims, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claims: VecDeque<Claim>,
    next_number: u64,
}

impl Claims {
    /// Adds a claim. Returns its number, and the oldest claim if there were too many.
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
            matched: 0,
        });
        (number, oldest)
    }

    /// The claim that a packet from the guest belongs to.
    pub fn find(&mut self, header: &Header) -> Option<&mut Claim> {
        let ports = (header.src_port, header.dst_port);
        let is_it = |claim: &&mut Claim| (claim.request.src_port, claim.request.dst_port) == ports;
        self.claims.iter_mut().find(is_it)
    }

    /// Removes a claim.
    pub fn take(&mut self, number: u64) -> Option<Claim> {
        let index = self.claims.iter().position(|claim| claim.number == number);
        self.claims.remove(index?)
    }

    /// Removes the claims to the ports for which `which` returns true.
    pub fn take_all(&mut self, which: impl Fn(u32) -> bool) -> Vec<Claim> {
        let (taken, kept) = std::mem::take(&mut self.claims)
            .into_iter()
            .partition(|claim| which(claim.request.dst_port));
        self.claims = kept;
        VecDeque::into(taken)
    }

    /// The number of claims.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.claims.len()
    }
}
