//! A node's error messages as the client would get them from one node with the client's own settings.
//!
//! The rule: no message shows the physical index, the reserved field, or numbers that count it. The texts are those of
//! Meilisearch v1.50, recorded in `error_texts.json`. Must not know: codes, statuses.

use crate::types::SHARD_FIELD;
use crate::types::{IndexUid, PhysicalIndex};

/// A list of names in a message.
struct List {
    /// How it begins.
    intro: &'static str,
    /// Each name has quotes of its own; otherwise there is one pair around all.
    quoted: bool,
    /// A node leaves out the fields that clients may not see, and says so.
    hides: bool,
    /// What a node says, instead of the introduction and the list, if there are none.
    empty: &'static str,
}

/// What follows the visible names if others were left out.
const HIDDEN: &str = ", <..hidden-attributes>";

const NO_FILTERABLE: &str = "This index does not have configured filterable attributes.";

/// The lists that may name the reserved field, or fields that are hidden. No introduction is the end of another.
const LISTS: [List; 6] = [
    List { intro: "Available filterable attribute patterns are: ", quoted: true, hides: false, empty: NO_FILTERABLE },
    List {
        intro: "distinct attribute. Available filterable attributes patterns are: ",
        quoted: false,
        hides: true,
        empty: "distinct attribute. This index does not have configured filterable attributes.",
    },
    List {
        intro: "is not filterable. Available filterable attributes patterns are: ",
        quoted: false,
        hides: false,
        empty: "is not filterable. This index does not have configured filterable attributes.",
    },
    List {
        intro: "Available facet-searchable attributes patterns are: ",
        quoted: false,
        hides: true,
        empty: "This index does not have configured facet-searchable attributes.",
    },
    List {
        intro: "Available sortable attributes are: ",
        quoted: false,
        hides: true,
        empty: "This index does not have configured sortable attributes.",
    },
    List {
        intro: "Available searchable attributes are: ",
        quoted: false,
        hides: true,
        empty: "Available searchable attributes are: ``.",
    },
];

/// What stands before the number of a rule, or the position of an item, in `filterableAttributes`. The reserved field is
/// the first item on nodes, so they count one too many.
const COUNTED: [&str; 5] = ["matched rule #", "matches rule #", "in rule #", "before rule #", ".filterableAttributes["];

/// Puts a node's error message back to the client's view, where clients may see every field.
pub fn error_text(text: &str, physical: &PhysicalIndex, uid: &IndexUid) -> String {
    error_text_hiding(text, physical, uid, None)
}

/// As [`error_text`], where clients may see only the fields `displayed` (`None`: all; nodes show all to the mesh).
pub fn error_text_hiding(text: &str, physical: &PhysicalIndex, uid: &IndexUid, displayed: Option<&[String]>) -> String {
    let mut text = text.replace(physical.as_str(), uid.as_str());
    for marker in COUNTED {
        if text.contains(marker) {
            text = count_one_less(&text, marker);
        }
    }
    // The filter comes last in a message, so it can't hold the first introduction of a list.
    if text.contains(SHARD_FIELD)
        && let Some(shown) = without_shard_filter(&text)
    {
        text = shown;
    }
    for list in &LISTS {
        // Where documents are listed, not searched, a node names all sortable fields; those texts don't name the index.
        let hides = list.hides && text.contains(&format!("Index `{uid}`: ")) || list.intro.contains("facet-searchable");
        if text.contains(list.intro) {
            text = cut_list(&text, list, displayed.filter(|_| hides));
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

/// Takes the reserved field, and what is not `displayed`, out of a list of names.
fn cut_list(text: &str, list: &List, displayed: Option<&[String]>) -> String {
    let Some((before, rest)) = text.split_once(list.intro) else { return text.to_owned() };
    let (separator, closing) = if list.quoted { ("`, `", "`.") } else { (", ", "`.") };
    let Some((names, after)) = rest.strip_prefix('`').and_then(|r| r.split_once(closing)) else {
        return text.to_owned();
    };
    let own: Vec<&str> = names.split(separator).filter(|n| *n != SHARD_FIELD).collect();
    let shown: Vec<&str> = match displayed {
        Some(displayed) => own.iter().copied().filter(|n| displayed.iter().any(|d| d == n)).collect(),
        None => own.clone(),
    };
    let searchable = list.intro.contains("searchable attributes are");
    let hidden = if shown.len() < own.len() { HIDDEN } else { "" };
    if shown.is_empty() && !(searchable && hidden == HIDDEN) {
        return format!("{before}{}{after}", list.empty);
    }
    format!("{before}{}`{}{hidden}{closing}{after}", list.intro, shown.join(separator))
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
        type Recorded = (String, String, Option<Vec<String>>);
        let recorded: Vec<Recorded> = serde_json::from_str(include_str!("error_texts.json")).unwrap();
        assert!(recorded.len() > 200);
        for (theirs, expected, displayed) in &recorded {
            let ours = error_text_hiding(theirs, &physical, &uid, displayed.as_deref());
            assert_eq!(&ours, expected, "from {theirs}, displayed {displayed:?}");
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
