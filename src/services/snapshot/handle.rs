//! What other services ask of copies that are made anew.
//!
//! Must not know: how they are made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::Common;
use crate::proto::snapshot::View;
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

    /// How far copies of an index are that are made anew here.
    pub fn views(&self, index: &PhysicalIndex) -> BTreeMap<ShardId, View> {
        let all = self.common.views();
        all.iter().filter(|(key, _)| key.index == *index).map(|(key, view)| (key.shard, view.clone())).collect()
    }
}
