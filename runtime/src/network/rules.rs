//! Rules for the choice of a routing table (ip-rule(8)), as another kernel is to take them.

use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::local_access;
use super::netlink::FAMILIES;
use netlink_packet_route::AddressFamily;

/// The rules that every namespace starts with: priority and table (`fib_default_rules_init`, `fib6_rules_net_init`).
const DEFAULTS: [(u32, u8); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// Those of a family: IPv6 has no table `default`.
fn defaults(family: AddressFamily) -> &'static [(u32, u8)] {
    match family {
        AddressFamily::Inet6 => &DEFAULTS[..2],
        _ => &DEFAULTS,
    }
}

/// IPv4's rule for the table of the namespace's own addresses, which comes before all others.
pub(super) fn local() -> RuleMessage {
    make(AddressFamily::Inet, DEFAULTS[0])
}

/// Whether a rule is that one.
pub(super) fn is_local(rule: &RuleMessage) -> bool {
    rule.header.family == AddressFamily::Inet && is_default(rule, DEFAULTS[0])
}

/// The rules that somebody else than hull has added, and those that somebody has removed, of all that there are.
pub(super) fn changes(mut rules: Vec<RuleMessage>) -> (Vec<RuleMessage>, Vec<RuleMessage>) {
    rules.retain(|rule| !local_access::is_own_rule(rule));
    let mut removed = Vec::new();
    for family in FAMILIES {
        let of_family = |rule: &RuleMessage| rule.header.family == family;
        // A kernel without the family has no rules at all.
        let exists = rules.iter().any(of_family);
        for default in defaults(family) {
            let is_default = |rule: &RuleMessage| of_family(rule) && is_default(rule, *default);
            match rules.iter().position(is_default) {
                Some(index) => drop(rules.remove(index)),
                None if exists => removed.push(make(family, *default)),
                None => {}
            }
        }
    }
    for rule in &mut rules {
        // Whether an interface is there, or the target of a `goto`, is for the other kernel to see.
        rule.header.flags &= RuleFlags::Invert;
    }
    (rules, removed)
}

fn is_default(rule: &RuleMessage, (priority, table): (u32, u8)) -> bool {
    let header = &rule.header;
    let selects_all = (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert);
    let says_so = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Table(number) => *number == u32::from(table),
        RuleAttribute::Priority(number) => *number == priority,
        RuleAttribute::SuppressPrefixLen(length) => *length == u32::MAX,
        RuleAttribute::Protocol(_) => true,
        _ => false,
    };
    // The priority 0 isn't told.
    let tells_priority =
        |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
    selects_all
        && (header.action, header.table) == (RuleAction::ToTable, table)
        && (priority == 0 || rule.attributes.iter().any(tells_priority))
        && rule.attributes.iter().all(says_so)
}

fn make(family: AddressFamily, (priority, table): (u32, u8)) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.header.table = table;
    rule.attributes = vec![
        RuleAttribute::Table(table.into()),
        RuleAttribute::Priority(priority),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_defaults() -> Vec<RuleMessage> {
        let of = |family| defaults(family).iter().map(move |rule| make(family, *rule));
        FAMILIES.into_iter().flat_map(of).collect()
    }

    #[test]
    fn a_namespaces_first_rules_are_no_change() {
        assert_eq!(changes(all_defaults()), (vec![], vec![]));
        assert_eq!(changes(vec![]), (vec![], vec![]));
    }

    #[test]
    fn what_was_added_and_removed_is_told() {
        let mut rules = all_defaults();
        let mut moved = rules.remove(0);
        moved.attributes[1] = RuleAttribute::Priority(100);
        moved.header.flags = RuleFlags::Invert | RuleFlags::Unresolved;
        rules.push(moved.clone());
        let (added, removed) = changes(rules);
        moved.header.flags = RuleFlags::Invert;
        assert_eq!(added, [moved]);
        assert_eq!(removed, [make(AddressFamily::Inet, (0, 255))]);
    }
}
