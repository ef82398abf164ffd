//! Finds the least change that still makes a difference, so that it names the field at fault.
//!
//! proptest's own way is not used: it also makes every number smaller bit by bit, and here each try
//! takes the start of two containers.

use serde_json::Value;

use crate::case::{Case, Change};

/// So many tries are made.
const TRIES: usize = 40;

/// Leaves out what can be left out while `differs` still holds: whole changes first, then elements and
/// members of their values.
pub fn reduce(case: &Case, differs: impl Fn(&Case) -> bool) -> Case {
    let mut least = case.clone();
    let mut tries = 0;
    let mut at = 0;
    // What was tried in vain is passed over; after a success the next candidate has its place.
    while let Some(candidate) = candidate(&least, at) {
        tries += 1;
        if tries > TRIES {
            break;
        }
        if differs(&candidate) {
            least = candidate;
        } else {
            at += 1;
        }
    }
    least
}

/// The case without its `nth` part.
fn candidate(case: &Case, nth: usize) -> Option<Case> {
    let mut changes = case.0.clone();
    if nth < changes.len() {
        changes.remove(nth);
        return Some(Case(changes));
    }
    let mut left = nth - changes.len();
    for Change(_, value) in &mut changes {
        if remove_part(value, &mut left) {
            return Some(Case(changes));
        }
    }
    None
}

/// Removes the part with this number, counted depth first; otherwise takes their number from it.
fn remove_part(value: &mut Value, nth: &mut usize) -> bool {
    let length = match value {
        Value::Array(elements) => elements.len(),
        Value::Object(members) => members.len(),
        _ => return false,
    };
    if *nth < length {
        match value {
            Value::Array(elements) => drop(elements.remove(*nth)),
            Value::Object(members) => {
                let key = members.keys().nth(*nth).cloned();
                key.and_then(|key| members.shift_remove(&key));
            }
            _ => {}
        }
        return true;
    }
    *nth -= length;
    match value {
        Value::Array(elements) => elements.iter_mut().any(|element| remove_part(element, nth)),
        Value::Object(members) => members.values_mut().any(|member| remove_part(member, nth)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_at_fault_is_left_out() {
        let case = Case(vec![
            Change("/a".into(), json!(1)),
            Change("/b".into(), json!([{ "x": 1, "y": 2 }, 3, 4])),
            Change("/c".into(), json!({})),
        ]);
        let guilty = |case: &Case| {
            let b = case.0.iter().find(|change| change.0 == "/b");
            b.is_some_and(|b| b.1[0]["y"] == 2)
        };
        let least = reduce(&case, guilty);
        assert_eq!(least.0, [Change("/b".into(), json!([{ "y": 2 }]))]);
    }
}
