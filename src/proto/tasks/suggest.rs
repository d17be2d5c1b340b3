//! Which parameter was probably meant by one that does not exist.
//!
//! Rule: measured on a v1.50.0 node. Distance counts characters inserted, removed, exchanged or swapped with their
//! neighbour; how many are forgiven goes by the bytes that were sent; the nearest wins, and of equals the first. Must not
//! know: what parameters mean.

/// Longest text that is looked at; longer ones resemble nothing.
const TEXT_MAX_BYTES: usize = 64;

/// The known name that is near enough.
pub(super) fn meant<'k>(sent: &str, known: &[&'k str]) -> Option<&'k str> {
    let forgiven = match sent.len() {
        0..=3 => return None,
        4..=7 => 1,
        8..=12 => 2,
        13..=17 => 3,
        18..=TEXT_MAX_BYTES => 4,
        _ => return None,
    };
    let near = known.iter().map(|name| (distance(sent, name), *name)).filter(|(d, _)| *d <= forgiven);
    near.min_by_key(|(d, _)| *d).map(|(_, name)| name)
}

fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::query::LIST_PARAMETERS;
    use super::*;

    #[test]
    fn what_a_node_suggests() {
        let none = [
            "rev",
            "reve",
            "rexerze",
            "statusexyz",
            "batchUxxx",
            "batchUidsxxx",
            "canceledBxxx",
            "afterEnqueue",
            "lim",
            "uid",
            "uis",
            "types12",
            "typ",
            "status",
            "EnqueuedAt",
            "BATCHUIDS",
            "xFinishedAt",
            "statué",
            "ordre",
            "mfro",
            "reEnqueuedAt",
            "beforeEnqueuedxyzwv",
            "beforeEnqueuedAtxxxxx",
            "batchUi",
            "statusx",
            "suid",
            "cancelby",
            "",
        ];
        for sent in none {
            assert_eq!(meant(sent, &LIST_PARAMETERS), None, "{sent}");
        }
        let some = [
            ("limits", "limit"),
            ("form", "from"),
            ("uidss", "uids"),
            ("statues", "statuses"),
            ("indexUid", "indexUids"),
            ("type", "types"),
            ("Limit", "limit"),
            ("cancelBy", "canceledBy"),
            ("afterEnqueued", "afterEnqueuedAt"),
            ("xrevxerse", "reverse"),
            ("statusesxy", "statuses"),
            ("batchUidsxx", "batchUids"),
            ("lmit", "limit"),
            ("canceledByxxx", "canceledBy"),
            ("beforeEnqueuedAtxxxx", "beforeEnqueuedAt"),
            ("limié", "limit"),
            ("foreEnqueuedAt", "beforeEnqueuedAt"),
            ("beforStrtedAt", "beforeStartedAt"),
            ("bacthUids", "batchUids"),
            ("Afterfinishedat", "afterFinishedAt"),
            ("éétypes", "types"),
            ("udis", "uids"),
            ("statusxx", "statuses"),
            ("beforeEnqueuedxyzw", "beforeEnqueuedAt"),
            ("uidé", "uids"),
            ("ebforeEnqueudeAt", "beforeEnqueuedAt"),
            // As near as `beforeEnqueuedAt`, but listed first; and nearer than the one listed first.
            ("aforeEnqueuedAt", "afterEnqueuedAt"),
            ("beferEnqueuedAt", "beforeEnqueuedAt"),
        ];
        for (sent, expected) in some {
            assert_eq!(meant(sent, &LIST_PARAMETERS), Some(expected), "{sent}");
        }
        assert_eq!(meant(&"limit".repeat(10_000), &LIST_PARAMETERS), None);
    }
}
