//! The device as its users see it: a played guest on one side, descriptors and clients on the other.

mod control;
mod driver;
mod hostile;
mod saved;
mod streams;
