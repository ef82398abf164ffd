//! The device between a simulated guest on one side, and descriptors and control clients on the
//! other.

mod control;
mod driver;
mod given;
mod hostile;
mod saved;
mod streams;
