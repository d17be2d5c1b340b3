//! In which order members try for a scope, and who owns a piece of spread work: rendezvous hashing.
//!
//! Every member comes to the same order from the same list. Must not know: who lives.

use twox_hash::XxHash64;

use crate::types::{MemberId, Scope};

fn weight(key: &str, member: &MemberId) -> u64 {
    let mut text = Vec::with_capacity(key.len() + 1 + member.as_str().len());
    text.extend_from_slice(key.as_bytes());
    // No key holds a zero byte, so no two pairs run into one text.
    text.push(0);
    text.extend_from_slice(member.as_str().as_bytes());
    XxHash64::oneshot(0, &text)
}

/// The member that owns `key` among those given: the one with the highest hash, equal values by lower id. When a member
/// leaves, only what it owned goes to others.
pub fn owner<'a>(key: &str, members: impl IntoIterator<Item = &'a MemberId>) -> Option<&'a MemberId> {
    members.into_iter().min_by_key(|m| (std::cmp::Reverse(weight(key, m)), *m))
}

/// Whether `me` owns `key` among the living members: for work that is spread, not led. Two members whose lists differ may
/// both own a key for a while, so what is done so must bear being done twice.
pub fn owns<'a>(key: &str, me: &MemberId, living: impl IntoIterator<Item = &'a MemberId>) -> bool {
    owner(key, living) == Some(me)
}

/// The members in the order in which they try for the scope. A member that comes first for an earlier standing scope comes
/// last for this one, so that standing scopes are spread, which hashes alone leave to chance.
pub fn order<'a>(scope: &Scope, members: &[&'a MemberId]) -> Vec<&'a MemberId> {
    let hashed = |scope: &Scope| {
        let key = scope.to_string();
        let mut ranked: Vec<_> = members.iter().map(|m| (std::cmp::Reverse(weight(&key, m)), *m)).collect();
        ranked.sort();
        ranked.into_iter().map(|(_, m)| m).collect::<Vec<_>>()
    };
    if !scope.is_standing() {
        return hashed(scope);
    }
    let mut first = Vec::new();
    for standing in &Scope::STANDING {
        let (free, taken): (Vec<_>, Vec<_>) = hashed(standing).into_iter().partition(|m| !first.contains(m));
        let ranked = [free, taken].concat();
        if standing == scope {
            return ranked;
        }
        first.extend(ranked.first());
    }
    hashed(scope)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn members(n: usize) -> Vec<MemberId> {
        (0..n).map(|i| MemberId::new(format!("m{i}")).unwrap()).collect()
    }

    #[test]
    fn standing_scopes_come_first_to_different_members() {
        for n in 1..20 {
            let members = members(n);
            let all: Vec<_> = members.iter().collect();
            let firsts: BTreeSet<_> = Scope::STANDING.iter().map(|s| order(s, &all)[0]).collect();
            assert_eq!(firsts.len(), n.min(3));
            for scope in &Scope::STANDING {
                assert_eq!(order(scope, &all).into_iter().collect::<BTreeSet<_>>().len(), n, "each member once");
            }
        }
    }

    #[test]
    fn a_member_that_leaves_moves_only_its_own_keys() {
        let (all, fewer) = (members(5), members(4));
        let mut moved = 0;
        for key in (0..1_000).map(|i| format!("job {i}")) {
            let before = owner(&key, &all).unwrap();
            if owner(&key, &fewer) != Some(before) {
                assert_eq!(*before, all[4]);
                moved += 1;
            }
            assert_eq!(all.iter().filter(|m| owns(&key, m, &all)).count(), 1);
        }
        assert!((120..280).contains(&moved), "about a fifth: {moved}");
        assert_eq!(owner("x", &[]), None);
    }
}
