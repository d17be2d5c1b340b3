//! Shard numbers, sets of them, and the text that marks a document's shard on a node.
//!
//! Must not know: which shard a document belongs to (`proto::placement`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::SHARDS_MAX;

/// The document field that marks a document's shard on its node; reserved, and invisible to clients.
pub const SHARD_FIELD: &str = "_miroir_shard";

/// One shard of an index, below the index's `S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The value of `_miroir_shard` in a document of this shard: the one letter U+A000 + shard.
    ///
    /// A letter that nobody types, and no number, because nodes search every field by default.
    pub fn letter(self) -> char {
        // SHARDS_MAX letters from U+A000 on are Yi syllables and radicals, all valid characters.
        char::from_u32(0xA000 + u32::from(self.0)).expect("U+A000 + 1023 is a character")
    }

    /// The shard that a stored `_miroir_shard` value names, if it is one.
    pub fn of_letter(letter: char) -> Option<Self> {
        let n = u32::from(letter).checked_sub(0xA000)?;
        u16::try_from(n).ok().filter(|n| *n < SHARDS_MAX).map(ShardId)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of shards, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardSet {
    // One bit a shard, lowest first; no trailing zero words, so that equal sets are equal values.
    words: Vec<u64>,
}

impl ShardSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// All shards below `s`.
    pub fn all(s: u16) -> Self {
        (0..s).map(ShardId).collect()
    }

    /// Adds a shard; says whether it is new. Shards from `SHARDS_MAX` on are not taken.
    pub fn insert(&mut self, shard: ShardId) -> bool {
        if shard.0 >= SHARDS_MAX {
            return false;
        }
        let (word, bit) = (usize::from(shard.0) / 64, 1_u64 << (shard.0 % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Takes a shard out.
    pub fn remove(&mut self, shard: ShardId) {
        if let Some(w) = self.words.get_mut(usize::from(shard.0) / 64) {
            *w &= !(1_u64 << (shard.0 % 64));
        }
        self.trim();
    }

    /// Whether the shard is in the set.
    pub fn contains(&self, shard: ShardId) -> bool {
        self.words.get(usize::from(shard.0) / 64).is_some_and(|w| w & (1 << (shard.0 % 64)) != 0)
    }

    /// How many shards are in the set.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether no shard is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The lowest shard of the set.
    pub fn first(&self) -> Option<ShardId> {
        self.iter().next()
    }

    /// The shards in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.words.iter().enumerate().flat_map(|(i, w)| {
            let base = u16::try_from(i * 64).unwrap_or(u16::MAX);
            (0..64_u16).filter(move |b| w & (1 << b) != 0).map(move |b| ShardId(base + b))
        })
    }

    /// Whether every shard of this set is in `other`.
    pub fn is_subset(&self, other: &ShardSet) -> bool {
        self.words.iter().enumerate().all(|(i, w)| w & !other.words.get(i).copied().unwrap_or(0) == 0)
    }

    /// The shards of this set that are not in `other`.
    pub fn minus(&self, other: &ShardSet) -> ShardSet {
        let words = self.words.iter().enumerate();
        let mut out = ShardSet { words: words.map(|(i, w)| w & !other.words.get(i).copied().unwrap_or(0)).collect() };
        out.trim();
        out
    }

    /// The shards of both sets.
    pub fn intersection(&self, other: &ShardSet) -> ShardSet {
        self.iter().filter(|shard| other.contains(*shard)).collect()
    }

    /// The shards of either set.
    pub fn union(&self, other: &ShardSet) -> ShardSet {
        self.iter().chain(other.iter()).collect()
    }

    fn trim(&mut self) {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        let mut set = ShardSet::new();
        for s in shards {
            set.insert(s);
        }
        set
    }
}

impl fmt::Display for ShardSet {
    /// Comma-separated numbers, as `X-Miroir-Degraded` names them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            s.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(shards: &BTreeSet<u16>) -> ShardSet {
        shards.iter().copied().map(ShardId).collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_set(a in prop::collection::btree_set(0..SHARDS_MAX, 0..90), b in prop::collection::btree_set(0..SHARDS_MAX, 0..90)) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.iter().map(|s| s.0).collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.minus(&y), set(&a.difference(&b).copied().collect()));
            let mut z = x.clone();
            for s in &a { z.remove(ShardId(*s)); }
            prop_assert_eq!(z, ShardSet::new());
        }

        #[test]
        fn letter_names_its_shard(n in 0..SHARDS_MAX) {
            prop_assert_eq!(ShardId::of_letter(ShardId(n).letter()), Some(ShardId(n)));
            prop_assert!(ShardId(n).letter().is_alphabetic() || n >= 1165);
        }
    }

    #[test]
    fn prints_as_the_degraded_header_wants_it() {
        assert_eq!(set(&BTreeSet::from([3, 7, 11])).to_string(), "3,7,11");
    }
}
