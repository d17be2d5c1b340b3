//! What other services ask of copies that are made anew.
//!
//! Must not know: how they are made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::Common;
use crate::proto::snapshot::View;
use crate::services::journal::ShardStatus;
use crate::types::{JournalKey, PhysicalIndex, ShardId};

/// Copies that are made anew, as other services see them; cheap to clone.
#[derive(Clone)]
pub struct SnapshotHandle {
    pub(super) common: Arc<Common>,
}

impl std::fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotHandle").finish_non_exhaustive()
    }
}

impl SnapshotHandle {
    /// Whether the copy of a shard is of no use: it is made anew, waits for that, or is compared. It must not be served.
    pub fn filling(&self, key: &JournalKey) -> bool {
        self.common.apply.is_rebuilt(key)
    }

    /// Adds to what is known of an index's shards which copies are made anew, and how far that is.
    pub fn show(&self, index: &PhysicalIndex, all: &mut BTreeMap<ShardId, ShardStatus>) {
        let views = self.views(index);
        for (shard, status) in all {
            let key = JournalKey { index: index.clone(), shard: *shard };
            status.rebuild |= self.filling(&key);
            if status.rebuild {
                let text = views.get(shard).map_or_else(|| "waiting for its turn".into(), in_words);
                status.making = Some(text);
            }
        }
    }

    /// How far copies of an index are that are made anew here.
    pub fn views(&self, index: &PhysicalIndex) -> BTreeMap<ShardId, View> {
        let all = self.common.views();
        all.iter().filter(|(key, _)| key.index == *index).map(|(key, view)| (key.shard, view.clone())).collect()
    }
}

/// How far a copy is, for people.
fn in_words(view: &View) -> String {
    let View { doing, source, read, of, restarts, trouble } = view;
    let source = source.as_ref().map_or(String::new(), |source| format!(" from {source}"));
    let read = if *of > 0 { format!(", {read} of {of} documents read") } else { String::new() };
    let restarts = if *restarts > 0 { format!(", begun anew {restarts} times") } else { String::new() };
    let trouble = trouble.as_ref().map_or(String::new(), |trouble| format!("; last trouble: {trouble}"));
    format!("{doing}{source}{read}{restarts}{trouble}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    #[test]
    fn people_read_how_far_a_copy_is_and_what_is_in_the_way() {
        let view = View {
            doing: "copying",
            source: Some(MemberId::new("m2").unwrap()),
            read: 3,
            of: 7,
            restarts: 1,
            trouble: Some("m1: away".into()),
        };
        let text = "copying from m2, 3 of 7 documents read, begun anew 1 times; last trouble: m1: away";
        assert_eq!(in_words(&view), text);
        let none = View { doing: "looking for a copy", source: None, read: 0, of: 0, restarts: 0, trouble: None };
        assert_eq!(in_words(&none), "looking for a copy");
    }
}
