//! A node's error messages as the client would get them from one node with the client's own settings.
//!
//! The rule: no message shows the physical index, the reserved field, or numbers that count it. The texts are those of
//! Meilisearch v1.50, recorded in `error_texts.json`. Must not know: codes, statuses.

use super::SHARD_FIELD;
use crate::types::{IndexUid, PhysicalIndex};

/// The lists that may name the reserved field: how they begin, whether each name has quotes of its own, and what a node
/// says instead of an empty one.
const LISTS: [(&str, bool, &str); 3] = [
    (
        "Available filterable attribute patterns are: ",
        true,
        "This index does not have configured filterable attributes.",
    ),
    (
        "Available filterable attributes patterns are: ",
        false,
        "This index does not have configured filterable attributes.",
    ),
    (
        "Available facet-searchable attributes patterns are: ",
        false,
        "This index does not have configured facet-searchable attributes.",
    ),
];

/// What stands before the number of a rule, or the position of an item, in `filterableAttributes`. The reserved field is
/// the first item on nodes, so they count one too many.
const COUNTED: [&str; 5] = ["matched rule #", "matches rule #", "in rule #", "before rule #", ".filterableAttributes["];

/// Puts a node's error message back to the client's view.
pub fn error_text(text: &str, physical: &PhysicalIndex, uid: &IndexUid) -> String {
    let mut text = text.replace(physical.as_str(), uid.as_str());
    for marker in COUNTED {
        if text.contains(marker) {
            text = count_one_less(&text, marker);
        }
    }
    if text.contains(SHARD_FIELD) {
        for (intro, quoted, empty) in LISTS {
            text = without_field_in_list(&text, intro, quoted, empty);
        }
        if let Some(shown) = without_shard_filter(&text) {
            text = shown;
        }
    }
    text
}

/// Every number behind `marker`, if it is above 0, becomes one less.
fn count_one_less(text: &str, marker: &str) -> String {
    let mut parts = text.split(marker);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(marker);
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        match part[..digits].parse::<u32>() {
            Ok(number) => {
                out.push_str(&number.saturating_sub(1).to_string());
                out.push_str(&part[digits..]);
            }
            Err(_) => out.push_str(part),
        }
    }
    out
}

/// Takes the reserved field out of a list of names.
fn without_field_in_list(text: &str, intro: &str, quoted: bool, empty: &str) -> String {
    let Some((before, list)) = text.split_once(intro) else { return text.to_owned() };
    let alone = format!("`{SHARD_FIELD}`.");
    if let Some(after) = list.strip_prefix(&alone) {
        return format!("{before}{empty}{after}");
    }
    let (first, later) = match quoted {
        true => (format!("`{SHARD_FIELD}`, "), format!(", `{SHARD_FIELD}`")),
        false => (format!("{SHARD_FIELD}, "), format!(", {SHARD_FIELD}")),
    };
    // In the middle of a list either comma may go. The client can't name the field, so the first one found is ours.
    let list = if list.contains(&first) { list.replacen(&first, "", 1) } else { list.replacen(&later, "", 1) };
    format!("{before}{intro}{list}")
}

/// Takes the shards' filter out of the filter that a message quotes, and moves the position before it accordingly.
///
/// Nodes print the whole filter anew: `3:5 ("a" = "1") AND ("_miroir_shard" IN ["ꀀ"])`, positions in characters from 1.
fn without_shard_filter(text: &str) -> Option<String> {
    let group = format!("(\"{SHARD_FIELD}\" ");
    let (head, from, to, filter) = quoted_filter(text, &group)?;
    let (shown, mut removed) = if let Some(after) = filter.strip_prefix(&group) {
        let front = group.len() + closing(after)? + 1;
        let shown = filter[front..].strip_prefix(" AND ")?;
        (shown, filter[..front].chars().count() + " AND ".len())
    } else {
        (&filter[..filter.rfind(&format!(" AND {group}"))?], 0)
    };
    let shown = match shown.strip_prefix('(') {
        // One filter of the client: alone it has no brackets around it.
        Some(inner) if closing(inner) == Some(inner.len() - 1) => {
            removed += 1;
            &inner[..inner.len() - 1]
        }
        _ => shown,
    };
    Some(format!("{head}{}:{} {shown}", from.checked_sub(removed)?, to.checked_sub(removed)?))
}

/// The last part of a message that reads `line feed, from:to, filter` with `within` in the filter.
fn quoted_filter<'t>(text: &'t str, within: &str) -> Option<(&'t str, usize, usize, &'t str)> {
    text.match_indices('\n').find_map(|(at, _)| {
        let (head, rest) = text.split_at(at + 1);
        let (place, filter) = rest.split_once(' ')?;
        let (from, to) = place.split_once(':')?;
        let numbers = (from.parse().ok()?, to.parse().ok()?);
        filter.contains(within).then_some((head, numbers.0, numbers.1, filter))
    })
}

/// Position of the bracket that closes the one before `text`; brackets in quotes don't count.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => return Some(at),
            ')' if !quoted => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> (PhysicalIndex, IndexUid) {
        (PhysicalIndex::new("pkgs__m0123abcd").unwrap(), IndexUid::new("pkgs").unwrap())
    }

    #[test]
    fn a_nodes_texts_become_what_one_node_would_say() {
        let (physical, uid) = names();
        let recorded: Vec<(String, String)> = serde_json::from_str(include_str!("error_texts.json")).unwrap();
        assert!(recorded.len() > 200);
        for (theirs, expected) in &recorded {
            assert_eq!(&error_text(theirs, &physical, &uid), expected, "from {theirs}");
        }
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        let (physical, uid) = names();
        for text in
            ["", "x\n1:2 ", "Index `other__m0123abcd` not found.", "rule #3 of life", "`.sortableAttributes[1]`"]
        {
            assert_eq!(error_text(text, &physical, &uid), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(parts in prop::collection::vec(prop::sample::select(vec![
            "\n", "1:2 ", "3:500 ", "(\"_miroir_shard\" ", " AND ", "(", ")", "\"", "\\", "é", "in rule #", "0", "99999999999",
            ".filterableAttributes[", "Available filterable attribute patterns are: ", "`_miroir_shard`", ", ", ".",
            "Available filterable attributes patterns are: ", "_miroir_shard", "pkgs__m0123abcd",
        ]), 0..14)) {
            let (physical, uid) = names();
            prop_assert!(!error_text(&parts.concat(), &physical, &uid).contains(physical.as_str()));
        }
    }
}
