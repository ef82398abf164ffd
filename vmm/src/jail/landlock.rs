//! Landlock for the virtio-fs thread: nothing can be opened, made, renamed or removed but beneath the
//! shared tree's root.
//!
//! It is a second lock. No path leads out of the tree, and the thread has no descriptor of anything else;
//! should it get one all the same, its link in `/proc` can't be followed to open the file another way.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};

use super::Error;

/// The first version that a file can be renamed and linked under from one directory to another. Older ones
/// refuse it always, so there is no Landlock then.
const NEEDED: ABI = ABI::V2;

/// The version whose rights are all there is on files as of now.
const NEWEST: ABI = ABI::V5;

/// Restricts the calling thread, which must have `no_new_privs`, to what lies beneath its root directory.
/// Where the host has no Landlock, or one from before [`NEEDED`], nothing happens.
pub(super) fn restrict_to_root() -> Result<(), Error> {
    let root = PathFd::new("/").map_err(Error::LandlockRoot)?;
    let status = restrict(root).map_err(Error::Landlock)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        log::debug!("the host has no Landlock: the virtio-fs thread goes without");
    }
    Ok(())
}

fn restrict(root: PathFd) -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(root, AccessFs::from_all(NEWEST)))?
        .restrict_self()
}
