//! Draws bundles: of each topic of config.json something or nothing, by proptest's strategies.
//!
//! What is drawn is what engines and people write, and some that they shouldn't; not what the control
//! doesn't have, nor what leaves it or the probe no way to do their own work.

mod files;
mod kernel;
mod process;
mod seccomp;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;

use crate::case::{Case, Change};

/// Changes that belong together.
type Topic = BoxedStrategy<Vec<Change>>;

/// How likely a topic is to be in a case.
const LIKELY: f64 = 0.4;

/// The case of this seed.
pub fn case(seed: u64) -> Case {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let drawn = topics().new_tree(&mut runner).unwrap().current();
    let mut changes = drawn.into_iter().flatten().flatten().collect();
    files::leave_read_only_tmpfs_uncovered(&mut changes);
    files::leave_the_mode_to_the_lower_tmpfs(&mut changes);
    Case(changes)
}

fn topics() -> impl Strategy<Value = Vec<Option<Vec<Change>>>> {
    let topics = process::topics()
        .into_iter()
        .chain(files::topics())
        .chain(kernel::topics())
        .chain([seccomp::topic()]);
    topics
        .map(|topic| prop::option::weighted(LIKELY, topic))
        .collect::<Vec<_>>()
}

/// One change: whatever the strategy draws, at a JSON pointer.
fn change(pointer: &'static str, value: impl Strategy<Value = Value> + 'static) -> Topic {
    value
        .prop_map(move |value| vec![Change(pointer.to_owned(), value)])
        .boxed()
}

/// One of these.
fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> BoxedStrategy<T> {
    prop::sample::select(values.to_vec()).boxed()
}

/// At most so many of these, in their order.
fn some_of<T: Clone + std::fmt::Debug + 'static>(
    values: &[T],
    most: usize,
) -> BoxedStrategy<Vec<T>> {
    prop::sample::subsequence(values.to_vec(), 0..=most.min(values.len())).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same_and_another_draws_another() {
        assert_eq!(case(7), case(7));
        assert!((0..20).map(case).any(|other| other != case(7)));
    }

    #[test]
    fn every_topic_is_drawn() {
        let drawn: std::collections::BTreeSet<_> = (0..200)
            .flat_map(|seed| case(seed).0)
            .map(|change| change.0)
            .collect();
        for pointer in [
            "/process/user",
            "/mounts/-",
            "/linux/seccomp",
            "/linux/sysctl",
        ] {
            assert!(drawn.contains(pointer), "{pointer} is not in {drawn:?}");
        }
    }
}
