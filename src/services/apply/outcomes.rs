//! What became of entries, as the homes of tasks hear it.
//!
//! Must not know: what a home makes of it.

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::handle::ApplyHandle;
use crate::proto::tasks::When;
use crate::proto::tasks::home::Done;
use crate::services::homes::Outcomes;
use crate::store::StoreError;
use crate::store::journal::EntryOutcome;
use crate::types::JournalKey;

/// The time now, of the machine's clock.
pub(super) fn wall() -> When {
    crate::services::homes::wall()
}

/// What became of an entry that is applied. When the node was not seen to do it (it came with a copy), that was just now.
fn done(outcome: EntryOutcome) -> Done {
    let (started, finished) = outcome.times.map_or_else(|| (wall(), wall()), |(from, to)| (When(from), When(to)));
    let error = outcome.flaw.map(|flaw| (flaw.code, flaw.message));
    let changed = if error.is_some() { 0 } else { outcome.changed };
    Done { error, changed, started, finished }
}

#[async_trait]
impl Outcomes for ApplyHandle {
    fn subscribe(&self) -> broadcast::Receiver<(JournalKey, u64)> {
        self.shared.positions.subscribe()
    }

    fn applied(&self, key: &JournalKey) -> u64 {
        let known = self.shared.known();
        known.get(&key.index).and_then(|known| known.lags.get(&key.shard)).map_or(0, |lag| lag.applied)
    }

    async fn outcomes(&self, key: &JournalKey, seqs: &[u64]) -> Result<Vec<Option<Done>>, StoreError> {
        let mut all = ApplyHandle::outcomes(self, key, seqs.to_vec()).await?;
        Ok(seqs.iter().map(|seq| all.remove(seq).map(done)).collect())
    }
}
