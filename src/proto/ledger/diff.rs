//! The difference between two versions of a value: what stands between their common beginning and their common end.
//!
//! Rule: a difference names the version it was made from and the hash of what must come out; anything else than that is
//! refused, so a wrong base never makes a wrong value. Must not know: what the texts mean.

use std::sync::Arc;

use twox_hash::XxHash64;

use super::message::PushBody;
use crate::types::Value;
use crate::types::limits::RECORD_MAX_BYTES;

/// Values shorter than this travel whole.
pub const DIFFERENCE_MIN_BYTES: usize = 1_024;

/// `new` as a difference to `old` of version `base`, or whole where that is not much more.
pub fn between(base: u64, old: &Value, new: &Value) -> PushBody {
    let same = |a: &mut dyn Iterator<Item = (char, char)>| {
        a.take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum::<usize>()
    };
    let prefix = same(&mut old.chars().zip(new.chars()));
    let suffix = same(&mut old[prefix..].chars().rev().zip(new[prefix..].chars().rev()));
    let middle = &new[prefix..new.len() - suffix];
    let (Ok(prefix), Ok(suffix)) = (u32::try_from(prefix), u32::try_from(suffix)) else {
        return PushBody::Whole(Arc::clone(new));
    };
    if new.len() < DIFFERENCE_MIN_BYTES || middle.len() > new.len() / 2 {
        return PushBody::Whole(Arc::clone(new));
    }
    PushBody::Difference { base, prefix, suffix, middle: middle.into(), hash: hash(new) }
}

/// The value that a difference makes of `old`; `None` if it was made from something else.
pub fn applied(old: &Value, prefix: u32, suffix: u32, middle: &str, wanted: u64) -> Option<Value> {
    let (prefix, suffix) = (usize::try_from(prefix).ok()?, usize::try_from(suffix).ok()?);
    let end = old.len().checked_sub(suffix).filter(|end| *end >= prefix)?;
    let (head, tail) = (old.get(..prefix)?, old.get(end..)?);
    let long = head.len() + middle.len() + tail.len() > RECORD_MAX_BYTES;
    let value: Value = if long { return None } else { [head, middle, tail].concat().into() };
    (hash(&value) == wanted).then_some(value)
}

fn hash(value: &str) -> u64 {
    XxHash64::oneshot(0, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn long(middle: &str) -> Value {
        format!("{}{middle}{}", "ä".repeat(600), "ö".repeat(600)).into()
    }

    #[test]
    fn a_small_change_of_a_long_value_is_small() {
        let (old, new) = (long("xx"), long("xüx"));
        let body = between(3, &old, &new);
        let PushBody::Difference { base: 3, prefix, suffix, middle, hash } = body else { panic!("{body:?}") };
        assert!(middle.len() <= 3);
        assert_eq!(applied(&old, prefix, suffix, &middle, hash), Some(new));
    }

    #[test]
    fn a_difference_from_another_base_is_refused() {
        let PushBody::Difference { prefix, suffix, middle, hash, .. } = between(1, &long("a"), &long("b")) else {
            panic!("whole")
        };
        assert_eq!(applied(&"é".repeat(1_201).into(), prefix, suffix, &middle, hash), None);
        assert_eq!(applied(&"short".into(), prefix, suffix, &middle, hash), None);
        assert_eq!(applied(&long("a"), u32::MAX, u32::MAX, &middle, hash), None);
        assert_eq!(applied(&long("a"), 1, suffix, &middle, hash), None, "inside a character");
    }

    proptest! {
        #[test]
        fn what_comes_out_is_the_new_value(a in ".{0,40}", b in ".{0,40}", c in ".{0,40}") {
            let (old, new) = (long(&format!("{a}{b}")), long(&format!("{a}{c}{b}")));
            match between(1, &old, &new) {
                PushBody::Whole(v) => prop_assert_eq!(v, new),
                PushBody::Difference { prefix, suffix, middle, hash, .. } => {
                    prop_assert_eq!(applied(&old, prefix, suffix, &middle, hash), Some(new));
                }
            }
        }
    }
}
