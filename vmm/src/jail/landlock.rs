//! Landlock for the virtio-fs thread, and for the out-of-memory reporter: it can open, create, rename and remove files
//! only beneath its root, which is a shared tree's, or a tree of a few host files. Where the host's Landlock can, it connects to no abstract UNIX socket either.
//!
//! This is defence in depth. No path leads out of the tree, and the thread has no descriptor of
//! anything else; if it got one all the same, it couldn't reopen the file through its link in
//! `/proc`.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Error;

/// The first ABI version with `LANDLOCK_ACCESS_FS_REFER`. Older ones always forbid renaming and
/// linking files from one directory to another, so they can't be used.
const NEEDED: ABI = ABI::V2;

/// The newest ABI version whose access rights to files are handled.
const NEWEST: ABI = ABI::V5;

/// Restricts the calling thread, which must have `no_new_privs`, to what lies beneath its root directory.
/// Where the host has no Landlock, or one from before [`NEEDED`], nothing happens.
pub(super) fn restrict_to_root() -> Result<(), Error> {
    let root = PathFd::new("/").map_err(Error::LandlockRoot)?;
    let status = restrict(root).map_err(Error::Landlock)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        log::debug!("the host has no Landlock: a thread that opens files runs without it");
    }
    Ok(())
}

fn restrict(root: PathFd) -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::from_all(NEEDED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rule(PathBeneath::new(root, AccessFs::from_all(NEWEST)))?
        .restrict_self()
}
