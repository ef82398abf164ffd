//! Plain types that every layer speaks of: what they mean, and nothing that is done with them.

mod boot;
mod container_id;
mod sizing;

pub use boot::Boot;
pub use container_id::{ContainerId, IdError, RESERVED};
pub use sizing::Sizing;
