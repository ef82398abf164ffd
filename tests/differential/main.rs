//! hull beside runc: of one bundle, a probe in the container must report the same.
//!
//! Bundles are drawn at random (`generate`), by a seed, and those that once made a difference are kept
//! (`found.json`). What may differ, and why, is a list (`explained.json`). See README.md.
#![allow(clippy::unwrap_used)] // a failed test is a panic

mod case;
mod compare;
mod generate;
mod reduce;
mod rows;
mod runtimes;

use std::path::PathBuf;

use case::Case;
use compare::{Explanations, Verdict};
use rows::Rows;
use runtimes::Runtimes;
use serde::Deserialize;

/// The seeds of the bundles that are drawn where `HULL_DIFFERENTIAL_SEEDS` does not say: always the same, as
/// what is new is for a run that has the time for it.
const SAMPLE: std::ops::RangeInclusive<u64> = 1..=4;

/// A bundle that once made a difference.
#[derive(Debug, Deserialize)]
struct Found {
    /// What the difference was.
    was: String,
    case: Case,
}

#[test]
fn what_once_differed_does_no_more() {
    let Some(runtimes) = Runtimes::find() else {
        hull_tests::skip!("no runc to hold hull against: .ci/packages conformance");
    };
    let explained = Explanations::read();
    let found: Vec<Found> = serde_json::from_str(include_str!("found.json")).unwrap();
    let mut failed = 0;
    for Found { was, case } in &found {
        let verdict = runtimes.judge(case, &explained);
        if matches!(verdict, Verdict::Differs(_)) {
            println!("once more: {was}\n{verdict}\n{case}");
            failed += 1;
        }
    }
    assert_eq!(failed, 0, "of {} bundles", found.len());
}

#[test]
fn bundles_drawn_at_random_are_the_same_to_both() {
    let Some(runtimes) = Runtimes::find() else {
        hull_tests::skip!("no runc to hold hull against: .ci/packages conformance");
    };
    let explained = Explanations::read();
    let path = std::env::var_os("HULL_DIFFERENTIAL_ROWS").map(PathBuf::from);
    let mut rows = Rows::open(path.as_deref()).unwrap();
    let (mut failed, mut refused, mut crashed) = (0, 0, 0);
    for seed in seeds() {
        if rows.has(seed) {
            continue;
        }
        let case = generate::case(seed);
        let verdict = runtimes.judge(&case, &explained);
        println!("seed {seed}: {verdict}");
        let mut reduced = None;
        match &verdict {
            Verdict::Same | Verdict::Neither(_) => {}
            Verdict::Refused(_) => refused += 1,
            Verdict::ControlCrashed(_) => crashed += 1,
            Verdict::Differs(differences) => {
                failed += 1;
                // Shown first, as to reduce it takes minutes; and once for each kind of difference.
                println!("{case}");
                if rows.is_new(differences) {
                    let least = reduce::reduce(&case, |case| {
                        runtimes.judge(case, &explained).has_one_of(differences)
                    });
                    println!("seed {seed}: at fault is\n{least}");
                    reduced = Some(least);
                }
            }
        }
        rows.add(seed, &verdict, &case, reduced.as_ref()).unwrap();
    }
    println!("{refused} refused by hull by their field, {crashed} where the control crashed");
    assert_eq!(failed, 0, "bundles differ");
}

/// `HULL_DIFFERENTIAL_SEEDS` (`FIRST-LAST`), or the sample's.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let parse = |text: String| -> Option<_> {
        let (first, last) = text.split_once('-')?;
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    match std::env::var("HULL_DIFFERENTIAL_SEEDS") {
        Ok(text) => parse(text).expect("HULL_DIFFERENTIAL_SEEDS is FIRST-LAST"),
        Err(_) => SAMPLE,
    }
}
